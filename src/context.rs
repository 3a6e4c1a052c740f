//! What a request says beside its query: who asked, from where, and what their browser wishes.

use crate::client::{Headers, TrustedProxies};
use crate::event::Context;
use std::borrow::Cow;
use std::net::IpAddr;

/// Gathers the context of a hit from its connection's peer and its headers. Cookies and
/// credentials are not looked at (SPEC 3).
pub fn context<'a>(
    headers: &'a impl Headers,
    peer: Option<IpAddr>,
    trusted: &TrustedProxies,
) -> Context<'a> {
    Context {
        ip: peer.map(|peer| trusted.client(peer, headers)),
        user_agent: text(headers, "user-agent"),
        referer: text(headers, "referer"),
        gpc: is_one(headers, "sec-gpc"),
        dnt: is_one(headers, "dnt"),
        prefetch: ["sec-purpose", "purpose", "x-purpose", "x-moz"]
            .iter()
            .any(|name| headers.first(name).is_some_and(is_prefetch)),
    }
}

/// A header as text. What is not UTF-8 in it is replaced: a client's odd header must not cost its
/// event.
fn text<'a>(headers: &'a impl Headers, name: &'a str) -> Option<Cow<'a, str>> {
    let text = String::from_utf8_lossy(headers.first(name)?);
    (!text.is_empty()).then_some(text)
}

fn is_one(headers: &impl Headers, name: &str) -> bool {
    headers.first(name).is_some_and(|value| value.trim_ascii() == b"1")
}

/// `Sec-Purpose: prefetch;prerender`, `Purpose: prefetch`, `X-Moz: prefetch`, `preview`.
fn is_prefetch(value: &[u8]) -> bool {
    let first = value.split(|b| matches!(b, b';' | b',')).next().unwrap_or_default().trim_ascii();
    [&b"prefetch"[..], b"prerender", b"preview"].iter().any(|p| first.eq_ignore_ascii_case(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[(&str, &str)]) -> http::HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            let name: http::HeaderName = name.parse().unwrap();
            (name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn flags_are_true_only_where_the_browser_says_so() {
        let check = |name: &str, value: &str, expect: [bool; 3]| {
            let headers = of(&[(name, value)]);
            let context = context(&headers, None, &TrustedProxies::default());
            assert_eq!([context.gpc, context.dnt, context.prefetch], expect, "{name}: {value}");
        };
        check("Sec-GPC", "1", [true, false, false]);
        check("Sec-GPC", "0", [false, false, false]);
        check("DNT", "1", [false, true, false]);
        check("DNT", "null", [false, false, false]);
        check("Sec-Purpose", "prefetch;prerender", [false, false, true]);
        check("Purpose", "Prefetch", [false, false, true]);
        check("X-Moz", "prefetch", [false, false, true]);
        check("Purpose", "prefetching", [false, false, false]);
    }

    #[test]
    fn an_empty_header_is_absent_and_an_odd_one_costs_nothing() {
        let headers = of(&[("User-Agent", ""), ("Referer", "https://a.test/\u{e9}")]);
        let seen = context(&headers, None, &TrustedProxies::default());
        assert_eq!(seen.user_agent, None);
        assert_eq!(seen.referer.as_deref(), Some("https://a.test/\u{e9}"));
        let mut headers = http::HeaderMap::new();
        headers.insert("user-agent", http::HeaderValue::from_bytes(b"a\xffb").unwrap());
        let seen = context(&headers, None, &TrustedProxies::default());
        assert_eq!(seen.user_agent.as_deref(), Some("a\u{fffd}b"));
    }
}
