//! The batches that wait for their next attempt, in the order in which they are due.
//!
//! A batch that failed goes to the back: it is due when its own wait is over. A new batch is due
//! at once. So each batch has its turn, and a batch that fails holds back no other batch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use super::in_flight_batch::InFlightBatch;

/// What remains of a batch, in order; the first part is attempted next. There are further parts
/// only where an order is kept.
#[derive(Debug)]
pub struct Work {
    /// The queue that it came from.
    pub queue: usize,
    pub parts: VecDeque<InFlightBatch>,
}

/// The batches that wait for an attempt.
#[derive(Debug, Default)]
pub struct Schedule {
    /// The key is the moment at which the work is due, and a number that keeps the works of one
    /// moment in the order of arrival.
    waiting: BTreeMap<(Instant, u64), Work>,
    entered: u64,
    bytes: usize,
    /// The keys of the fresh works, see [`Work::is_fresh`], and the bytes of their records. There
    /// may be many others, so that no search should pass them.
    fresh: BTreeSet<(Instant, u64)>,
    fresh_bytes: usize,
    /// Whether the last probe was the smallest batch that was due.
    takes_small: bool,
}

impl Work {
    /// Bytes of the records.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(InFlightBatch::bytes).sum()
    }

    /// Number of events of the part that is attempted next.
    fn len(&self) -> usize {
        self.parts.front().map_or(0, InFlightBatch::len)
    }

    /// Failures of the part that is attempted next.
    pub fn failures(&self) -> u32 {
        self.parts.front().map_or(0, |part| part.failures)
    }

    /// Whether the part that is attempted next has not failed, and is no half of one that has.
    pub fn is_fresh(&self) -> bool {
        self.parts.front().is_none_or(|part| part.failures == 0 && part.suspect.is_none())
    }
}

impl Schedule {
    /// Adds what is to be attempted, at `due` at the earliest.
    pub fn push(&mut self, work: Work, due: Instant) {
        self.entered += 1;
        self.bytes += work.bytes();
        if work.is_fresh() {
            self.fresh.insert((due, self.entered));
            self.fresh_bytes += work.bytes();
        }
        self.waiting.insert((due, self.entered), work);
    }

    /// Takes the work that has been due for longest. With `as_probe`, takes the work that has
    /// failed least often, because its result says most about the upstream; among equals, the
    /// largest batch and the smallest one in turn. A small batch is less likely to hold an event
    /// that the upstream never takes. But all small batches may be parts of one that failed, and
    /// then only a large one has events of another sort.
    pub fn take(&mut self, now: Instant, as_probe: bool) -> Option<Work> {
        let mut due = self.waiting.range(..=(now, u64::MAX));
        let key = match as_probe {
            false => due.next(),
            true => {
                self.takes_small = !self.takes_small;
                let size = |work: &Work| match self.takes_small {
                    true => work.len() as isize,
                    false => -(work.len() as isize),
                };
                due.min_by_key(|(_, work)| (work.failures(), size(work)))
            }
        };
        let key = key.map(|(key, _)| *key);
        self.remove(key?)
    }

    /// Takes the work that is due, and neither has failed nor is a part of one that has.
    pub fn take_fresh(&mut self, now: Instant) -> Option<Work> {
        let first = self.fresh.first().filter(|(due, _)| *due <= now).copied();
        self.remove(first?)
    }

    fn remove(&mut self, key: (Instant, u64)) -> Option<Work> {
        let work = self.waiting.remove(&key)?;
        self.bytes -= work.bytes();
        if work.is_fresh() {
            self.fresh.remove(&key);
            self.fresh_bytes -= work.bytes();
        }
        Some(work)
    }

    /// Ends all waits. The order stays.
    pub fn end_waits(&mut self, now: Instant) {
        for (key, work) in std::mem::take(&mut self.waiting) {
            self.entered += 1;
            if self.fresh.remove(&key) {
                self.fresh.insert((now, self.entered));
            }
            self.waiting.insert((now, self.entered), work);
        }
    }

    /// Whether something waits that has not failed yet.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// When the next attempt is due. `None`: nothing waits.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// When the next attempt is due of a batch that has not failed. `None`: none waits.
    pub fn next_fresh_due(&self) -> Option<Instant> {
        self.fresh.first().map(|(due, _)| *due)
    }

    /// Bytes of all records that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the records that wait after a failure.
    pub fn failed_bytes(&self) -> usize {
        self.bytes - self.fresh_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::RecordId;
    use bytes::Bytes;
    use std::time::Duration;

    fn work(queue: usize, failures: u32) -> Work {
        let ids: Vec<RecordId> = Vec::new();
        let mut batch = InFlightBatch::of(vec![Bytes::from_static(b"abc")], ids);
        batch.failures = failures;
        Work { queue, parts: VecDeque::from([batch]) }
    }

    #[tokio::test]
    async fn what_is_due_comes_in_order_and_nothing_before_its_time() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.push(work(1, 9), now + Duration::from_secs(1));
        schedule.push(work(2, 0), now);
        schedule.push(work(3, 0), now);
        assert_eq!((schedule.bytes(), schedule.next_due()), (9, Some(now)));
        assert_eq!(schedule.failed_bytes(), 3);
        let mut take = |at| schedule.take(at, false).map(|work| work.queue);
        assert_eq!([take(now), take(now), take(now)], [Some(2), Some(3), None]);
        assert_eq!(take(now + Duration::from_secs(1)), Some(1));
        assert_eq!((schedule.bytes(), schedule.next_due()), (0, None));
        assert_eq!(schedule.failed_bytes(), 0);
        assert!(!schedule.has_fresh());
    }

    #[tokio::test]
    async fn waits_that_end_keep_the_order() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.push(work(1, 1), now + Duration::from_secs(9));
        schedule.push(work(2, 1), now + Duration::from_secs(8));
        schedule.push(work(3, 0), now);
        schedule.end_waits(now);
        schedule.push(work(4, 0), now);
        let taken = [(); 5].map(|()| schedule.take(now, false).map(|work| work.queue));
        assert_eq!(taken, [Some(3), Some(2), Some(1), Some(4), None]);
        assert_eq!((schedule.bytes(), schedule.failed_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_fresh_batch_is_taken_before_all_that_failed_and_not_before_its_time() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let mut schedule = Schedule::default();
        schedule.push(work(1, 1), now);
        let mut half = work(2, 0);
        half.parts[0].suspect = Some(Default::default());
        schedule.push(half, now);
        assert!(!schedule.has_fresh(), "a half of a batch that failed is not fresh");
        schedule.push(work(3, 0), later);
        schedule.push(work(4, 0), now);
        let take = |schedule: &mut Schedule| schedule.take_fresh(now).map(|work| work.queue);
        assert_eq!((schedule.next_fresh_due(), take(&mut schedule)), (Some(now), Some(4)));
        assert_eq!((schedule.next_fresh_due(), take(&mut schedule)), (Some(later), None));
        schedule.end_waits(now);
        assert_eq!((schedule.next_fresh_due(), take(&mut schedule)), (Some(now), Some(3)));
        assert_eq!((schedule.next_fresh_due(), take(&mut schedule)), (None, None));
        assert_eq!((schedule.bytes(), schedule.failed_bytes()), (6, 6));
    }

    #[tokio::test]
    async fn probes_are_the_smallest_and_the_largest_batch_in_turn() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for events in [2, 1, 4, 3] {
            let records = vec![Bytes::from_static(b"abc"); events];
            let id = RecordId { lane: 1, seq: 1, portal: 0 };
            let batch = InFlightBatch::of(records, vec![id; events]);
            schedule.push(Work { queue: events, parts: VecDeque::from([batch]) }, now);
        }
        let taken = [(); 4].map(|()| schedule.take(now, true).map(|work| work.queue));
        assert_eq!(taken, [Some(1), Some(4), Some(2), Some(3)]);
    }

    #[tokio::test]
    async fn a_probe_is_what_failed_least_often() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.push(work(1, 9), now);
        schedule.push(work(2, 2), now);
        schedule.push(work(3, 0), now + Duration::from_secs(1));
        assert_eq!(schedule.take(now, true).map(|work| work.queue), Some(2));
    }
}
