//! What is known about one upstream, for `/status` and the log.
//!
//! The log gets a line when the state changes for longer than a hiccup, and the same line at
//! most once in [`REPEAT_SECONDS_MIN`], however often the upstream goes to and fro.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::telemetry::log_throttle::LogThrottle;
use tokio::time::Instant;

/// How often the same change of state is logged, at most.
pub const REPEAT_SECONDS_MIN: u64 = 60;

/// How an upstream is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// It takes what it is given, or has not been given anything yet.
    #[default]
    Ok,
    /// Something failed and is tried again.
    Retrying,
    /// It fails all the time, or asked for a pause: the breaker is open.
    Down,
    /// It answers in a way that only a changed configuration will change.
    Misconfigured,
    /// The dead letters cannot be written: events wait that should become some.
    DeadLettersFailing,
    /// Nothing is sent any more.
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
    /// Since when it has not worked, through every state but `Ok`.
    trouble: Option<Instant>,
    /// One throttle for the line about a change to each state.
    throttles: [LogThrottle; 6],
    /// Whether the log's last word is that something is wrong.
    alarmed: bool,
}

impl Health {
    /// Of the upstream with this name.
    pub fn new(name: &str) -> Health {
        Health { name: name.to_owned(), inner: Mutex::default() }
    }

    /// The state, and the last error ever.
    pub fn read(&self) -> (State, Option<String>) {
        let inner = self.lock();
        (inner.state, inner.last_error.clone())
    }

    /// How long it has not worked, in seconds; `None` while it does.
    pub fn trouble_seconds(&self) -> Option<u64> {
        self.lock().trouble.map(|since| since.elapsed().as_secs())
    }

    /// It works, or works again.
    pub fn ok(&self) {
        let mut inner = self.lock();
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

    /// It does not work because of `error`.
    pub fn failing(&self, state: State, error: &str) {
        let mut inner = self.lock();
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

    /// Nothing is sent any more.
    pub fn stopped(&self) {
        self.lock().state = State::Stopped;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held, and each write leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
