//! Limits the batches in flight by additive increase and multiplicative decrease (AIMD).
//!
//! The limit starts at 2. It grows by 1 each time as many attempts have succeeded as it allows at
//! once. An attempt that meets backpressure halves it, but attempts that were in flight together
//! halve it only once. It stays between 2 and the configured bound, so that one attempt that hangs
//! until its timeout leaves room for another, unless the bound itself is 1.

/// The limit at the start, and the smallest one.
const LIMIT_MIN: usize = 2;

/// The number of batches that one upstream may have in flight, which follows its answers.
#[derive(Debug)]
pub struct Limiter {
    max: usize,
    limit: f64,
    in_flight: usize,
    /// Those of `in_flight` whose batches have failed before.
    failed_in_flight: usize,
    /// The number of decreases. An attempt that began before the last decrease does not decrease
    /// the limit again.
    decreases: u64,
    /// The number of calls of [`Limiter::renew`].
    renewals: u64,
}

/// The permit of one attempt. The caller returns it when the attempt has ended, to
/// [`Limiter::grow`], [`Limiter::shrink`] or [`Limiter::give_back`].
#[derive(Debug)]
#[must_use]
pub struct Permit {
    decreases: u64,
    renewals: u64,
    is_fresh: bool,
}

impl Limiter {
    /// A limiter that never allows more than `max` (at least 1) attempts at once.
    pub fn new(max: usize) -> Limiter {
        let limit = max.clamp(1, LIMIT_MIN) as f64;
        let (in_flight, failed_in_flight) = (0, 0);
        Limiter { max: max.max(1), limit, in_flight, failed_in_flight, decreases: 0, renewals: 0 }
    }

    /// The smallest limit to which failed attempts can lead.
    fn min(&self) -> f64 {
        self.max.min(LIMIT_MIN) as f64
    }

    /// Allows at most `max` (at least 1) attempts at once from now on. Attempts under way go on.
    pub fn set_max(&mut self, max: usize) {
        self.max = max.max(1);
        self.limit = self.limit.clamp(self.min(), self.max as f64);
    }

    /// Begins anew, because the attempts go elsewhere from now on. Attempts under way go on and no
    /// longer count: one that hangs must not keep the next one waiting.
    pub fn renew(&mut self) {
        (self.limit, self.in_flight, self.failed_in_flight) = (self.min(), 0, 0);
        self.renewals += 1;
    }

    /// Whether another attempt may begin.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.limit as usize
    }

    /// Whether another attempt may begin of a batch that has failed before. Such attempts get half
    /// of the limit, so that those which hang until their timeout leave room for new batches,
    /// unless the limit is 1.
    pub fn has_room_for_failed(&self) -> bool {
        self.has_room() && self.failed_in_flight < (self.limit as usize).div_ceil(2)
    }

    /// Takes a permit. [`Limiter::has_room`] has just said that there is one. `is_fresh`: the batch
    /// has not failed before.
    pub fn take(&mut self, is_fresh: bool) -> Permit {
        self.in_flight += 1;
        self.failed_in_flight += usize::from(!is_fresh);
        Permit { decreases: self.decreases, renewals: self.renewals, is_fresh }
    }

    /// Notes that the attempt succeeded.
    pub fn grow(&mut self, permit: Permit) {
        // The limit grows only while it is used up. If it grew while there is little to send, it
        // would be too high when there is much.
        if !self.has_room() && permit.renewals == self.renewals {
            self.limit = (self.limit + 1.0 / self.limit).min(self.max as f64);
        }
        self.give_back(permit);
    }

    /// Notes that the attempt met backpressure.
    pub fn shrink(&mut self, permit: Permit) {
        let is_current = permit.renewals == self.renewals;
        if is_current && permit.decreases == self.decreases {
            self.decreases += 1;
            self.limit = (self.limit / 2.0).max(self.min());
        }
        self.give_back(permit);
    }

    /// Notes that the attempt ended and says nothing about the load.
    pub fn give_back(&mut self, permit: Permit) {
        if permit.renewals == self.renewals {
            self.in_flight -= 1;
            self.failed_in_flight -= usize::from(!permit.is_fresh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all permits and ends all attempts alike.
    fn round(limiter: &mut Limiter, end: fn(&mut Limiter, Permit)) -> usize {
        let mut permits = Vec::new();
        while limiter.has_room() {
            permits.push(limiter.take(true));
        }
        let count = permits.len();
        permits.into_iter().for_each(|permit| end(limiter, permit));
        count
    }

    #[test]
    fn it_grows_by_about_one_a_round_up_to_its_bound() {
        let mut limiter = Limiter::new(8);
        let mut last = round(&mut limiter, Limiter::grow);
        assert_eq!(last, 2);
        for _ in 0..40 {
            let now = round(&mut limiter, Limiter::grow);
            assert!(now == last || now == last + 1, "{last} then {now}");
            last = now;
        }
        assert_eq!(last, 8);
    }

    #[test]
    fn back_pressure_halves_it_once_a_round_down_to_two() {
        let mut limiter = Limiter::new(8);
        (0..40).for_each(|_| _ = round(&mut limiter, Limiter::grow));
        let sizes: Vec<_> = (0..5).map(|_| round(&mut limiter, Limiter::shrink)).collect();
        assert_eq!(sizes, [8, 4, 2, 2, 2]);
    }

    #[test]
    fn attempts_that_went_elsewhere_do_not_count_after_a_renewal() {
        let mut limiter = Limiter::new(8);
        let hanging = [limiter.take(true), limiter.take(true), limiter.take(true)];
        assert!(!limiter.has_room());
        limiter.renew();
        let current = [limiter.take(true), limiter.take(true)];
        assert!(!limiter.has_room());
        let [first, second, third] = hanging;
        limiter.give_back(first);
        limiter.grow(second);
        limiter.shrink(third);
        assert!(!limiter.has_room());
        current.into_iter().for_each(|permit| limiter.give_back(permit));
        assert_eq!(round(&mut limiter, Limiter::give_back), 2);
    }

    #[test]
    fn batches_that_failed_get_half_of_the_room() {
        let mut limiter = Limiter::new(8);
        (0..40).for_each(|_| _ = round(&mut limiter, Limiter::grow));
        let mut failed = Vec::new();
        while limiter.has_room_for_failed() {
            failed.push(limiter.take(false));
        }
        assert_eq!(failed.len(), 4);
        failed.extend(std::iter::repeat_with(|| limiter.take(true)).take(4));
        assert!(!limiter.has_room());
        failed.into_iter().for_each(|permit| limiter.give_back(permit));
        assert!(limiter.has_room_for_failed());
        assert!(Limiter::new(1).has_room_for_failed());
    }

    #[test]
    fn a_bound_of_one_is_kept() {
        let mut limiter = Limiter::new(1);
        assert_eq!(round(&mut limiter, Limiter::grow), 1);
        assert_eq!(round(&mut limiter, Limiter::shrink), 1);
        limiter.set_max(3);
        assert_eq!(round(&mut limiter, Limiter::shrink), 2);
        limiter.set_max(1);
        limiter.renew();
        assert_eq!(round(&mut limiter, Limiter::grow), 1);
    }

    #[test]
    fn another_bound_counts_at_once() {
        let mut limiter = Limiter::new(8);
        (0..40).for_each(|_| _ = round(&mut limiter, Limiter::grow));
        limiter.set_max(3);
        assert_eq!(round(&mut limiter, Limiter::grow), 3);
        limiter.set_max(4);
        (0..40).for_each(|_| _ = round(&mut limiter, Limiter::grow));
        assert_eq!(round(&mut limiter, Limiter::grow), 4);
    }

    #[test]
    fn it_does_not_grow_while_it_is_not_used_up() {
        let mut limiter = Limiter::new(8);
        (0..10).for_each(|_| _ = round(&mut limiter, Limiter::grow));
        let before = limiter.limit;
        assert!(before >= 3.0);
        for _ in 0..100 {
            let permit = limiter.take(true);
            limiter.grow(permit);
        }
        assert_eq!(limiter.limit, before);
    }
}
