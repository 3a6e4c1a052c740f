//! A plain event request, recognized in the bytes of its header.
//!
//! Plain means: nothing in it could be read in two ways, and nothing in it asks for more than an
//! answer. Whatever is unusual, be it legal or not, is left to Pingora's own path, which decides
//! by the same judge; so this module only ever says "plain" or "not plain", and is free to be
//! strict.

use crate::client::Headers;
use http::Method;

/// Most headers of a plain request: browsers send about fifteen.
pub const HEADERS_MAX: usize = 48;

/// A request line and headers that hold no surprise.
pub struct Plain<'h, 'b> {
    /// The target, in origin form.
    pub target: &'b [u8],
    /// The headers.
    pub headers: &'h [httparse::Header<'b>],
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
}

/// Recognizes a plain request in `head`, which ends with its empty line.
pub fn plain<'h, 'b>(
    head: &'b [u8],
    room: &'h mut [httparse::Header<'b>; HEADERS_MAX],
) -> Option<Plain<'h, 'b>> {
    if !head.starts_with(b"GET /") {
        return None;
    }
    let mut request = httparse::Request::new(room);
    let parsed = request.parse(head).ok()?;
    let whole = parsed == httparse::Status::Complete(head.len());
    if !whole || request.version != Some(1) || has_bare_line_feed(head) {
        return None;
    }
    let target = request.path?.as_bytes();
    let headers: &'h [httparse::Header<'b>] = request.headers;
    let mut hosts = 0;
    for header in headers {
        match header.name.len() {
            4 if is(header.name, "host") => hosts += 1,
            6 if is(header.name, "expect") => return None,
            7 if is(header.name, "upgrade") || is(header.name, "trailer") => return None,
            10 if is(header.name, "connection")
                && !header.value.eq_ignore_ascii_case(b"keep-alive") =>
            {
                return None;
            }
            14 if is(header.name, "content-length") => return None,
            17 if is(header.name, "transfer-encoding") => return None,
            _ => {}
        }
    }
    // None, or several, is for Pingora to judge.
    (hosts == 1).then_some(Plain { target, headers })
}

fn is(name: &str, expect: &str) -> bool {
    name.eq_ignore_ascii_case(expect)
}

/// A line that ends without CR, or one that goes on (obs-fold).
fn has_bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| {
        let after_cr = at > 0 && head[at - 1] == b'\r';
        let folded = matches!(head.get(at + 1), Some(b' ' | b'\t'));
        !after_cr || folded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(head: &str) -> bool {
        plain(head.as_bytes(), &mut [httparse::EMPTY_HEADER; HEADERS_MAX]).is_some()
    }

    #[test]
    fn a_browsers_pixel_request_is_plain() {
        let head = "GET /v1/event/?_a=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nAccept: */*\r\n\
                    Connection: Keep-Alive\r\nCookie: c=d\r\n\r\n";
        assert!(is_plain(head));
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
            ("GET /v1/event/ HTTP/1.1", "Connection: close\r\n"),
            ("GET /v1/event/ HTTP/1.1", "Connection: keep-alive, upgrade\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\r\n b\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X: a\n"),
            ("GET /v1/event/ HTTP/1.1", "X : a\r\n"),
            ("GET /v1/event/ HTTP/1.1", "X\r\n"),
        ] {
            assert!(!is_plain(&format!("{line}\r\nHost: a\r\n{header}\r\n")), "{line} {header:?}");
        }
        assert!(!is_plain("GET /v1/event/ HTTP/1.1\r\nX: a\r\n\r\n"), "no host");
        let many = "X: a\r\n".repeat(HEADERS_MAX);
        assert!(!is_plain(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), "too many");
        let most = "X: a\r\n".repeat(HEADERS_MAX - 1);
        assert!(is_plain(&format!("GET / HTTP/1.1\r\nHost: a\r\n{most}\r\n")), "as many as may be");
    }
}
