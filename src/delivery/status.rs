//! The status of one upstream, as `/status` shows it (SPEC 8).

use super::health::State;

/// How one upstream is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// The upstream's name.
    pub name: String,
    /// The upstream's kind.
    pub kind: &'static str,
    /// The upstream's state.
    pub state: State,
    /// Seconds since the first failed attempt after the last delivery. `None`: none has failed.
    pub trouble_seconds: Option<u64>,
    /// Age in seconds of the oldest event that waits; 0 when there is none.
    pub lag_seconds: u64,
    /// The last error since the start, kept after a recovery. Holds no data of an event or of an
    /// upstream's answer.
    pub last_error: Option<String>,
    /// Attempts since the start, by outcome.
    pub outcomes: Vec<(&'static str, u64)>,
}
