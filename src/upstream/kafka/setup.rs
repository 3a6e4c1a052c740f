//! A checked configuration, as the producer and the upstream use it.

use rdkafka::ClientConfig;
use serde::Deserialize;

/// A checked configuration.
pub struct Setup {
    pub client: ClientConfig,
    /// Configured values that are never shown.
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
    /// None: spread over all partitions.
    None,
}
