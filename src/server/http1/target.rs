//! Checks a request's target and host, and brings the target into the form that Pingora reads.
//!
//! A target in absolute form (`http://a/x`) becomes one in origin form (`/x`): its host is that of
//! the `Host` header, so nothing is lost, and each origin understands it. A byte that Pingora's
//! parser refuses in a target is percent-encoded, so that clients that send it raw get an answer.
//! All other bytes stay as they are.

use crate::request::simd::{self, Block};
use std::borrow::Cow;

/// The longest target that Pingora's parser takes, in bytes.
const TARGET_BYTES_MAX: usize = 65_534;

/// A valid target.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'t> {
    /// The target in origin form, or `*`, or for `CONNECT` in authority form. Holds no byte that
    /// Pingora refuses.
    pub text: Cow<'t, [u8]>,
    /// The host of a target in absolute form, with its port.
    pub authority: Option<&'t [u8]>,
    /// The port that its scheme implies, with the colon; empty without a scheme.
    default_port: &'static [u8],
}

impl<'t> Target<'t> {
    /// Reads the target of a request with `method` (RFC 9112, section 3.2). `None`: it has no form
    /// that the method allows, or becomes longer than Pingora's parser takes.
    pub fn read(method: &[u8], target: &'t [u8]) -> Option<Self> {
        let plain =
            |text: &'t [u8]| Self { text: Cow::Borrowed(text), authority: None, default_port: b"" };
        let read = match target {
            [b'/', ..] => plain(target),
            b"*" if method == b"OPTIONS" => plain(target),
            _ if method == b"CONNECT" => is_host(target).then(|| plain(target))?,
            _ => Self::absolute(method, target)?,
        };
        let read = Self { text: encoded(read.text), ..read };
        (read.text.len() <= TARGET_BYTES_MAX).then_some(read)
    }

    fn absolute(method: &[u8], target: &'t [u8]) -> Option<Self> {
        let schemes = [(&b"http://"[..], &b":80"[..]), (b"https://", b":443")];
        let (rest, default_port) = schemes.into_iter().find_map(|(scheme, port)| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some((rest, port))
        })?;
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let text = match path {
            [b'/', ..] => Cow::Borrowed(path),
            // RFC 9112, section 3.2.4.
            [] if method == b"OPTIONS" => Cow::Borrowed(&b"*"[..]),
            _ => Cow::Owned([b"/", path].concat()),
        };
        is_host(authority).then_some(Self { text, authority: Some(authority), default_port })
    }

    /// Whether a target with this authority goes to `host`. Case and a default port make no
    /// difference; without an authority every host fits.
    pub fn fits(&self, host: &[u8]) -> bool {
        let without_port = |host: &'_ [u8]| {
            let host = host.strip_suffix(self.default_port).or(host.strip_suffix(b":"));
            host.map(<[u8]>::to_ascii_lowercase)
        };
        let named = |host: &[u8]| without_port(host).unwrap_or_else(|| host.to_ascii_lowercase());
        self.authority.is_none_or(|authority| named(authority) == named(host))
    }
}

/// Whether `value` is a host with an optional port (RFC 3986, section 3.2.2): a name, or an
/// IPv6 address in brackets. Commas are legal in a name but join two values in a header, so no
/// name may hold one; nor percent signs, because servers differ on whether they decode them, and
/// the `http` crate refuses them, so that HTTP/2 could not carry such a host.
pub fn is_host(value: &[u8]) -> bool {
    let port_from = match value {
        [b'[', rest @ ..] => rest.iter().position(|&b| b == b']').map_or(0, |at| at + 2),
        _ => value.iter().position(|&b| b == b':').unwrap_or(value.len()),
    };
    let (host, port) = value.split_at(port_from);
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let host_fits = match host {
        [] => false,
        [b'[', inside @ .., b']'] => {
            let in_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
            inside.contains(&b':') && inside.iter().all(in_address)
        }
        _ => host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(b)),
    };
    host_fits && port_fits
}

/// Whether Pingora reads a target of printable ASCII in origin form as it is.
pub fn fits_pingora(target: &[u8]) -> bool {
    let is_refused =
        |bytes: Block| bytes.are(b'<').or(bytes.are(b'>')).or(bytes.are(b'`')).or(bytes.are(b'"'));
    target.len() <= TARGET_BYTES_MAX && simd::find(target, 0, is_refused).is_none()
}

/// Percent-encodes the bytes that Pingora's parser refuses: `<` and `>`, a backtick in a path, a
/// double quote in a query, and every byte above ASCII in a target that is not UTF-8.
pub fn encoded(target: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let is_utf8 = target.is_ascii() || std::str::from_utf8(&target).is_ok();
    let query_from = memchr::memchr(b'?', &target).unwrap_or(target.len());
    let is_refused = |(at, byte): (usize, &u8)| match byte {
        b'<' | b'>' => true,
        b'`' => at < query_from,
        b'"' => at > query_from,
        _ => !is_utf8 && !byte.is_ascii(),
    };
    if !target.iter().enumerate().any(is_refused) {
        return target;
    }
    let mut encoded = Vec::with_capacity(target.len() + 64);
    for (at, byte) in target.iter().enumerate() {
        match is_refused((at, byte)) {
            true => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            false => encoded.push(*byte),
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, target: &str) -> Option<(String, Option<String>)> {
        // Latin-1: a character is a byte.
        let bytes: Vec<u8> = target.chars().map(|c| c as u8).collect();
        let target = Target::read(method.as_bytes(), &bytes)?;
        let text = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
        Some((text(&target.text), target.authority.map(text)))
    }

    #[test]
    fn a_target_has_the_form_that_its_method_allows() {
        let check = |method: &str, target: &str, expect: Option<(&str, Option<&str>)>| {
            let expect = expect.map(|(text, host)| (text.to_owned(), host.map(str::to_owned)));
            assert_eq!(read(method, target), expect, "{method} {target}");
        };
        check("GET", "/", Some(("/", None)));
        check("GET", "//a/b?c=d:e", Some(("//a/b?c=d:e", None)));
        check("OPTIONS", "*", Some(("*", None)));
        check("CONNECT", "a:443", Some(("a:443", None)));
        check("GET", "http://a/b?c", Some(("/b?c", Some("a"))));
        check("GET", "HTTPS://[::1]:8443", Some(("/", Some("[::1]:8443"))));
        check("GET", "http://a?b", Some(("/?b", Some("a"))));
        check("OPTIONS", "http://a", Some(("*", Some("a"))));
        check("OPTIONS", "http://a/", Some(("/", Some("a"))));
        for target in [
            "",
            "*",
            "admin",
            "?q",
            "a:80",
            "http:/a",
            "http:a",
            "http://",
            "http:///a",
            "ftp://a/",
            "http://u@a/",
            "http://a\\b/",
            "http://a:8x/",
            "v1/event/",
            "\\v1\\event",
            "#a",
        ] {
            check("GET", target, None);
        }
        check("CONNECT", "/a", Some(("/a", None)));
        check("CONNECT", "a/b", None);
    }

    #[test]
    fn bytes_that_pingora_refuses_are_encoded_and_no_others() {
        let check = |target: &str, expect: &str| {
            assert_eq!(read("GET", target).unwrap().0, expect, "{target}");
        };
        check("/a\"`b?c\"`d", "/a\"%60b?c%22`d");
        check("/<a>?<b>", "/%3Ca%3E?%3Cb%3E");
        check("/a|b{c}^\\?d|e{f}^\\[]", "/a|b{c}^\\?d|e{f}^\\[]");
        check("/caf\u{e9}?caf\u{e9}", "/caf%E9?caf%E9");
        check("/caf\u{c3}\u{a9}", "/caf\u{c3}\u{a9}");
        check("/\u{c3}\u{a9}?\u{e9}", "/%C3%A9?%E9");
        check("http://a/\"?\"", "/\"?%22");
        let long = format!("/?{}", "\"".repeat(30_000));
        assert_eq!(read("GET", &long), None, "90,000 bytes when encoded");
    }

    #[test]
    fn hosts_are_compared_without_case_and_default_port() {
        let check = |target: &str, host: &str, expect: bool| {
            let target = Target::read(b"GET", target.as_bytes()).unwrap();
            assert_eq!(target.fits(host.as_bytes()), expect, "{target:?} {host}");
        };
        check("http://A/", "a", true);
        check("http://a:80/", "A", true);
        check("http://a/", "a:80", true);
        check("http://a/", "a:443", false);
        check("https://a/", "a:443", true);
        check("http://a:/", "a", true);
        check("http://a:8080/", "a", false);
        check("http://b/", "a", false);
        check("http://[::1]:80/", "[::1]", true);
        check("/", "a", true);
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in
            ["a", "a:80", "a:", "A-b.c_d", "1.2.3.4", "[::1]", "[::1]:80", "[::ffff:1.2.3.4]"]
        {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "[::1", "::1]", "[::1]x", "[::1]:x", "[]", "[a]", "a:8x", "a:80:80", "{a}",
            "a b", "a,b", "a/b", "u@a", "a\\b", "a?b", "a#b", "a\"b", "a<b", "a|b", "\u{e9}",
            "a:-1", "%41", "a%2eb",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
        // One rule for both protocols: HTTP/2 takes what the `http` crate does.
        let name = |byte: u8| [b"a", &[byte][..], b"c"].concat();
        for host in (0..=255).map(name).filter(|host| is_host(host)) {
            assert!(http::uri::Authority::try_from(&host[..]).is_ok(), "{host:?}");
        }
    }
}
