//! A plain event request, recognized in the bytes of its header.
//!
//! Plain means: nothing in it could be read in two ways, and nothing in it asks for more than an
//! answer. Whatever is unusual, be it legal or not, is left to Pingora's own path, which decides
//! by the same judge; so this module only ever says "plain" or "not plain", and is free to be
//! strict.

use crate::request::client::{Headers, token_is};
use crate::request::context::Seen;
use crate::request::simd;
use crate::request::simd::Lanes;
use crate::request::target::Target;
use http::Method;
use std::ops::Range;

/// The end of a line; anything else that a lenient reader might take for one is not plain.
const LINE_END: &[u8] = b"\r\n";
/// What stands behind a target.
const VERSION: &[u8] = b" HTTP/1.1\r\n";

/// A request that holds no surprise.
pub struct FastRequest<'b> {
    /// Its header lines, each with its end.
    lines: &'b [u8],
    /// How many these are.
    pub count: usize,
    /// Length of the whole header, its empty line included.
    pub length: usize,
    /// What the lines say of its context.
    pub seen: Seen<'b>,
    /// The first `Accept`.
    pub accept: Option<&'b [u8]>,
    /// Whether the connection shall end with the answer.
    pub closes: bool,
}

impl<'b> FastRequest<'b> {
    /// The method of every plain request.
    pub const METHOD: Method = Method::GET;

    /// Recognizes a plain request behind its line.
    pub fn parse(line: RequestLine<'b>) -> Option<Self> {
        let bytes = line.bytes;
        let mut at = line.end;
        let (mut count, mut hosts, mut connections) = (0, 0, 0);
        let (mut seen, mut accept, mut closes) = (Seen::default(), None, false);
        loop {
            let text = at..simd::find(bytes, at, is_odd)?;
            if !bytes[text.end..].starts_with(LINE_END) {
                return None;
            }
            at = text.end + LINE_END.len();
            if text.is_empty() {
                break;
            }
            count += 1;
            let (name, value) = header_line(bytes, text)?;
            match name.len() {
                4 if token_is(name, b"host") => hosts += 1,
                6 if token_is(name, b"accept") => accept = accept.or(Some(value)),
                6 if token_is(name, b"expect") => return None,
                7 if token_is(name, b"upgrade") || token_is(name, b"trailer") => return None,
                10 if token_is(name, b"connection") => {
                    connections += 1;
                    closes = token_is(value, b"close");
                    if !closes && !token_is(value, b"keep-alive") {
                        return None;
                    }
                }
                14 if token_is(name, b"content-length") => return None,
                17 if token_is(name, b"transfer-encoding") => return None,
                _ => seen.note(name, value),
            }
        }
        // No host, or several, is for Pingora to judge; and so are two wishes for the connection.
        if hosts != 1 || connections > 1 {
            return None;
        }
        let lines = &bytes[line.end..at - LINE_END.len()];
        Some(Self { lines, count, length: at, seen, accept, closes })
    }
}

impl Headers for FastRequest<'_> {
    fn lines<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let lines = self.lines.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| header_line(line, 0..line.len().checked_sub(1)?));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|line| line.1)
    }
}

/// The line with which a plain request begins.
pub struct RequestLine<'b> {
    /// The parts of its target.
    pub target: Target<'b>,
    /// From the line on.
    bytes: &'b [u8],
    /// Where it ends.
    end: usize,
}

/// Recognizes the line of a plain request at the beginning of `bytes`. Its target is in origin
/// form and has no fragment.
pub fn request_line(bytes: &[u8]) -> Option<RequestLine<'_>> {
    let target = bytes.strip_prefix(b"GET ")?;
    let is_end = |bytes: Lanes| bytes.are_outside(b'!', b'~').or(bytes.are(b'#'));
    let (target, rest) = target.split_at(simd::find(target, 0, is_end)?);
    let end = bytes.len() - rest.strip_prefix(VERSION)?.len();
    Some(RequestLine { target: Target::of_path(target)?, bytes, end })
}

/// Reads the header line at `text`, into name and value: a name, a colon, and a value behind one
/// space, as everybody writes it, or behind none. No white space but that around them, so it does
/// not go on with the line before it either (obs-fold).
#[inline(always)]
fn header_line(bytes: &[u8], text: Range<usize>) -> Option<(&[u8], &[u8])> {
    // What ends a line ends a name.
    let name_end = simd::find(bytes, text.start, is_no_name).unwrap_or(text.end);
    let name = &bytes[text.start..name_end];
    let value = match bytes[name_end..text.end].strip_prefix(b":")? {
        [b' ', value @ ..] if !value.is_empty() => value,
        value => value,
    };
    let fits = !name.is_empty() && !matches!(value, [b' ', ..] | [.., b' ']);
    fits.then_some((name, value))
}

/// Which bytes end a line: those that are no printable ASCII. Nothing in a line is so what a
/// lenient reader might take for its end, nor what servers disagree about.
#[inline(always)]
fn is_odd(bytes: Lanes) -> Lanes {
    bytes.are_outside(b' ', b'~')
}

/// Which bytes end the name of a header: any that is not in a name that somebody uses. More are
/// allowed (RFC 9110, section 5.6.2).
#[inline(always)]
fn is_no_name(bytes: Lanes) -> Lanes {
    let no_letter = bytes.to_lower_case().are_outside(b'a', b'z');
    let no_digit = bytes.are_outside(b'0', b'9');
    no_letter.and(no_digit).and(bytes.are_not(b'-')).and(bytes.are_not(b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Option<FastRequest<'_>> {
        FastRequest::parse(request_line(bytes)?)
    }

    fn is_plain(head: &str) -> bool {
        parse(head.as_bytes()).is_some()
    }

    #[test]
    fn a_browsers_pixel_request_is_plain() {
        let head = "GET /v1/event/?_a=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nAccept: */*\r\n\
                    Connection: Keep-Alive\r\nCookie: c=d\r\nX:y\r\nZ:\r\n\r\n";
        let more = format!("{head}GET /");
        let request = parse(more.as_bytes()).unwrap();
        assert_eq!((request.length, request.closes), (head.len(), false));
        assert_eq!(request.accept, Some(&b"*/*"[..]));
        let closing = head.replace("Keep-Alive", "Close");
        assert!(parse(closing.as_bytes()).unwrap().closes);
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
            ("GET /v1/event/?_n=a#b HTTP/1.1", ""),
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
    }

    #[test]
    fn lines_of_one_name_are_found_in_their_order_and_all_are_counted() {
        let head = "GET / HTTP/1.1\r\nX-Forwarded-For: a\r\nHost: a\r\nx-forwarded-for:b, c\r\n\
                    X-Forwarded-Fo: d\r\nX-FORWARDED-FOR:\r\n\r\nX-Forwarded-For: e\r\n";
        let request = parse(head.as_bytes()).unwrap();
        let found: Vec<_> = request.lines("x-forwarded-for").collect();
        assert_eq!((request.count, found), (5, vec![&b"a"[..], b"b, c", b""]));
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
            let in_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            let name = name.to_lowercase();
            let fits = match name.as_str() {
                "connection" => matches!(&*value.to_lowercase(), "keep-alive" | "close"),
                "content-length" | "transfer-encoding" | "expect" | "upgrade" | "trailer" => false,
                _ => !name.is_empty() && name.chars().all(in_a_name),
            };
            let odd = |c: char| !matches!(c, ' '..='~');
            let lone_space = value.is_empty() && line.ends_with(' ');
            if !fits || lone_space || value != value.trim() || value.contains(odd) {
                return false;
            }
            names.push(name);
        }
        let count = |name: &str| names.iter().filter(|n| *n == name).count();
        let visible = target.chars().all(|c| c.is_ascii_graphic() && c != '#');
        target.starts_with('/') && visible && count("host") == 1 && count("connection") <= 1
    }

    const PIECES: [&str; 29] = [
        "GET ",
        "/v1/event/?_a=1",
        "GET /v1/event/?_a=1?#b HTTP/1.1\r\n",
        "GET /?a?b HTTP/1.1\r\n",
        "#",
        "X_y: z\r\n",
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
            let begin = if begins_well { "GET /?a=? HTTP/1.1\r\nHost: a\r\n" } else { "" };
            let bytes = places.iter().fold(begin.to_owned(), |all, place| all + PIECES[*place]);
            let mut searched = 0;
            let end = crate::server::http1::header_check::end_of_head(bytes.as_bytes(), &mut searched);
            let length = parse(bytes.as_bytes()).map(|request| request.length);
            let expect = end.filter(|end| naive(&bytes[..*end]));
            proptest::prop_assert_eq!(length, expect, "{:?}", bytes);
            if let Some(line) = request_line(bytes.as_bytes()) {
                let target = bytes.split(' ').nth(1).unwrap();
                proptest::prop_assert_eq!(line.target, Target::split(target.as_bytes()));
            }
        }
    }
}
