//! The answer to an event request, in the form that all connections share. The fast path and
//! Pingora's path each send it in their own form.

use crate::event::{EventId, Rejection};
use crate::response::answers::{Answers, OwnLines};

/// The answer to an event request, with the portal and the event that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventResponse {
    Accepted(AcceptedParts),
    Head,
    Preflight,
    /// The rejection, and the portal that the request names. 0: it names no valid portal.
    Rejected(Rejection, u64),
}

/// The parts of an accepted event that its answer needs after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedParts {
    pub id: EventId,
    pub portal: u64,
    pub ignored_params: usize,
}

impl EventResponse {
    /// Selects the prebuilt answer.
    pub fn pick<T>(self, answers: &Answers<T>, as_image: bool) -> &T {
        match self {
            Self::Accepted(_) => answers.accepted(),
            Self::Head => answers.head(),
            Self::Preflight => answers.preflight(),
            Self::Rejected(rejection, _) => answers.rejected(rejection, as_image),
        }
    }

    /// The header lines of this answer that are not prebuilt. `with_id`: `response.event_id`.
    pub fn own_lines(self, with_id: bool) -> OwnLines {
        match self {
            Self::Accepted(AcceptedParts { id, ignored_params, .. }) => OwnLines {
                ignored_params,
                event_id: with_id.then_some(id),
                retry_after_seconds: None,
            },
            Self::Rejected(Rejection { retry_after_seconds, .. }, _) => {
                OwnLines { retry_after_seconds, ..OwnLines::default() }
            }
            Self::Head | Self::Preflight => OwnLines::default(),
        }
    }

    /// Why the event was rejected, if it was.
    pub fn rejection(self) -> Option<Rejection> {
        match self {
            Self::Rejected(rejection, _) => Some(rejection),
            Self::Accepted(_) | Self::Head | Self::Preflight => None,
        }
    }
}
