//! [`Kafka`]: sends batches through one shared producer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::outcome;
use super::outstanding::{End, Outstanding};
use super::producer::{Message, Producer};
use super::setup::{Key, Setup};
use crate::event::{RawRecord, Record, WireWriter};
use crate::upstream::batch::Batch;
use crate::upstream::bot;
use crate::upstream::contract::Upstream;
use crate::upstream::merge_outcomes::merge_outcomes;
use crate::upstream::outcome::{Failure, Outcome};

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
    producer: Mutex<Option<Arc<Producer>>>,
    /// Held by every attempt, and alone by one that must not share a request: see `send`.
    exclusive_send: RwLock<()>,
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
            let _shared = self.exclusive_send.read().await;
            self.attempt(batch).await
        };
        // A broker refuses a whole request, which may hold events of several batches. So one that
        // would be a dead letter for it goes once more while no other attempt runs.
        let refused = matches!(outcome, Outcome::TooLarge(_) | Outcome::Rejected(_));
        if refused && batch.records().len() == 1 {
            let _alone = self.exclusive_send.write().await;
            return self.attempt(batch).await;
        }
        outcome
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }

    async fn close(&self) {
        let Some(producer) = self.producer.lock().await.take().and_then(Arc::into_inner) else {
            return;
        };
        // Waited for, so that none of its threads runs into the end of the process.
        let closing = tokio::task::spawn_blocking(move || producer.close());
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
    }
}

impl Kafka {
    pub(super) fn new(setup: Setup) -> Kafka {
        Kafka {
            setup: Arc::new(setup),
            producer: Mutex::default(),
            exclusive_send: RwLock::default(),
        }
    }

    async fn attempt(&self, batch: &Batch) -> Outcome {
        let producer = match self.producer().await {
            Ok(producer) => producer,
            Err(outcome) => return outcome,
        };
        let outstanding = Outstanding::new(batch.records().len());
        self.hand_over(&producer, batch.records(), &outstanding).await;
        let patience = Duration::from_secs(self.setup.timeout_seconds + REPORT_GRACE_SECONDS);
        // An event without a report is as one whose time ran out.
        let _ = timeout_at(Instant::now() + patience, outstanding.closed()).await;
        let trouble = producer.trouble();
        let fatal = producer.fatal_error();
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
        let outcome = merge_outcomes(outstanding.ends().into_iter().map(outcome));
        if fatal.is_some() {
            self.replace(&producer).await;
        }
        outcome
    }

    async fn hand_over(
        &self,
        producer: &Producer,
        records: &[Bytes],
        outstanding: &Arc<Outstanding>,
    ) {
        let deadline = Instant::now() + Duration::from_secs(self.setup.timeout_seconds);
        let (mut value, mut id) = (Vec::new(), Uuid::encode_buffer());
        let mut writer = WireWriter::default();
        for (place, bytes) in records.iter().enumerate() {
            if place % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let mut handle = outstanding.handle(place);
            let Some((record, email)) = self.read(bytes) else {
                handle.end(End::Unreadable);
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
            while let Err(full) = producer.hand_over(&message, handle) {
                handle = full;
                if Instant::now() >= deadline {
                    handle.end(End::Failed(RDKafkaErrorCode::QueueFull));
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

    /// The producer in use; opened where there is none.
    async fn producer(&self) -> Result<Arc<Producer>, Outcome> {
        let mut current = self.producer.lock().await;
        if let Some(producer) = &*current {
            return Ok(Arc::clone(producer));
        }
        let setup = Arc::clone(&self.setup);
        let opened = tokio::task::spawn_blocking(move || Producer::open(&setup)).await;
        // It panics where the system has no thread for it, which may pass.
        let opened = opened.map_err(|_| Outcome::Retry(Failure::new("no producer can be made")))?;
        let producer = Arc::new(opened.map_err(|why| Outcome::Fault(Failure::new(why)))?);
        *current = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// The next attempt opens a new producer, unless one has replaced this one already.
    async fn replace(&self, broken: &Arc<Producer>) {
        let mut current = self.producer.lock().await;
        if current.as_ref().is_some_and(|producer| Arc::ptr_eq(producer, broken)) {
            *current = None;
        }
    }
}
