//! The circuit breaker of one upstream.
//!
//! Closed, everybody passes. After [`FAILURES_MAX`] failures in a row, or when the upstream
//! itself asks for a pause, it opens: nobody passes until a wait is over. Then one passes, as a
//! probe, and its result closes the breaker or opens it for longer. A backend that comes back
//! is thus met by one request and not by everything that has piled up.
//!
//! Who waits is let through in the order of arrival, so a batch that fails by itself does not
//! get to probe every time while good ones stand behind it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, sleep_until};

use super::retries;

/// Failures in a row that open the breaker.
pub const FAILURES_MAX: u32 = 5;

/// See the module.
#[derive(Debug, Default)]
pub struct Breaker {
    inner: Mutex<Inner>,
    /// Held by the first in line while it waits.
    line: FairMutex<()>,
    /// Wakes the first in line when a probe has ended.
    probed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    failures: u32,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen,
}

/// Leave to make one attempt. Dropped without a result, it counts as none.
#[derive(Debug)]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    /// Waits until an attempt may be made.
    pub async fn admit(&self) -> Pass<'_> {
        let _first = self.line.lock().await;
        loop {
            let state = self.lock().state;
            match state {
                State::Closed => return Pass { breaker: self, probe: false },
                State::Open { until } if Instant::now() < until => sleep_until(until).await,
                State::Open { .. } => {
                    self.lock().state = State::HalfOpen;
                    return Pass { breaker: self, probe: true };
                }
                State::HalfOpen => self.probed.notified().await,
            }
        }
    }

    /// Whether nobody has to wait.
    pub fn is_closed(&self) -> bool {
        matches!(self.lock().state, State::Closed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held, and each write leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The upstream is there and takes what it is given.
    pub fn succeed(mut self) {
        let mut inner = self.breaker.lock();
        // An attempt from before the breaker opened proves nothing about now, but a delivery is
        // a delivery: the next probe would only find the same.
        *inner = Inner::default();
        drop(inner);
        self.probe = false;
        self.breaker.probed.notify_one();
    }

    /// The upstream is not there, or wants a pause of `after`.
    pub fn fail(mut self, after: Option<Duration>) {
        let mut inner = self.breaker.lock();
        inner.failures = inner.failures.saturating_add(1);
        let asked = after.is_some_and(|a| !a.is_zero());
        let until = Instant::now() + retries::wait(inner.failures, after);
        match inner.state {
            // A straggler's failure shortens no pause and starts no second one.
            State::Open { until: set } => inner.state = State::Open { until: set.max(until) },
            State::HalfOpen if !self.probe => {}
            State::Closed if inner.failures < FAILURES_MAX && !asked => {}
            State::Closed | State::HalfOpen => inner.state = State::Open { until },
        }
        drop(inner);
        self.probe = false;
        self.breaker.probed.notify_one();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            // The probe was given up: the next in line takes its place.
            let mut inner = self.breaker.lock();
            if matches!(inner.state, State::HalfOpen) {
                inner.state = State::Open { until: Instant::now() };
            }
            drop(inner);
            self.breaker.probed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(1);

    async fn fail_until_open(breaker: &Breaker) {
        for n in 0..FAILURES_MAX {
            assert!(breaker.is_closed(), "open after {n} failures");
            breaker.admit().await.fail(None);
        }
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_only() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES_MAX {
                breaker.admit().await.fail(None);
            }
            breaker.admit().await.succeed();
        }
        fail_until_open(&breaker).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_after_the_pause_and_its_success_lets_all_pass() {
        let breaker = Arc::new(Breaker::default());
        fail_until_open(&breaker).await;
        let probe = breaker.admit().await;
        assert!(timeout(Duration::from_secs(3600), breaker.admit()).await.is_err());
        probe.succeed();
        for _ in 0..3 {
            let pass = timeout(SOON, breaker.admit()).await.expect("closed");
            pass.succeed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_again_and_pauses_are_bounded() {
        let breaker = Breaker::default();
        fail_until_open(&breaker).await;
        for _ in 0..50 {
            let start = Instant::now();
            let probe = breaker.admit().await;
            let bound = Duration::from_millis(retries::BACKOFF_MS_MAX + 1);
            assert!(start.elapsed() <= bound);
            probe.fail(None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_asked_for_holds_everybody_at_once() {
        let breaker = Breaker::default();
        let start = Instant::now();
        breaker.admit().await.fail(Some(Duration::from_secs(30)));
        breaker.admit().await.succeed();
        assert!(start.elapsed() >= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_passes_its_turn_on() {
        let breaker = Breaker::default();
        fail_until_open(&breaker).await;
        drop(breaker.admit().await);
        let next = timeout(SOON, breaker.admit()).await.expect("its turn");
        next.succeed();
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_straggler_neither_ends_a_probe_nor_shortens_a_pause() {
        let breaker = Breaker::default();
        let straggler = breaker.admit().await;
        fail_until_open(&breaker).await;
        let probe = breaker.admit().await;
        straggler.fail(None);
        assert!(matches!(breaker.lock().state, State::HalfOpen));
        probe.succeed();
        assert!(breaker.is_closed());
    }
}
