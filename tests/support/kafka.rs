//! Reads a topic back, as a consumer that knows nothing of pixelgate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

/// The longest wait for anything.
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
    let (consumer, partitions) = consumer(brokers, topic);
    let mut left: BTreeMap<i32, i64> = BTreeMap::new();
    for id in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, id, PATIENCE).unwrap();
        left.insert(id, high - low);
    }
    read_while(&consumer, |stored: &[Stored]| {
        let read = |id| stored.iter().filter(|message| message.partition == id).count() as i64;
        left.iter().any(|(id, left)| read(*id) < *left)
    })
}

/// The messages of a topic from its beginning, until one with each of these events is there.
pub fn read_topic_until(brokers: &str, topic: &str, ids: &BTreeSet<String>) -> Vec<Stored> {
    read_while(&consumer(brokers, topic).0, |stored: &[Stored]| {
        let there: BTreeSet<&str> = stored.iter().filter_map(|m| m.value["id"].as_str()).collect();
        ids.iter().any(|id| !there.contains(id.as_str()))
    })
}

/// A consumer at the beginning of each partition, and the partitions.
fn consumer(brokers: &str, topic: &str) -> (BaseConsumer, Vec<i32>) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
    let partitions: Vec<i32> = partitions.collect();
    let mut all = TopicPartitionList::new();
    for id in &partitions {
        all.add_partition_offset(topic, *id, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    (consumer, partitions)
}

fn read_while(consumer: &BaseConsumer, mut more: impl FnMut(&[Stored]) -> bool) -> Vec<Stored> {
    let mut stored = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while more(&stored) {
        assert!(Instant::now() < deadline, "only {} messages are there", stored.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
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

/// The events among these messages.
pub fn events(stored: &[Stored]) -> Vec<Value> {
    stored.iter().map(|message| message.value.clone()).collect()
}
