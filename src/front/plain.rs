//! A plain event request, recognized in the bytes of its header.
//!
//! Plain means: nothing in it could be read in two ways, and nothing in it asks for more than an
//! answer. Whatever is unusual, be it legal or not, is left to Pingora's own path, which decides
//! by the same judge; so this module only ever says "plain" or "not plain", and is free to be
//! strict.

use crate::client::Headers;
use http::Method;
use std::mem::MaybeUninit;

/// Most headers of a plain request: browsers send about fifteen.
pub const HEADERS_MAX: usize = 48;

/// Where the headers of a request are parsed into.
pub type Room<'b> = [MaybeUninit<httparse::Header<'b>>; HEADERS_MAX];

/// Room that nothing was parsed into yet: to fill it for each request would cost more than to read
/// a header.
pub const fn room<'b>() -> Room<'b> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

/// The end of a line; anything else that a lenient reader might take for one is not plain.
const LINE_END: &[u8] = b"\r\n";

/// A request line and headers that hold no surprise.
pub struct Plain<'h, 'b> {
    /// The target, in origin form.
    pub target: &'b [u8],
    /// The headers.
    pub headers: &'h [httparse::Header<'b>],
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
        let named = move |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).map(|header| header.value)
    }

    fn each<'a>(&'a self, mut visit: impl FnMut(&'a str, &'a [u8])) {
        self.headers.iter().for_each(|header| visit(header.name, header.value));
    }
}

/// Recognizes a plain request at the beginning of `bytes`.
pub fn plain<'h, 'b>(bytes: &'b [u8], room: &'h mut Room<'b>) -> Option<Plain<'h, 'b>> {
    if !bytes.starts_with(b"GET /") {
        return None;
    }
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, room).ok()?;
    let httparse::Status::Complete(length) = parsed else { return None };
    let target = request.path?.as_bytes();
    let headers: &'h [httparse::Header<'b>] = request.headers;
    if !is_laid_out(bytes.get(..length)?, target, headers) {
        return None;
    }
    let (mut hosts, mut connections) = (0, 0);
    let (mut accept, mut closes) = (None, false);
    for header in headers {
        match header.name.len() {
            4 if is(header.name, "host") => hosts += 1,
            6 if is(header.name, "accept") => accept = accept.or(Some(header.value)),
            6 if is(header.name, "expect") => return None,
            7 if is(header.name, "upgrade") || is(header.name, "trailer") => return None,
            10 if is(header.name, "connection") => {
                connections += 1;
                closes = header.value.eq_ignore_ascii_case(b"close");
                if !closes && !header.value.eq_ignore_ascii_case(b"keep-alive") {
                    return None;
                }
            }
            14 if is(header.name, "content-length") => return None,
            17 if is(header.name, "transfer-encoding") => return None,
            _ => {}
        }
    }
    // No host, or several, is for Pingora to judge; and so are two wishes for the connection.
    let plain = hosts == 1 && connections <= 1;
    plain.then_some(Plain { target, headers, length, accept, closes })
}

fn is(name: &str, expect: &str) -> bool {
    name.eq_ignore_ascii_case(expect)
}

/// Whether `head` is nothing but the parts that were found in it, with what must stand between
/// them: no bare LF, no line that goes on in the next (obs-fold), no white space but where it
/// belongs. Lengths are enough to tell: a part that was found elsewhere than here leaves a line end
/// within its place here, and so none behind it.
fn is_laid_out(head: &[u8], target: &[u8], headers: &[httparse::Header<'_>]) -> bool {
    let mut layout = Layout { rest: head };
    layout.literal(b"GET ")
        && layout.part(target)
        && layout.literal(b" HTTP/1.1")
        && layout.literal(LINE_END)
        && headers.iter().all(|header| {
            layout.part(header.name.as_bytes())
                && layout.literal(b":")
                && (header.value.is_empty() || layout.value(header.value))
                && layout.literal(LINE_END)
        })
        && layout.rest == LINE_END
}

/// What is left of a header, from part to part.
struct Layout<'a> {
    rest: &'a [u8],
}

impl Layout<'_> {
    fn part(&mut self, part: &[u8]) -> bool {
        let rest = self.rest.get(part.len()..);
        self.rest = rest.unwrap_or_default();
        rest.is_some()
    }

    /// A value, with the space before it that everybody writes, or without.
    fn value(&mut self, value: &[u8]) -> bool {
        self.rest = self.rest.strip_prefix(b" ").unwrap_or(self.rest);
        self.part(value)
    }

    fn literal(&mut self, literal: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(literal);
        self.rest = rest.unwrap_or_default();
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(head: &str) -> bool {
        plain(head.as_bytes(), &mut room()).is_some()
    }

    #[test]
    fn a_browsers_pixel_request_is_plain() {
        let head = "GET /v1/event/?_a=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nAccept: */*\r\n\
                    Connection: Keep-Alive\r\nCookie: c=d\r\nX:y\r\nZ:\r\n\r\n";
        let mut room = room();
        let more = format!("{head}GET /");
        let plain = plain(more.as_bytes(), &mut room).unwrap();
        assert_eq!((plain.length, plain.closes), (head.len(), false));
        assert_eq!(plain.accept, Some(&b"*/*"[..]));
        let closing = head.replace("Keep-Alive", "Close");
        assert!(super::plain(closing.as_bytes(), &mut room).unwrap().closes);
    }

    #[test]
    fn whatever_is_unusual_is_not_plain() {
        for (line, header) in [
            ("POST /v1/event/ HTTP/1.1", ""),
            ("HEAD /v1/event/ HTTP/1.1", ""),
            ("GET /v1/event/ HTTP/1.0", ""),
            ("GET http://a/v1/event/ HTTP/1.1", ""),
            ("GET  /v1/event/ HTTP/1.1", ""),
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
            let is_token = |c: char| c.is_ascii_alphanumeric() || c == '-';
            let name = name.to_lowercase();
            let fits = match name.as_str() {
                "connection" => matches!(&*value.to_lowercase(), "keep-alive" | "close"),
                "content-length" | "transfer-encoding" | "expect" | "upgrade" | "trailer" => false,
                _ => !name.is_empty() && name.chars().all(is_token),
            };
            let odd = |c: char| c.is_control() && c != '\t';
            let lone_space = value.is_empty() && line.ends_with(' ');
            if !fits || lone_space || value != value.trim() || value.contains(odd) {
                return false;
            }
            names.push(name);
        }
        let count = |name: &str| names.iter().filter(|n| *n == name).count();
        target.starts_with('/') && count("host") == 1 && count("connection") <= 1
    }

    const PIECES: [&str; 24] = [
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
            let mut room = room();
            let length = plain(bytes.as_bytes(), &mut room).map(|plain| plain.length);
            let expect = end.filter(|end| naive(&bytes[..*end]));
            proptest::prop_assert_eq!(length, expect, "{:?}", bytes);
        }
    }
}
