//! The circuit breaker of one upstream.
//!
//! Closed: every attempt is admitted. Open, after [`FAILURES_MAX`] failures in a row or when the
//! upstream asks for a pause: no attempt is admitted until the wait is over. Half-open: one attempt
//! is admitted as a probe, and its result closes the breaker or opens it for longer. A backend that
//! recovers thus receives one request first, and not all the batches that have piled up.
//!
//! Waiting attempts are admitted in the order of arrival. Otherwise a batch that always fails could
//! be every probe, while batches that would succeed wait behind it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, sleep_until};

use super::retries;

/// Failures in a row that open the breaker.
pub const FAILURES_MAX: u32 = 5;

/// See the module.
#[derive(Debug, Default)]
pub struct Breaker {
    inner: Mutex<Inner>,
    /// Held by the first waiting attempt.
    queue: FairMutex<()>,
    /// Wakes the first waiting attempt when a probe has ended.
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

/// Permission to make one attempt. Dropped without a result, it changes nothing.
#[derive(Debug)]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    /// Waits until an attempt may be made.
    pub async fn admit(&self) -> Pass<'_> {
        let _first = self.queue.lock().await;
        loop {
            let state = self.inner.lock().state;
            match state {
                State::Closed => return Pass { breaker: self, probe: false },
                State::Open { until } if Instant::now() < until => sleep_until(until).await,
                State::Open { .. } => {
                    self.inner.lock().state = State::HalfOpen;
                    return Pass { breaker: self, probe: true };
                }
                State::HalfOpen => self.probed.notified().await,
            }
        }
    }

    /// Whether attempts are admitted without a wait.
    pub fn is_closed(&self) -> bool {
        matches!(self.inner.lock().state, State::Closed)
    }
}

impl Pass<'_> {
    /// The upstream answered and handled the batch. Closes the breaker.
    pub fn succeed(mut self) {
        let mut inner = self.breaker.inner.lock();
        // An attempt that began before the breaker opened counts, too: it was delivered now, so a
        // probe would succeed as well.
        *inner = Inner::default();
        drop(inner);
        self.probe = false;
        self.breaker.probed.notify_one();
    }

    /// The attempt failed, or the upstream asked for a pause of `after`.
    pub fn fail(mut self, after: Option<Duration>) {
        let mut inner = self.breaker.inner.lock();
        inner.failures = inner.failures.saturating_add(1);
        let asked = after.is_some_and(|a| !a.is_zero());
        let until = Instant::now() + retries::wait(inner.failures, after);
        match inner.state {
            // An attempt from before the breaker opened neither shortens the pause nor starts
            // another one.
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
            // The probe was cancelled: the next waiting attempt becomes the probe.
            let mut inner = self.breaker.inner.lock();
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
        assert!(matches!(breaker.inner.lock().state, State::HalfOpen));
        probe.succeed();
        assert!(breaker.is_closed());
    }
}
