//! How an attempt to deliver a batch ended, and why.

use std::borrow::Cow;
use std::time::Duration;

/// How one attempt ended.
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
    /// Nothing is wrong with the batch: try the same bytes again, later.
    Retry(Failure),
    /// The batch is too big: split it. A single event that is too big becomes a dead letter.
    TooLarge(Failure),
    /// The upstream rejects something in the batch permanently: split it to find the event. A
    /// single event that is rejected becomes a dead letter.
    Rejected(Failure),
    /// The configuration is wrong (address, credentials): keep retrying and alert the operator.
    Fault(Failure),
    /// These events can never be delivered: all of them become dead letters.
    Dead(Failure),
    /// The events of the batch ended differently. An event in no part is retried; of an event in
    /// two parts the first one counts.
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
    /// Indices into [`Batch::records`](super::Batch::records). Empty: the outcome is about the
    /// upstream only.
    pub places: Vec<usize>,
    /// Their outcome; never `Mixed`.
    pub outcome: Outcome,
}

/// Why an attempt did not deliver. Shown in logs, `/status` and dead letters, so it holds no data
/// of an event or of an upstream's response, except a portal's number.
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
    /// Whether the failure concerns these events only (for example, their portal is rate limited)
    /// and not the upstream: then breaker and limiter ignore it.
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

    /// The same failure, limited to these events: see [`Failure::local`].
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
