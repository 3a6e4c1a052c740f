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
    /// No event waits for another attempt.
    #[default]
    Ok,
    /// An attempt failed and will be repeated.
    Retrying,
    /// The upstream takes nothing: attempts fail in a row, or it asked for a pause.
    Down,
    /// The upstream gives answers that only a changed configuration will change.
    Misconfigured,
    /// Dead letters cannot be written: their events wait in the spool.
    DeadLettersFailing,
    /// Events of the spool cannot be read. They are tried again each second.
    SpoolUnreadable,
    /// Events wait until an older process, which delivers the events before them, has ended.
    PredecessorLives,
    /// Events that a newer version of this program wrote wait for that version, and no others wait.
    NewerRecords,
    /// Events wait in lanes of the spool that are not held, until older lanes are delivered to all
    /// upstreams, and nothing else waits.
    HeldBack,
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
            State::SpoolUnreadable => "spool_unreadable",
            State::PredecessorLives => "predecessor_lives",
            State::NewerRecords => "newer_records",
            State::HeldBack => "held_back",
            State::Stopped => "stopped",
        }
    }
}

/// The state of one upstream, which the delivery worker sets and `/status` reads.
#[derive(Debug)]
pub struct Health {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    last_error: Option<String>,
    /// When the first attempt failed since something was delivered.
    trouble: Option<Instant>,
    /// Attempts that failed since something was delivered.
    failures: u32,
    /// One throttle for the line about a change to each state.
    throttles: [LogThrottle; 10],
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

    /// Attempts that failed since something was delivered.
    pub fn failures(&self) -> u32 {
        self.inner.lock().failures
    }

    /// Notes that the upstream took events.
    pub fn delivered(&self) {
        let mut inner = self.inner.lock();
        (inner.trouble, inner.failures) = (None, 0);
    }

    /// Notes that an attempt failed because of `error`.
    pub fn failed(&self, error: &str) {
        let mut inner = self.inner.lock();
        inner.failures = inner.failures.saturating_add(1);
        inner.trouble.get_or_insert_with(Instant::now);
        inner.last_error = Some(error.to_owned());
    }

    /// Notes that nothing was taken since `since`, for a reason that is no failed attempt.
    pub fn hangs(&self, since: Instant, why: String) {
        let mut inner = self.inner.lock();
        inner.trouble.get_or_insert(since);
        inner.last_error = Some(why);
    }

    /// Notes that a part of this process, such as the disk, fails because of `error`.
    pub fn failed_here(&self, error: &str) {
        self.inner.lock().last_error = Some(error.to_owned());
    }

    /// Sets the state. Has no effect once the route has stopped.
    pub fn set(&self, state: State) {
        let mut inner = self.inner.lock();
        if inner.state == State::Stopped || inner.state == state {
            return;
        }
        inner.state = state;
        let (name, error) = (&self.name, inner.last_error.clone().unwrap_or_default());
        if state == State::Ok && inner.alarmed && inner.may_log(State::Ok) {
            inner.alarmed = false;
            log::info!("upstream {name}: delivers again");
        }
        match state {
            // `newer_records.rs` logs the first record of a newer version, and the spool logs what
            // is held back. Each upgrade makes events wait for the older process.
            State::Ok
            | State::Retrying
            | State::PredecessorLives
            | State::NewerRecords
            | State::HeldBack
            | State::Stopped => {
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
            State::SpoolUnreadable => {
                log::error!(
                    "upstream {name}: a segment of the spool cannot be read; its events wait, and \
                     reading is tried again each second"
                );
            }
        }
        inner.alarmed = true;
    }

    /// Notes that the route has stopped. No later report changes the state.
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
            failures: 0,
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
    fn the_last_error_stays_after_a_recovery() {
        let health = Health::new("a");
        health.failed("connection refused");
        health.set(State::Down);
        assert_eq!(health.read(), (State::Down, Some("connection refused".into())));
        health.delivered();
        health.set(State::Ok);
        assert_eq!(health.read(), (State::Ok, Some("connection refused".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_from_the_first_failure_to_the_next_success() {
        let health = Health::new("a");
        assert_eq!(health.trouble_seconds(), None);
        health.failed("503");
        tokio::time::advance(Duration::from_secs(3)).await;
        health.failed("503");
        assert_eq!((health.trouble_seconds(), health.failures()), (Some(3), 2));
        health.delivered();
        assert_eq!((health.trouble_seconds(), health.failures()), (None, 0));
    }

    #[test]
    fn nothing_follows_a_stop() {
        let health = Health::new("a");
        health.stopped();
        health.set(State::Down);
        health.set(State::Ok);
        assert_eq!(health.read().0, State::Stopped);
    }
}
