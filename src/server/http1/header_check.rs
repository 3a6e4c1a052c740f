//! Finds the end of a request's header and checks its framing.
//!
//! If two parties disagree about where a request ends, one client's bytes become another client's
//! request (request smuggling). So a header is handed on only if it follows the strict grammar of
//! RFC 9112. Everything that a lenient reader might forgive is refused here, before Pingora or an
//! origin sees it. The fast path has a parser of its own (`fast_path/request`): it works on SIMD
//! lanes, accepts only a subset of `GET` requests, and never hands a header on.

use bytes::BytesMut;

/// Longest method, in bytes. The longest registered method has 17.
pub const METHOD_BYTES_MAX: usize = 32;
/// Most digits of a `Content-Length`; every such value fits in 64 bits.
pub const LENGTH_DIGITS_MAX: usize = 18;

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

/// The framing of a header that every party reads alike.
#[derive(Debug, PartialEq, Eq)]
pub struct Framing {
    /// Whether bytes after the header may belong to the request; Pingora then gets them all. If
    /// not, only the header is handed on and pipelined bytes are kept for the next request.
    pub expects_more: bool,
    /// Whether it asks for an upgrade to a protocol other than WebSocket: see [`without_upgrade`].
    pub foreign_upgrade: bool,
}

/// Why a header is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It violates the grammar, or two parties could read it differently.
    Syntax,
    /// It has more lines than allowed.
    Lines,
}

/// What the lines read so far contain.
#[derive(Default)]
struct ContextHeaders {
    hosts: usize,
    lengths: usize,
    codings: usize,
    upgrades: bool,
    websocket: bool,
    expects: bool,
}

/// Checks a whole header, its empty line included, by the strict grammar. It may have at most
/// `lines_max` lines besides the request line.
pub fn check_header(head: &[u8], lines_max: usize) -> Result<Framing, HeaderError> {
    let lines = head.strip_suffix(b"\r\n\r\n").ok_or(HeaderError::Syntax)?;
    let mut lines = lines.split(|&b| b == b'\n');
    // `strip_suffix` removed the last line's CR too.
    let count = memchr::memchr_iter(b'\n', head).count() - 1;
    if count > lines_max + 1 {
        return Err(HeaderError::Lines);
    }
    let mut number = 0;
    let mut next = || -> Option<Result<&[u8], HeaderError>> {
        let line = lines.next()?;
        number += 1;
        let whole = if number == count { Some(line) } else { line.strip_suffix(b"\r") };
        Some(whole.ok_or(HeaderError::Syntax))
    };
    let request = request_line(next().ok_or(HeaderError::Syntax)??).ok_or(HeaderError::Syntax)?;
    let mut seen = ContextHeaders::default();
    while let Some(line) = next() {
        header_line(line?, &request, &mut seen).ok_or(HeaderError::Syntax)?;
    }
    let hosts_fit = if request.version_1_1 { seen.hosts == 1 } else { seen.hosts <= 1 };
    if !hosts_fit || seen.lengths + seen.codings > 1 {
        return Err(HeaderError::Syntax);
    }
    let bodyless = request.bodyless && seen.lengths == 0 && seen.codings == 0;
    let foreign_upgrade = seen.upgrades && !seen.websocket;
    Ok(Framing { expects_more: !bodyless || seen.upgrades || seen.expects, foreign_upgrade })
}

/// The parts of a request line that matter for framing.
struct RequestLine {
    bodyless: bool,
    version_1_1: bool,
}

/// Parses `method SP target SP version` (RFC 9112, section 3) with no other white space.
fn request_line(line: &[u8]) -> Option<RequestLine> {
    let mut words = line.split(|&b| b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let method_fits = (1..=METHOD_BYTES_MAX).contains(&method.len()) && is_token(method);
    // Bytes above ASCII are left to the origin to judge; none of them ends a target.
    let target_fits = !target.is_empty() && target.iter().all(|&b| b > b' ' && b != 0x7f);
    if words.next().is_some() || !method_fits || !target_fits {
        return None;
    }
    let version_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    Some(RequestLine { bodyless: matches!(method, b"GET" | b"HEAD"), version_1_1 })
}

/// Checks `name ":" value` (RFC 9112, section 5) and notes fields that matter for framing.
fn header_line(line: &[u8], request: &RequestLine, seen: &mut ContextHeaders) -> Option<()> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
    let value_fits = value.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f));
    // This refuses folded lines and white space before the colon: a token holds no white space.
    if name.is_empty() || !is_token(name) || !value_fits {
        return None;
    }
    let is = |expect: &str| name.eq_ignore_ascii_case(expect.as_bytes());
    match name.len() {
        4 if is("host") => {
            seen.hosts += 1;
            is_host(value).then_some(())?;
        }
        6 if is("expect") => seen.expects = true,
        7 if is("upgrade") => {
            seen.websocket = !seen.upgrades && value.eq_ignore_ascii_case(b"websocket");
            seen.upgrades = true;
        }
        14 if is("content-length") => {
            seen.lengths += 1;
            let digits = (1..=LENGTH_DIGITS_MAX).contains(&value.len());
            (digits && value.iter().all(u8::is_ascii_digit)).then_some(())?;
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
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether `value` can be a host and port: ASCII without a delimiter that ends an authority (RFC
/// 3986, section 3.2). An empty value is legal if the target has no authority.
pub fn is_host(value: &[u8]) -> bool {
    let is_delimiter = |b: &u8| b" \t/\\?#@,\"<>".contains(b);
    value.is_ascii() && !value.iter().any(is_delimiter)
}

fn is_token(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| is_token_byte(b))
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    let is_sign = matches!(
        byte,
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    );
    byte.is_ascii_alphanumeric() || is_sign
}

/// The header without its `Upgrade` and `HTTP2-Settings` lines. An origin that accepted `h2c` would
/// open a tunnel through which requests bypass the judge; a server may always ignore an upgrade
/// (RFC 9110, section 7.8).
pub fn without_upgrade(head: &[u8]) -> BytesMut {
    let mut kept = BytesMut::with_capacity(head.len());
    for line in head.split_inclusive(|&b| b == b'\n') {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        let upgrade_names = [&b"upgrade"[..], b"http2-settings"];
        if !upgrade_names.iter().any(|upgrade| name.eq_ignore_ascii_case(upgrade)) {
            kept.extend_from_slice(line);
        }
    }
    kept
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

    fn check(line: &str, headers: &str) -> Result<Framing, HeaderError> {
        check_header(format!("{line}\r\n{headers}\r\n").as_bytes(), 8)
    }

    #[test]
    fn bytes_after_a_request_without_a_body_are_not_taken() {
        let check = |line: &str, headers: &str, expects_more: bool| {
            let framing = check(line, headers).unwrap();
            assert_eq!(framing.expects_more, expects_more, "{line} {headers:?}");
        };
        let host = "Host: a\r\n";
        check("GET / HTTP/1.1", host, false);
        check("HEAD / HTTP/1.0", "", false);
        check("POST / HTTP/1.1", host, true);
        check("GET / HTTP/1.1", "Host: a\r\nContent-Length: 5\r\n", true);
        check("GET / HTTP/1.1", "Host: a\r\nTRANSFER-ENCODING: Chunked\r\n", true);
        check("GET / HTTP/1.1", "Host: a\r\nUpgrade: websocket\r\n", true);
        check("GET /?content-length HTTP/1.1", host, false);
    }

    #[test]
    fn an_ambiguous_header_is_refused() {
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
        ] {
            assert_eq!(check(line, host), Err(HeaderError::Syntax), "{line:?}");
        }
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
        for host in ["", "Host: a b\r\n", "Host: a/b\r\n", "Host: u@a\r\n", "Host: a,b\r\n"] {
            assert_eq!(check("GET / HTTP/1.1", host), Err(HeaderError::Syntax), "{host:?}");
        }
        let old = "Host: a\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(check("POST / HTTP/1.0", old), Err(HeaderError::Syntax));
        assert_eq!(check_header(b"GET / HTTP/1.1\nHost: a\n\n", 8), Err(HeaderError::Syntax));
        assert_eq!(check_header(b"GET / HTTP/1.1\r\nHost: a\r\n\n", 8), Err(HeaderError::Syntax));
    }

    #[test]
    fn too_many_lines_are_refused() {
        let headers = |count: usize| format!("Host: a\r\n{}", "X: y\r\n".repeat(count - 1));
        assert!(check("GET / HTTP/1.1", &headers(8)).is_ok());
        assert_eq!(check("GET / HTTP/1.1", &headers(9)), Err(HeaderError::Lines));
    }

    #[test]
    fn only_a_websocket_upgrade_is_passed_on() {
        let upgrades = |lines: &str| {
            check("GET / HTTP/1.1", &format!("Host: a\r\n{lines}")).unwrap().foreign_upgrade
        };
        assert!(!upgrades("Upgrade: WebSocket\r\nConnection: Upgrade\r\n"));
        assert!(upgrades("Upgrade: h2c\r\n"));
        assert!(upgrades("Upgrade: websocket, h2c\r\n"));
        assert!(upgrades("Upgrade: websocket\r\nUpgrade: h2c\r\n"));
        let head =
            b"GET / HTTP/1.1\r\nHost: a\r\nUPGRADE: h2c\r\nHTTP2-Settings: x\r\nX: y\r\n\r\n";
        let kept = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
        assert_eq!(without_upgrade(head), &kept[..]);
    }
}
