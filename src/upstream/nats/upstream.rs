//! [`Nats`]: publishes batches over one shared connection.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{self, Connection};
use super::setup::{BATCHES_MAX, Setup, UNANSWERED_MAX};
use crate::event::{RawRecord, WireWriter};
use crate::upstream::batch::Batch;
use crate::upstream::bot;
use crate::upstream::contract::Upstream;
use crate::upstream::merge_outcomes::merge_outcomes;
use crate::upstream::outcome::Outcome;

/// The upstream of kind `nats`.
pub struct Nats {
    setup: Setup,
    /// The first attempt opens it, and so does an attempt after a failure.
    connection: Mutex<Option<Arc<Connection>>>,
}

/// The outcomes of a batch's events so far.
struct Progress {
    ends: Vec<Option<Outcome>>,
    /// The events that are published and not acknowledged yet, the oldest first.
    unanswered: VecDeque<(usize, PublishAckFuture)>,
}

// Implemented by hand, because the setup holds credentials.
impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nats(..)")
    }
}

#[async_trait]
impl Upstream for Nats {
    fn kind(&self) -> &'static str {
        "nats"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let deadline = Instant::now() + self.setup.timeout;
        let connection = match self.connection(deadline).await {
            Ok(connection) => connection,
            Err(outcome) => return outcome,
        };
        let mut progress = Progress {
            ends: vec![None; batch.records().len()],
            unanswered: VecDeque::with_capacity(batch.records().len().min(UNANSWERED_MAX)),
        };
        let published = self.publish(&connection, batch.records(), &mut progress, deadline).await;
        if let Err(why) = published {
            progress.give_up(&why).await;
        }
        let ends = || progress.ends.iter().flatten();
        if ends().any(|end| matches!(end, Outcome::Retry(_) | Outcome::Fault(_))) {
            // The next attempt opens a new connection, and checks server and stream.
            self.retire(&connection).await;
        }
        merge_outcomes(ends().cloned())
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }

    async fn close(&self) {
        self.connection.lock().await.take();
    }
}

impl Nats {
    pub(super) fn new(setup: Setup) -> Nats {
        Nats { setup, connection: Mutex::default() }
    }

    /// The current connection. Opens one if there is none or if it has failed.
    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, Outcome> {
        let mut current = self.connection.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.is_sound()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::open(&self.setup, deadline).await?);
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Removes `failed`, so that the next attempt opens a new connection. Does nothing if it was
    /// replaced already.
    async fn retire(&self, failed: &Arc<Connection>) {
        let mut current = self.connection.lock().await;
        if current.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, failed)) {
            *current = None;
        }
    }

    /// Publishes all events and waits for their acknowledgements. An error means that the
    /// connection failed.
    async fn publish(
        &self,
        connection: &Connection,
        records: &[Bytes],
        progress: &mut Progress,
        deadline: Instant,
    ) -> Result<(), Outcome> {
        for (place, bytes) in records.iter().enumerate() {
            let Some((subject, message)) = self.message(bytes) else {
                progress.ends[place] = Some(Outcome::unreadable());
                continue;
            };
            if progress.unanswered.len() >= UNANSWERED_MAX {
                progress.await_oldest(connection, deadline).await?;
            }
            match connection.publish(subject, message, deadline).await? {
                Ok(ack) => progress.unanswered.push_back((place, ack)),
                Err(outcome) => progress.ends[place] = Some(outcome),
            }
        }
        while !progress.unanswered.is_empty() {
            progress.await_oldest(connection, deadline).await?;
        }
        Ok(())
    }

    fn message(&self, bytes: &[u8]) -> Option<(String, PublishMessage)> {
        let record = RawRecord::read(bytes).ok()?;
        let mut payload = Vec::with_capacity(bytes.len() + Batch::EVENT_OVERHEAD_BYTES);
        let bot = bot::is_bot_bytes(record.user_agent);
        WireWriter::default().write(&mut payload, &record, bot);
        let mut id = Uuid::encode_buffer();
        let id: &str = Uuid::from_bytes(record.id).hyphenated().encode_lower(&mut id);
        let message = PublishMessage::build()
            .payload(payload.into())
            .message_id(id)
            // The server rejects the event if another stream takes the subject.
            .expected_stream(&self.setup.stream);
        Some((self.setup.subject.of(record.portal), message))
    }
}

impl Progress {
    /// Waits for the oldest acknowledgement.
    async fn await_oldest(
        &mut self,
        connection: &Connection,
        deadline: Instant,
    ) -> Result<(), Outcome> {
        let Some((place, ack)) = self.unanswered.pop_front() else { return Ok(()) };
        self.ends[place] = Some(connection.acknowledged(ack, deadline).await?);
        Ok(())
    }

    /// Takes the acknowledgements that have arrived. All other open events get the outcome `why`.
    async fn give_up(&mut self, why: &Outcome) {
        for (place, ack) in self.unanswered.drain(..) {
            self.ends[place] = connection::already_acknowledged(ack).await;
        }
        for end in &mut self.ends {
            end.get_or_insert_with(|| why.clone());
        }
    }
}
