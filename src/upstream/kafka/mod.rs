//! `kafka`: each event is one message in one topic (SPEC 7), sent by librdkafka.
//!
//! The value of the message is the event's wire form, its header `id` is the event's id, and its
//! timestamp the time of receipt. An event counts as delivered when all in-sync replicas have it
//! (`acks=all`).
//!
//! # Retries
//!
//! Within an attempt, librdkafka retries as an idempotent producer, which makes no duplicates. An
//! attempt ends after `timeout_seconds`; then delivery retries from the spool without a time limit.
//! An event in a request without a response may then be in the topic twice, with the same `id`.
//! This cannot be prevented here, because for Kafka two processes, or one process before and after
//! a restart, are two producers. A consumer that must count each event once drops ids that it has
//! seen.
//!
//! A producer that delivers nothing in several attempts, although a broker answers, is replaced.
//! This ends the stall after a topic was deleted and created again, or after a broker lost its
//! state.
//!
//! # Order
//!
//! No order is promised. A portal's events share a partition (with `key = "portal"`), but several
//! batches are in flight at once, and other edges write to the partition too.

mod config;
mod log_lines;
mod outcome;
mod outstanding;
mod producer;
mod setup;
mod upstream;

pub use config::{BROKERS_MAX, Config, PROPERTIES_MAX, Properties, TOPIC_CHARS_MAX};
pub use setup::Key;
pub use upstream::Kafka;
