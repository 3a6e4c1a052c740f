//! Parses a fast-path event request from the bytes of its header.
//!
//! A fast-path request is a `GET` that no two readers could understand differently and that asks
//! for nothing but a response. Every other request, legal or not, takes Pingora's path, where the
//! same judge decides. So this parser may refuse anything unusual.
//!
//! It shares [`Target`] with the other readers of a request, and no code with the strict check of
//! `http1/header_check`, which costs several times the instructions. A test holds that each request
//! that is taken here passes that check, with the same target and without a body. So such a request
//! that is not an event is passed on without that check.

use crate::request::client::{Headers, token_is};
use crate::request::context::ContextHeaders;
use crate::request::simd;
use crate::request::simd::Block;
use crate::request::target::Target;
use crate::server::http1::target::fits_pingora;
use http::Method;
use std::ops::Range;

/// The only accepted line end.
const LINE_END: &[u8] = b"\r\n";
/// What precedes the target, and what follows it.
const METHOD: &[u8] = b"GET ";
const VERSION: &[u8] = b" HTTP/1.1\r\n";

/// A parsed fast-path request.
pub struct FastRequest<'b> {
    /// Its header lines, each with its line end.
    lines: &'b [u8],
    /// The number of header lines.
    pub count: usize,
    /// The length of the whole header in bytes, its empty line included.
    pub length: usize,
    /// The header fields of the event's context.
    pub seen: ContextHeaders<'b>,
    /// The value of the only `Accept` line.
    pub accept: Option<&'b [u8]>,
    /// Whether the client sent `Connection: close`.
    pub closes: bool,
}

impl<'b> FastRequest<'b> {
    /// The method of every fast-path request.
    pub const METHOD: Method = Method::GET;

    /// Parses the header lines after the request line. `None`: not a fast-path request, or not
    /// whole yet.
    pub fn parse(line: RequestLine<'b>) -> Option<Self> {
        let bytes = line.bytes;
        let mut at = line.end;
        let (mut count, mut hosts, mut connections) = (0, 0, 0);
        // The loop takes lines of printable ASCII only.
        let mut seen = ContextHeaders::of_printable();
        let (mut accept, mut closes) = (None, false);
        loop {
            let text = at..simd::find(bytes, at, is_not_printable)?;
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
                4 if token_is(name, b"host") => {
                    hosts += 1;
                    is_plain_host(value).then_some(())?;
                }
                // Several lines are left to Pingora.
                6 if token_is(name, b"accept") => {
                    accept.replace(value).is_none().then_some(())?;
                }
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
                // Some servers cannot tell these names from the two above, as the strict check
                // says.
                14 if name.eq_ignore_ascii_case(b"content_length") => return None,
                17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return None,
                _ => seen.note(name, value),
            }
        }
        // Other counts of `Host` and `Connection` are left to Pingora.
        if hosts != 1 || connections > 1 {
            return None;
        }
        let lines = &bytes[line.end..at - LINE_END.len()];
        Some(Self { lines, count, length: at, seen, accept, closes })
    }
}

impl Headers for FastRequest<'_> {
    fn lines<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let is_named = move |line: &&[u8]| {
            line.get(name.len()) == Some(&b':')
                && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        };
        let value = |line: &'a [u8]| Some(header_line(line, 0..line.len())?.1);
        HeaderLines { rest: self.lines }.filter(is_named).filter_map(value)
    }
}

/// The header lines of a fast-path request from either end, without their line ends. The search for
/// line ends is what costs, so it does not go byte by byte.
struct HeaderLines<'b> {
    rest: &'b [u8],
}

impl<'b> Iterator for HeaderLines<'b> {
    type Item = &'b [u8];

    fn next(&mut self) -> Option<&'b [u8]> {
        let end = memchr::memchr(b'\n', self.rest)?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

impl DoubleEndedIterator for HeaderLines<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let line = self.rest.strip_suffix(LINE_END)?;
        let start = memchr::memrchr(b'\n', line).map_or(0, |before| before + 1);
        self.rest = &self.rest[..start];
        Some(&line[start..])
    }
}

/// The request line of a possible fast-path request.
pub struct RequestLine<'b> {
    /// The target, split.
    pub target: Target<'b>,
    /// All bytes, from the request line on.
    bytes: &'b [u8],
    /// Where the request line ends in `bytes`, its line end included.
    end: usize,
}

impl RequestLine<'_> {
    /// Whether Pingora reads the target as it is.
    pub fn fits_pingora(&self) -> bool {
        fits_pingora(&self.bytes[METHOD.len()..self.end - VERSION.len()])
    }
}

/// Parses the request line at the beginning of `bytes`: `GET`, a target in origin form without a
/// fragment, and HTTP/1.1. `None`: not a fast-path request.
pub fn request_line(bytes: &[u8]) -> Option<RequestLine<'_>> {
    let target = bytes.strip_prefix(METHOD)?;
    let is_end = |bytes: Block| bytes.are_outside(b'!', b'~').or(bytes.are(b'#'));
    let (target, rest) = target.split_at(simd::find(target, 0, is_end)?);
    let end = bytes.len() - rest.strip_prefix(VERSION)?.len();
    Some(RequestLine { target: Target::of_path(target)?, bytes, end })
}

/// Splits the header line at `text` into name and value: a name, a colon, at most one space, and a
/// value without white space around it. A folded line (obs-fold) is refused: no name begins with
/// white space.
#[inline(always)]
fn header_line(bytes: &[u8], text: Range<usize>) -> Option<(&[u8], &[u8])> {
    // A line end is not a name byte either.
    let name_end = simd::find(bytes, text.start, is_not_name).unwrap_or(text.end);
    let name = &bytes[text.start..name_end];
    let value = match bytes[name_end..text.end].strip_prefix(b":")? {
        [b' ', value @ ..] if !value.is_empty() => value,
        value => value,
    };
    let fits = !name.is_empty() && !matches!(value, [b' ', ..] | [.., b' ']);
    fits.then_some((name, value))
}

/// Marks bytes that are not printable ASCII; the first one must be the line end. So a line holds no
/// byte that a lenient reader might take for a line end, or about which servers disagree.
#[inline(always)]
fn is_not_printable(bytes: Block) -> Block {
    bytes.are_outside(b' ', b'~')
}

/// Marks bytes that end a header name: all but letters, digits, `-` and `_`. RFC 9110, section
/// 5.6.2 allows more, but names in use have no others.
#[inline(always)]
fn is_not_name(bytes: Block) -> Block {
    let no_letter = bytes.to_lower_case().are_outside(b'a', b'z');
    let no_digit = bytes.are_outside(b'0', b'9');
    no_letter.and(no_digit).and(bytes.are_not(b'-')).and(bytes.are_not(b'_'))
}

/// Whether a host is a name or an IPv4 address with an optional port. Others, valid or not, are
/// left to the header check.
#[inline(always)]
fn is_plain_host(host: &[u8]) -> bool {
    let is_not_host = |bytes: Block| is_not_name(bytes).and(bytes.are_not(b'.'));
    match simd::find(host, 0, is_not_host) {
        None => !host.is_empty(),
        Some(end) => end > 0 && host[end] == b':' && host[end + 1..].iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http1::body::Body;
    use crate::server::http1::header_check::{Upgrade, check_header, end_of_head};

    fn parse(bytes: &[u8]) -> Option<FastRequest<'_>> {
        FastRequest::parse(request_line(bytes)?)
    }

    fn is_fast(head: &str) -> bool {
        parse(head.as_bytes()).is_some()
    }

    #[test]
    fn a_browsers_pixel_request_is_accepted() {
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
    fn an_unusual_request_is_refused() {
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
            ("GET /v1/event/ HTTP/1.1", "Content_Length: 0\r\n"),
            ("GET /v1/event/ HTTP/1.1", "transfer_encoding: chunked\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Expect: 100-continue\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Accept: a/b\r\nAccept: c/d\r\n"),
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
            assert!(!is_fast(&format!("{line}\r\nHost: a\r\n{header}\r\n")), "{line} {header:?}");
        }
        assert!(!is_fast("GET /v1/event/ HTTP/1.1\r\nX: a\r\n\r\n"), "no host");
        for (host, expect) in [
            ("a", true),
            ("Edge-1_x.test:8443", true),
            ("1.2.3.4:", true),
            ("", false),
            (":80", false),
            ("a:8x", false),
            ("[::1]", false),
            ("{a}", false),
            ("a,b", false),
            ("a b", false),
        ] {
            let head = format!("GET /v1/event/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(is_fast(&head), expect, "{host:?}");
        }
        for bare in
            ["\nHost: a\r\n\r\n", "\r\nHost: a\n\r\n", "\r\nHost: a\r\n\n", "\r\nHost: a\n\n"]
        {
            assert!(!is_fast(&format!("GET / HTTP/1.1{bare}")), "{bare:?}");
        }
        let whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!((0..whole.len()).all(|cut| !is_fast(&whole[..cut])) && is_fast(whole), "a part");
    }

    #[test]
    fn lines_of_one_name_are_found_in_their_order_and_all_are_counted() {
        let head = "GET / HTTP/1.1\r\nX-Forwarded-For: a\r\nHost: a\r\nx-forwarded-for:b, c\r\n\
                    X-Forwarded-Fo: d\r\nX-FORWARDED-FOR:\r\n\r\nX-Forwarded-For: e\r\n";
        let request = parse(head.as_bytes()).unwrap();
        let found: Vec<_> = request.lines("x-forwarded-for").collect();
        assert_eq!((request.count, &found[..]), (5, &[&b"a"[..], b"b, c", b""][..]));
        let mut from_the_end: Vec<_> = request.lines("x-forwarded-for").rev().collect();
        from_the_end.reverse();
        assert_eq!(from_the_end, found);
        let mut lines = request.lines("x-forwarded-for");
        let ends = (lines.next_back(), lines.next(), lines.next_back(), lines.next());
        assert_eq!(ends, (Some(&b""[..]), Some(&b"a"[..]), Some(&b"b, c"[..]), None));
    }

    /// The same decision by a naive parser that reads line by line.
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
                "content_length" | "transfer_encoding" => false,
                "host" => {
                    let (host, port) = value.split_once(':').unwrap_or((value, ""));
                    let in_host = |c: char| in_a_name(c) || c == '.';
                    let digits = port.bytes().all(|b| b.is_ascii_digit());
                    !host.is_empty() && host.chars().all(in_host) && digits
                }
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

    const PIECES: [&str; 32] = [
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
        "Content_Length: 1\r\n",
        "Transfer_Encoding: x\r\n",
        "GET /<?\"`> HTTP/1.1\r\n",
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
        fn what_is_fast_is_fast_to_a_reader_by_lines_and_passes_the_strict_check(
            places in proptest::collection::vec(0..PIECES.len(), 0..12),
            begins_well: bool,
        ) {
            let begin = if begins_well { "GET /?a=? HTTP/1.1\r\nHost: a\r\n" } else { "" };
            let bytes = places.iter().fold(begin.to_owned(), |all, place| all + PIECES[*place]);
            let mut searched = 0;
            let end = end_of_head(bytes.as_bytes(), &mut searched);
            let length = parse(bytes.as_bytes()).map(|request| request.length);
            let expect = end.filter(|end| naive(&bytes[..*end]));
            proptest::prop_assert_eq!(length, expect, "{:?}", bytes);
            if let Some(length) = length {
                let checked = check_header(&bytes.as_bytes()[..length], PIECES.len()).unwrap();
                let line = request_line(bytes.as_bytes()).unwrap();
                proptest::prop_assert_eq!(checked.body, Body::Length(0));
                proptest::prop_assert_eq!(checked.upgrade, Upgrade::None);
                if line.fits_pingora() {
                    let changed = checked.for_pingora(&bytes.as_bytes()[..length]);
                    proptest::prop_assert!(changed.is_none());
                    proptest::prop_assert_eq!(Target::split(&checked.target.text), line.target);
                }
            }
            if let Some(line) = request_line(bytes.as_bytes()) {
                let target = bytes.split(' ').nth(1).unwrap();
                proptest::prop_assert_eq!(line.target, Target::split(target.as_bytes()));
            }
        }
    }
}
