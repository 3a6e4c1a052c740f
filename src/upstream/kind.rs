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

impl From<file::Config> for Kind {
    fn from(config: file::Config) -> Kind {
        Kind::File(config)
    }
}

#[cfg(feature = "http")]
impl From<http::Config> for Kind {
    fn from(config: http::Config) -> Kind {
        Kind::Http(config)
    }
}

#[cfg(feature = "http")]
impl From<legacy::Config> for Kind {
    fn from(config: legacy::Config) -> Kind {
        Kind::Legacy(config)
    }
}

#[cfg(feature = "http")]
impl From<hubspot::Config> for Kind {
    fn from(config: hubspot::Config) -> Kind {
        Kind::Hubspot(config)
    }
}

#[cfg(feature = "kafka")]
impl From<kafka::Config> for Kind {
    fn from(config: kafka::Config) -> Kind {
        Kind::Kafka(config)
    }
}

#[cfg(feature = "nats")]
impl From<nats::Config> for Kind {
    fn from(config: nats::Config) -> Kind {
        Kind::Nats(config)
    }
}
