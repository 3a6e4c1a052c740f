//! A plain event request, recognized in the bytes of its header.
//!
//! Plain means: nothing in it could be read in two ways, and nothing in it asks for more than an
//! answer. Whatever is unusual, be it legal or not, is left to Pingora's own path, which decides
//! by the same judge; so this module only ever says "plain" or "not plain", and is free to be
//! strict.

use super::head::is_token_byte;
use crate::client::{Headers, token_is};
use http::Method;
use smallvec::SmallVec;

/// Most headers of a plain request: browsers send about fifteen.
pub const HEADERS_MAX: usize = 48;

/// The end of a line; anything else that a lenient reader might take for one is not plain.
const LINE_END: &[u8] = b"\r\n";

/// Whether a byte may stand in a header's name, by its value.
static NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = is_token_byte(byte as u8);
        byte += 1;
    }
    table
};

/// A header: its name, in any case, and its value.
#[derive(Debug, Clone, Copy)]
pub struct Line<'b> {
    name: &'b [u8],
    value: &'b [u8],
}

/// Where the headers of a request are read into.
pub type Lines<'b> = SmallVec<[Line<'b>; HEADERS_MAX]>;

/// A request that holds no surprise.
pub struct Plain<'h, 'b> {
    /// The headers.
    pub headers: &'h [Line<'b>],
    /// Length of the whole header, its empty line included.
    pub length: usize,
    /// The first `Accept`.
    pub accept: Option<&'b [u8]>,
    /// Whether the connection shall end with the answer.
    pub closes: bool,
}

impl Plain<'_, '_> {
    /// The method of every plain request.
    pub const METHOD: Method = Method::GET;
}

impl Headers for Plain<'_, '_> {
    fn lines<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = move |line: &&Line<'_>| line.name.eq_ignore_ascii_case(name.as_bytes());
        self.headers.iter().filter(named).map(|line| line.value)
    }

    fn each<'a>(&'a self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        self.headers.iter().for_each(|line| visit(line.name, line.value));
    }
}

/// The line with which a plain request begins.
pub struct RequestLine<'b> {
    /// The target, in origin form.
    pub target: &'b [u8],
    /// From the line on.
    bytes: &'b [u8],
    /// Behind the line.
    rest: &'b [u8],
}

/// Recognizes the line of a plain request at the beginning of `bytes`.
pub fn request_line(bytes: &[u8]) -> Option<RequestLine<'_>> {
    let (line, rest) = cut(bytes)?;
    let target = line.strip_prefix(b"GET ")?.strip_suffix(b" HTTP/1.1")?;
    let fits = target.first() == Some(&b'/') && memchr::memchr(b' ', target).is_none();
    fits.then_some(RequestLine { target, bytes, rest })
}

/// Recognizes a plain request behind its line. Its headers are read into `lines`, which are empty.
pub fn plain<'h, 'b>(line: RequestLine<'b>, lines: &'h mut Lines<'b>) -> Option<Plain<'h, 'b>> {
    let RequestLine { bytes, mut rest, .. } = line;
    let (mut hosts, mut connections) = (0, 0);
    let (mut accept, mut closes) = (None, false);
    loop {
        let (text, behind) = cut(rest)?;
        rest = behind;
        if text.is_empty() {
            break;
        }
        if lines.len() == HEADERS_MAX {
            return None;
        }
        let line = header_line(text)?;
        lines.push(line);
        match line.name.len() {
            4 if token_is(line.name, b"host") => hosts += 1,
            6 if token_is(line.name, b"accept") => accept = accept.or(Some(line.value)),
            6 if token_is(line.name, b"expect") => return None,
            7 if token_is(line.name, b"upgrade") || token_is(line.name, b"trailer") => return None,
            10 if token_is(line.name, b"connection") => {
                connections += 1;
                closes = token_is(line.value, b"close");
                if !closes && !token_is(line.value, b"keep-alive") {
                    return None;
                }
            }
            14 if token_is(line.name, b"content-length") => return None,
            17 if token_is(line.name, b"transfer-encoding") => return None,
            _ => {}
        }
    }
    let length = bytes.len() - rest.len();
    // Of the request's line, the headers' and the empty one. Nothing else is odd: nothing in a line
    // that a lenient reader might take for its end, nor what servers disagree about.
    let ends = LINE_END.len() * (lines.len() + 2);
    // No host, or several, is for Pingora to judge; and so are two wishes for the connection.
    let plain = hosts == 1 && connections <= 1 && odd_bytes(&bytes[..length]) == ends;
    plain.then_some(Plain { headers: lines, length, accept, closes })
}

/// The first line, without its end, and what stands behind it.
fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((bytes[..end].strip_suffix(b"\r")?, &bytes[end + 1..]))
}

/// Reads a header line, but for odd bytes in its value: a name, a colon, and a value behind one
/// space, as everybody writes it, or behind none. No white space but that around them, so it does
/// not go on with the line before it either (obs-fold).
fn header_line(text: &[u8]) -> Option<Line<'_>> {
    let colon = text.iter().position(|byte| !NAME[usize::from(*byte)])?;
    let (name, value) = (&text[..colon], &text[colon + 1..]);
    let value = match value {
        [b' ', value @ ..] if !value.is_empty() => value,
        value => value,
    };
    let fits = text[colon] == b':'
        && !name.is_empty()
        && value.first() != Some(&b' ')
        && value.last() != Some(&b' ');
    fits.then_some(Line { name, value })
}

/// How many bytes are not printable ASCII. Sixty-four at a time: without an early end the compiler
/// compares many at once.
fn odd_bytes(bytes: &[u8]) -> usize {
    let is_odd = |byte: &u8| u8::from(!matches!(byte, b' '..=b'~'));
    let count = |block: &[u8; 64]| usize::from(block.iter().map(is_odd).sum::<u8>());
    let (blocks, rest) = bytes.as_chunks();
    let mut last = [b' '; 64];
    last[..rest.len()].copy_from_slice(rest);
    blocks.iter().map(count).sum::<usize>() + count(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain<'h, 'b>(bytes: &'b [u8], lines: &'h mut Lines<'b>) -> Option<Plain<'h, 'b>> {
        super::plain(request_line(bytes)?, lines)
    }

    fn is_plain(head: &str) -> bool {
        plain(head.as_bytes(), &mut Lines::new()).is_some()
    }

    #[test]
    fn a_browsers_pixel_request_is_plain() {
        let head = "GET /v1/event/?_a=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nAccept: */*\r\n\
                    Connection: Keep-Alive\r\nCookie: c=d\r\nX:y\r\nZ:\r\n\r\n";
        let more = format!("{head}GET /");
        let mut lines = Lines::new();
        let request = plain(more.as_bytes(), &mut lines).unwrap();
        assert_eq!((request.length, request.closes), (head.len(), false));
        assert_eq!(request.accept, Some(&b"*/*"[..]));
        let closing = head.replace("Keep-Alive", "Close");
        assert!(plain(closing.as_bytes(), &mut Lines::new()).unwrap().closes);
    }

    #[test]
    fn whatever_is_unusual_is_not_plain() {
        for (line, header) in [
            ("POST /v1/event/ HTTP/1.1", ""),
            ("HEAD /v1/event/ HTTP/1.1", ""),
            ("GET /v1/event/ HTTP/1.0", ""),
            ("GET http://a/v1/event/ HTTP/1.1", ""),
            ("GET  /v1/event/ HTTP/1.1", ""),
            ("GET /v1/event/?_n=a b HTTP/1.1", ""),
            ("GET /v1/event/?_n=\x7F HTTP/1.1", ""),
            ("GET /v1/event/?_n=\u{e9} HTTP/1.1", ""),
            ("GET /v1/event/", ""),
            ("GET /v1/event/ HTTP/1.1", "Host: b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Content-Length: 0\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Transfer-Encoding: chunked\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Expect: 100-continue\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Upgrade: websocket\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: keep-alive, upgrade\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: close\r\nConnection: close\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: close\r\nConnection: keep-alive\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\r\n b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection:\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: closed\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: close, close\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\r\n\tb\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X:\r\n b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\rY: b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\nY: b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\r\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\0\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\tb\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\x7F\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: \u{e9}\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X:  a\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X:\ta\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a \r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: \r\n"),
            ("GET /v1/event/ HTTP/1.1", "X : a\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X\r\n"),
        ] {
            assert!(!is_plain(&format!("{line}\r\nHost: a\r\n{header}\r\n")), "{line} {header:?}");
        }
        assert!(!is_plain("GET /v1/event/ HTTP/1.1\r\nX: a\r\n\r\n"), "no host");
        for bare in
            ["\nHost: a\r\n\r\n", "\r\nHost: a\n\r\n", "\r\nHost: a\r\n\n", "\r\nHost: a\n\n"]
        {
            assert!(!is_plain(&format!("GET / HTTP/1.1{bare}")), "{bare:?}");
        }
        let whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!((0..whole.len()).all(|cut| !is_plain(&whole[..cut])) && is_plain(whole), "a part");
        let many = "X: a\r\n".repeat(HEADERS_MAX);
        assert!(!is_plain(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), "too many");
        let most = "X: a\r\n".repeat(HEADERS_MAX - 1);
        assert!(is_plain(&format!("GET / HTTP/1.1\r\nHost: a\r\n{most}\r\n")), "as many as may be");
    }

    /// The same question, asked of each line.
    fn naive(head: &str) -> bool {
        let Some(lines) = head.strip_suffix("\r\n\r\n") else { return false };
        let mut lines = lines.split("\r\n");
        let request: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let ["GET", target, "HTTP/1.1"] = request[..] else { return false };
        let mut names = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { return false };
            let value = value.strip_prefix(' ').unwrap_or(value);
            let token_is = |c: char| c.is_ascii_alphanumeric() || c == '-';
            let name = name.to_lowercase();
            let fits = match name.as_str() {
                "connection" => matches!(&*value.to_lowercase(), "keep-alive" | "close"),
                "content-length" | "transfer-encoding" | "expect" | "upgrade" | "trailer" => false,
                _ => !name.is_empty() && name.chars().all(token_is),
            };
            let odd = |c: char| !matches!(c, ' '..='~');
            let lone_space = value.is_empty() && line.ends_with(' ');
            if !fits || lone_space || value != value.trim() || value.contains(odd) {
                return false;
            }
            names.push(name);
        }
        let count = |name: &str| names.iter().filter(|n| *n == name).count();
        let visible = target.chars().all(|c| c.is_ascii_graphic());
        target.starts_with('/') && visible && count("host") == 1 && count("connection") <= 1
    }

    const PIECES: [&str; 25] = [
        "GET ",
        "/v1/event/?_a=1",
        " HTTP/1.1",
        "\r\n",
        "\r\n",
        "\r\n",
        "Host: a",
        "Host: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        "X: y",
        "X:y\r\n",
        "Z:\r\n",
        "Connection: close\r\n",
        "connection: Keep-Alive\r\n",
        "Content-Length: 1\r\n",
        "Expect: x",
        "\0",
        "\x7F",
        "\u{e9}",
    ];

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config {
            cases: 20_000,
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn what_is_plain_is_plain_to_whoever_reads_line_by_line(
            places in proptest::collection::vec(0..PIECES.len(), 0..12),
            begins_well: bool,
        ) {
            let begin = if begins_well { "GET / HTTP/1.1\r\nHost: a\r\n" } else { "" };
            let bytes = places.iter().fold(begin.to_owned(), |all, place| all + PIECES[*place]);
            let mut searched = 0;
            let end = super::super::head::end_of_head(bytes.as_bytes(), &mut searched);
            let length = plain(bytes.as_bytes(), &mut Lines::new()).map(|plain| plain.length);
            let expect = end.filter(|end| naive(&bytes[..*end]));
            proptest::prop_assert_eq!(length, expect, "{:?}", bytes);
        }
    }
}
