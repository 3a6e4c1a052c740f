//! The settings of a `kafka` upstream, and librdkafka's configuration made from them.

use crate::config_error::ConfigError;
use std::collections::BTreeMap;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::producer::Producer;
use super::setup::{Key, Setup};
use super::upstream::Kafka;
use crate::env::{Secret, expand, one_or_many};
use crate::upstream::limits::{
    CONNECTION_SECONDS_DEFAULT, TIMEOUT_SECONDS_MAX, check_connection_seconds, check_within,
};

/// Maximum number of bootstrap brokers. The cluster announces its other brokers.
pub const BROKERS_MAX: usize = 64;
/// Maximum number of configured properties.
pub const PROPERTIES_MAX: usize = 64;
/// Longest topic name, in characters (Kafka's limit).
pub const TOPIC_CHARS_MAX: usize = 249;

/// The default properties, which `properties` may override.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "pixelgate"),
    ("compression.type", "zstd"),
    // The Java client's partitioner, so that other producers choose the same partition.
    ("partitioner", "murmur2_random"),
    // The queue holds events in flight only. Waiting events are in the spool.
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "131072"),
    // librdkafka closes a connection to a broker that does not respond early enough to send its
    // requests again before the attempt ends.
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    // An edge does not send metrics about itself to the cluster.
    ("enable.metrics.push", "false"),
    // A topic that does not exist is reported before the attempt ends.
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// The properties that name a file which librdkafka reads when a producer is opened.
const FILES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
];

/// The properties that cannot be configured because pixelgate sets them, each with the reason.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", "is the key `brokers`"),
    ("metadata.broker.list", "is the key `brokers`"),
    ("message.timeout.ms", "is the key `timeout_seconds`"),
    ("delivery.timeout.ms", "is the key `timeout_seconds`"),
    ("acks", "is always `all`: a delivered event survives the loss of a broker"),
    ("request.required.acks", "is always `all`: a delivered event survives the loss of a broker"),
    ("enable.idempotence", "is always on: librdkafka's own retries make no duplicates"),
    ("transactional.id", "cannot be set: pixelgate writes outside of transactions"),
    ("delivery.report.only.error", "cannot be set: every delivery is reported"),
];

/// The settings of an `[[upstream]]` of kind `kafka`.
///
/// ```
/// use pixelgate::config::{KafkaUpstream, Secret, Upstream};
///
/// let mut kafka = KafkaUpstream::default();
/// kafka.brokers = vec![Secret::new("kafka-1:9092"), Secret::new("kafka-2:9092")];
/// kafka.topic = "events".to_owned();
/// assert!(Upstream::new("kafka", kafka).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// Bootstrap brokers, `host:port`, 1 to 64. May hold `${ENV}`.
    #[serde(deserialize_with = "one_or_many")]
    pub brokers: Vec<Secret>,
    /// The topic. It must exist, unless the cluster creates topics automatically.
    pub topic: String,
    /// The message key, which chooses an event's partition. Default: `portal`.
    pub key: Key,
    /// Further properties of librdkafka, such as `sasl.mechanism`. Values may hold `${ENV}`.
    pub properties: Properties,
    /// The longest time for one attempt at a batch, in seconds, 1 to 300. Sets
    /// `message.timeout.ms`. Default: 30.
    pub timeout_seconds: u64,
    /// The longest time that a connection is used, in seconds, 1 to 86,400. Default: 300.
    pub connection_seconds_max: u64,
}

/// librdkafka's properties by name, as configured.
///
/// ```
/// use pixelgate::config::{KafkaProperties, KafkaUpstream, Secret};
///
/// let mut kafka = KafkaUpstream::default();
/// let protocol = ("security.protocol".to_owned(), Secret::new("ssl"));
/// kafka.properties = KafkaProperties::from_iter([protocol]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Secret>);

impl FromIterator<(String, Secret)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, Secret)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: String::new(),
            key: Key::default(),
            properties: Properties::default(),
            timeout_seconds: 30,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
        }
    }
}

impl Config {
    /// Checks the limits, the names, and that librdkafka accepts each property and its value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.client_config().map(drop)
    }

    /// Builds the upstream. Reads certificates and keys; opens no connection.
    pub(in crate::upstream) fn build(&self) -> Result<Kafka, ConfigError> {
        let client = self.client_config()?;
        let secrets = self.values()?.into_values().collect();
        let setup = Setup {
            client,
            secrets,
            topic: self.topic.clone(),
            key: self.key,
            timeout_seconds: self.timeout_seconds,
        };
        Producer::rehearse(&setup).map_err(|reason| ConfigError::new("properties", reason))?;
        Ok(Kafka::new(setup))
    }

    /// The bootstrap brokers, each as `host:port`.
    pub fn hosts(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.expose().to_owned()).collect()
    }

    /// The files that librdkafka's properties name.
    pub fn files(&self) -> Vec<Option<&Path>> {
        let Properties(all) = &self.properties;
        let file = |name: &&str| all.get(*name).map(|path| Path::new(path.expose()));
        FILES.iter().map(file).collect()
    }

    fn client_config(&self) -> Result<ClientConfig, ConfigError> {
        check_within("timeout_seconds", self.timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        check_connection_seconds(self.connection_seconds_max)?;
        check_topic(&self.topic)?;
        let mut client = ClientConfig::new();
        let own = self.values()?;
        for (name, value) in DEFAULTS {
            // `compression.codec` is an alias. With both names set, the last one would win.
            let aliased = *name == "compression.type" && own.contains_key("compression.codec");
            if !aliased {
                client.set(*name, *value);
            }
        }
        for (name, value) in own {
            client.set(name, value);
        }
        client.set("acks", "all").set("enable.idempotence", "true");
        client.set("message.timeout.ms", (self.timeout_seconds * 1000).to_string());
        client.set("bootstrap.servers", self.bootstrap()?);
        client.create_native_config().map_err(property_error)?;
        Ok(client)
    }

    fn bootstrap(&self) -> Result<String, ConfigError> {
        if self.brokers.is_empty() {
            let reason = "is missing: name a broker, as in `[\"kafka.example:9092\"]`";
            return Err(ConfigError::new("brokers", reason));
        }
        if self.brokers.len() > BROKERS_MAX {
            let reason = format!("must be at most {BROKERS_MAX}, and are {}", self.brokers.len());
            return Err(ConfigError::new("brokers", reason));
        }
        let brokers: Vec<&str> = self.brokers.iter().map(Secret::expose).collect();
        let plain = |b: &&str| !b.is_empty() && !b.contains(char::is_whitespace);
        if !brokers.iter().all(plain) {
            return Err(ConfigError::new("brokers", "must each be a `host:port`"));
        }
        Ok(brokers.join(","))
    }

    /// The configured properties.
    fn values(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let Properties(all) = &self.properties;
        if all.len() > PROPERTIES_MAX {
            let reason = format!("must be at most {PROPERTIES_MAX}, and are {}", all.len());
            return Err(ConfigError::new("properties", reason));
        }
        let mut values = BTreeMap::new();
        for (name, value) in all {
            let key = format!("properties.{name}");
            if let Some((_, why)) = OURS.iter().find(|(ours, _)| ours == name) {
                return Err(ConfigError::new(key, *why));
            }
            if name.starts_with("test.") {
                return Err(ConfigError::new(key, "is for tests of librdkafka itself"));
            }
            values.insert(name.clone(), value.expose().to_owned());
        }
        Ok(values)
    }
}

/// Checks Kafka's rule for topic names.
fn check_topic(topic: &str) -> Result<(), ConfigError> {
    if topic.is_empty() {
        return Err(ConfigError::new("topic", "is missing"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let fits = topic.len() <= TOPIC_CHARS_MAX && topic.bytes().all(plain);
    if fits && !matches!(topic, "." | "..") {
        return Ok(());
    }
    let reason =
        format!("must be 1 to {TOPIC_CHARS_MAX} characters of a-z, A-Z, 0-9, `.`, `_` and `-`");
    Err(ConfigError::new("topic", reason))
}

/// The error of a property that librdkafka rejects. The message of librdkafka is dropped, because
/// it holds the value.
fn property_error(error: KafkaError) -> ConfigError {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            ConfigError::new(format!("properties.{name}"), "is no property of librdkafka")
        }
        KafkaError::ClientConfig(_, _, name, _) => {
            ConfigError::new(format!("properties.{name}"), "has a value that librdkafka refuses")
        }
        _ => ConfigError::new("properties", "must not hold a null character"),
    }
}

// Implemented by hand: a value may be a string, a number or a boolean, and TOML parses an unquoted
// name with dots, such as `linger.ms = 5`, as nested tables.
impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Properties, D::Error> {
        let table = toml::Table::deserialize(deserializer)?;
        let mut all = BTreeMap::new();
        let mut waiting: Vec<(String, toml::Value)> = table.into_iter().collect();
        while let Some((name, value)) = waiting.pop() {
            let text = match value {
                toml::Value::String(text) => {
                    let unset = |e| de::Error::custom(format!("properties.{name}: {e}"));
                    expand(&text).map_err(unset)?
                }
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                toml::Value::Table(inner) => {
                    waiting.extend(inner.into_iter().map(|(k, v)| (format!("{name}.{k}"), v)));
                    continue;
                }
                other => {
                    let kind = other.type_str();
                    return Err(de::Error::custom(format!(
                        "properties.{name}: expected a text, a number or a boolean, found {kind}"
                    )));
                }
            };
            if all.insert(name.clone(), Secret::new(text)).is_some() {
                return Err(de::Error::custom(format!("properties.{name} is there twice")));
            }
        }
        Ok(Properties(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "brokers = ['kafka:9092']\ntopic = 'events'\n";

    fn config(text: &str) -> Config {
        toml::from_str(text).expect(text)
    }

    #[track_caller]
    fn check_refused(config: &Config, key: &str, word: &str) {
        let error = config.build().expect_err(key);
        assert_eq!(error.key(), key);
        assert!(error.reason().contains(word), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }

    #[track_caller]
    fn check_property(line: &str, key: &str, word: &str) {
        let config = config(&format!("{WHOLE}[properties]\n{line}\n"));
        check_refused(&config, &format!("properties.{key}"), word);
    }

    #[test]
    fn brokers_and_topic_are_needed_and_checked() {
        config(WHOLE).build().unwrap();
        check_refused(&config("topic = 'a'"), "brokers", "missing");
        check_refused(&config("topic = 'a'\nbrokers = ['a b']"), "brokers", "host:port");
        let unset = toml::from_str::<Config>("brokers = ['${NO_SUCH}']").unwrap_err();
        assert!(unset.message().contains("NO_SUCH"), "{unset}");
        let many = |n| Config { brokers: vec![Secret::new("a:1"); n], ..config("topic = 'a'") };
        many(BROKERS_MAX).validate().unwrap();
        check_refused(&many(BROKERS_MAX + 1), "brokers", "at most");
        let topic = |topic: &str| Config { topic: topic.to_owned(), ..config(WHOLE) };
        topic(&"t".repeat(TOPIC_CHARS_MAX)).validate().unwrap();
        check_refused(&topic(""), "topic", "missing");
        for bad in [".", "..", "a b", "ä", &"t".repeat(TOPIC_CHARS_MAX + 1)] {
            check_refused(&topic(bad), "topic", "must be 1 to");
        }
        for seconds in [0, TIMEOUT_SECONDS_MAX + 1] {
            let config = config(&format!("{WHOLE}timeout_seconds = {seconds}"));
            check_refused(&config, "timeout_seconds", "must be 1 to");
        }
    }

    #[test]
    fn properties_are_read_however_toml_spells_them() {
        let nested = config(&format!(
            "{WHOLE}[properties]\nlinger.ms = 7\nenable.ssl.certificate.verification = false\n\
             sasl.mechanism = 'PLAIN'\nsasl.username = '${{CARGO_PKG_NAME}}'\n"
        ));
        let quoted = config(&format!(
            "{WHOLE}properties = {{ 'linger.ms' = 7, 'sasl.mechanism' = 'PLAIN', \
             'enable.ssl.certificate.verification' = false, \
             'sasl.username' = '${{CARGO_PKG_NAME}}' }}"
        ));
        assert_eq!(nested, quoted);
        let client = nested.client_config().unwrap();
        assert_eq!(client.get("linger.ms"), Some("7"));
        assert_eq!(client.get("sasl.username"), Some("pixelgate"));
        assert!(toml::from_str::<Config>("properties = { a = [1] }").is_err());
        assert!(toml::from_str::<Config>("properties = { a.b = 1, 'a.b' = 2 }").is_err());
    }

    #[test]
    fn what_a_delivery_rests_on_cannot_be_set() {
        for (name, _) in OURS {
            check_property(&format!("'{name}' = 'x'"), name, "");
        }
        check_property("test.mock.num.brokers = 3", "test.mock.num.brokers", "tests");
    }

    #[test]
    fn what_librdkafka_refuses_is_named_without_its_value() {
        check_property("no.such = 's3cret'", "no.such", "no property");
        check_property("linger.ms = 's3cret'", "linger.ms", "refuses");
        let unset = "properties = { 'sasl.password' = '${NO_SUCH}' }";
        let unset = toml::from_str::<Config>(unset).unwrap_err();
        assert!(unset.message().contains("properties.sasl.password: ${NO_SUCH}"), "{unset}");
        let whole = |line: &str| config(&format!("{WHOLE}[properties]\n{line}\n"));
        // What only shows when all of them are together.
        check_refused(&whole("retries = 0"), "properties", "retries");
        let line = "security.protocol = 'ssl'\nssl.key.pem = 's3cret key'";
        check_refused(&whole(line), "properties", "ssl.key.pem");
        let many = (0..=PROPERTIES_MAX).map(|n| (format!("p{n}"), Secret::new("v"))).collect();
        let config = Config { properties: Properties(many), ..config(WHOLE) };
        check_refused(&config, "properties", "at most");
    }

    #[test]
    fn the_defaults_give_way_to_the_operator() {
        let set = |line: &str| config(&format!("{WHOLE}[properties]\n{line}\n")).client_config();
        assert_eq!(set("").unwrap().get("compression.type"), Some("zstd"));
        assert_eq!(set("").unwrap().get("enable.metrics.push"), Some("false"));
        assert_eq!(set("compression.type = 'lz4'").unwrap().get("compression.type"), Some("lz4"));
        let aliased = set("compression.codec = 'lz4'").unwrap();
        assert_eq!((aliased.get("compression.type"), aliased.get("acks")), (None, Some("all")));
    }
}
