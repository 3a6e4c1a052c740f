//! `[[upstream]]`: the kinds, their settings and their checks.

use crate::config_error::ConfigError;
use std::collections::HashSet;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer};

use super::batch::{BatchConfig, BatchOverride};
use super::contract::Upstream;
use super::file;
#[cfg(feature = "kafka")]
use super::kafka;
#[cfg(feature = "nats")]
use super::nats;
#[cfg(feature = "http")]
use super::{http, hubspot, legacy};

/// Longest name of an upstream, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Maximum number of upstreams: each has its own connections, memory and cursor.
pub const UPSTREAMS_MAX: usize = 16;

/// Every kind, and the cargo feature that it needs.
const KINDS: [(&str, Option<&str>); 6] = [
    ("file", None),
    ("http", Some("http")),
    ("legacy", Some("http")),
    ("hubspot", Some("http")),
    ("kafka", Some("kafka")),
    ("nats", Some("nats")),
];

/// One `[[upstream]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Names the upstream's cursor, dead letters and metrics: `[a-z0-9_-]{1,64}`, unique.
    pub name: String,
    /// Overrides of `[batch]`: the table `[upstream.batch]`.
    pub batch: BatchOverride,
    /// The kind and its settings.
    pub kind: Kind,
}

/// The kinds that are built in, by the value of `kind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Rotated NDJSON files: the default if nothing is configured.
    File(file::Config),
    /// A collector that takes batches over HTTP.
    #[cfg(feature = "http")]
    Http(http::Config),
    /// A backend without a batch API.
    #[cfg(feature = "http")]
    Legacy(legacy::Config),
    /// HubSpot's API for custom events.
    #[cfg(feature = "http")]
    Hubspot(hubspot::Config),
    /// A topic of a Kafka cluster.
    #[cfg(feature = "kafka")]
    Kafka(kafka::Config),
    /// A stream of NATS JetStream.
    #[cfg(feature = "nats")]
    Nats(nats::Config),
}

impl Config {
    /// The default if no upstream is configured: files under `data/events`.
    pub fn embedded() -> Config {
        Config {
            name: "events".into(),
            batch: BatchOverride::default(),
            kind: Kind::File(file::Config::default()),
        }
    }

    /// Checks all settings that need neither disk nor network.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        let batch = self.batch.over(&BatchConfig::default());
        batch.validate().map_err(|e| e.within(&format!("upstream.{}", self.name)))?;
        match &self.kind {
            Kind::File(config) => config.validate(),
            #[cfg(feature = "http")]
            Kind::Http(config) => config.validate(),
            #[cfg(feature = "http")]
            Kind::Legacy(config) => config.validate(),
            #[cfg(feature = "http")]
            Kind::Hubspot(config) => config.validate(),
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => config.validate(),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => config.validate(),
        }
        .map_err(|e| e.within(&format!("upstream.{}", self.name)))
    }

    /// Validates, reads secrets and certificates, and opens the kind's files.
    pub fn build(&self) -> Result<Arc<dyn Upstream>, ConfigError> {
        self.validate()?;
        let built: Result<Arc<dyn Upstream>, ConfigError> = match &self.kind {
            Kind::File(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
            #[cfg(feature = "http")]
            Kind::Http(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
            #[cfg(feature = "http")]
            Kind::Legacy(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
            #[cfg(feature = "http")]
            Kind::Hubspot(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => config.build().map(|u| Arc::new(u) as Arc<dyn Upstream>),
        };
        built.map_err(|e| e.within(&format!("upstream.{}", self.name)))
    }

    /// The value of `kind`.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::File(_) => "file",
            #[cfg(feature = "http")]
            Kind::Http(_) => "http",
            #[cfg(feature = "http")]
            Kind::Legacy(_) => "legacy",
            #[cfg(feature = "http")]
            Kind::Hubspot(_) => "hubspot",
            #[cfg(feature = "kafka")]
            Kind::Kafka(_) => "kafka",
            #[cfg(feature = "nats")]
            Kind::Nats(_) => "nats",
        }
    }

    /// Validates all upstreams, their number and that their names are unique.
    pub fn validate_all(all: &[Config]) -> Result<(), ConfigError> {
        if all.len() > UPSTREAMS_MAX {
            let reason = format!("there are {}, at most {UPSTREAMS_MAX} are possible", all.len());
            return Err(ConfigError::new("upstream", reason));
        }
        let mut names = HashSet::new();
        for config in all {
            config.validate()?;
            if !names.insert(&config.name) {
                let reason = format!("two upstreams are named `{}`", config.name);
                return Err(ConfigError::new("upstream.name", reason));
            }
        }
        Ok(())
    }
}

/// Checks an upstream's name, which becomes a file name, a metric label and a key:
/// `[a-z0-9_-]{1,64}`.
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let reason = format!("{name:?} is not 1 to {NAME_CHARS_MAX} of a-z, 0-9, `_` and `-`");
    Err(ConfigError::new("upstream.name", reason))
}

// Implemented by hand, because serde's tagged enums cannot reject unknown keys beside `name` and
// `batch`, and so that an error names its upstream.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        let name: String = take(&mut table, "name")?
            .ok_or_else(|| de::Error::custom("an [[upstream]] has no `name`"))?;
        let told =
            |e: toml::de::Error| de::Error::custom(format!("upstream `{name}`: {}", e.message()));
        let kind: String = take(&mut table, "kind")?.ok_or_else(|| {
            let kinds = kinds();
            de::Error::custom(format!("upstream `{name}` has no `kind` (one of: {kinds})"))
        })?;
        let batch = match table.remove("batch") {
            Some(batch) => batch.try_into().map_err(told)?,
            None => BatchOverride::default(),
        };
        let kind = match kind.as_str() {
            "file" => table.try_into().map(Kind::File).map_err(told)?,
            #[cfg(feature = "http")]
            "http" => table.try_into().map(Kind::Http).map_err(told)?,
            #[cfg(feature = "http")]
            "legacy" => table.try_into().map(Kind::Legacy).map_err(told)?,
            #[cfg(feature = "http")]
            "hubspot" => table.try_into().map(Kind::Hubspot).map_err(told)?,
            #[cfg(feature = "kafka")]
            "kafka" => table.try_into().map(Kind::Kafka).map_err(told)?,
            #[cfg(feature = "nats")]
            "nats" => table.try_into().map(Kind::Nats).map_err(told)?,
            other => {
                let known = KINDS.iter().find(|(kind, _)| *kind == other);
                return Err(de::Error::custom(match known.and_then(|(_, feature)| *feature) {
                    Some(feature) => format!(
                        "upstream `{name}`: this build lacks the feature `{feature}`; one that \
                         has it comes of `cargo build --release --features {feature}`"
                    ),
                    None => format!(
                        "upstream `{name}`: there is no kind `{other}` (one of: {})",
                        kinds()
                    ),
                }));
            }
        };
        Ok(Config { name, batch, kind })
    }
}

fn kinds() -> String {
    KINDS.map(|(kind, _)| kind).join(", ")
}

fn take<E: de::Error>(table: &mut toml::Table, key: &str) -> Result<Option<String>, E> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(other) => {
            let kind = other.type_str();
            Err(E::custom(format!("`{key}` of an [[upstream]] must be a string, is {kind}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Whole {
        upstream: Vec<Config>,
    }

    fn read(text: &str) -> Result<Vec<Config>, String> {
        let whole: Whole = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        Config::validate_all(&whole.upstream).map_err(|e| e.to_string())?;
        Ok(whole.upstream)
    }

    #[track_caller]
    fn check_refused(text: &str, words: &[&str]) {
        let error = read(text).expect_err(text);
        for word in words {
            assert!(error.contains(word), "{error:?} does not name {word:?}");
        }
    }

    #[test]
    fn several_upstreams_of_different_kinds_are_read() {
        let all = read(
            "[[upstream]]\nname = 'a'\nkind = 'file'\ndir = 'x'\n\
             [[upstream]]\nname = 'b-2_c'\nkind = 'http'\nurl = 'https://collector/in'\n\
             batch = { events_max = 7 }\n\
             [[upstream]]\nname = 'c'\nkind = 'legacy'\nurl = 'http://old/v1/event/'\n\
             [[upstream]]\nname = 'd'\nkind = 'hubspot'\ntokens = { '62515' = 'x' }\n",
        )
        .unwrap();
        let kinds: Vec<_> = all.iter().map(Config::kind_name).collect();
        assert_eq!(kinds, KINDS[..4].iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
        let base = BatchConfig::default();
        assert_eq!(all[1].batch.over(&base).events_max, 7);
        assert_eq!(all[1].batch.over(&base).linger_ms, base.linger_ms);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_upstream_and_key() {
        let file = |rest: &str| format!("[[upstream]]\nname = 'a'\nkind = 'file'\n{rest}");
        check_refused("[[upstream]]\nkind = 'file'\n", &["name"]);
        check_refused("[[upstream]]\nname = 'a'\n", &["`a`", "kind", "legacy"]);
        check_refused("[[upstream]]\nname = 'a'\nkind = 'ftp'\n", &["`a`", "ftp", "http"]);
        check_refused("[[upstream]]\nname = 3\nkind = 'file'\n", &["name", "integer"]);
        check_refused(&file("dirr = 'x'"), &["`a`", "dirr", "rotate_seconds"]);
        check_refused(&file("rotate_seconds = 'x'"), &["`a`", "invalid type"]);
        check_refused(&file("rotate_seconds = 0"), &["upstream.a.rotate_seconds"]);
        check_refused(&file("batch = { events_max = 0 }"), &["upstream.a.batch.events_max"]);
        check_refused(&file("batch = { eventsmax = 1 }"), &["`a`", "eventsmax"]);
        check_refused(&format!("{}{}", file(""), file("")), &["two upstreams", "`a`"]);
    }

    #[test]
    fn a_kind_that_is_not_built_in_says_how_to_build_it() {
        for (kind, built_in) in
            [("kafka", cfg!(feature = "kafka")), ("nats", cfg!(feature = "nats"))]
        {
            let text = format!("[[upstream]]\nname = 'a'\nkind = '{kind}'\n");
            let error = read(&text).expect_err("it has no address");
            let expect = if built_in { "missing" } else { "--features" };
            assert!(error.contains(expect), "{error}");
        }
    }

    #[test]
    fn names_are_held_to_their_alphabet_and_length() {
        assert!(check_name(&"n".repeat(NAME_CHARS_MAX)).is_ok());
        for bad in ["", "A", "a b", "ä", "../x", &"n".repeat(NAME_CHARS_MAX + 1)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
