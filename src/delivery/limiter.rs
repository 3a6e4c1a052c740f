//! Limits the batches in flight by additive increase and multiplicative decrease (AIMD).
//!
//! The limit starts at 1. It grows by 1 each time as many attempts have succeeded as it allows at
//! once. An attempt that meets backpressure halves it, but attempts that were in flight together
//! halve it only once. It stays between 1 and the configured bound.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Limiter {
    max: usize,
    inner: Mutex<Inner>,
    freed: Notify,
}

#[derive(Debug)]
struct Inner {
    limit: f64,
    in_flight: usize,
    /// The number of decreases. An attempt that began before the last decrease does not decrease
    /// the limit again.
    decreases: u64,
}

/// One attempt's permit, returned when dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    limiter: &'a Limiter,
    decreases: u64,
}

impl Limiter {
    /// A limiter that never allows more than `max` (at least 1) attempts at once.
    pub fn new(max: usize) -> Limiter {
        let inner = Inner { limit: 1.0, in_flight: 0, decreases: 0 };
        Limiter { max: max.max(1), inner: Mutex::new(inner), freed: Notify::new() }
    }

    /// Waits for a permit. Attempts that wait get one in the order of arrival.
    pub async fn acquire(&self) -> Permit<'_> {
        loop {
            // Registered before the check, so that a permit returned in between is not missed.
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(permit) = self.try_acquire() {
                return permit;
            }
            freed.await;
        }
    }

    fn try_acquire(&self) -> Option<Permit<'_>> {
        let mut inner = self.inner.lock();
        if inner.in_flight >= inner.limit as usize {
            return None;
        }
        inner.in_flight += 1;
        let more = inner.in_flight < inner.limit as usize;
        let permit = Permit { limiter: self, decreases: inner.decreases };
        drop(inner);
        if more {
            // The limit may have grown by more than the number of returned permits.
            self.freed.notify_one();
        }
        Some(permit)
    }
}

impl Permit<'_> {
    /// The attempt succeeded.
    pub fn grow(self) {
        let mut inner = self.limiter.inner.lock();
        // Only while the limit is used up: otherwise it would grow while there is little to send,
        // and would be too high when there is much.
        if inner.in_flight >= inner.limit as usize {
            inner.limit = (inner.limit + 1.0 / inner.limit).min(self.limiter.max as f64);
        }
    }

    /// The attempt met backpressure.
    pub fn shrink(self) {
        let mut inner = self.limiter.inner.lock();
        if self.decreases == inner.decreases {
            inner.decreases += 1;
            inner.limit = (inner.limit / 2.0).max(1.0);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.limiter.inner.lock().in_flight -= 1;
        self.limiter.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(limiter: &Limiter) -> usize {
        limiter.inner.lock().limit as usize
    }

    /// Takes all permits and ends all attempts alike.
    fn round(limiter: &Limiter, end: fn(Permit<'_>)) -> usize {
        let permits: Vec<_> = std::iter::from_fn(|| limiter.try_acquire()).collect();
        let count = permits.len();
        permits.into_iter().for_each(end);
        count
    }

    #[test]
    fn it_grows_by_about_one_a_round_up_to_its_bound() {
        let limiter = Limiter::new(8);
        let mut last = round(&limiter, |p| p.grow());
        assert_eq!(last, 1);
        for _ in 0..40 {
            let now = round(&limiter, |p| p.grow());
            assert!(now == last || now == last + 1, "{last} then {now}");
            last = now;
        }
        assert_eq!(last, 8);
    }

    #[test]
    fn back_pressure_halves_it_once_a_round_down_to_one() {
        let limiter = Limiter::new(8);
        (0..40).for_each(|_| _ = round(&limiter, |p| p.grow()));
        let sizes: Vec<_> = (0..5).map(|_| round(&limiter, |p| p.shrink())).collect();
        assert_eq!(sizes, [8, 4, 2, 1, 1]);
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used_up() {
        let limiter = Limiter::new(8);
        (0..10).for_each(|_| _ = round(&limiter, |p| p.grow()));
        let before = limit(&limiter);
        assert!(before > 1);
        for _ in 0..100 {
            limiter.try_acquire().unwrap().grow();
        }
        assert_eq!(limit(&limiter), before);
    }

    #[tokio::test]
    async fn a_waiting_attempt_gets_the_permit_that_is_returned() {
        let limiter = Limiter::new(1);
        let first = limiter.acquire().await;
        let second = limiter.acquire();
        tokio::pin!(second);
        let early = tokio::time::timeout(std::time::Duration::ZERO, second.as_mut()).await;
        assert!(early.is_err());
        drop(first);
        second.await.grow();
    }
}
