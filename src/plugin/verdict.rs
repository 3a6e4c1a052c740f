//! The verdict on an event request, as the host sees it.

use super::event_response::EventResponse;
use crate::event::{EventId, Reason, Rejection};
use smallvec::SmallVec;
use std::fmt;

/// The text of an event's name. Most names have at most 24 bytes, which are stored without an
/// allocation.
pub(super) type EventName = SmallVec<[u8; 24]>;

/// The name of an event that has one.
pub(super) fn event_name(name: &str) -> Option<EventName> {
    (!name.is_empty()).then(|| EventName::from_slice(name.as_bytes()))
}

/// The verdict on an event request: accepted, rejected, or not judged.
///
/// `HEAD`, `OPTIONS` and a request with a broken body are not judged. The request is already
/// answered, so a host may log the verdict and cannot change it.
///
/// Displays as `accepted`, `rejected; reason=…` (both as in `X-Event-Verdict`), or `not_judged`.
///
/// ```
/// # fn log(verdict: &pixelgate::Verdict) {
/// match (verdict.event_id(), verdict.reason()) {
///     (Some(id), _) => println!("portal {:?}: event {id}", verdict.portal()),
///     (None, Some(reason)) => println!("rejected: {}", reason.as_str()),
///     (None, None) => {}
/// }
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `None`: not judged, because the body of the request is broken.
    pub(super) response: Option<EventResponse>,
    pub(super) event_name: Option<EventName>,
    pub(super) committed_at_ms: Option<u64>,
}

impl Verdict {
    /// The verdict as far as the answer alone shows it.
    pub(crate) fn of(response: Option<EventResponse>) -> Self {
        Self { response, event_name: None, committed_at_ms: None }
    }

    /// Whether the event counts: it is as durable as `spool.durability` says (SPEC 6).
    pub fn is_accepted(&self) -> bool {
        self.event_id().is_some()
    }

    /// Why the event does not count. `None`: it was accepted, or not judged.
    pub fn rejection(&self) -> Option<Rejection> {
        self.response.and_then(EventResponse::rejection)
    }

    /// The reason of [`Verdict::rejection`].
    pub fn reason(&self) -> Option<Reason> {
        self.rejection().map(|rejection| rejection.reason)
    }

    /// The portal that the request names (`_a`), if it names a valid one.
    pub fn portal(&self) -> Option<u64> {
        match self.response {
            Some(EventResponse::Accepted(parts)) => Some(parts.portal),
            Some(EventResponse::Rejected(_, portal)) if portal != 0 => Some(portal),
            _ => None,
        }
    }

    /// The id or name of the event (`_n`), if the request gives a valid one. The caller chose this
    /// text: in a rejected event it may be anything.
    pub fn event_name(&self) -> Option<&str> {
        self.event_name.as_deref().and_then(|name| std::str::from_utf8(name).ok())
    }

    /// The id of an accepted event, the same as in `X-Event-Id`.
    pub fn event_id(&self) -> Option<EventId> {
        match self.response {
            Some(EventResponse::Accepted(parts)) => Some(parts.id),
            _ => None,
        }
    }

    /// The time of the commit of an accepted event, in milliseconds since 1970, UTC. It is the time
    /// of a later commit if the spool has made one since. `None` with
    /// `spool.durability = "memory"`, which does not wait for a commit.
    pub fn committed_at_ms(&self) -> Option<u64> {
        self.committed_at_ms
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_accepted(), self.reason()) {
            (true, _) => f.write_str("accepted"),
            (false, Some(reason)) => write!(f, "rejected; reason={}", reason.as_str()),
            (false, None) => f.write_str("not_judged"),
        }
    }
}

// Leaves out the event's name: the caller chose that text, and it must not reach a log.
impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict")
            .field("verdict", &format_args!("{self}"))
            .field("portal", &self.portal())
            .field("event_id", &self.event_id())
            .field("committed_at_ms", &self.committed_at_ms)
            .finish_non_exhaustive()
    }
}
