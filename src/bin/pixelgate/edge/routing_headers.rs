//! Headers that replace the path of a request at some origins.
//!
//! `X-Original-URL` and `X-Rewrite-URL` are written by URL rewriters in front of an application,
//! and the application routes by them instead of by the request target (IIS, Symfony, Zend). From
//! a client they would name the event path behind any other path. Only trusted proxies may send
//! them (SPEC 2).

use http::HeaderName;
use pingora::http::RequestHeader;

const NAMES: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// Removes these headers. Origins that follow CGI read `_` in a name as `-`.
pub fn remove_from(request: &mut RequestHeader) {
    let replaces_path = |name: &HeaderName| {
        let spelled = |expect: &&str| {
            let bytes = name.as_str().bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
            name.as_str().len() == expect.len() && bytes.eq(expect.bytes())
        };
        NAMES.iter().any(spelled)
    };
    let found: Vec<HeaderName> =
        request.headers.keys().filter(|name| replaces_path(name)).cloned().collect();
    for name in found {
        request.remove_header(&name);
    }
}
