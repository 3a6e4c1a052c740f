//! The proxy of the HTTP clients of upstreams and of portal lists by URL (SPEC 7).
//!
//! The key `proxy` names a proxy for all requests of a client. Without the key, `HTTPS_PROXY` and
//! `NO_PROXY` of the environment count, and only for `https` URLs: a proxy can read what is sent to
//! an `http` URL.

use crate::config_error::ConfigError;
use crate::env::Secret;
use reqwest::{ClientBuilder, NoProxy, Proxy};
use std::ffi::OsString;

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
        Some(proxy) => builder.proxy(proxy),
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

fn find(proxy: Option<&Secret>) -> Result<Option<Proxy>, ConfigError> {
    match proxy.map(Secret::expose) {
        None => of_environment(|name| std::env::var_os(name)),
        Some("") => Ok(None),
        Some(url) => {
            let proxy = checked(url).and_then(|url| Proxy::all(url).ok());
            proxy.map(Some).ok_or_else(|| error("is"))
        }
    }
}

/// The proxy that the environment names for `https` URLs. As in curl, a variable in lower case
/// comes first, an empty value means no proxy, and a value without a scheme names an `http` proxy.
fn of_environment(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Proxy>, ConfigError> {
    let either = |lower: &str, upper: &str| variable(lower).or_else(|| variable(upper));
    let Some(text) = either("https_proxy", "HTTPS_PROXY").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let url = text.to_str().map(|text| match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    });
    let proxy = url.as_deref().and_then(checked).and_then(|url| Proxy::https(url).ok());
    let proxy = proxy.ok_or_else(|| error("is not set, and HTTPS_PROXY of the environment is"))?;
    let except = either("no_proxy", "NO_PROXY").unwrap_or_default();
    Ok(Some(proxy.no_proxy(NoProxy::from_string(&except.to_string_lossy()))))
}

/// Returns `text` where it is the URL of a proxy: scheme and host, perhaps a port and credentials.
fn checked(text: &str) -> Option<&str> {
    let url = url::Url::parse(text).ok()?;
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    (is_http && url.has_host() && is_bare).then_some(text)
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
        assert!(!check("proxy:3128") && !check("socks5://proxy") && !check("http://"));
        assert!(!check("http://proxy/path") && !check("http://proxy/?a") && !check("http://p/#a"));
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
