//! The `[otlp]` section of the configuration.

use crate::config_error::ConfigError;
use crate::env::Secret;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::BTreeMap;
use url::Url;

/// The longest interval between two exports, in seconds: a day.
const INTERVAL_SECONDS_MAX: u64 = 86_400;
/// The path of metrics below a collector's base URL (OTLP 1.x, section OTLP/HTTP Request).
const METRICS_PATH: &str = "v1/metrics";

/// The `[otlp]` section. Needs the feature `otlp`.
///
/// ```
/// use pixelgate::config::{Otlp, Secret};
///
/// let mut otlp = Otlp::default();
/// otlp.endpoint = Some(Secret::new("http://collector.example:4318"));
/// otlp.interval_seconds = 15;
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The base URL of a collector that takes OTLP over HTTP. `None`, the default: nothing is
    /// exported. May hold `${NAME}`.
    pub endpoint: Option<Secret>,
    /// Time between two exports, in seconds, 1 to 86,400. Default: 60.
    pub interval_seconds: u64,
    /// Further request headers. Values may hold `${NAME}`.
    pub headers: BTreeMap<String, Secret>,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: None, interval_seconds: 60, headers: BTreeMap::new() }
    }
}

impl Config {
    /// Checks the section. The error's key is one of `[otlp]`.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=INTERVAL_SECONDS_MAX).contains(&self.interval_seconds) {
            let why = format!("must be 1 to {INTERVAL_SECONDS_MAX} seconds");
            return Err(ConfigError::new("interval_seconds", why));
        }
        self.header_map()?;
        match self.url()? {
            Some(_) if cfg!(not(feature = "otlp")) => {
                Err(ConfigError::new("endpoint", "needs a pixelgate with the cargo feature otlp"))
            }
            _ => Ok(()),
        }
    }

    /// The URL to which metrics are sent. `None` if `endpoint` is not set.
    pub(super) fn url(&self) -> Result<Option<Url>, ConfigError> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let parse = |text: &str| {
            Url::parse(text).map_err(|e| ConfigError::caused("endpoint", "is no URL", e))
        };
        // The endpoint is parsed by itself as well: if it had no host, the path that is appended
        // would become its host.
        parse(endpoint.expose())?;
        let base = endpoint.expose().trim_end_matches('/');
        let url = parse(&format!("{base}/{METRICS_PATH}"))?;
        let is_plain = url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !is_plain {
            let why = "must be http:// or https://, a host and at most a path";
            return Err(ConfigError::new("endpoint", why));
        }
        Ok(Some(url))
    }

    /// The configured `headers`. They are marked as sensitive, so that no log shows their values.
    pub(super) fn header_map(&self) -> Result<HeaderMap, ConfigError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let wrong = |why: &str| ConfigError::new(format!("headers.{name}"), why);
            let header = HeaderName::from_bytes(name.as_bytes());
            let header = header.map_err(|_| wrong("is no header name"))?;
            let value = HeaderValue::from_str(value.expose());
            let mut value = value.map_err(|_| wrong("cannot be a header's value"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        let check = |endpoint: &str, expect: Option<&str>| {
            let config = Config { endpoint: Some(Secret::new(endpoint)), ..Config::default() };
            let url = config.url().ok().flatten();
            assert_eq!(url.as_ref().map(Url::as_str), expect, "{endpoint}");
        };
        check("http://c.example:4318", Some("http://c.example:4318/v1/metrics"));
        check("https://c.example/otlp/", Some("https://c.example/otlp/v1/metrics"));
        for wrong in
            ["c.example:4318", "ftp://c.example", "http://c.example?a=b", "/x", "", "http://"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn a_mistake_names_its_key() {
        let key = |text: &str| toml::from_str::<Config>(text).unwrap().validate().err();
        let key = |text: &str| key(text).map(|e| e.key().to_owned());
        assert_eq!(key(""), None);
        assert_eq!(key("interval_seconds = 0").as_deref(), Some("interval_seconds"));
        assert_eq!(key("headers = { 'a b' = 'c' }").as_deref(), Some("headers.a b"));
        assert_eq!(key("endpoint = 'nowhere'").as_deref(), Some("endpoint"));
    }
}
