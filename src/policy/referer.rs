//! Reduces a `Referer` to the part that may be stored (`privacy.referer`).
//!
//! The URL of a page often identifies its visitor, by an email address in the query, a token for a
//! new password or userinfo. Most referers are plain and are cut without being parsed and copied.

use std::borrow::Cow;
use url::Url;

/// A byte of a host name: a lower-case letter, a digit or a dot.
const HOST: u8 = 0;
const HYPHEN: u8 = 1;
/// A byte that ends a host name, or that no ordinary one has.
const NO_HOST: u8 = 2;

/// The class of each byte. Every event has its referer's host read, and comparisons would cost
/// several times as much.
static HOST_CLASS: [u8; 256] = {
    let mut table = [NO_HOST; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'0'..=b'9' | b'.' => HOST,
            b'-' => HYPHEN,
            _ => NO_HOST,
        };
        byte += 1;
    }
    table
};

/// The scheme, host and port of a referer. `None` if the value is not the URL of a web page or of
/// an app.
pub(super) fn origin(referer: Cow<'_, str>) -> Option<Cow<'_, str>> {
    if let Some(end) = plain_origin_end(&referer) {
        return Some(cut(referer, end));
    }
    let url = Url::parse(&referer).ok()?;
    match is_web(&url) {
        true => Some(url.origin().ascii_serialization().into()),
        false => app(&url).map(Cow::Owned),
    }
}

/// The referer without userinfo and fragment, and without its query unless `keep_query`; of an app
/// its name alone. `None` if the value is neither the URL of a web page or of an app nor a path, or
/// if it may hold userinfo whose end is unknown.
pub(super) fn without_secrets(referer: Cow<'_, str>, keep_query: bool) -> Option<Cow<'_, str>> {
    let is_end = |c: char| c == '#' || c == '?' && !keep_query;
    let end = referer.find(is_end).unwrap_or(referer.len());
    let referer = cut(referer, end);
    if plain_origin_end(&referer).is_some() {
        return Some(referer);
    }
    if referer.starts_with('/') {
        return (!referer.contains('@')).then_some(referer);
    }
    let mut url = Url::parse(&referer).ok()?;
    if !is_web(&url) {
        return app(&url).map(Cow::Owned);
    }
    if url.username().is_empty() && url.password().is_none() {
        return Some(referer);
    }
    url.set_username("").and_then(|()| url.set_password(None)).ok()?;
    Some(Cow::Owned(url.into()))
}

fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// The scheme and name of an app, such as `android-app://com.google.android.gm`. Of other schemes
/// even the host can be personal: an address (`mailto:`), a number (`tel:`), the name of a file, or
/// the id of one installation (`moz-extension:`).
fn app(url: &Url) -> Option<String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let name = url.host_str().filter(|name| !name.is_empty() && name.bytes().all(is_part))?;
    matches!(url.scheme(), "android-app" | "ios-app").then(|| format!("{}://{name}", url.scheme()))
}

/// The end of the origin in an ordinary URL: one with the scheme `http` or `https`, and with a host
/// in lower case that is certainly a name, not Punycode, and without userinfo or port. `None` if
/// the URL is not ordinary.
fn plain_origin_end(referer: &str) -> Option<usize> {
    let rest = referer.strip_prefix("http")?;
    let host = rest.strip_prefix("s://").or_else(|| rest.strip_prefix("://"))?;
    let host = host.as_bytes();
    let mut has_hyphen = false;
    let is_end = |byte: &u8| {
        let class = HOST_CLASS[usize::from(*byte)];
        has_hyphen |= class == HYPHEN;
        class == NO_HOST
    };
    let length = host.iter().position(is_end).unwrap_or(host.len());
    let (host, rest) = host.split_at(length);
    let ends = matches!(rest.first(), None | Some(b'/' | b'?' | b'#'));
    // A host whose last label begins with a letter is not an IPv4 address.
    let last = &host[memchr::memrchr(b'.', host).map_or(0, |dot| dot + 1)..];
    // Few names have a hyphen, so that this costs less than to search for Punycode in all.
    let is_punycode = has_hyphen && host.windows(4).any(|part| part == b"xn--");
    let is_name = last.first().is_some_and(u8::is_ascii_lowercase) && !is_punycode;
    (ends && is_name).then_some(referer.len() - rest.len())
}

fn cut(text: Cow<'_, str>, end: usize) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
        Cow::Owned(mut text) => {
            text.truncate(end);
            Cow::Owned(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let check = |referer: &str, expect: Option<&str>| {
            assert_eq!(origin(referer.into()).as_deref(), expect, "{referer}");
            assert_eq!(origin(referer.to_owned().into()).as_deref(), expect, "{referer}");
        };
        check("https://shop.example/thanks?email=a@b.example", Some("https://shop.example"));
        check("http://shop.example", Some("http://shop.example"));
        check("https://shop.example:8443/thanks", Some("https://shop.example:8443"));
        check("https://Shop.example:443/", Some("https://shop.example"));
        check("https://ann:pw@shop.example/", Some("https://shop.example"));
        check("https://203.0.113.7/x", Some("https://203.0.113.7"));
        check("https://b\u{fc}cher.example/x", Some("https://xn--bcher-kva.example"));
        check("android-app://com.google.android.gm/", Some("android-app://com.google.android.gm"));
        check("ios-app://544007664/youtube/watch?v=1", Some("ios-app://544007664"));
        check("android-app://ann%40shop.example/x", None);
        check("android-app:ann@shop.example", None);
        check("ftp://shop.example/ann", None);
        check("tel://491701234567/", None);
        check("blob:https://shop.example/9115d58c-bcda-ff47-86e5-083e9a215304", None);
        check("/thanks", None);
        check("data:text/html,hello", None);
        check("file:///home/ann/page.html", None);
        check("mailto:ann@shop.example", None);
        check("", None);
    }

    #[test]
    fn userinfo_fragment_and_query_are_removed() {
        let check = |referer: &str, expect: [Option<&str>; 2]| {
            for (keep_query, expect) in [false, true].into_iter().zip(expect) {
                let kept = without_secrets(referer.into(), keep_query);
                assert_eq!(kept.as_deref(), expect, "{referer}, {keep_query}");
            }
        };
        let page = "https://shop.example/reset";
        check(page, [Some(page); 2]);
        let with_query = "https://shop.example/reset?email=a@b.example&access_token=x";
        check(with_query, [Some(page), Some(with_query)]);
        check("https://shop.example/reset#access_token=x?y", [Some(page); 2]);
        check("https://ann:pw@shop.example/reset", [Some(page); 2]);
        check("https:ann:pw@shop.example/reset", [Some(page); 2]);
        check("https:\\\\ann@shop.example\\reset", [Some(page); 2]);
        check("https://shop.example/@ann/1", [Some("https://shop.example/@ann/1"); 2]);
        check("//ann:pw@shop.example/reset", [None; 2]);
        check("//shop.example/reset", [Some("//shop.example/reset"); 2]);
        check("https://shop.example:8443/reset", [Some("https://shop.example:8443/reset"); 2]);
        check("https://Shop.example/Reset", [Some("https://Shop.example/Reset"); 2]);
        check("HTTPS:ann:pw@shop.example/reset", [Some(page); 2]);
        check("https://ann%40shop.example/reset", [None; 2]);
        check("https://", [None; 2]);
        check("ann@shop.example", [None; 2]);
        check("/reset?token=x", [Some("/reset"), Some("/reset?token=x")]);
    }

    #[test]
    fn nothing_is_kept_of_a_value_that_is_no_page_app_or_path() {
        for referer in [
            "mailto:ann@shop.example",
            "MAILTO:ann%40shop.example",
            "mailto://ann@shop.example",
            "tel:+491701234567",
            "data:text/html,ann",
            "javascript:ann()",
            "about:ann",
            "file:///home/ann/page.html",
            "file://ann/page",
            "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc/x",
            "localhost:8080/ann",
            "shop.example/ann",
            "Ann Smith",
            "ann%40shop.example",
            "\\\\ann:pw@shop.example/x",
        ] {
            assert_eq!(origin(referer.into()), None, "{referer}");
            for keep_query in [false, true] {
                assert_eq!(without_secrets(referer.into(), keep_query), None, "{referer}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_plain_origin_is_that_of_the_url_crate(
            referer in "https?:/?/?([a-z0-9.-]|[A-Z@:%é]|xn--){0,12}(/|\\?|#|\\\\)?[a-z@/:]{0,4}",
        ) {
            if let Some(end) = plain_origin_end(&referer) {
                let url = Url::parse(&referer).unwrap();
                prop_assert_eq!(&referer[..end], url.origin().ascii_serialization());
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }
    }
}
