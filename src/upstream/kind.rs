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

/// What an upstream remembers between its attempts. One that differs in its limits only takes it
/// over.
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
