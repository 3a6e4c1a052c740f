//! The `[[upstream]]` section: reads, checks and builds upstreams of every kind (SPEC 7 and 9).

use crate::config_error::{ConfigError, without_value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};

use super::batch::{BatchConfig, BatchOverride};
use super::contract::Upstream;
use super::file;
#[cfg(feature = "http")]
use super::http;
use super::kind::{Kind, Memory};

/// The longest name of an upstream, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// The most upstreams. Each has its own connections, memory and cursor.
pub const UPSTREAMS_MAX: usize = 16;

/// Default of `attempts_max`.
pub const ATTEMPTS_MAX_DEFAULT: u32 = 12;
/// Greatest value of `attempts_max`: with a pause of up to a minute between two, a year of
/// attempts.
pub const ATTEMPTS_MAX_MAX: u32 = 1_000_000;

/// Every kind, with the cargo feature that it needs.
const KINDS: [(&str, Option<&str>); 6] = [
    ("file", None),
    ("http", Some("http")),
    ("legacy", Some("http")),
    ("hubspot", Some("http")),
    ("kafka", Some("kafka")),
    ("nats", Some("nats")),
];

/// One `[[upstream]]`.
///
/// ```
/// use pixelgate::config::{FileUpstream, Upstream};
///
/// let mut upstream = Upstream::new("files", FileUpstream::new("/var/lib/pixelgate/events"));
/// upstream.attempts_max = 0;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The name, which the upstream's cursor, dead letters and metrics carry: `[a-z0-9_-]{1,64}`,
    /// unique.
    pub name: String,
    /// Overrides of `[batch]`: the table `[upstream.batch]`.
    pub batch: BatchOverride,
    /// The failed attempts after which the events of a batch are considered the cause, if the
    /// upstream took others meanwhile: the batch is halved, and a single event becomes a dead
    /// letter. 0: the batch is halved after 12, and the event is tried without end. At most
    /// 1,000,000. Default: 12.
    pub attempts_max: u32,
    /// The kind and its settings.
    pub kind: Kind,
}

/// A [`Config`] that [`Config::validate`] has checked, and from which an upstream can be built.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use pixelgate::config::{FileUpstream, Upstream};
///
/// let files = Upstream::new("files", FileUpstream::new(dir)).validate()?;
/// let built = files.build()?;
/// assert_eq!((files.name.as_str(), built.kind()), ("files", "file"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ValidConfig(Config);

impl std::ops::Deref for ValidConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

impl Config {
    /// An upstream of this name (`[a-z0-9_-]{1,64}`) and kind, with the defaults of `[batch]` and
    /// `attempts_max`.
    pub fn new(name: &str, kind: impl Into<Kind>) -> Config {
        Config {
            name: name.to_owned(),
            batch: BatchOverride::default(),
            attempts_max: ATTEMPTS_MAX_DEFAULT,
            kind: kind.into(),
        }
    }

    /// The default if no upstream is configured: files under `data/events`.
    pub fn embedded() -> Config {
        Config::new("events", file::Config::default())
    }

    /// Checks all settings, as far as that needs neither disk nor network.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<ValidConfig, ConfigError> {
        check_name(&self.name)?;
        self.check().map(|()| ValidConfig(self.clone()))
    }

    /// Checks everything but the name.
    fn check(&self) -> Result<(), ConfigError> {
        let batch = self.batch.over(&BatchConfig::default());
        batch.validate().map_err(|e| e.within(&format!("upstream.{}", self.name)))?;
        if self.attempts_max > ATTEMPTS_MAX_MAX {
            let reason = format!("must be at most {ATTEMPTS_MAX_MAX}");
            return Err(ConfigError::new(format!("upstream.{}.attempts_max", self.name), reason));
        }
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

    /// Whether this upstream sends the `Host` that an event came with.
    pub fn keeps_host(&self) -> bool {
        #[cfg(feature = "http")]
        if let Kind::Legacy(config) = &self.kind {
            return config.keep_host;
        }
        false
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
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate_all(all: &[Config]) -> Result<Vec<ValidConfig>, ConfigError> {
        if all.len() > UPSTREAMS_MAX {
            let reason =
                format!("must name at most {UPSTREAMS_MAX} upstreams, and names {}", all.len());
            return Err(ConfigError::new("upstream", reason));
        }
        let mut names = HashSet::new();
        for (index, config) in all.iter().enumerate() {
            let wrong =
                |reason: String| ConfigError::new(format!("upstream[{index}].name"), reason);
            check_name(&config.name).map_err(|e| wrong(e.reason().to_owned()))?;
            if !names.insert(&config.name) {
                return Err(wrong(format!("two upstreams are named `{}`", config.name)));
            }
            config.check()?;
        }
        Ok(all.iter().cloned().map(ValidConfig).collect())
    }
}

impl ValidConfig {
    /// Builds the upstream. Reads certificates and opens the files of the kind; resolves no name
    /// and opens no connection.
    ///
    /// # Errors
    ///
    /// The key of the file that cannot be used.
    pub fn build(&self) -> Result<Arc<dyn Upstream>, ConfigError> {
        self.build_with(&Memory::default())
    }

    /// Builds the upstream in the place of another one, whose memory it takes over.
    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "only hubspot has one"))]
    pub(super) fn build_with(&self, memory: &Memory) -> Result<Arc<dyn Upstream>, ConfigError> {
        let built = match &self.kind {
            Kind::File(config) => shared(config.build()),
            #[cfg(feature = "http")]
            Kind::Http(config) => shared(config.build()),
            #[cfg(feature = "http")]
            Kind::Legacy(config) => shared(config.build()),
            #[cfg(feature = "http")]
            Kind::Hubspot(config) => shared(config.build(Arc::clone(&memory.portals))),
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => shared(config.build()),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => shared(config.build()),
        };
        built.map_err(|e| e.within(&format!("upstream.{}", self.name)))
    }
}

fn shared<U: Upstream>(built: Result<U, ConfigError>) -> Result<Arc<dyn Upstream>, ConfigError> {
    built.map(|upstream| Arc::new(upstream) as Arc<dyn Upstream>)
}

impl Config {
    /// The longest time that a connection is used, in seconds. `None` for a kind without
    /// connections, and for `http`, `legacy` and `hubspot`, whose client renews its connections.
    pub(super) fn connection_seconds_max(&self) -> Option<u64> {
        match &self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => Some(config.connection_seconds_max),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => Some(config.connection_seconds_max),
            _ => None,
        }
    }

    /// The servers of a kind whose connections are renewed here, each as `host:port`.
    pub(super) fn servers(&self) -> Vec<String> {
        match &self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => config.hosts(),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => config.hosts(),
            _ => Vec::new(),
        }
    }

    /// The files that the settings name and that are read again when they change. The files of kind
    /// `file` are not among them, because they are written.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let named: Vec<Option<&Path>> = match &self.kind {
            Kind::File(_) => Vec::new(),
            #[cfg(feature = "http")]
            Kind::Http(config) => config.files().into(),
            #[cfg(feature = "http")]
            Kind::Legacy(_) => Vec::new(),
            #[cfg(feature = "http")]
            Kind::Hubspot(config) => vec![config.ca.as_deref()],
            #[cfg(feature = "kafka")]
            Kind::Kafka(config) => config.files(),
            #[cfg(feature = "nats")]
            Kind::Nats(config) => config.files().into(),
        };
        named.into_iter().flatten().map(Path::to_owned).collect()
    }
}

impl ValidConfig {
    /// These settings with the values of `new` that a reload may change. The name, the kind,
    /// `order` and, with an order, `concurrency_max` need a new process and stay. `None` if a
    /// reload cannot change any of them.
    pub(super) fn reloaded(&self, new: &Config) -> Option<ValidConfig> {
        let kind = reloaded(&self.kind, &new.kind).filter(|_| self.name == new.name)?;
        Some(ValidConfig(Config { kind, ..self.0.clone() }))
    }
}

/// The settings of `new`, with those of `own` that a running upstream cannot change.
fn reloaded(own: &Kind, new: &Kind) -> Option<Kind> {
    match (own, new) {
        #[cfg(feature = "http")]
        (Kind::Http(own), Kind::Http(new)) => Some(Kind::Http(http::Config {
            concurrency_max: match own.order {
                http::Order::None => new.concurrency_max,
                http::Order::Portal => own.concurrency_max,
            },
            order: own.order,
            ..new.clone()
        })),
        #[cfg(feature = "http")]
        (Kind::Legacy(_), Kind::Legacy(new)) => Some(Kind::Legacy(new.clone())),
        #[cfg(feature = "http")]
        (Kind::Hubspot(_), Kind::Hubspot(new)) => Some(Kind::Hubspot(new.clone())),
        #[cfg(feature = "kafka")]
        (Kind::Kafka(_), Kind::Kafka(new)) => Some(Kind::Kafka(new.clone())),
        #[cfg(feature = "nats")]
        (Kind::Nats(_), Kind::Nats(new)) => Some(Kind::Nats(new.clone())),
        _ => None,
    }
}

/// Checks the name of an upstream, `[a-z0-9_-]{1,64}`. It becomes part of file names, metric labels
/// and keys.
///
/// # Errors
///
/// The name has other characters, or not 1 to 64 of them.
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let reason = format!("must be 1 to {NAME_CHARS_MAX} characters of a-z, 0-9, `_` and `-`");
    Err(ConfigError::new("upstream.name", reason))
}

// Implemented by hand, because serde's tagged enums cannot reject unknown keys beside `name` and
// `batch`, and so that an error names its upstream.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        let name: String = take(&mut table, "name")?
            .ok_or_else(|| de::Error::custom("an [[upstream]] has no `name`"))?;
        let mistake = |reason: String| de::Error::custom(format!("upstream `{name}`: {reason}"));
        let kind: String = take(&mut table, "kind")?
            .ok_or_else(|| mistake(format!("there is no `kind` (one of: {})", kinds())))?;
        let batch = match table.remove("batch") {
            Some(batch) => read(batch, "batch").map_err(mistake)?,
            None => BatchOverride::default(),
        };
        let attempts_max = match table.remove("attempts_max") {
            Some(value) => read(value, "attempts_max").map_err(mistake)?,
            None => ATTEMPTS_MAX_DEFAULT,
        };
        let kind = match kind.as_str() {
            "file" => read(table, "").map(Kind::File),
            #[cfg(feature = "http")]
            "http" => read(table, "").map(Kind::Http),
            #[cfg(feature = "http")]
            "legacy" => read(table, "").map(Kind::Legacy),
            #[cfg(feature = "http")]
            "hubspot" => read(table, "").map(Kind::Hubspot),
            #[cfg(feature = "kafka")]
            "kafka" => read(table, "").map(Kind::Kafka),
            #[cfg(feature = "nats")]
            "nats" => read(table, "").map(Kind::Nats),
            other => {
                let known = KINDS.iter().find(|(kind, _)| *kind == other);
                Err(match known.and_then(|(_, feature)| *feature) {
                    Some(feature) => format!(
                        "this build lacks the feature `{feature}`; `cargo build --release \
                         --features {feature}` makes one that has it"
                    ),
                    None => format!("`kind` must be one of: {}", kinds()),
                })
            }
        };
        let kind = kind.map_err(mistake)?;
        Ok(Config { name, batch, attempts_max, kind })
    }
}

/// Reads the settings below a key; with an empty key, the settings of a kind. The error names the
/// whole key and no value.
fn read<T: DeserializeOwned>(settings: impl Into<toml::Value>, below: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(settings.into()).map_err(|e| {
        let reason = without_value(e.inner().message());
        match (below, e.path().to_string().as_str()) {
            ("", ".") => reason,
            (key, ".") | ("", key) => format!("{key}: {reason}"),
            (below, key) => format!("{below}.{key}: {reason}"),
        }
    })
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

    fn parse(text: &str) -> Result<Vec<Config>, String> {
        let whole: Whole = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        Config::validate_all(&whole.upstream).map_err(|e| e.to_string())?;
        Ok(whole.upstream)
    }

    #[track_caller]
    fn check_refused(text: &str, words: &[&str]) {
        let error = parse(text).expect_err(text);
        for word in words {
            assert!(error.contains(word), "{error:?} does not name {word:?}");
        }
    }

    #[test]
    fn several_upstreams_of_different_kinds_are_read() {
        let all = parse(
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
        check_refused("[[upstream]]\nname = 'a'\nkind = 'ftp'\n", &["`a`", "kind", "http"]);
        check_refused("[[upstream]]\nname = 3\nkind = 'file'\n", &["name", "integer"]);
        check_refused(&file("dirr = 'x'"), &["`a`", "dirr", "rotate_seconds"]);
        check_refused(&file("rotate_seconds = 'x'"), &["`a`: rotate_seconds: invalid type"]);
        check_refused(&file("rotate_seconds = 0"), &["upstream.a.rotate_seconds"]);
        check_refused(&file("batch = { events_max = 0 }"), &["upstream.a.batch.events_max"]);
        check_refused(&file("batch = { eventsmax = 1 }"), &["`a`: batch.", "eventsmax"]);
        check_refused(&file("attempts_max = 1000001"), &["upstream.a.attempts_max"]);
        check_refused(&file("attempts_max = -1"), &["`a`: attempts_max", "invalid value"]);
        check_refused(&format!("{}{}", file(""), file("")), &["two upstreams", "`a`"]);
    }

    #[test]
    fn no_mistake_shows_a_value() {
        for (kind, rest, expect) in [
            ("s3cret", "", "must be one of: file, http"),
            ("hubspot", "tokens = 's3cret'", "tokens: invalid type: string, expected a map"),
            ("hubspot", "tokens = { '62515' = 7734 }", "tokens.62515: invalid type: integer"),
            ("http", "format = 's3cret'", "format: unknown value, expected one of"),
            ("http", "url = 's3cret'", "upstream.a.url: "),
            ("http", "url = 's3cret ${NO_SUCH}'", "url: ${NO_SUCH} is not in the environment"),
            ("http", "url = 'http://h'\nsecret = 's3cret'", "upstream.a.secret: "),
            ("file", "batch = { events_max = 's3cret' }", "batch.events_max: invalid type"),
            #[cfg(feature = "kafka")]
            (
                "kafka",
                "brokers = 7734",
                "brokers: invalid type: integer, expected one value or a list",
            ),
            #[cfg(feature = "nats")]
            ("nats", "urls = 7734", "urls: invalid type: integer, expected one value or a list"),
        ] {
            let text = format!("[[upstream]]\nname = 'a'\nkind = '{kind}'\n{rest}");
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(expect), "{error}");
            assert!(!error.contains("s3cret") && !error.contains("7734"), "{error}");
        }
    }

    #[test]
    fn a_kind_that_is_not_built_in_says_how_to_build_it() {
        for (kind, built_in) in
            [("kafka", cfg!(feature = "kafka")), ("nats", cfg!(feature = "nats"))]
        {
            let text = format!("[[upstream]]\nname = 'a'\nkind = '{kind}'\n");
            let error = parse(&text).expect_err("it has no address");
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
