//! Removes headers by which some origins replace the path of a request.
//!
//! A URL rewriter in front of an application writes `X-Original-URL` or `X-Rewrite-URL`, and the
//! application (IIS, Symfony, Zend) reads the path from there instead of from the request. A client
//! could use these headers to reach the event path of an origin past the gate. So only trusted
//! proxies may send them (SPEC 2).

use http::HeaderName;
use pingora::http::RequestHeader;

const NAMES: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// Removes these headers from `request`. A `_` in a name is compared as a `-`, because origins that
/// use CGI read both as the same.
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
