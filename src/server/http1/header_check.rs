//! Finds the end of a request's header and checks its framing.
//!
//! If two parties disagree about where a request ends, one client's bytes become another client's
//! request (request smuggling). So a header is handed on only if it follows the strict grammar of
//! RFC 9112. Everything that a lenient reader might forgive is refused here, before Pingora or an
//! origin sees it. The fast path has a parser of its own (`fast_path/request`): it works on SIMD
//! lanes, accepts only a subset of `GET` requests, and never hands a header on.

use super::body::Body;
use super::grammar::{is_token, is_value};
use super::target::{Target, is_host};
use bytes::BytesMut;
use std::ops::Range;

/// The longest method, in bytes. The longest registered method has 17.
pub const METHOD_BYTES_MAX: usize = 32;
/// The most digits of a `Content-Length`; every such value fits in 64 bits.
const LENGTH_DIGITS_MAX: usize = 18;

/// Length in bytes of the empty lines before a request line; they are skipped (RFC 9112,
/// section 2.2).
pub fn empty_lines(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count()
}

/// The header's length in bytes, its empty line included. A line may end in a bare LF here, since a
/// lenient reader stops there; [`check_header`] refuses it. `searched` stores how far earlier calls
/// looked, so that each byte of a header that arrives in pieces is searched once.
pub fn end_of_head(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    let mut from = searched.saturating_sub(3);
    while let Some(at) = memchr::memchr(b'\n', &bytes[from..]) {
        let line_end = from + at + 1;
        match bytes[line_end..] {
            [b'\n', ..] => return Some(line_end + 1),
            [b'\r', b'\n', ..] => return Some(line_end + 2),
            _ => from = line_end,
        }
    }
    *searched = bytes.len();
    None
}

/// A header that every party reads alike.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckedHeader<'h> {
    /// The target, in the form that Pingora reads.
    pub target: Target<'h>,
    /// Where the target as received stands in the header.
    target_at: Range<usize>,
    /// Whether a `Host` line is there; HTTP/1.0 needs none.
    has_host: bool,
    /// How the body ends.
    pub body: Body,
    /// The protocol to which the client wants to change.
    pub upgrade: Upgrade,
}

/// The protocol of an `Upgrade` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    None,
    WebSocket,
    /// Any protocol but WebSocket. It is removed: see [`CheckedHeader::for_pingora`].
    Foreign,
}

/// Why a header is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The header violates the grammar, or two parties could read it differently.
    Syntax,
    /// The header has more lines than allowed.
    Lines,
}

/// What the lines read so far contain.
#[derive(Default)]
struct SeenLines<'h> {
    hosts: usize,
    host: &'h [u8],
    lengths: usize,
    length: u64,
    codings: usize,
    upgrades: bool,
    websocket: bool,
}

/// Checks a whole header, its empty line included, by the strict grammar. It may have at most
/// `lines_max` lines besides the request line.
pub fn check_header(head: &[u8], lines_max: usize) -> Result<CheckedHeader<'_>, HeaderError> {
    let lines = head.strip_suffix(b"\r\n").filter(|lines| lines.ends_with(b"\r\n"));
    let lines = lines.ok_or(HeaderError::Syntax)?;
    if memchr::memchr_iter(b'\n', lines).count() > lines_max + 1 {
        return Err(HeaderError::Lines);
    }
    let mut from = 0;
    let mut lines = memchr::memchr_iter(b'\n', lines).map(|end| {
        let line = lines[from..end].strip_suffix(b"\r").ok_or(HeaderError::Syntax);
        from = end + 1;
        line
    });
    let line = lines.next().ok_or(HeaderError::Syntax)??;
    let request = request_line(line).ok_or(HeaderError::Syntax)?;
    let mut seen = SeenLines::default();
    for line in lines {
        header_line(line?, &request, &mut seen).ok_or(HeaderError::Syntax)?;
    }
    checked(request, &seen).ok_or(HeaderError::Syntax)
}

/// The checks that need all lines.
fn checked<'h>(request: RequestLine<'h>, seen: &SeenLines<'_>) -> Option<CheckedHeader<'h>> {
    let host_count = if request.version_1_1 { 1..=1 } else { 0..=1 };
    if !host_count.contains(&seen.hosts) || seen.lengths + seen.codings > 1 {
        return None;
    }
    let target = Target::read(request.method, request.target)?;
    let has_host = seen.hosts == 1;
    if has_host && !target.fits(seen.host) {
        return None;
    }
    let target_from = request.method.len() + 1;
    let body = if seen.codings == 1 { Body::CHUNKED } else { Body::Length(seen.length) };
    let upgrade = match (seen.upgrades, seen.websocket) {
        (false, _) => Upgrade::None,
        (true, true) => Upgrade::WebSocket,
        (true, false) => Upgrade::Foreign,
    };
    let target_at = target_from..target_from + request.target.len();
    Some(CheckedHeader { target, target_at, has_host, body, upgrade })
}

impl CheckedHeader<'_> {
    /// The header for Pingora. `None`: it is the same as `head`, the received header that was
    /// checked.
    ///
    /// The target is replaced by [`Target::text`], and a `Host` line takes up a host that only the
    /// target named. An upgrade to a protocol other than WebSocket is removed with its settings:
    /// an origin that accepted `h2c` would open a tunnel through which requests bypass the judge,
    /// and a server may always ignore an upgrade (RFC 9110, section 7.8).
    pub fn for_pingora(&self, head: &[u8]) -> Option<BytesMut> {
        let names_host = self.target.authority.filter(|_| !self.has_host);
        let is_foreign = self.upgrade == Upgrade::Foreign;
        let Range { start, end } = self.target_at;
        if !is_foreign && names_host.is_none() && head[start..end] == *self.target.text {
            return None;
        }
        let mut changed = BytesMut::with_capacity(head.len() + self.target.text.len());
        changed.extend_from_slice(&head[..start]);
        changed.extend_from_slice(&self.target.text);
        let mut lines = head[end..].split_inclusive(|&b| b == b'\n');
        // The rest of the request line.
        changed.extend_from_slice(lines.next().unwrap_or_default());
        if let Some(host) = names_host {
            changed.extend_from_slice(&[b"Host: ", host, b"\r\n"].concat());
        }
        for line in lines {
            let name = line.split(|&b| b == b':').next().unwrap_or_default();
            let is_upgrade = [&b"upgrade"[..], b"http2-settings"]
                .iter()
                .any(|upgrade| name.eq_ignore_ascii_case(upgrade));
            if !(is_foreign && is_upgrade) {
                changed.extend_from_slice(line);
            }
        }
        Some(changed)
    }
}

/// The words of a request line.
struct RequestLine<'h> {
    method: &'h [u8],
    target: &'h [u8],
    version_1_1: bool,
}

/// Parses `method SP target SP version` (RFC 9112, section 3) with no other white space.
fn request_line(line: &[u8]) -> Option<RequestLine<'_>> {
    let mut words = line.split(|&b| b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let method_fits = (1..=METHOD_BYTES_MAX).contains(&method.len()) && is_token(method);
    // Bytes above ASCII end no target.
    let target_fits = target.iter().all(|&b| b > b' ' && b != 0x7f);
    if words.next().is_some() || !method_fits || !target_fits {
        return None;
    }
    let version_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    Some(RequestLine { method, target, version_1_1 })
}

/// Checks `name ":" value` (RFC 9112, section 5) and notes fields that matter for framing.
fn header_line<'h>(
    line: &'h [u8],
    request: &RequestLine<'_>,
    seen: &mut SeenLines<'h>,
) -> Option<()> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
    // This refuses folded lines and white space before the colon: a token holds no white space.
    if name.is_empty() || !is_token(name) || !is_value(value) {
        return None;
    }
    let is = |expect: &str| name.eq_ignore_ascii_case(expect.as_bytes());
    match name.len() {
        4 if is("host") => {
            seen.hosts += 1;
            seen.host = value;
            is_host(value).then_some(())?;
        }
        7 if is("upgrade") => {
            seen.websocket = !seen.upgrades && value.eq_ignore_ascii_case(b"websocket");
            seen.upgrades = true;
        }
        14 if is("content-length") => {
            seen.lengths += 1;
            seen.length = length(value)?;
        }
        17 if is("transfer-encoding") => {
            seen.codings += 1;
            (request.version_1_1 && value.eq_ignore_ascii_case(b"chunked")).then_some(())?;
        }
        // A CGI server cannot tell these from the two above: it maps `-` to `_`.
        14 if is("content_length") => return None,
        17 if is("transfer_encoding") => return None,
        _ => {}
    }
    Some(())
}

/// The value without spaces and tabs around it.
pub fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The value of a `Content-Length`: digits alone.
pub fn length(value: &[u8]) -> Option<u64> {
    if !(1..=LENGTH_DIGITS_MAX).contains(&value.len()) {
        return None;
    }
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    value.iter().try_fold(0, |length, byte| Some(length * 10 + digit(byte)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(bytes: &[u8]) -> Option<usize> {
        end_of_head(bytes, &mut 0)
    }

    #[test]
    fn a_header_ends_with_its_empty_line() {
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(27));
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r\nGET "), Some(18));
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n"), Some(24));
        assert_eq!(empty_lines(b"\r\n\nGET / HTTP/1.1\r\n\r\n"), 3);
        for partial in [&b""[..], b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r"] {
            assert_eq!(end(partial), None);
        }
    }

    #[test]
    fn a_header_is_found_however_it_is_cut() {
        let whole = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX: \r y\r\n\r\n";
        for cut in 0..whole.len() {
            let mut searched = 0;
            assert_eq!(end_of_head(&whole[..cut], &mut searched), None, "cut at {cut}");
            assert_eq!(end_of_head(whole, &mut searched), Some(whole.len()), "cut at {cut}");
        }
    }

    /// What Pingora gets of a header, and how its body ends.
    fn check(line: &str, headers: &str) -> Result<(String, Body), HeaderError> {
        let head = format!("{line}\r\n{headers}\r\n").into_bytes();
        let checked = check_header(&head, 8)?;
        let given = checked.for_pingora(&head).unwrap_or(BytesMut::from(&head[..]));
        let body = checked.body;
        Ok((String::from_utf8(given.to_vec()).unwrap(), body))
    }

    #[test]
    fn a_body_is_as_long_as_the_header_says() {
        let check = |line: &str, headers: &str, expect: Body| {
            assert_eq!(check(line, headers).unwrap().1, expect, "{line} {headers:?}");
        };
        let host = "Host: a\r\n";
        check("GET / HTTP/1.1", host, Body::Length(0));
        check("HEAD / HTTP/1.0", "", Body::Length(0));
        check("POST / HTTP/1.1", host, Body::Length(0));
        check("GET / HTTP/1.1", "Host: a\r\nContent-Length: 5\r\n", Body::Length(5));
        check("GET / HTTP/1.1", "Host: a\r\nContent-Length: 0050\r\n", Body::Length(50));
        check("GET / HTTP/1.1", "Host: a\r\nTRANSFER-ENCODING: Chunked\r\n", Body::CHUNKED);
        check("GET /?content-length HTTP/1.1", host, Body::Length(0));
    }

    #[test]
    fn pingora_gets_origin_form_with_one_host() {
        let check = |line: &str, headers: &str, expect: &str| {
            assert_eq!(check(line, headers).unwrap().0, format!("{expect}\r\n"));
        };
        let host = "Host: a\r\n";
        check("GET /a?b HTTP/1.1", host, "GET /a?b HTTP/1.1\r\nHost: a\r\n");
        check("GET /?\"b\" HTTP/1.1", host, "GET /?%22b%22 HTTP/1.1\r\nHost: a\r\n");
        check("GET http://A:80/b HTTP/1.1", host, "GET /b HTTP/1.1\r\nHost: a\r\n");
        check("GET http://a/b HTTP/1.0", "X: y\r\n", "GET /b HTTP/1.0\r\nHost: a\r\nX: y\r\n");
        check("GET http://a HTTP/1.0", "", "GET / HTTP/1.0\r\nHost: a\r\n");
        check("GET / HTTP/1.0", "X: y\r\n", "GET / HTTP/1.0\r\nX: y\r\n");
    }

    #[test]
    fn an_ambiguous_request_line_is_refused() {
        let host = "Host: a\r\n";
        for line in [
            "",
            "GET",
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /\t HTTP/1.1",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            "GET / HTTP/1.1\r",
            "G@T / HTTP/1.1",
            "GET /\u{7f} HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET admin HTTP/1.1",
            "GET * HTTP/1.1",
            "GET ?q HTTP/1.1",
            "GET a:80 HTTP/1.1",
            "GET http://b/ HTTP/1.1",
            "GET http://u@a/ HTTP/1.1",
        ] {
            assert_eq!(check(line, host), Err(HeaderError::Syntax), "{line:?}");
        }
    }

    #[test]
    fn ambiguous_header_lines_are_refused() {
        let host = "Host: a\r\n";
        for lines in [
            "X\r\n",
            ": y\r\n",
            " X: y\r\n",
            "X : y\r\n",
            "X\t: y\r\n",
            "X: a\r\n b\r\n",
            "X: a\r\n\tb\r\n",
            "X: a\nY: b\r\n",
            "X: a\rb\r\n",
            "X: a\0b\r\n",
            "X: a\x0bb\r\n",
            "X\u{e9}: a\r\n",
            "Host: b\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: 1 1\r\n",
            "Content-Length: 9999999999999999999\r\n",
            "Content_Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding:\x0bchunked\r\n",
            "Transfer-Encoding: \x0cchunked\r\n",
            "Content-Length: 1\x0c\r\n",
            "Transfer_Encoding: chunked\r\n",
        ] {
            let headers = format!("{host}{lines}");
            assert_eq!(check("POST / HTTP/1.1", &headers), Err(HeaderError::Syntax), "{lines:?}");
        }
        let old = "Host: a\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(check("POST / HTTP/1.0", old), Err(HeaderError::Syntax));
        assert_eq!(check_header(b"GET / HTTP/1.1\nHost: a\n\n", 8), Err(HeaderError::Syntax));
        assert_eq!(check_header(b"GET / HTTP/1.1\r\nHost: a\r\n\n", 8), Err(HeaderError::Syntax));
    }

    #[test]
    fn a_request_of_http_1_1_has_one_valid_host() {
        for host in ["", "a b", "a/b", "u@a", "a,b", "[::1", "a:8x", "{a}"] {
            let line = format!("Host: {host}\r\n");
            assert_eq!(check("GET / HTTP/1.1", &line), Err(HeaderError::Syntax), "{host:?}");
        }
        assert_eq!(check("GET / HTTP/1.1", ""), Err(HeaderError::Syntax));
    }

    #[test]
    fn too_many_lines_are_refused() {
        let headers = |count: usize| format!("Host: a\r\n{}", "X: y\r\n".repeat(count - 1));
        assert!(check("GET / HTTP/1.1", &headers(8)).is_ok());
        assert_eq!(check("GET / HTTP/1.1", &headers(9)), Err(HeaderError::Lines));
    }

    #[test]
    fn only_a_websocket_upgrade_is_passed_on() {
        let passed = |lines: &str, expect: &str| {
            let (given, _) = check("GET / HTTP/1.1", &format!("Host: a\r\n{lines}")).unwrap();
            assert_eq!(given, format!("GET / HTTP/1.1\r\nHost: a\r\n{expect}\r\n"));
        };
        let websocket = "Upgrade: WebSocket\r\nConnection: Upgrade\r\n";
        passed(websocket, websocket);
        passed("Upgrade: h2c\r\n", "");
        passed("Upgrade: websocket, h2c\r\n", "");
        passed("Upgrade: websocket\r\nUpgrade: h2c\r\n", "");
        passed("UPGRADE: h2c\r\nHTTP2-Settings: x\r\nX: y\r\n", "X: y\r\n");
    }
}
