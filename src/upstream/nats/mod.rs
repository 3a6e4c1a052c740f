//! `nats`: each event is a message of its own in a JetStream stream (SPEC 7).
//!
//! The payload is the event's wire form, the header `Nats-Msg-Id` its id: within its
//! `duplicate_window` the stream itself drops what it has already. An event counts as delivered
//! when the stream has acknowledged it: it is stored as safely as the stream is configured to.
//!
//! Events are published one after another without waiting, up to [`UNANSWERED_MAX`] of a batch at
//! once, and each acknowledgement decides about its own event. None within `timeout_seconds`, or a
//! connection that breaks, means that nobody knows; such an event is sent again under its id.
//!
//! No order is promised: batches are on their way side by side.

mod config;
mod link;
mod outcome;
mod subject;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ServerAddr;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use self::link::Link;
use self::subject::Subject;
use super::gather::gather;
use super::{Batch, Failure, Outcome, Upstream, bot};
use crate::event::{RawRecord, WireWriter};

pub use config::{Config, STREAM_CHARS_MAX, URLS_MAX};
pub use subject::SUBJECT_CHARS_MAX;

/// Batches on their way at once, at most.
const BATCHES_MAX: usize = 4;
/// Events of one batch that wait for their acknowledgement, at most.
pub const UNANSWERED_MAX: usize = 1000;

/// See the module.
pub struct Nats {
    setup: Setup,
    /// Opened by the first attempt, and again after anything has gone wrong with it.
    link: Mutex<Option<Arc<Link>>>,
}

/// A checked configuration.
struct Setup {
    servers: Vec<ServerAddr>,
    login: Login,
    credentials: Option<PathBuf>,
    subject: Subject,
    stream: String,
    tls: rustls::ClientConfig,
    tls_required: bool,
    timeout: Duration,
}

/// Who we are, where it is not in a credentials file.
#[derive(Clone, PartialEq, Eq)]
enum Login {
    Nobody,
    Token(String),
    User(String, String),
}

/// What has become of a batch so far.
struct Progress {
    ends: Vec<Option<Outcome>>,
    /// Sent, and not acknowledged yet; the oldest first.
    unanswered: VecDeque<(usize, PublishAckFuture)>,
}

// By hand: the setup holds credentials.
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
        let link = match self.link(deadline).await {
            Ok(link) => link,
            Err(outcome) => return outcome,
        };
        let mut progress = Progress {
            ends: vec![None; batch.records().len()],
            unanswered: VecDeque::with_capacity(batch.records().len().min(UNANSWERED_MAX)),
        };
        let published = self.publish(&link, batch.records(), &mut progress, deadline).await;
        if let Err(why) = published {
            progress.give_up(&why).await;
        }
        let ends = || progress.ends.iter().flatten();
        if ends().any(|end| matches!(end, Outcome::Retry(_) | Outcome::Fault(_))) {
            // The next attempt finds out whether server and stream are what they should be.
            self.retire(&link).await;
        }
        gather(ends().cloned())
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }

    async fn close(&self) {
        self.link.lock().await.take();
    }
}

impl Nats {
    fn new(setup: Setup) -> Nats {
        Nats { setup, link: Mutex::default() }
    }

    /// The link in use; opened where there is none that is sound.
    async fn link(&self, deadline: Instant) -> Result<Arc<Link>, Outcome> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| link.is_sound()) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::open(&self.setup, deadline).await?);
        *current = Some(Arc::clone(&link));
        Ok(link)
    }

    /// The next attempt opens a new link, unless one has replaced this one already.
    async fn retire(&self, failed: &Arc<Link>) {
        let mut current = self.link.lock().await;
        if current.as_ref().is_some_and(|link| Arc::ptr_eq(link, failed)) {
            *current = None;
        }
    }

    /// Publishes all events and waits for their acknowledgements. The error is the link's.
    async fn publish(
        &self,
        link: &Link,
        records: &[Bytes],
        progress: &mut Progress,
        deadline: Instant,
    ) -> Result<(), Outcome> {
        for (place, bytes) in records.iter().enumerate() {
            let Some((subject, message)) = self.message(bytes) else {
                let setback = Failure::new("a spool record cannot be read");
                progress.ends[place] = Some(Outcome::Rejected(setback));
                continue;
            };
            if progress.unanswered.len() >= UNANSWERED_MAX {
                progress.settle_one(link, deadline).await?;
            }
            match link.publish(subject, message, deadline).await? {
                Ok(ack) => progress.unanswered.push_back((place, ack)),
                Err(outcome) => progress.ends[place] = Some(outcome),
            }
        }
        while !progress.unanswered.is_empty() {
            progress.settle_one(link, deadline).await?;
        }
        Ok(())
    }

    fn message(&self, bytes: &[u8]) -> Option<(String, PublishMessage)> {
        let record = RawRecord::read(bytes).ok()?;
        let mut payload = Vec::with_capacity(bytes.len() + Batch::EVENT_OVERHEAD_BYTES);
        let bot = bot::is_bot(record.user_agent);
        WireWriter::default().write(&mut payload, &record, bot);
        let mut id = Uuid::encode_buffer();
        let id: &str = Uuid::from_bytes(record.id).hyphenated().encode_lower(&mut id);
        let message = PublishMessage::build()
            .payload(payload.into())
            .message_id(id)
            // So that a stream that was put in its place is no surprise.
            .expected_stream(&self.setup.stream);
        Some((self.setup.subject.of(record.portal), message))
    }
}

impl Progress {
    /// Waits for the oldest acknowledgement.
    async fn settle_one(&mut self, link: &Link, deadline: Instant) -> Result<(), Outcome> {
        let Some((place, ack)) = self.unanswered.pop_front() else { return Ok(()) };
        self.ends[place] = Some(link.acknowledged(ack, deadline).await?);
        Ok(())
    }

    /// Takes what acknowledgements are there; whatever else has no end yet ends as `why`.
    async fn give_up(&mut self, why: &Outcome) {
        for (place, ack) in self.unanswered.drain(..) {
            self.ends[place] = link::already_acknowledged(ack).await;
        }
        for end in &mut self.ends {
            end.get_or_insert_with(|| why.clone());
        }
    }
}
