//! The `[portals]` section of the configuration and its validation.

use crate::config_error::ConfigError;
use crate::env::Secret;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::format::Format;
use super::terms::Bounds;

/// The longest interval between two checks of the source, in seconds: one day. A longer one is
/// surely a mistake.
pub const REFRESH_SECONDS_MAX: u64 = 86_400;

/// The `[portals]` section (SPEC 5 and 9).
///
/// ```
/// use pixelgate::config::{PortalMode, Portals};
///
/// let mut portals = Portals::default();
/// portals.source = "/etc/pixelgate/portals.toml".to_owned();
/// portals.mode = PortalMode::DryRun;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// A file whose name ends in `.toml`, `.json` or `.txt`, or an `http://` or `https://` URL. May
    /// be empty if `mode` is `off`, and then there is no list. May hold `${NAME}`. Default:
    /// `portals.toml`.
    #[serde(deserialize_with = "crate::env::expanded")]
    pub source: String,
    /// How a refusal by the list is treated. Default: `enforce`.
    pub mode: Mode,
    /// The seconds within which a change of the source is picked up, 1 to 86,400. Default: 5.
    pub refresh_seconds: u64,
    /// The seconds without a successful check of the source after which every event is rejected as
    /// `overloaded`: more than `refresh_seconds`, or 0 for never. Default: 0.
    pub stale_seconds_max: u64,
    /// Request headers for a URL source. Values may hold `${NAME}`.
    pub headers: BTreeMap<String, Secret>,
    /// The proxy for a URL source, an `http://` or `https://` URL. Empty: no proxy. `None`, the
    /// default: the proxy that the environment names. May hold `${NAME}`.
    pub proxy: Option<Secret>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            source: "portals.toml".to_owned(),
            mode: Mode::Enforce,
            refresh_seconds: 5,
            stale_seconds_max: 0,
            headers: BTreeMap::new(),
            proxy: None,
        }
    }
}

/// How a refusal by the list is treated.
///
/// ```
/// use pixelgate::config::PortalMode;
///
/// assert_eq!(PortalMode::default(), PortalMode::Enforce);
/// assert_eq!(PortalMode::DryRun.as_str(), "dry_run");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Mode {
    /// The event is rejected.
    #[default]
    Enforce,
    /// The event is accepted. The decision names the reason for which `enforce` would reject it.
    DryRun,
    /// The list refuses nothing. Its `drop_properties`, `privacy` and `upstreams` still apply:
    /// accepting more events must not pass on more data.
    Off,
}

impl Mode {
    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::DryRun => "dry_run",
            Mode::Off => "off",
        }
    }
}

/// A checked `[portals]` section, made by [`Config::validate`].
#[derive(Debug, Clone)]
pub struct ValidConfig {
    pub(super) location: Location,
    pub(super) mode: Mode,
    pub(super) refresh: Duration,
    /// `None`: a list of any age is used.
    pub(super) stale_after: Option<Duration>,
    pub(super) bounds: Bounds,
}

impl ValidConfig {
    /// The same section with the configuration that the rules of the list must fit. Without it, no
    /// rule may name an upstream.
    pub fn bounded(self, bounds: Bounds) -> ValidConfig {
        ValidConfig { bounds, ..self }
    }
}

/// The parsed `portals.source`.
#[derive(Debug, Clone)]
pub(super) enum Location {
    /// There is no list to look for: mode `off` with an empty source, or a fixed list.
    None,
    File {
        path: PathBuf,
        format: Format,
    },
    Url {
        url: Url,
        headers: HeaderMap,
        proxy: Option<Secret>,
    },
}

impl Config {
    /// Checks every value, without reading the source.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<ValidConfig, ConfigError> {
        let location = self.location()?;
        if !(1..=REFRESH_SECONDS_MAX).contains(&self.refresh_seconds) {
            let why = format!("must be 1 to {REFRESH_SECONDS_MAX} seconds");
            return Err(ConfigError::new("portals.refresh_seconds", why));
        }
        if self.stale_seconds_max != 0 && self.stale_seconds_max <= self.refresh_seconds {
            let why = "must be 0 (never) or more than portals.refresh_seconds";
            return Err(ConfigError::new("portals.stale_seconds_max", why));
        }
        let stale_after = Duration::from_secs(self.stale_seconds_max);
        Ok(ValidConfig {
            location,
            mode: self.mode,
            refresh: Duration::from_secs(self.refresh_seconds),
            stale_after: (!stale_after.is_zero()).then_some(stale_after),
            bounds: Bounds::default(),
        })
    }

    fn location(&self) -> Result<Location, ConfigError> {
        let wrong = |why: &str| Err(ConfigError::new("portals.source", why));
        let source = self.source.as_str();
        if source.is_empty() {
            return match self.mode {
                Mode::Off => Ok(Location::None),
                Mode::Enforce | Mode::DryRun => wrong("is empty; only mode \"off\" needs no list"),
            };
        }
        let scheme = source.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if matches!(scheme.as_deref(), Some("http" | "https")) {
            return match Url::parse(source) {
                Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                    wrong("holds a password; put it into portals.headers as \"${NAME}\"")
                }
                Ok(url) => {
                    Ok(Location::Url { url, headers: self.header_map()?, proxy: self.proxy()? })
                }
                Err(error) => wrong(&format!("is not a URL: {error}")),
            };
        }
        if scheme.is_some() {
            return wrong("is neither a file nor an http:// or https:// URL");
        }
        if !self.headers.is_empty() {
            return Err(ConfigError::new("portals.headers", "are for a URL source only"));
        }
        if self.proxy.is_some() {
            return Err(ConfigError::new("portals.proxy", "is for a URL source only"));
        }
        match Format::of_name(source) {
            Some(format) => Ok(Location::File { path: source.into(), format }),
            None => wrong("must end in .toml, .json or .txt"),
        }
    }

    fn proxy(&self) -> Result<Option<Secret>, ConfigError> {
        #[cfg(feature = "http")]
        crate::proxy::check(self.proxy.as_ref()).map_err(|e| e.within("portals"))?;
        Ok(self.proxy.clone())
    }

    fn header_map(&self) -> Result<HeaderMap, ConfigError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let wrong = |why: &str| ConfigError::new(format!("portals.headers.{name}"), why);
            let header =
                HeaderName::try_from(name).map_err(|_| wrong("is not the name of a header"))?;
            let mut value = HeaderValue::try_from(value.expose())
                .map_err(|_| wrong("cannot be the value of a header"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }
}

impl Location {
    /// The source as messages name it: a path, or a URL without its query.
    pub(super) fn name(&self) -> String {
        match self {
            Location::None => String::new(),
            Location::File { path, .. } => path.display().to_string(),
            Location::Url { url, .. } => url_without_query(url),
        }
    }
}

/// A URL without its query, which may hold a token.
pub(super) fn url_without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str, expect: Result<(), &str>) {
        let config: Config = toml::from_str(toml).unwrap();
        let got = config.validate().map(drop);
        assert_eq!(got.as_ref().map_err(|e| e.key()).copied(), expect, "{toml}: {got:?}");
    }

    #[test]
    fn values_are_checked_and_named() {
        check("", Ok(()));
        check("source = 'a.toml'", Ok(()));
        check("source = '/etc/pixelgate/LIST.JSON'", Ok(()));
        check("source = 'https://lists.example/portals?x=1'", Ok(()));
        check("source = ''\nmode = 'off'", Ok(()));
        check("source = 'HTTP://lists.example/portals'\nheaders = { a = 'b' }", Ok(()));
        check("source = 'Https://lists.example/portals'", Ok(()));
        check("source = ''", Err("portals.source"));
        check("source = 'portals.yaml'", Err("portals.source"));
        check("source = 'portals'", Err("portals.source"));
        check("source = 'https://me:secret@lists.example/'", Err("portals.source"));
        check("source = 'https://'", Err("portals.source"));
        check("source = 'ftp://lists.example/a.toml'", Err("portals.source"));
        check("headers = { a = 'b' }", Err("portals.headers"));
        check("source = 'http://h/l.txt'\nheaders = { a = 'b' }", Ok(()));
        check("source = 'http://h/l.txt'\nheaders = { 'a b' = 'b' }", Err("portals.headers.a b"));
        check("source = 'http://h/l.txt'\nheaders = { a = \"b\\nc\" }", Err("portals.headers.a"));
        check("refresh_seconds = 0", Err("portals.refresh_seconds"));
        check("refresh_seconds = 86400", Ok(()));
        check("refresh_seconds = 86401", Err("portals.refresh_seconds"));
        check("stale_seconds_max = 5", Err("portals.stale_seconds_max"));
        check("stale_seconds_max = 6", Ok(()));
    }

    #[test]
    fn unknown_keys_and_modes_are_errors() {
        assert!(toml::from_str::<Config>("sauce = 'a.toml'").is_err());
        assert!(toml::from_str::<Config>("mode = 'dry-run'").is_err());
        assert_eq!(toml::from_str::<Config>("mode = 'dry_run'").unwrap().mode, Mode::DryRun);
    }
}
