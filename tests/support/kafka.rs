//! Reads a topic back, as a consumer that knows nothing of pixelgate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message as it lies in the topic.
#[derive(Debug, Clone)]
pub struct Stored {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Value,
    pub headers: BTreeMap<String, Vec<u8>>,
    pub timestamp_ms: Option<i64>,
}

/// Everything in a topic, from its beginning to its present end.
pub fn read_topic(brokers: &str, topic: &str) -> Vec<Stored> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let mut left: BTreeMap<i32, i64> = BTreeMap::new();
    let mut all = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let id = partition.id();
        let (low, high) = consumer.fetch_watermarks(topic, id, PATIENCE).unwrap();
        left.insert(id, high - low);
        all.add_partition_offset(topic, id, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let mut stored = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while left.values().any(|left| *left > 0) {
        assert!(Instant::now() < deadline, "{left:?} are left to read");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
        *left.get_mut(&message.partition()).unwrap() -= 1;
        let headers = message.headers().map(|headers| {
            let pair = |h: rdkafka::message::Header<'_, &[u8]>| {
                (h.key.to_owned(), h.value.unwrap_or_default().to_vec())
            };
            headers.iter().map(pair).collect()
        });
        stored.push(Stored {
            partition: message.partition(),
            key: message.key().map(<[u8]>::to_vec),
            value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
            headers: headers.unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
        });
    }
    stored
}

/// The events among them.
pub fn events(stored: &[Stored]) -> Vec<Value> {
    stored.iter().map(|message| message.value.clone()).collect()
}
