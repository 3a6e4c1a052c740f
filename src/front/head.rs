//! Where a request's header ends, and whether more may belong to it. No more is parsed here.

use bytes::{Buf, BytesMut};

/// Where the header ends: after its empty line, whose line ends may be bare LF as Pingora's
/// parser reads them. `searched` remembers how far earlier calls looked, so that a header that
/// comes byte by byte is looked at once.
pub fn end_of_head(buffer: &mut BytesMut, searched: &mut usize) -> Option<usize> {
    // Empty lines before a request line are skipped (RFC 9112, section 2.2).
    if *searched == 0 {
        let empty = buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        buffer.advance(empty);
    }
    let mut from = searched.saturating_sub(3);
    while let Some(at) = memchr::memchr(b'\n', &buffer[from..]) {
        let line_end = from + at + 1;
        match buffer[line_end..] {
            [b'\n', ..] => return Some(line_end + 1),
            [b'\r', b'\n', ..] => return Some(line_end + 2),
            _ => from = line_end,
        }
    }
    *searched = buffer.len();
    None
}

/// Whether bytes behind this header may belong to its request: then Pingora gets them all, and
/// decides by its own reading. Only the header of a request that cannot have a body is cut off
/// exactly, which keeps what a client sent ahead for the next round.
pub fn expects_more(head: &[u8]) -> bool {
    if !(head.starts_with(b"GET ") || head.starts_with(b"HEAD ")) {
        return true;
    }
    const FRAMING: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"upgrade", b"expect"];
    let mut lines = head.split(|&b| b == b'\n').skip(1);
    lines.any(|line| {
        FRAMING.iter().any(|name| {
            line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(bytes: &[u8]) -> Option<usize> {
        end_of_head(&mut BytesMut::from(bytes), &mut 0)
    }

    #[test]
    fn a_header_ends_with_its_empty_line() {
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(27));
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r\nGET "), Some(18));
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n"), Some(24));
        assert_eq!(end(b"\r\n\nGET / HTTP/1.1\r\n\r\n"), Some(18));
        for partial in [&b""[..], b"\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r"] {
            assert_eq!(end(partial), None);
        }
    }

    #[test]
    fn a_header_is_found_however_it_is_cut() {
        let whole = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX: \r y\r\n\r\n";
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::new();
            let mut searched = 0;
            buffer.extend_from_slice(&whole[..cut]);
            assert_eq!(end_of_head(&mut buffer, &mut searched), None, "cut at {cut}");
            buffer.extend_from_slice(&whole[cut..]);
            assert_eq!(end_of_head(&mut buffer, &mut searched), Some(whole.len()), "cut at {cut}");
        }
    }

    #[test]
    fn only_a_request_without_a_body_is_cut_off() {
        let check = |head: &str, expect: bool| {
            assert_eq!(expects_more(head.as_bytes()), expect, "{head:?}");
        };
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false);
        check("HEAD / HTTP/1.1\r\n\r\n", false);
        check("POST / HTTP/1.1\r\n\r\n", true);
        check("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", true);
        check("GET / HTTP/1.1\nTRANSFER-ENCODING: chunked\n\n", true);
        check("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", true);
        check("GET /?content-length HTTP/1.1\r\nHost: a\r\n\r\n", false);
    }
}
