//! The state of one upstream, for `/status` and the log.
//!
//! A change of state is logged, except between `ok` and `retrying`. The same change is logged at
//! most once in [`REPEAT_SECONDS_MIN`] seconds, however often the upstream fails and recovers.

use std::time::Duration;

use crate::telemetry::log_throttle::LogThrottle;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Shortest time in seconds between two log lines about the same change of state.
pub const REPEAT_SECONDS_MIN: u64 = 60;

/// How an upstream is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// The upstream accepts batches, or has received none yet.
    #[default]
    Ok,
    /// An attempt failed and will be repeated.
    Retrying,
    /// Attempts fail in a row, or the upstream asked for a pause: the breaker is open.
    Down,
    /// The upstream gives answers that only a changed configuration will change.
    Misconfigured,
    /// Dead letters cannot be written: their events wait in the spool.
    DeadLettersFailing,
    /// The route has stopped: no batch is sent any more.
    Stopped,
}

impl State {
    /// The word in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Retrying => "retrying",
            State::Down => "down",
            State::Misconfigured => "misconfigured",
            State::DeadLettersFailing => "dead_letters_failing",
            State::Stopped => "stopped",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Health {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    last_error: Option<String>,
    /// When the upstream stopped working. Kept in every state but `Ok`.
    trouble: Option<Instant>,
    /// One throttle for the line about a change to each state.
    throttles: [LogThrottle; 6],
    /// Whether the last line in the log is a warning or an error, so that a recovery is logged.
    alarmed: bool,
}

impl Health {
    /// The health of the upstream with this name.
    pub fn new(name: &str) -> Health {
        Health { name: name.to_owned(), inner: Mutex::default() }
    }

    /// The state, and the last error since the start.
    pub fn read(&self) -> (State, Option<String>) {
        let inner = self.inner.lock();
        (inner.state, inner.last_error.clone())
    }

    /// Seconds since the upstream stopped working; `None` while it works.
    pub fn trouble_seconds(&self) -> Option<u64> {
        self.inner.lock().trouble.map(|since| since.elapsed().as_secs())
    }

    /// The upstream works, or works again.
    pub fn ok(&self) {
        let mut inner = self.inner.lock();
        if inner.state == State::Ok || inner.state == State::Stopped {
            return;
        }
        inner.state = State::Ok;
        inner.trouble = None;
        if inner.alarmed && inner.may_log(State::Ok) {
            inner.alarmed = false;
            log::info!("upstream {}: delivers again", self.name);
        }
    }

    /// The upstream does not work because of `error`.
    pub fn failing(&self, state: State, error: &str) {
        let mut inner = self.inner.lock();
        if inner.state == State::Stopped {
            return;
        }
        inner.last_error = Some(error.to_owned());
        inner.trouble.get_or_insert_with(Instant::now);
        if inner.state == state {
            return;
        }
        inner.state = state;
        let name = &self.name;
        match state {
            State::Ok | State::Retrying | State::Stopped => {
                log::debug!("upstream {name}: {}: {error}", state.as_str());
                return;
            }
            _ if !inner.may_log(state) => return,
            State::Down => log::warn!("upstream {name} is down: {error}; events wait"),
            State::Misconfigured => log::error!(
                "upstream {name} is misconfigured: {error}; events wait until it is set right"
            ),
            State::DeadLettersFailing => log::error!(
                "upstream {name}: dead letters cannot be written: {error}; their events wait"
            ),
        }
        inner.alarmed = true;
    }

    /// The route has stopped. No later report changes the state.
    pub fn stopped(&self) {
        self.inner.lock().state = State::Stopped;
    }
}

impl Default for Inner {
    fn default() -> Self {
        let throttle = LogThrottle::new(1, Duration::from_secs(REPEAT_SECONDS_MIN));
        Self {
            state: State::Ok,
            last_error: None,
            trouble: None,
            throttles: std::array::from_fn(|_| throttle.clone()),
            alarmed: false,
        }
    }
}

impl Inner {
    fn may_log(&mut self, state: State) -> bool {
        self.throttles[state as usize].admit(Instant::now().into_std()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_change_is_logged_once_a_while() {
        let mut inner = Inner::default();
        let almost = Duration::from_secs(REPEAT_SECONDS_MIN) - Duration::from_millis(1);
        assert!(inner.may_log(State::Down));
        tokio::time::advance(almost).await;
        assert!(!inner.may_log(State::Down));
        assert!(inner.may_log(State::Misconfigured), "another change is news");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(inner.may_log(State::Down));
    }

    #[test]
    fn the_last_error_outlives_what_it_told_of() {
        let health = Health::new("a");
        health.failing(State::Down, "connection refused");
        assert_eq!(health.read(), (State::Down, Some("connection refused".into())));
        health.ok();
        assert_eq!(health.read(), (State::Ok, Some("connection refused".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_from_the_first_failure_to_the_next_success() {
        let health = Health::new("a");
        assert_eq!(health.trouble_seconds(), None);
        health.failing(State::Retrying, "503");
        tokio::time::advance(Duration::from_secs(3)).await;
        health.failing(State::Down, "503");
        assert_eq!(health.trouble_seconds(), Some(3));
        health.ok();
        assert_eq!(health.trouble_seconds(), None);
    }

    #[test]
    fn nothing_follows_a_stop() {
        let health = Health::new("a");
        health.stopped();
        health.failing(State::Down, "late");
        health.ok();
        assert_eq!(health.read(), (State::Stopped, None));
    }
}
