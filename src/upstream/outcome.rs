//! The outcome of an attempt to deliver a batch, and the reason of a failure (SPEC 7).

use std::borrow::Cow;
use std::time::Duration;

/// The outcome of one attempt.
///
/// ```
/// use pixelgate::Outcome;
/// use pixelgate::custom::Failure;
///
/// /// What the status of a backend's answer means.
/// fn outcome(status: u16) -> Outcome {
///     match status {
///         200..=299 => Outcome::Delivered,
///         413 => Outcome::TooLarge(Failure::answered(status)),
///         400 | 422 => Outcome::Rejected(Failure::answered(status)),
///         401 | 403 | 404 => Outcome::Fault(Failure::answered(status)),
///         _ => Outcome::Retry(Failure::answered(status)),
///     }
/// }
/// assert_eq!(outcome(503).label(), "retry");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Outcome {
    /// The upstream has the whole batch, durably.
    Delivered,
    /// The events are not to blame. The same bytes are sent again later.
    Retry(Failure),
    /// The batch is too large and is split. A single event that is too large becomes a dead letter,
    /// unless the upstream asks for a wait: then it is sent again.
    TooLarge(Failure),
    /// The upstream rejects a part of the batch for good. The batch is split to find the event. A
    /// single event that is rejected becomes a dead letter.
    Rejected(Failure),
    /// The configuration is wrong, for instance the address or the credentials. The batch is
    /// retried, and the state of the upstream calls the operator.
    Fault(Failure),
    /// These events can never be delivered, and all of them become dead letters.
    Dead(Failure),
    /// The events of the batch have different outcomes. An event in no part is retried. For an
    /// event in two parts, the first part counts.
    Mixed(Vec<Part>),
}

/// Events of one batch with the same outcome.
///
/// ```
/// use pixelgate::Outcome;
/// use pixelgate::custom::{Failure, Part};
///
/// // The first event is delivered, the second one is refused for good.
/// let refused = Outcome::Rejected(Failure::answered(422));
/// let parts = vec![Part::new(vec![0], Outcome::Delivered), Part::new(vec![1], refused)];
/// let outcome = Outcome::Mixed(parts);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Part {
    /// Indices into [`Batch::records`](super::Batch::records). If there are none, the outcome is
    /// about the upstream only.
    pub places: Vec<usize>,
    /// The outcome of these events, which is never `Mixed`.
    pub outcome: Outcome,
}

/// The reason why an attempt did not deliver. Logs, `/status` and dead letters show it, so it holds
/// no data of an event or of an upstream's response but the number of a portal.
///
/// ```
/// use pixelgate::custom::Failure;
/// use std::time::Duration;
///
/// let mut failure = Failure::answered(429).of_these_events();
/// failure.after = Some(Duration::from_secs(30));
/// assert_eq!(failure.what, "answered 429");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Failure {
    /// The reason as text: `answered 503`, `connection refused`.
    pub what: Cow<'static, str>,
    /// The HTTP status of the response, if there was one.
    pub status: Option<u16>,
    /// The wait that the upstream asked for (`Retry-After`).
    pub after: Option<Duration>,
    /// Whether the failure concerns these events only and not the upstream, for instance because
    /// their portal is rate limited. Breaker and limiter ignore such a failure.
    pub local: bool,
}

impl Part {
    /// The events at these indices, with this outcome, which is not `Mixed`.
    pub fn new(places: Vec<usize>, outcome: Outcome) -> Part {
        Part { places, outcome }
    }
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

    /// Whether the upstream asked for a wait that is longer than 0.
    pub(crate) fn asks_to_wait(&self) -> bool {
        self.after.is_some_and(|after| !after.is_zero())
    }

    /// The same failure, but of these events only: see [`Failure::local`].
    pub fn of_these_events(self) -> Failure {
        Failure { local: true, ..self }
    }
}

impl Outcome {
    /// The outcome of events whose record in the spool cannot be read. A retry does not change it,
    /// so the events become dead letters.
    pub(super) fn unreadable() -> Outcome {
        Outcome::Rejected(Failure::new("a spool record cannot be read"))
    }

    /// The outcome for a batch of this many events. A wait that is asked for says that the upstream
    /// will take more later (RFC 9110, 15.5.14), so a single event is retried.
    pub(crate) fn for_events(self, events: usize) -> Outcome {
        match self {
            Outcome::TooLarge(failure) if events == 1 && failure.asks_to_wait() => {
                Outcome::Retry(failure)
            }
            other => other,
        }
    }

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
