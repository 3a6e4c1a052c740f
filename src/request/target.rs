//! Splits a request target into the two parts that are judged: path and query.
//!
//! A request line may hold a path (`/v1/event/?_a=1`), a whole URL (`http://host/v1/event/`) or a
//! form that only a lenient origin accepts (`v1/event/`, `http:/v1/event/`). Every form is split
//! here, so that the plugin, the server and `explain` read the same path. `path.rs` and the room
//! `event` decode the parts.

/// Path and query of a request target, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The bytes from the first slash after an authority up to `?`. Empty if the target has no
    /// path. A path without a slash at its start is not changed, since its readings add the slash.
    /// A fragment stays, because some servers end the path there and others do not.
    pub path: &'a [u8],
    /// The bytes after the first `?`, up to `#`. Empty if there is no `?`, or if `#` comes first.
    pub query: &'a [u8],
}

impl<'a> Target<'a> {
    /// Splits a request target of any form (RFC 9112, section 3.2), valid or not.
    pub fn split(target: &'a [u8]) -> Self {
        let (path, query) = until(target, b'?');
        let query = if path.contains(&b'#') { b"" } else { until(query, b'#').0 };
        Self { path: without_authority(path), query }
    }

    /// Does what [`Target::split`] does, faster, for a target without a fragment. `None` if the
    /// target is not in origin form.
    pub(crate) fn of_path(target: &'a [u8]) -> Option<Self> {
        let (path, query) = until(target, b'?');
        path.starts_with(b"/").then_some(Self { path, query })
    }
}

/// The bytes before the first `stop` and the bytes after it.
fn until(bytes: &[u8], stop: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(stop, bytes) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, b""),
    }
}

/// Drops `scheme:` and `//authority` from a target that does not begin with a path.
fn without_authority(path: &[u8]) -> &[u8] {
    if path.first().is_none_or(|&b| b == b'/') {
        return path;
    }
    let scheme = path.iter().take_while(|b| is_scheme_byte(**b)).count();
    let rest = match path.get(scheme) {
        Some(b':') if path[0].is_ascii_alphabetic() => &path[scheme + 1..],
        _ => return path,
    };
    match rest.strip_prefix(b"//") {
        Some(authority) => {
            let slash = authority.iter().position(|&b| matches!(b, b'/' | b'\\'));
            slash.map_or(b"", |at| &authority[at..])
        }
        None => rest,
    }
}

/// Whether a byte may stand in a scheme (RFC 3986, section 3.1).
fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_any_form_has_a_path_and_a_query() {
        let check = |target: &str, path: &str, query: &str| {
            let split = Target::split(target.as_bytes());
            let expect = Target { path: path.as_bytes(), query: query.as_bytes() };
            assert_eq!(split, expect, "{target}");
        };
        check("/v1/event/?_a=1", "/v1/event/", "_a=1");
        check("/v1/event/", "/v1/event/", "");
        check("/a?b?c#d", "/a", "b?c");
        check("/a#b?c", "/a#b", "");
        check("/a?#b", "/a", "");
        check("/a?b#c?d#e", "/a", "b");
        check("#?b", "#", "");
        check("?#", "", "");
        check("//host/v1/event/", "//host/v1/event/", "");
        check("http://host/v1/event/?_a=1", "/v1/event/", "_a=1");
        check("HTTPS://user@host:1/v1/event", "/v1/event", "");
        check("http://host", "", "");
        check("http://host\\v1\\event", "\\v1\\event", "");
        check("http://host?_a=1", "", "_a=1");
        check("http:/v1/event/", "/v1/event/", "");
        check("http:v1/event/", "v1/event/", "");
        check("v1/event/", "v1/event/", "");
        check("*", "*", "");
        check("host:443", "443", "");
        check("1:2/v1", "1:2/v1", "");
        check("", "", "");
    }
}
