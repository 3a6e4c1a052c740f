//! [`Kafka`]: sends batches through one shared producer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// Maximum number of batches in flight.
const BATCHES_MAX: usize = 8;
/// Pause before an event is queued again after the queue was full, in milliseconds.
const QUEUE_FULL_MS: u64 = 5;
/// The longest delay of a delivery report after the event's timeout, in seconds.
const REPORT_GRACE_SECONDS: u64 = 5;
/// The longest wait of a stop for the producer's threads, in seconds.
const CLOSE_SECONDS_MAX: u64 = 2;
/// The longest wait for a broker's answer after an attempt that has delivered nothing, in seconds.
const ANSWER_SECONDS_MAX: u64 = 2;
/// The attempts in a row that deliver nothing although a broker answers, after which the producer
/// is replaced.
const STUCK_ATTEMPTS_MAX: u32 = 2;
/// The number of events after which the task yields to others on its thread.
const EVENTS_AT_ONCE: usize = 64;

/// The upstream of kind `kafka`.
pub struct Kafka {
    setup: Arc<Setup>,
    /// The first attempt opens it, and so does an attempt after a fatal error or when it is stuck.
    producer: Mutex<Option<Arc<Producer>>>,
    /// Attempts in a row that delivered nothing although a broker answered.
    stuck_attempts: AtomicU32,
    /// Every attempt read-locks it; an attempt that must not share a request write-locks it, see
    /// `send`.
    exclusive_send: RwLock<()>,
}

// Implemented by hand, because the configuration holds credentials.
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
        // A broker rejects a whole request, which may hold events of several batches. A single
        // event is sent once more, while no other attempt runs, before it becomes a dead letter.
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
        // Waits, so that the threads of the producer do not run while the process exits.
        let closing = tokio::task::spawn_blocking(move || producer.close());
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
    }
}

impl Kafka {
    pub(super) fn new(setup: Setup) -> Kafka {
        Kafka {
            setup: Arc::new(setup),
            producer: Mutex::default(),
            stuck_attempts: AtomicU32::new(0),
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
        // An event without a report counts as timed out.
        let _ = timeout_at(Instant::now() + patience, outstanding.closed()).await;
        let ends = outstanding.ends();
        let is_answered = if ends.contains(&End::Delivered) {
            self.stuck_attempts.store(0, Ordering::Relaxed);
            false
        } else {
            self.is_answered(&producer).await
        };
        let trouble = producer.trouble();
        let fatal = producer.fatal_error();
        let outcome = |end| match end {
            End::Delivered => Outcome::Delivered,
            End::Unreadable => Outcome::unreadable(),
            End::Open => outcome::of(RDKafkaErrorCode::MessageTimedOut, trouble),
            // `Fatal` only says that the producer has a fatal error, which is the cause.
            End::Failed(RDKafkaErrorCode::Fatal) => {
                outcome::of(fatal.unwrap_or(RDKafkaErrorCode::Fatal), trouble)
            }
            End::Failed(code) => outcome::of(code, trouble),
        };
        let outcomes: Vec<Outcome> = ends.into_iter().map(outcome).collect();
        let is_retried = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Retry(_)));
        let is_stuck = is_answered && is_retried && self.count_stuck() >= STUCK_ATTEMPTS_MAX;
        if fatal.is_some() || is_stuck {
            self.replace(&producer).await;
        }
        merge_outcomes(outcomes)
    }

    async fn is_answered(&self, producer: &Arc<Producer>) -> bool {
        let (producer, setup) = (Arc::clone(producer), Arc::clone(&self.setup));
        let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
        let asking =
            tokio::task::spawn_blocking(move || producer.is_answered(&setup.topic, patience));
        asking.await.unwrap_or(false)
    }

    /// Counts one more attempt that delivered nothing although a broker answers.
    fn count_stuck(&self) -> u32 {
        self.stuck_attempts.fetch_add(1, Ordering::Relaxed).saturating_add(1)
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
            writer.write(&mut value, &record, bot::is_bot_bytes(record.user_agent));
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

    /// Reads a record, and the email address if that is the message key.
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

    /// The current producer. Opens one if there is none.
    async fn producer(&self) -> Result<Arc<Producer>, Outcome> {
        let mut current = self.producer.lock().await;
        if let Some(producer) = &*current {
            return Ok(Arc::clone(producer));
        }
        let setup = Arc::clone(&self.setup);
        let opened = tokio::task::spawn_blocking(move || Producer::open(&setup)).await;
        // `open` panics if the system cannot start a thread, which may be temporary.
        let failure = || Failure::new("the threads of a producer cannot be started");
        let opened = opened.map_err(|_| Outcome::Retry(failure()))?;
        let producer = Arc::new(opened.map_err(|why| Outcome::Fault(Failure::new(why)))?);
        *current = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Removes `broken`, so that the next attempt opens a new producer. Does nothing if it was
    /// replaced already.
    async fn replace(&self, broken: &Arc<Producer>) {
        let mut current = self.producer.lock().await;
        if current.as_ref().is_some_and(|producer| Arc::ptr_eq(producer, broken)) {
            *current = None;
            self.stuck_attempts.store(0, Ordering::Relaxed);
        }
    }
}
