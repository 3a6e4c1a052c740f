//! The proxy of the HTTP clients of upstreams and of portal lists by URL (SPEC 7).
//!
//! The key `proxy` names a proxy for all requests of a client. Without the key, `HTTPS_PROXY` and
//! `NO_PROXY` of the environment count, and only for `https` URLs: a proxy can read what is sent to
//! an `http` URL.

use crate::config_error::ConfigError;
use crate::env::Secret;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, NoProxy, Proxy};
use std::ffi::OsString;
use url::Url;

/// A proxy that is in use.
struct ProxyInUse {
    proxy: Proxy,
    /// Its host and port, for messages.
    place: String,
    /// Which URLs it is used for. `None`: for all.
    matcher: Option<Matcher>,
}

/// Sets the proxy of a client. `proxy` is the configured URL, and an empty one means no proxy; with
/// `None` the environment decides.
///
/// # Errors
///
/// The configured value, or the variable of the environment, is not the URL of a proxy.
pub fn proxied(
    builder: ClientBuilder,
    proxy: Option<&Secret>,
) -> Result<ClientBuilder, ConfigError> {
    // Without this the client reads further variables, such as `HTTP_PROXY`.
    let builder = builder.no_proxy();
    Ok(match find(proxy)? {
        Some(found) => builder.proxy(found.proxy),
        None => builder,
    })
}

/// Checks what [`proxied`] would use.
///
/// # Errors
///
/// The errors of [`proxied`].
pub fn check(proxy: Option<&Secret>) -> Result<(), ConfigError> {
    find(proxy).map(drop)
}

/// Host and port of the proxy that requests to `url` go through, never its credentials. `None`:
/// there is no proxy.
pub fn place(proxy: Option<&Secret>, url: &Url) -> Option<String> {
    let found = find(proxy).ok().flatten()?;
    let is_used = match found.matcher {
        None => true,
        Some(matcher) => matcher.intercept(&url.as_str().parse().ok()?).is_some(),
    };
    is_used.then_some(found.place)
}

fn find(proxy: Option<&Secret>) -> Result<Option<ProxyInUse>, ConfigError> {
    match proxy.map(Secret::expose) {
        None => of_environment(|name| std::env::var_os(name)),
        Some("") => Ok(None),
        Some(text) => {
            let found = checked(text).and_then(|url| {
                Some(ProxyInUse {
                    proxy: Proxy::all(text).ok()?,
                    place: host_and_port(&url),
                    matcher: None,
                })
            });
            found.map(Some).ok_or_else(|| error("is"))
        }
    }
}

fn host_and_port(url: &Url) -> String {
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default());
    format!("{host}:{}", port.unwrap_or_default())
}

/// The proxy that the environment names for `https` URLs. As in curl, a variable in lower case
/// comes first, an empty value means no proxy, and a value without a scheme names an `http` proxy.
fn of_environment(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<ProxyInUse>, ConfigError> {
    let either = |lower: &str, upper: &str| variable(lower).or_else(|| variable(upper));
    let Some(text) = either("https_proxy", "HTTPS_PROXY").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_str().map(|text| match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    });
    let except = either("no_proxy", "NO_PROXY").unwrap_or_default();
    let except = except.to_string_lossy();
    let found = text.and_then(|text| {
        let place = host_and_port(&checked(&text)?);
        let proxy = Proxy::https(&text).ok()?.no_proxy(NoProxy::from_string(&except));
        let matcher = Matcher::builder().https(text).no(except.into_owned()).build();
        Some(ProxyInUse { proxy, place, matcher: Some(matcher) })
    });
    found.map(Some).ok_or_else(|| error("is not set, and HTTPS_PROXY of the environment is"))
}

/// Reads the URL of a proxy: scheme and host, perhaps a port and credentials.
fn checked(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let is_http = matches!(scheme.as_deref(), Some("http" | "https"));
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    (is_http && url.has_host() && is_bare).then_some(url)
}

fn error(subject: &str) -> ConfigError {
    let why = "no URL of a proxy such as http://proxy.example:3128";
    ConfigError::new("proxy", format!("{subject} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_url_or_empty() {
        let check = |text: &str| check(Some(&Secret::new(text))).is_ok();
        assert!(check("") && check("http://proxy:3128") && check("https://u:p@proxy"));
        assert!(check("http://proxy:3128/"));
        assert!(check("HTTP://proxy:3128") && check("Https://proxy"));
        assert!(!check("proxy:3128") && !check("socks5://proxy") && !check("http://"));
        assert!(!check("http://proxy/path") && !check("http://proxy/?a") && !check("http://p/#a"));
    }

    #[test]
    fn a_proxy_has_a_place_without_credentials() {
        let at = |proxy: &str, url: &str| place(Some(&Secret::new(proxy)), &url.parse().unwrap());
        assert_eq!(at("", "http://a/"), None);
        assert_eq!(at("http://u:p@proxy", "http://a/").as_deref(), Some("proxy:80"));
        assert_eq!(at("https://[::1]:3128/", "https://a/").as_deref(), Some("[::1]:3128"));
    }

    #[test]
    fn the_proxy_of_the_environment_is_not_used_for_every_url() {
        let value = |name: &str| match name {
            "HTTPS_PROXY" => Some("u:p@proxy:3128".into()),
            "NO_PROXY" => Some("inside.test,10.0.0.0/8".into()),
            _ => None,
        };
        let found = of_environment(value).unwrap().unwrap();
        assert_eq!(found.place, "proxy:3128");
        let matcher = found.matcher.unwrap();
        let is_used = |url: &str| matcher.intercept(&url.parse().unwrap()).is_some();
        assert!(is_used("https://outside.test/") && is_used("https://192.0.2.1/"));
        for direct in ["http://outside.test/", "https://a.inside.test/", "https://10.1.2.3/"] {
            assert!(!is_used(direct), "{direct}");
        }
    }

    #[test]
    fn the_environment_names_a_proxy_or_none_and_never_a_mistake() {
        let found = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
            of_environment(value).map(|proxy| proxy.is_some()).map_err(|e| e.to_string())
        };
        assert_eq!(found(&[]), Ok(false));
        assert_eq!(found(&[("HTTP_PROXY", "http://p"), ("ALL_PROXY", "http://p")]), Ok(false));
        assert_eq!(found(&[("HTTPS_PROXY", "http://p:1")]), Ok(true));
        assert_eq!(found(&[("https_proxy", "p:1")]), Ok(true));
        assert_eq!(found(&[("https_proxy", ""), ("HTTPS_PROXY", "http://p")]), Ok(false));
        for mistake in ["junk junk", "socks5://p", "http://p/path", "https://"] {
            let why = found(&[("HTTPS_PROXY", mistake)]).unwrap_err();
            assert!(why.contains("HTTPS_PROXY") && !why.contains(mistake), "{why}");
        }
    }
}
