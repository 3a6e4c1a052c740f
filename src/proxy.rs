//! The proxy of HTTP clients: upstreams, and portal lists by URL (SPEC 7).
//!
//! `proxy` names a proxy for all requests of a client. Without it the environment counts:
//! `HTTPS_PROXY`, `NO_PROXY`, and `HTTP_PROXY` for requests without credentials. A proxy can read
//! what goes to an `http` URL, so credentials go there through it only where the configuration says
//! so.

use crate::config_error::ConfigError;
use crate::env::Secret;
use reqwest::{ClientBuilder, Proxy};

/// Sets the proxy of a client: the configured one; none if that is empty; without one that of the
/// environment. `in_clear`: the requests carry credentials and are not encrypted.
///
/// # Errors
///
/// `proxy` is no URL of a proxy.
pub fn proxied(
    builder: ClientBuilder,
    proxy: Option<&Secret>,
    in_clear: bool,
) -> Result<ClientBuilder, ConfigError> {
    match proxy.map(Secret::expose) {
        Some("") => Ok(builder.no_proxy()),
        Some(url) => Ok(builder.no_proxy().proxy(parse(url)?)),
        None if in_clear => Ok(builder.no_proxy()),
        None => Ok(builder),
    }
}

/// Checks the value of a key `proxy`.
///
/// # Errors
///
/// It is neither empty nor the URL of a proxy.
pub fn check(proxy: Option<&Secret>) -> Result<(), ConfigError> {
    match proxy.map(Secret::expose) {
        None | Some("") => Ok(()),
        Some(url) => parse(url).map(drop),
    }
}

fn parse(url: &str) -> Result<Proxy, ConfigError> {
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    let has_host = url::Url::parse(url).is_ok_and(|url| url.has_host());
    let proxy = Proxy::all(url).ok().filter(|_| is_http && has_host);
    let why = "is no URL of a proxy such as http://proxy.example:3128";
    proxy.ok_or_else(|| ConfigError::new("proxy", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_url_or_empty() {
        let check = |text: &str| check(Some(&Secret::new(text))).is_ok();
        assert!(check("") && check("http://proxy:3128") && check("https://u:p@proxy"));
        assert!(!check("proxy:3128") && !check("socks5://proxy") && !check("http://"));
    }
}
