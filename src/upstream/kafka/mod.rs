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
mod line;
mod log;
mod outcome;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use self::line::{Message, Producer};
use self::tally::{End, Tally};
use super::gather::gather;
use super::{Batch, Failure, Outcome, Upstream, bot};
use crate::event::{RawRecord, Record, WireWriter};

pub use config::{BROKERS_MAX, Config, Key, PROPERTIES_MAX, Properties, TOPIC_CHARS_MAX};

/// Batches on their way at once, at most.
const BATCHES_MAX: usize = 8;
/// Pause before a full queue is tried again.
const QUEUE_FULL_MS: u64 = 5;
/// How long after an event's time has run out its report may take. It comes from this process.
const REPORT_GRACE_SECONDS: u64 = 5;
/// How long a stop waits for the producer's threads.
const CLOSE_SECONDS_MAX: u64 = 2;
/// After so many events others on this thread get their turn.
const EVENTS_AT_ONCE: usize = 64;

/// See the module.
pub struct Kafka {
    setup: Arc<Setup>,
    /// Opened by the first attempt, and again after a fatal error.
    line: Mutex<Option<Arc<Producer>>>,
    /// Held by every attempt, and alone by one that must not share a request: see `send`.
    road: RwLock<()>,
}

/// A checked configuration.
struct Setup {
    client: ClientConfig,
    /// Configured values that are never shown.
    secrets: Vec<String>,
    topic: String,
    key: Key,
    timeout_seconds: u64,
}

// By hand: the configuration holds credentials.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kafka(..)")
    }
}

#[async_trait]
impl Upstream for Kafka {
    fn kind(&self) -> &'static str {
        "kafka"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let outcome = {
            let _shared = self.road.read().await;
            self.attempt(batch).await
        };
        // A broker refuses a whole request, which may hold events of several batches. So one that
        // would be a dead letter for it goes once more with nobody beside it.
        let refused = matches!(outcome, Outcome::TooLarge(_) | Outcome::Rejected(_));
        if refused && batch.records().len() == 1 {
            let _alone = self.road.write().await;
            return self.attempt(batch).await;
        }
        outcome
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }

    async fn close(&self) {
        let Some(line) = self.line.lock().await.take().and_then(Arc::into_inner) else { return };
        // Waited for, so that none of its threads runs into the end of the process.
        let closing = tokio::task::spawn_blocking(move || line.close());
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
    }
}

impl Kafka {
    fn new(setup: Setup) -> Kafka {
        Kafka { setup: Arc::new(setup), line: Mutex::default(), road: RwLock::default() }
    }

    async fn attempt(&self, batch: &Batch) -> Outcome {
        let line = match self.line().await {
            Ok(line) => line,
            Err(outcome) => return outcome,
        };
        let tally = Tally::new(batch.records().len());
        self.hand_over(&line, batch.records(), &tally).await;
        let patience = Duration::from_secs(self.setup.timeout_seconds + REPORT_GRACE_SECONDS);
        // An event without a report is as one whose time ran out.
        let _ = timeout_at(Instant::now() + patience, tally.closed()).await;
        let trouble = line.trouble();
        let fatal = line.fatal_error();
        let outcome = |end| match end {
            End::Delivered => Outcome::Delivered,
            End::Unreadable => Outcome::Rejected(Failure::new("a spool record cannot be read")),
            End::Open => outcome::of(RDKafkaErrorCode::MessageTimedOut, trouble),
            // The code is only that there is another, which says why.
            End::Failed(RDKafkaErrorCode::Fatal) => {
                outcome::of(fatal.unwrap_or(RDKafkaErrorCode::Fatal), trouble)
            }
            End::Failed(code) => outcome::of(code, trouble),
        };
        let outcome = gather(tally.ends().into_iter().map(outcome));
        if fatal.is_some() {
            self.replace(&line).await;
        }
        outcome
    }

    async fn hand_over(&self, line: &Producer, records: &[Bytes], tally: &Arc<Tally>) {
        let deadline = Instant::now() + Duration::from_secs(self.setup.timeout_seconds);
        let (mut value, mut id) = (Vec::new(), Uuid::encode_buffer());
        let mut writer = WireWriter::default();
        for (place, bytes) in records.iter().enumerate() {
            if place % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let mut ticket = tally.ticket(place);
            let Some((record, email)) = self.read(bytes) else {
                ticket.end(End::Unreadable);
                continue;
            };
            value.clear();
            writer.write(&mut value, &record, bot::is_bot(record.user_agent));
            let mut digits = itoa::Buffer::new();
            let key = match self.setup.key {
                Key::Portal => Some(digits.format(record.portal).as_bytes()),
                Key::Email => email.as_deref().map(str::as_bytes),
                Key::None => None,
            };
            let message = Message {
                topic: &self.setup.topic,
                key,
                value: &value,
                id: Uuid::from_bytes(record.id).hyphenated().encode_lower(&mut id),
                received_at_ms: record.received_at_ms,
            };
            while let Err(full) = line.hand_over(&message, ticket) {
                ticket = full;
                if Instant::now() >= deadline {
                    ticket.end(End::Failed(RDKafkaErrorCode::QueueFull));
                    break;
                }
                sleep(Duration::from_millis(QUEUE_FULL_MS)).await;
            }
        }
    }

    /// A record, and the email address where it is the key.
    fn read<'a>(&self, bytes: &'a [u8]) -> Option<(RawRecord<'a>, Option<String>)> {
        let email = match self.setup.key {
            Key::Email => {
                let event = Record::decode_sound(bytes).ok()?.event().ok()?;
                event.email.map(String::from)
            }
            Key::Portal | Key::None => None,
        };
        Some((RawRecord::read(bytes).ok()?, email))
    }

    /// The line in use; opened where there is none.
    async fn line(&self) -> Result<Arc<Producer>, Outcome> {
        let mut current = self.line.lock().await;
        if let Some(line) = &*current {
            return Ok(Arc::clone(line));
        }
        let setup = Arc::clone(&self.setup);
        let opened = tokio::task::spawn_blocking(move || Producer::open(&setup)).await;
        // It panics where the system has no thread for it, which may pass.
        let opened = opened.map_err(|_| Outcome::Retry(Failure::new("no producer can be made")))?;
        let line = Arc::new(opened.map_err(|why| Outcome::Fault(Failure::new(why)))?);
        *current = Some(Arc::clone(&line));
        Ok(line)
    }

    /// The next attempt opens a new line, unless one has replaced this one already.
    async fn replace(&self, broken: &Arc<Producer>) {
        let mut current = self.line.lock().await;
        if current.as_ref().is_some_and(|line| Arc::ptr_eq(line, broken)) {
            *current = None;
        }
    }
}
