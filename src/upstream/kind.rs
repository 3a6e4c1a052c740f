//! The kinds of upstream that are built in, each with its settings.

use super::file;
#[cfg(feature = "kafka")]
use super::kafka;
#[cfg(feature = "nats")]
use super::nats;
#[cfg(feature = "http")]
use super::{http, hubspot, legacy};

/// The kinds that are built in, by the value of `kind`.
///
/// ```
/// use pixelgate::config::{FileUpstream, UpstreamKind};
///
/// let kind = UpstreamKind::from(FileUpstream::new("/var/lib/pixelgate/events"));
/// assert!(matches!(kind, UpstreamKind::File(_)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
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

/// What an upstream remembers between its attempts. A new upstream that differs from the old one
/// only in its limits takes this over.
#[derive(Clone, Default)]
pub(super) struct Memory {
    /// The paused portals of kind `hubspot`.
    #[cfg(feature = "http")]
    pub portals: std::sync::Arc<hubspot::Known>,
}

impl Kind {
    /// Whether both send the same, to the same place and with the same credentials, so that they
    /// differ at most in their limits.
    pub(super) fn sends_as(&self, other: &Kind) -> bool {
        self.without_limits() == other.without_limits()
    }

    fn without_limits(&self) -> Kind {
        match self.clone() {
            Kind::File(own) => Kind::File(own),
            #[cfg(feature = "http")]
            Kind::Http(own) => Kind::Http(http::Config {
                concurrency_max: 0,
                timeout_seconds: 0,
                connection_seconds_max: 0,
                ..own
            }),
            #[cfg(feature = "http")]
            Kind::Legacy(own) => Kind::Legacy(legacy::Config {
                concurrency_max: 0,
                timeout_seconds: 0,
                connection_seconds_max: 0,
                ..own
            }),
            #[cfg(feature = "http")]
            Kind::Hubspot(own) => Kind::Hubspot(hubspot::Config {
                concurrency_max: 0,
                timeout_seconds: 0,
                connection_seconds_max: 0,
                fault_seconds_max: 0,
                ..own
            }),
            #[cfg(feature = "kafka")]
            Kind::Kafka(own) => {
                Kind::Kafka(kafka::Config { timeout_seconds: 0, connection_seconds_max: 0, ..own })
            }
            #[cfg(feature = "nats")]
            Kind::Nats(own) => {
                Kind::Nats(nats::Config { timeout_seconds: 0, connection_seconds_max: 0, ..own })
            }
        }
    }
}

/// Implements `From` for the settings of each kind.
macro_rules! from_settings {
    ($($(#[$feature:meta])* $module:ident => $kind:ident,)*) => {$(
        $(#[$feature])*
        impl From<$module::Config> for Kind {
            fn from(settings: $module::Config) -> Kind {
                Kind::$kind(settings)
            }
        }
    )*};
}

from_settings! {
    file => File,
    #[cfg(feature = "http")]
    http => Http,
    #[cfg(feature = "http")]
    legacy => Legacy,
    #[cfg(feature = "http")]
    hubspot => Hubspot,
    #[cfg(feature = "kafka")]
    kafka => Kafka,
    #[cfg(feature = "nats")]
    nats => Nats,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    /// Whether another value of a key is another destination, or other events or credentials for
    /// it: `limits` are not, `others` are, and a kind has no further keys.
    #[track_caller]
    fn check<C: DeserializeOwned + Into<Kind>>(limits: &[&str], others: &[&str]) {
        let kind = |line: &str| -> Kind { toml::from_str::<C>(line).expect(line).into() };
        for (lines, is_same) in [(limits, true), (others, false)] {
            for line in lines {
                assert_ne!(kind(line), kind(""), "{line} is the default");
                assert_eq!(kind(line).sends_as(&kind("")), is_same, "{line}");
            }
        }
        let error = toml::from_str::<C>("no_such_key = 1").map(drop).unwrap_err().to_string();
        let (_, keys) = error.split_once("expected one of").expect(&error);
        let mut keys: Vec<&str> = keys.split('`').skip(1).step_by(2).collect();
        let lines = limits.iter().chain(others);
        let mut checked: Vec<&str> =
            lines.filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        keys.sort_unstable();
        checked.sort_unstable();
        checked.dedup();
        assert_eq!(checked, keys);
    }

    #[test]
    #[cfg(feature = "http")]
    fn another_address_or_credential_is_another_destination_and_a_limit_is_not() {
        let limits = ["concurrency_max = 2", "timeout_seconds = 9", "connection_seconds_max = 9"];
        check::<http::Config>(
            &limits,
            &[
                "url = 'https://h/'",
                "format = 'ndjson'",
                "compression = 'zstd'",
                "headers = { A = 'b' }",
                "secret = 's'",
                "proxy = 'http://p:1'",
                "proxy = ''",
                "order = 'portal'",
                "ca = 'a'",
                "cert = 'a'",
                "key = 'a'",
            ],
        );
        check::<legacy::Config>(
            &limits,
            &[
                "url = 'https://h/'",
                "keep_host = true",
                "proxy = 'http://p:1'",
                "on_unknown = 'retry'",
            ],
        );
        check::<hubspot::Config>(
            &[&limits[..], &["fault_seconds_max = 9"]].concat(),
            &[
                "url = 'https://h'",
                "tokens = { '7' = 't' }",
                "event_names = { a = 'b' }",
                "contacts = false",
                "revenue_property = 'r'",
                "external_id_property = 'r'",
                "external_id_contact_property = 'r'",
                "match_external_id = true",
                "context_properties = true",
                "events_path = '/e'",
                "contacts_path = '/c'",
                "proxy = 'http://p:1'",
                "ca = 'a'",
            ],
        );
    }

    #[test]
    #[cfg(feature = "kafka")]
    fn another_cluster_topic_or_property_of_kafka_is_another_destination() {
        check::<kafka::Config>(
            &["timeout_seconds = 9", "connection_seconds_max = 9"],
            &[
                "brokers = 'b:1'",
                "topic = 't'",
                "key = 'email'",
                "properties = { 'sasl.password' = 'p' }",
                "properties = { 'ssl.ca.location' = 'a' }",
            ],
        );
    }

    #[test]
    #[cfg(feature = "nats")]
    fn another_server_subject_stream_or_login_of_nats_is_another_destination() {
        check::<nats::Config>(
            &["timeout_seconds = 9", "connection_seconds_max = 9"],
            &[
                "urls = 'nats://n'",
                "subject = 's'",
                "stream = 's'",
                "credentials = 'a'",
                "ca = 'a'",
                "cert = 'a'",
                "key = 'a'",
            ],
        );
    }
}
