//! The context of a request besides its query: client address, user agent, referer, the browser's
//! privacy and prefetch headers, and what the operator asks for: the host, a cookie and further
//! headers (SPEC 7).

use super::client::{Headers, TrustedProxies, token_is};
use crate::event::{
    Context, ContextNames, FurtherContext, HOST_BYTES_MAX, UTK_BYTES_MAX, without_hidden,
};
use http::HeaderMap;
use std::borrow::Cow;
use std::net::IpAddr;

/// The cookie with which a visitor refuses HubSpot's own.
const DO_NOT_TRACK_COOKIE: &str = "__hs_do_not_track";

/// Collects the context of an event request from its connection's peer and its headers. Credentials
/// are not read, nor are cookies that `names` does not name (SPEC 3).
pub fn context<'a>(
    headers: &'a HeaderMap,
    peer: Option<IpAddr>,
    trusted: &TrustedProxies,
    names: &'a ContextNames,
) -> Context<'a> {
    let mut seen = ContextHeaders::default();
    for (name, value) in headers {
        seen.note(name.as_ref(), value.as_bytes());
    }
    seen.context(headers, peer, trusted, names)
}

/// The headers that belong to the context, as far as they were noted: the first line of each, and
/// of `Sec-GPC` and `DNT` whether any line asks for privacy.
#[derive(Default)]
pub(crate) struct ContextHeaders<'a> {
    user_agent: Option<&'a [u8]>,
    referer: Option<&'a [u8]>,
    gpc: bool,
    dnt: bool,
    /// Whether the headers in which browsers announce a prefetch do so.
    prefetches: [Option<bool>; 4],
    /// Whether every header line is known to be printable ASCII, which holds no hidden characters.
    is_printable: bool,
}

impl<'a> ContextHeaders<'a> {
    /// An empty value, for the header of a request whose lines are all printable ASCII.
    pub fn of_printable() -> Self {
        Self { is_printable: true, ..Self::default() }
    }

    /// Stores a header line if it belongs to the context. Call this in order of appearance.
    #[inline]
    pub fn note(&mut self, name: &[u8], value: &'a [u8]) {
        // The length alone excludes most other headers.
        let prefetch = match name.len() {
            7 if token_is(name, b"referer") => {
                self.referer.get_or_insert(value);
                return;
            }
            10 if token_is(name, b"user-agent") => {
                self.user_agent.get_or_insert(value);
                return;
            }
            3 if token_is(name, b"dnt") => {
                self.dnt |= has_one(value);
                return;
            }
            7 if token_is(name, b"sec-gpc") => {
                self.gpc |= has_one(value);
                return;
            }
            11 if token_is(name, b"sec-purpose") => &mut self.prefetches[0],
            7 if token_is(name, b"purpose") => &mut self.prefetches[1],
            9 if token_is(name, b"x-purpose") => &mut self.prefetches[2],
            5 if token_is(name, b"x-moz") => &mut self.prefetches[3],
            _ => return,
        };
        prefetch.get_or_insert_with(|| is_prefetch(value));
    }

    /// The context of the request with these `headers`, whose lines were noted, from `peer`.
    pub fn context<'h>(
        &self,
        headers: &'h impl Headers,
        peer: Option<IpAddr>,
        trusted: &TrustedProxies,
        names: &'h ContextNames,
    ) -> Context<'h>
    where
        'a: 'h,
    {
        Context {
            ip: trusted.client(peer, headers),
            user_agent: self.user_agent.and_then(|value| self.text(value)),
            referer: self.referer.and_then(|value| self.text(value)),
            gpc: self.gpc,
            dnt: self.dnt,
            prefetch: self.prefetches.contains(&Some(true)),
            further: match names.is_empty() {
                true => None,
                // One of Sec-GPC: 1 and the visitor's cookie is enough.
                false => self.further(headers, names, !self.gpc, trusted.trusts_peer(peer)).boxed(),
            },
        }
    }

    /// The further members that `names` asks for. `takes_cookie`: the cookie may be stored.
    /// `trusts_peer`: the peer is a trusted proxy, so `events.context_headers` may be stored.
    #[inline(never)]
    fn further<'h>(
        &self,
        headers: &'h impl Headers,
        names: &'h ContextNames,
        takes_cookie: bool,
        trusts_peer: bool,
    ) -> FurtherContext<'h> {
        let value = |lower: &'h str| headers.lines(lower).next().and_then(|line| self.text(line));
        let host = || value("host").filter(|host| host.len() <= HOST_BYTES_MAX);
        let cookie = names.utk_cookie().filter(|_| takes_cookie);
        let pair = |(name, lower): (&'h str, &'h str)| Some((name.into(), value(lower)?));
        FurtherContext {
            host: if names.has_host() { host() } else { None },
            utk: cookie.and_then(|cookie| self.utk(headers, cookie)),
            headers: match trusts_peer {
                true => names.headers().filter_map(pair).collect(),
                false => Vec::new(),
            },
            added: Vec::new(),
        }
    }

    /// The value of the cookie `name`, unless the visitor does not want to be tracked.
    fn utk<'h>(&self, headers: &'h impl Headers, name: &str) -> Option<Cow<'h, str>> {
        let value = cookies(headers, name).next().and_then(|value| self.text(value));
        let value = value.filter(|value| value.len() <= UTK_BYTES_MAX)?;
        let refused = cookies(headers, DO_NOT_TRACK_COOKIE).any(|value| value == b"yes");
        (!refused).then_some(value)
    }

    /// A header as text without hidden characters. Invalid UTF-8 is replaced: an odd header must
    /// not lose the event. `None`: nothing is left.
    #[inline]
    fn text<'h>(&self, value: &'h [u8]) -> Option<Cow<'h, str>> {
        // Nearly all are UTF-8, and the lossy conversion takes several times as long.
        let text = match std::str::from_utf8(value) {
            Ok(text) if self.is_printable => Cow::Borrowed(text),
            Ok(text) => without_hidden(Cow::Borrowed(text)),
            Err(_) => without_hidden(String::from_utf8_lossy(value)),
        };
        (!text.is_empty()).then_some(text)
    }
}

/// The values of the cookies of this name (RFC 6265, section 4.2.1).
fn cookies<'h>(headers: &'h impl Headers, name: &str) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.lines("cookie");
    let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs.filter_map(move |pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Whether an element of the value is `1`. A proxy may join the lines of one name (RFC 9110, 5.3),
/// and a visitor who asks for privacy anywhere gets it.
fn has_one(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|element| element.trim_ascii() == b"1")
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

    fn of_headers(headers: &HeaderMap) -> Context<'_> {
        static NONE: std::sync::LazyLock<ContextNames> = std::sync::LazyLock::new(Default::default);
        context(headers, None, &TrustedProxies::default(), &NONE)
    }

    #[test]
    fn flags_are_true_only_where_the_browser_says_so() {
        let check = |name: &str, value: &str, expect: [bool; 3]| {
            let headers = of(&[(name, value)]);
            let context = of_headers(&headers);
            assert_eq!([context.gpc, context.dnt, context.prefetch], expect, "{name}: {value}");
        };
        check("Sec-GPC", "1", [true, false, false]);
        check("Sec-GPC", "0", [false, false, false]);
        check("Sec-GPC", "1, 1", [true, false, false]);
        check("Sec-GPC", "0,1", [true, false, false]);
        check("Sec-GPC", "0, 11", [false, false, false]);
        check("DNT", "1", [false, true, false]);
        check("DNT", "0 ,\t1", [false, true, false]);
        check("DNT", "null", [false, false, false]);
        check("Sec-Purpose", "prefetch;prerender", [false, false, true]);
        check("Purpose", "Prefetch", [false, false, true]);
        check("X-Moz", "prefetch", [false, false, true]);
        check("Purpose", "prefetching", [false, false, false]);
        check("X-Purpose", "preview", [false, false, true]);
        check("X-Other", "1", [false, false, false]);
    }

    #[test]
    fn the_first_line_of_a_header_counts() {
        let headers = of(&[("User-Agent", ""), ("User-Agent", "b")]);
        assert_eq!(of_headers(&headers).user_agent, None);
        let headers = of(&[("Purpose", "x"), ("Purpose", "prefetch"), ("X-Moz", "prefetch")]);
        assert!(of_headers(&headers).prefetch, "of the other one");
    }

    #[test]
    fn any_line_that_asks_for_privacy_counts() {
        for values in [["0", "1"], ["1", "0"], ["", "1, 1"]] {
            let headers = of(&values.map(|value| ("DNT", value)));
            assert!(of_headers(&headers).dnt, "{values:?}");
            let headers = of(&values.map(|value| ("Sec-GPC", value)));
            assert!(of_headers(&headers).gpc, "{values:?}");
        }
        let headers = of(&[("DNT", "0"), ("DNT", "2"), ("Sec-GPC", "true"), ("Sec-GPC", "")]);
        let seen = of_headers(&headers);
        assert!(!seen.dnt && !seen.gpc);
    }

    #[test]
    fn an_empty_header_is_absent_and_an_odd_one_loses_nothing() {
        let headers = of(&[("User-Agent", ""), ("Referer", "https://a.test/\u{e9}")]);
        let seen = of_headers(&headers);
        assert_eq!(seen.user_agent, None);
        assert_eq!(seen.referer.as_deref(), Some("https://a.test/\u{e9}"));
        let mut headers = http::HeaderMap::new();
        headers.insert("user-agent", http::HeaderValue::from_bytes(b"a\xffb").unwrap());
        let seen = of_headers(&headers);
        assert_eq!(seen.user_agent.as_deref(), Some("a\u{fffd}b"));
    }

    #[test]
    fn hidden_characters_are_no_part_of_the_context() {
        let lines = [("User-Agent", "a\u{9b}31m\tb\u{202e}"), ("Referer", "\u{feff}\u{200b}")];
        let headers = of(&lines);
        let seen = of_headers(&headers);
        assert_eq!((seen.user_agent.as_deref(), seen.referer), (Some("a31mb"), None));
    }
}
