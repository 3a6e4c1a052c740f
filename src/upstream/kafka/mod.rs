//! `kafka`: each event is a message of its own in one topic (SPEC 7), by librdkafka.
//!
//! The value is the event's wire form, the header `id` its id, the timestamp when it was received.
//! An event counts as delivered when all replicas in sync have it (`acks=all`).
//!
//! # Who tries again
//!
//! Within an attempt librdkafka does, as an idempotent producer: what it sends again is not there
//! twice. An attempt ends after `timeout_seconds`; from then on the spool does, and waits as long
//! as it takes. What was in a request whose answer never came may then be in the topic twice, under
//! one `id`. Two processes, or two lives of one, are two producers to Kafka, so nothing of ours can
//! prevent that: a reader that must count once drops ids that it knows.
//!
//! # Order
//!
//! None is promised. A portal's events share a partition, but batches are on their way side by
//! side, and other edges write to it as well.

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
