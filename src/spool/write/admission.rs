//! The limits of the spool, and the check that refuses records beyond them (SPEC 6).
//!
//! The check runs on every append, so it reads relaxed atomics, because a lock would cost more. It
//! may notice a limit some records late, which does not matter for limits of gigabytes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The most bytes of records that are in memory and not yet durable. While a disk stalls, records
/// are queued up to this size, and further appends are refused.
pub const PENDING_BYTES_MAX: u64 = 64 << 20;
/// The size from which a group is committed at once and does not linger, in bytes.
pub const GROUP_BYTES_MAX: u64 = 4 << 20;
/// The time constant of the growth rate, in seconds: a change counts for two thirds after this
/// time.
const GROWTH_MEMORY_SECONDS: f64 = 30.0;

/// The causes for which all records are refused, one bit each.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Cause {
    /// The spool is closed or being closed.
    Closed = 1,
    /// The last write or sync failed.
    Failing = 2,
    /// Fewer than `spool.free_bytes_min` are free.
    DiskLow = 4,
    /// No commit has ended for `spool.commit_seconds_max`.
    Stalled = 8,
}

/// The limits of the spool and the counters that are compared with them.
#[derive(Debug, Default)]
pub struct Bounds {
    /// The bytes that may be held on disk for upstreams (`spool.bytes_max`).
    bytes_max: AtomicU64,
    /// The [`Cause`]s for which records are refused now.
    causes: AtomicU8,
    /// Whether a record was refused because of `bytes_max`: see [`Bounds::is_full`].
    full: AtomicBool,
    /// The bytes that are staged, or being written, or written and not synced.
    pending_bytes: AtomicU64,
    /// The bytes in segments that not every upstream has acknowledged.
    held_bytes: AtomicU64,
    /// The bytes that are in both counts above: written, readable, and not synced yet.
    unsynced_bytes: AtomicU64,
    free_bytes: AtomicU64,
}

impl Bounds {
    pub fn new(bytes_max: u64) -> Bounds {
        let bytes_max = AtomicU64::new(bytes_max);
        Bounds { bytes_max, free_bytes: AtomicU64::new(u64::MAX), ..Bounds::default() }
    }

    /// The `spool.bytes_max` in force, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Relaxed)
    }

    /// Puts another `spool.bytes_max` in force. Events beyond it stay.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Relaxed);
    }

    /// Counts a record of this size as pending, or refuses it.
    pub fn admit(&self, bytes: u64) -> bool {
        if self.causes.load(Relaxed) != 0 {
            return false;
        }
        let pending = self.pending_bytes.fetch_add(bytes, Relaxed) + bytes;
        let full = self.bytes() > self.bytes_max();
        let fits = pending <= PENDING_BYTES_MAX && !full;
        if !fits {
            self.pending_bytes.fetch_sub(bytes, Relaxed);
            if full {
                self.full.store(true, Relaxed);
            }
        }
        fits
    }

    /// Whether records were refused because of `bytes_max`. This is for status and log, and ends
    /// when a sixteenth of `bytes_max` is free, so that they do not change with each record.
    /// [`Bounds::admit`] accepts records as soon as they fit.
    pub fn is_full(&self) -> bool {
        let bytes_max = self.bytes_max();
        if self.bytes() <= bytes_max - bytes_max / 16 {
            self.full.store(false, Relaxed);
        }
        self.full.load(Relaxed)
    }

    /// Takes off bytes that `admit` counted, because they are durable or were refused.
    pub fn settle(&self, bytes: u64) {
        self.pending_bytes.fetch_sub(bytes, Relaxed);
    }

    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes.load(Relaxed)
    }

    /// Adds the change of the bytes that a lane holds, modulo 2^64: a decrease wraps around.
    pub fn add_held_bytes(&self, difference: u64) {
        self.held_bytes.fetch_add(difference, Relaxed);
    }

    /// Sets how many of the pending bytes are in segments already.
    pub fn set_unsynced_bytes(&self, bytes: u64) {
        self.unsynced_bytes.store(bytes, Relaxed);
    }

    /// The bytes that wait to be written.
    pub fn staged_bytes(&self) -> u64 {
        self.pending_bytes().saturating_sub(self.unsynced_bytes.load(Relaxed))
    }

    /// The bytes in the spool, in memory and on disk.
    pub fn bytes(&self) -> u64 {
        self.held_bytes.load(Relaxed).saturating_add(self.staged_bytes())
    }

    pub fn close(&self) {
        self.set(Cause::Closed, true);
    }

    pub fn is_closed(&self) -> bool {
        self.is(Cause::Closed)
    }

    /// Sets whether the disk fails. Returns the earlier value.
    pub fn set_failing(&self, failing: bool) -> bool {
        self.set(Cause::Failing, failing)
    }

    pub fn is_failing(&self) -> bool {
        self.is(Cause::Failing)
    }

    /// Sets whether the disk has stalled. Returns the earlier value.
    pub fn set_stalled(&self, stalled: bool) -> bool {
        self.set(Cause::Stalled, stalled)
    }

    pub fn is_stalled(&self) -> bool {
        self.is(Cause::Stalled)
    }

    fn is(&self, cause: Cause) -> bool {
        self.causes.load(Relaxed) & cause as u8 != 0
    }

    fn set(&self, cause: Cause, lasts: bool) -> bool {
        let bit = cause as u8;
        let before = match lasts {
            true => self.causes.fetch_or(bit, Relaxed),
            false => self.causes.fetch_and(!bit, Relaxed),
        };
        before & bit != 0
    }

    /// Sets the free bytes of the disk. Returns `true` if records are refused from now on, `false`
    /// if they are accepted again, and `None` if this did not change.
    pub fn set_free_bytes(&self, free: u64, free_bytes_min: u64) -> Option<bool> {
        self.free_bytes.store(free, Relaxed);
        let low = free < free_bytes_min;
        (self.set(Cause::DiskLow, low) != low).then_some(low)
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Relaxed)
    }

    pub fn is_disk_low(&self) -> bool {
        self.is(Cause::DiskLow)
    }
}

/// The growth of the spool: an exponentially weighted mean over about half a minute.
#[derive(Debug, Default)]
pub struct Growth {
    last: Option<(Duration, u64)>,
    bytes_per_second: f64,
}

impl Growth {
    /// Adds a measurement: the bytes held at the time `now`.
    pub fn observe(&mut self, now: Duration, held_bytes: u64) {
        if let Some((then, before)) = self.last {
            let seconds = now.saturating_sub(then).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            let rate = (held_bytes as f64 - before as f64) / seconds;
            let weight = 1.0 - (-seconds / GROWTH_MEMORY_SECONDS).exp();
            self.bytes_per_second += weight * (rate - self.bytes_per_second);
        }
        self.last = Some((now, held_bytes));
    }

    /// The seconds until `room` bytes are used up. `None` while the spool does not grow.
    pub fn seconds_until(&self, room: u64) -> Option<u64> {
        // Below a byte a second, the mean only decays and the spool does not grow.
        (self.bytes_per_second >= 1.0).then(|| (room as f64 / self.bytes_per_second) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_exact_and_opens_again() {
        let bounds = Bounds::new(100);
        assert!(bounds.admit(60));
        assert!(bounds.admit(40));
        assert!(!bounds.admit(1));
        assert_eq!(bounds.pending_bytes(), 100);
        bounds.settle(100);
        bounds.add_held_bytes(100);
        assert!(!bounds.admit(1));
        bounds.add_held_bytes(1u64.wrapping_neg());
        assert!(bounds.admit(1));
    }

    #[test]
    fn it_is_full_from_the_first_refusal_until_a_sixteenth_is_free() {
        let bounds = Bounds::new(160);
        assert!(bounds.admit(155) && !bounds.is_full());
        assert!(!bounds.admit(6) && bounds.is_full());
        bounds.settle(4);
        assert!(bounds.admit(1) && bounds.is_full(), "152 of 160");
        bounds.settle(2);
        assert!(!bounds.is_full(), "150 of 160");
    }

    #[test]
    fn memory_is_bounded_whatever_the_disk_may_hold() {
        let bounds = Bounds::new(u64::MAX);
        assert!(bounds.admit(PENDING_BYTES_MAX));
        assert!(!bounds.admit(1));
    }

    #[test]
    fn each_cause_closes_the_gate_by_itself() {
        let bounds = Bounds::new(100);
        assert!(!bounds.set_failing(true));
        assert!(!bounds.admit(1));
        assert!(bounds.set_failing(false));
        assert!(bounds.admit(1));
        assert!(!bounds.set_stalled(true));
        assert!(!bounds.admit(1));
        assert!(bounds.set_stalled(false));
        assert!(bounds.admit(1));
        assert_eq!(bounds.set_free_bytes(9, 10), Some(true));
        assert!(!bounds.admit(1));
        assert_eq!(bounds.set_free_bytes(9, 10), None);
        assert_eq!(bounds.set_free_bytes(10, 10), Some(false));
        assert!(bounds.admit(1));
        bounds.close();
        assert!(!bounds.admit(1));
    }

    #[test]
    fn steady_growth_gives_the_time_that_is_left() {
        let mut growth = Growth::default();
        for second in 0..600 {
            growth.observe(Duration::from_secs(second), second * 1000);
        }
        let left = growth.seconds_until(60_000).expect("it grows");
        assert!((59..=61).contains(&left), "{left}");
        for second in 600..1200 {
            growth.observe(Duration::from_secs(second), 600_000);
        }
        assert_eq!(growth.seconds_until(60_000), None);
    }
}
