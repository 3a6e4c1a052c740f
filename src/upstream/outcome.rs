//! How an attempt to deliver a batch ended, and why.

use std::borrow::Cow;
use std::time::Duration;

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
    /// These events can never be delivered: all of them become dead letters.
    Dead(Failure),
    /// The events of the batch ended differently. A place in no part is tried again, and a place
    /// in two parts counts in the first.
    Mixed(Vec<Part>),
}

/// Events of one batch that ended alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Indices into [`Batch::records`](super::Batch::records). Empty: the outcome is about the
    /// upstream only.
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
    /// A failure without an answer from the upstream.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Failure {
        Failure { what: what.into(), status: None, after: None, local: false }
    }

    /// A failure because the upstream answered with this status.
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
