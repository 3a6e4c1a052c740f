//! Checks a request's header by the rules of HTTP/1, and brings it into the form that an HTTP/1
//! origin expects.
//!
//! The `h2` crate refuses what RFC 9113 calls malformed. This module refuses what `header_check`
//! refuses in HTTP/1, because two origins could read it differently.

use crate::server::http1::header_check::{METHOD_BYTES_MAX, length};
use crate::server::http1::target::is_host;
use crate::server::limits::Limits;
use crate::telemetry::metrics::Limit;
use http::{HeaderMap, Method, header};
use pingora::http::RequestHeader;

/// Checks a header. Returns the limit that it exceeds as the error.
pub fn check(request: &RequestHeader, limits: &Limits) -> Result<(), Limit> {
    if lines(request) > limits.header_lines_max {
        return Err(Limit::HeaderLines);
    }
    let is_sound = request.method.as_str().len() <= METHOD_BYTES_MAX
        && has_http_scheme(request)
        && is_target(&request.method, request.raw_path())
        && has_one_host(request)
        && has_sound_length(&request.headers)
        && !["content_length", "transfer_encoding"]
            .iter()
            .any(|name| request.headers.contains_key(*name));
    if is_sound { Ok(()) } else { Err(Limit::HeaderSyntax) }
}

/// The lines that the header would have in HTTP/1: `:authority` is a `Host` line, and all `cookie`
/// fields are one line.
fn lines(request: &RequestHeader) -> usize {
    let headers = &request.headers;
    let cookies = headers.get_all(header::COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1) + usize::from(!headers.contains_key(header::HOST))
}

/// Whether `:scheme` is one that HTTP/1 takes in a target in absolute form.
fn has_http_scheme(request: &RequestHeader) -> bool {
    let is_http = |scheme: &str| ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s));
    request.uri.scheme_str().is_none_or(is_http)
}

/// Whether a target has the form that its method allows (RFC 9113, section 8.3.1), without a
/// control character.
fn is_target(method: &Method, target: &[u8]) -> bool {
    let form_fits = match target {
        [b'/', ..] => true,
        b"*" => method == Method::OPTIONS,
        // The proxy refuses CONNECT.
        _ => method == Method::CONNECT,
    };
    form_fits && target.iter().all(|&b| b > b' ' && b != 0x7f)
}

/// Whether `:authority` and at most one `Host` name one valid host.
fn has_one_host(request: &RequestHeader) -> bool {
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let mut hosts = request.headers.get_all(header::HOST).iter().map(|host| host.as_bytes());
    let (host, second) = (hosts.next(), hosts.next());
    let agree =
        |host: &[u8]| authority.is_none_or(|authority| authority.eq_ignore_ascii_case(host));
    second.is_none() && host.or(authority).is_some_and(is_host) && host.is_none_or(agree)
}

/// Whether there is at most one `Content-Length`, of digits alone.
fn has_sound_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return true };
    lengths.next().is_none() && length(first.as_bytes()).is_some()
}

/// Joins all `cookie` fields into one (RFC 9113, section 8.2.3): HTTP/1 allows one line alone.
pub fn join_cookies(request: &mut RequestHeader) -> pingora::Result<()> {
    let mut cookies = request.headers.get_all(header::COOKIE).iter();
    if cookies.by_ref().nth(1).is_none() {
        return Ok(());
    }
    let all: Vec<&[u8]> =
        request.headers.get_all(header::COOKIE).iter().map(|cookie| cookie.as_bytes()).collect();
    request.insert_header(header::COOKIE, all.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> RequestHeader {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0.into()
    }

    #[test]
    fn the_rules_of_http1_hold() {
        let limits = Limits { header_lines_max: 4, ..Limits::default() };
        let check_with = |method: &str, uri: &str, headers: &[(&str, &str)], expect| {
            let checked = check(&request(method, uri, headers), &limits);
            assert_eq!(checked.err(), expect, "{method} {uri} {headers:?}");
        };
        let malformed = Some(Limit::HeaderSyntax);
        check_with("GET", "http://a/b?c", &[], None);
        check_with("GET", "http://a/b", &[("host", "A")], None);
        check_with("GET", "/b", &[("host", "a:80")], None);
        check_with("OPTIONS", "*", &[("host", "a")], None);
        check_with("PUT", "http://a/b", &[("content-length", "5")], None);
        check_with("GET", "HTTPS://a/b", &[], None);
        check_with("GET", "ftp://a/b", &[], malformed);
        check_with("GET", "*", &[("host", "a")], malformed);
        check_with("GET", "/b", &[], malformed);
        check_with("GET", "/b", &[("host", "")], malformed);
        check_with("GET", "/b", &[("host", "u@a")], malformed);
        check_with("GET", "http://a/b", &[("host", "b")], malformed);
        check_with("GET", "/b", &[("host", "a"), ("host", "a")], malformed);
        check_with(&"A".repeat(METHOD_BYTES_MAX + 1), "http://a/b", &[], malformed);
        for (name, value) in [
            ("content_length", "1"),
            ("transfer_encoding", "chunked"),
            ("content-length", ""),
            ("content-length", "+1"),
            ("content-length", "1, 1"),
            ("content-length", "9999999999999999999"),
        ] {
            check_with("POST", "http://a/b", &[(name, value)], malformed);
        }
        let twice = [("content-length", "1"), ("content-length", "1")];
        check_with("POST", "http://a/b", &twice, malformed);
    }

    #[test]
    fn lines_are_counted_as_in_http1() {
        let limits = Limits { header_lines_max: 4, ..Limits::default() };
        let count =
            |headers: &[(&str, &str)]| check(&request("GET", "http://a/", headers), &limits);
        assert_eq!(count(&[("x", "y"); 3]), Ok(()));
        assert_eq!(count(&[("x", "y"); 4]), Err(Limit::HeaderLines), "the host is the fifth");
        assert_eq!(count(&[("cookie", "y=z"); 40]), Ok(()));
    }

    #[test]
    fn cookies_become_one_line() {
        let headers = [("a", "b"), ("cookie", "c=d"), ("e", "f"), ("cookie", "g=\u{e9}")];
        let mut request = request("GET", "http://a/", &headers);
        join_cookies(&mut request).unwrap();
        let cookies: Vec<_> = request.headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["c=d; g=\u{e9}"]);
        assert_eq!(request.headers.keys().collect::<Vec<_>>(), ["a", "cookie", "e"]);
    }
}
