//! The checked settings that the producer and the upstream share.

use rdkafka::ClientConfig;
use serde::Deserialize;

/// The checked settings of an upstream.
pub struct Setup {
    pub client: ClientConfig,
    /// The values of properties, which log lines and errors must not show.
    pub secrets: Vec<String>,
    pub topic: String,
    pub key: Key,
    pub timeout_seconds: u64,
}

/// The key of an event's message. Events with the same key go to the same partition.
///
/// ```
/// use pixelgate::config::{KafkaKey, KafkaUpstream};
///
/// let mut kafka = KafkaUpstream::default();
/// kafka.key = KafkaKey::Email;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// The portal's number, in digits.
    #[default]
    Portal,
    /// The canonical email address; an event without one has no key.
    Email,
    /// No key: events spread over all partitions.
    None,
}
