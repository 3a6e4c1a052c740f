//! Decides which requests the admin listener answers.
//!
//! With `admin.token`, it answers requests that bring the token. Without it, the listener is on a
//! loopback address, and every program on this machine may send requests. A web page in a browser
//! on this machine could, too. So two kinds of requests are denied: those whose `Host` is not a
//! loopback name or address (DNS rebinding: the name of the page resolves to 127.0.0.1), and those
//! that a browser marks as made by another site.

use crate::env::Secret;
use arc_swap::{ArcSwap, Guard};
use http::{HeaderMap, HeaderName, header};
use std::net::IpAddr;
use std::sync::Arc;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The reason why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The request lacks the token.
    Token,
    /// The request is addressed to a name that is no loopback name.
    Host,
    /// A page of another site made the request.
    Site,
}

/// The access rule of one listener.
#[derive(Debug, Clone)]
pub struct Access {
    token: Option<Secret>,
}

/// Replaces the token of the admin pages while they are served. A clone is another handle to the
/// same pages.
///
/// ```
/// use pixelgate::admin_pages::Admin;
/// use pixelgate::config::Secret;
///
/// fn replace_token(pages: &Admin, token: &str) {
///     pages.token_handle().set(Some(Secret::new(token)));
/// }
/// ```
#[derive(Clone)]
pub struct TokenHandle(Arc<ArcSwap<Access>>);

impl TokenHandle {
    pub(super) fn new(token: Option<Secret>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Access::new(token))))
    }

    pub(super) fn rule(&self) -> Guard<Arc<Access>> {
        self.0.load()
    }

    /// Requires this token from the next request on. `None` requires no token, and is allowed only
    /// if the listener is on a loopback address, as [`Config::validate`](super::Config::validate)
    /// checks.
    pub fn set(&self, token: Option<Secret>) {
        self.0.store(Arc::new(Access::new(token)));
    }
}

impl Access {
    /// A rule that requires this token. With `None`, the listener must be on a loopback address.
    pub fn new(token: Option<Secret>) -> Self {
        Self { token }
    }

    /// Checks a request for the page itself. It holds no data, so it needs no token.
    pub fn shell(&self, headers: &HeaderMap) -> Result<(), Denied> {
        match self.token {
            None if !is_addressed_to_loopback(headers) => Err(Denied::Host),
            _ => Ok(()),
        }
    }

    /// Checks a request for data.
    pub fn data(&self, headers: &HeaderMap) -> Result<(), Denied> {
        self.shell(headers)?;
        if let Some(token) = &self.token {
            let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
            let given = given.and_then(bearer_token);
            if !given.is_some_and(|given| equal(given, token.expose().as_bytes())) {
                return Err(Denied::Token);
            }
        }
        match is_of_another_site(headers) {
            true => Err(Denied::Site),
            false => Ok(()),
        }
    }
}

/// The token of an `Authorization` header. The case of the scheme's name does not matter (RFC 9110,
/// section 11.1).
fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii_start())
}

/// Compares two tokens in a time that does not depend on how many bytes are equal, so that the time
/// reveals no part of the token.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn is_addressed_to_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    // `[::1]:9090`, `127.0.0.1:9090`, `localhost`.
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    is_address || name == "localhost" || name.ends_with(".localhost")
}

/// Whether a browser marks the request as made by another site: by `Sec-Fetch-Site` or, from a
/// browser that does not send it, by `Origin`.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let origin = origin.as_bytes();
    let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    authority.is_none() || authority != host
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "sixteen bytes ok";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| -> (HeaderName, http::HeaderValue) {
            (name.parse().unwrap(), value.parse().unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn tokens_are_equal_only_when_every_byte_is() {
        assert!(equal(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!equal(other, b"abc"));
        }
    }

    #[test]
    fn a_token_opens_the_data_and_its_absence_only_the_shell() {
        let access = Access::new(Some(Secret::new(TOKEN)));
        let check = |lines: &[(&str, &str)], expect: Result<(), Denied>| {
            let headers = headers(lines);
            assert_eq!(access.shell(&headers), Ok(()));
            assert_eq!(access.data(&headers), expect, "{lines:?}");
        };
        let bearer = format!("Bearer {TOKEN}");
        check(&[("host", "edge1.example:9090")], Err(Denied::Token));
        check(&[("authorization", TOKEN)], Err(Denied::Token));
        check(&[("authorization", "Bearer sixteen bytes no")], Err(Denied::Token));
        check(&[("host", "edge1.example:9090"), ("authorization", &bearer)], Ok(()));
        for scheme in ["bearer", "BEARER", "bEaReR "] {
            check(&[("authorization", &format!("{scheme} {TOKEN}"))], Ok(()));
        }
        check(&[("authorization", &format!("Basic {TOKEN}"))], Err(Denied::Token));
        check(&[("authorization", "bearer")], Err(Denied::Token));
    }

    #[test]
    fn without_a_token_only_loopback_names_are_answered() {
        let access = Access::new(None);
        for host in [
            "127.0.0.1:9090",
            "127.8.8.8",
            "[::1]:9090",
            "localhost",
            "LocalHost:9090",
            "edge.localhost:9090",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(access.data(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in
            ["evil.example:9090", "10.0.0.1", "127.0.0.1.evil.example", "localhost.evil", ""]
        {
            let headers = headers(&[("host", host)]);
            assert_eq!(access.data(&headers), Err(Denied::Host), "{host}");
            assert_eq!(access.shell(&headers), Err(Denied::Host), "{host}");
        }
        assert_eq!(access.data(&headers(&[])), Err(Denied::Host));
        let two = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(access.data(&two), Err(Denied::Host));
    }

    #[test]
    fn another_sites_page_gets_nothing() {
        let access = Access::new(None);
        let check = |name: &str, value: &str, expect: Result<(), Denied>| {
            let headers = headers(&[("host", "localhost:9090"), (name, value)]);
            assert_eq!(access.data(&headers), expect, "{name}: {value}");
        };
        check("sec-fetch-site", "same-origin", Ok(()));
        check("sec-fetch-site", "none", Ok(()));
        check("sec-fetch-site", "cross-site", Err(Denied::Site));
        check("sec-fetch-site", "same-site", Err(Denied::Site));
        check("origin", "http://localhost:9090", Ok(()));
        check("origin", "http://localhost:8080", Err(Denied::Site));
        check("origin", "https://evil.example", Err(Denied::Site));
        check("origin", "null", Err(Denied::Site));
    }
}
