//! Upstreams: where batches go.
//!
//! An [`Upstream`] makes one attempt to hand over one [`Batch`] and says how it ended, as an
//! [`Outcome`]. It does not retry, wait, split, count or remember: `forward` does, the same for
//! every kind, which keeps a new kind small and its failures predictable.
//!
//! The trait is the one extension point of the delivery path: an embedder may hand in a kind of
//! its own. The kinds built in are chosen by `kind` in `[[upstream]]`, see [`Config`].

mod answer;
mod batch;
mod bot;
mod client;
mod config;
mod encode;
mod env;
pub mod file;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod gather;
pub mod http;
pub mod hubspot;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod legacy;
#[cfg(feature = "nats")]
pub mod nats;
mod sign;

use std::borrow::Cow;
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use bot::is_bot;

pub use batch::{Batch, BatchConfig, BatchOverride, Body};
pub use config::{Config, Kind, NAME_CHARS_MAX, UPSTREAMS_MAX, check_name};
pub use encode::{Compression, Format};
pub use env::Secret;

/// Something that takes batches.
///
/// `send` makes exactly one attempt. It may be dropped at any point (a stop does that), and it
/// may be called for several batches at once, up to [`Upstream::concurrency_max`].
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// The kind's name as in the configuration, for status and logs.
    fn kind(&self) -> &'static str;

    /// Attempts to hand over `batch`, and returns only once it is known how that ended.
    ///
    /// [`Outcome::Delivered`] is a promise: the batch is out of our hands and survives the
    /// death of this process.
    async fn send(&self, batch: &Batch) -> Outcome;

    /// How many batches may be on their way at once. At least 1.
    fn concurrency_max(&self) -> usize {
        1
    }

    /// Whether each portal's events must be handed over in the order in which they came.
    fn keeps_portal_order(&self) -> bool {
        false
    }

    /// Called once, after the last `send` has ended.
    async fn close(&self) {}
}

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream has the whole batch, durably.
    Delivered,
    /// Nothing is wrong with the batch: try the same bytes again, later.
    Retry(Failure),
    /// The batch is too big: split it. A single event that is too big becomes a dead letter.
    TooLarge(Failure),
    /// Something in the batch is refused for good: find it by halving. A single event that is
    /// refused becomes a dead letter.
    Rejected(Failure),
    /// The configuration is wrong (address, credentials, ...): keep trying, tell the operator.
    Fault(Failure),
    /// These events can never be delivered, whoever tries again: dead letters, all of them.
    Dead(Failure),
    /// The events of the batch ended differently. A place in no part is tried again, and a place
    /// in two parts counts in the first.
    Mixed(Vec<Part>),
}

/// Events of one batch that ended alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Indices into [`Batch::records`]. None at all: the outcome speaks of the upstream only.
    pub places: Vec<usize>,
    /// How they ended; not `Mixed`.
    pub outcome: Outcome,
}

/// Why an attempt did not deliver. Shown in logs, `/status` and dead letters, so it never holds
/// anything that an event or an upstream's answer brought, but for a portal's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people: `answered 503`, `connection refused`.
    pub what: Cow<'static, str>,
    /// The status of the upstream's answer, where there was one.
    pub status: Option<u16>,
    /// How long the upstream asked us to wait (`Retry-After`).
    pub after: Option<Duration>,
    /// Whether it speaks of these events only (their portal is limited, say) and says nothing of
    /// the upstream: then nothing else that goes there is slowed, stopped or encouraged by it.
    pub local: bool,
}

impl Failure {
    /// A setback without an answer.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Failure {
        Failure { what: what.into(), status: None, after: None, local: false }
    }

    /// A setback that an answer with this status brought.
    pub fn answered(status: u16) -> Failure {
        let what = format!("answered {status}").into();
        Failure { what, status: Some(status), after: None, local: false }
    }

    /// The same, of these events only: see [`Failure::local`].
    pub fn of_these_events(self) -> Failure {
        Failure { local: true, ..self }
    }
}

impl Outcome {
    /// The label of `pixelgate_batches_total{outcome}`.
    pub fn label(&self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Retry(_) => "retry",
            Outcome::TooLarge(_) => "too_large",
            Outcome::Rejected(_) => "rejected",
            Outcome::Fault(_) => "fault",
            Outcome::Dead(_) => "dead",
            Outcome::Mixed(_) => "mixed",
        }
    }
}
