//! The state of the policy and of its refreshes, for the operator.

use std::time::Duration;

use super::config::Mode;

/// The state of the policy, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Portals in the list, expired ones included.
    pub count: usize,
    /// The configured mode.
    pub mode: Mode,
    /// When the list in use was loaded, in milliseconds since 1970, UTC. `None`: no list has been
    /// loaded.
    pub loaded_at_ms: Option<u64>,
    /// The last failure to refresh the list, even if the list has been refreshed since.
    pub last_failure: Option<RefreshFailure>,
    /// The failures to refresh the list since start. Each failed look counts.
    pub failures: u64,
    /// Whether there is a list, and the last look at its source found nothing wrong.
    pub fresh: bool,
    /// Whether the list is older than `portals.stale_seconds_max`.
    pub stale: bool,
    /// When the server of a URL is asked again, in milliseconds since 1970, UTC, if its last answer
    /// asked for a wait (`Retry-After`). `None`: within `portals.refresh_seconds`.
    pub retry_at_ms: Option<u64>,
    /// Why the list of a URL is not in the state folder, where the next start would look for it.
    /// `None`: it is there, or the source is no URL.
    pub unstored: Option<String>,
}

impl Status {
    /// Why every event is refused. `None`: events are judged. A list that cannot be refreshed stays
    /// in force, so it is no reason; and only mode `enforce` refuses events.
    pub fn refuses_all(&self) -> Option<&'static str> {
        if self.mode != Mode::Enforce {
            None
        } else if self.loaded_at_ms.is_none() {
            Some("no portal list has been loaded yet")
        } else if self.stale {
            Some("the portal list is older than portals.stale_seconds_max")
        } else {
            None
        }
    }
}

/// A failure to refresh the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshFailure {
    /// The time of the failure, in milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// The cause, with the file or URL and, if known, the line. No personal data.
    pub what: String,
}

/// The history of refreshes.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub loaded_at_ms: Option<u64>,
    pub last_failure: Option<RefreshFailure>,
    pub failures: u64,
    pub failing: bool,
    /// The wait that the server's last answer asked for, at least `portals.refresh_seconds`, and
    /// the end of it, in milliseconds since 1970.
    pub wait: Option<Duration>,
    pub retry_at_ms: Option<u64>,
    pub unstored: Option<String>,
    /// Whether it has been logged that the list is too old.
    pub stale_logged: bool,
}
