//! A parcel: a batch together with what the spool knows its events by.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::spool::RecordId;
use crate::upstream::{Batch, Failure, Outcome, Part};

use super::batches::OpenBatch;

/// See the module.
#[derive(Debug)]
pub struct InFlightBatch<T = RecordId> {
    pub batch: Batch,
    /// One for each record of the batch, in its order.
    pub seats: Vec<T>,
    /// Setbacks in a row.
    pub setbacks: u32,
    /// Shared by the parcels that one was split into.
    age: Option<Arc<Age>>,
}

/// How old the events are that are on their way.
#[derive(Debug, Default)]
pub struct LagTracker {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When the oldest event of each parcel came, and a number to tell parcels apart.
    parcels: BTreeSet<(u64, u64)>,
    entered: u64,
}

/// Keeps a parcel's place in `LagTracker` until the last part of it is settled.
#[derive(Debug)]
struct Age {
    ages: Arc<LagTracker>,
    key: (u64, u64),
}

impl<T: Copy> InFlightBatch<T> {
    /// Of a closed batch whose oldest event came at `came_ms`.
    pub fn new(gathered: OpenBatch<T>, came_ms: u64, ages: &Arc<LagTracker>) -> InFlightBatch<T> {
        let age = Some(Arc::new(LagTracker::enter(ages, came_ms)));
        let (seats, records) = gathered.arrivals.into_iter().map(|a| (a.seat, a.record)).unzip();
        InFlightBatch { batch: Batch::new(records), seats, setbacks: 0, age }
    }

    /// Of records that are not on their way from the spool.
    pub fn of(records: Vec<Bytes>, seats: Vec<T>) -> InFlightBatch<T> {
        InFlightBatch { batch: Batch::new(records), seats, setbacks: 0, age: None }
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// The events at these places, as a parcel with a batch of its own.
    fn pick(&self, places: &[usize]) -> InFlightBatch<T> {
        let records = places.iter().map(|&p| detached(&self.batch.records()[p])).collect();
        InFlightBatch {
            batch: Batch::new(records),
            seats: places.iter().map(|&p| self.seats[p]).collect(),
            setbacks: self.setbacks,
            age: self.age.clone(),
        }
    }

    /// Two halves, in order. Of a parcel with at least two events.
    pub fn halve(self) -> [InFlightBatch<T>; 2] {
        let middle = self.len() / 2;
        let places: Vec<usize> = (0..self.len()).collect();
        [self.pick(&places[..middle]), self.pick(&places[middle..])].map(|mut half| {
            half.setbacks = 0;
            half
        })
    }

    /// Takes a parcel apart by the outcomes of its events. Whatever `parts` say, every event
    /// comes out exactly once: one that is not named, or named as mixed, is to be tried again.
    pub fn part(self, parts: Vec<Part>) -> Vec<(InFlightBatch<T>, Outcome)> {
        let mut free = vec![true; self.len()];
        let mut all = Vec::with_capacity(parts.len() + 1);
        for Part { places, outcome } in parts {
            let take = |&p: &usize| free.get_mut(p).is_some_and(std::mem::take);
            let places: Vec<usize> = places.into_iter().filter(take).collect();
            all.push((places, outcome));
        }
        let rest: Vec<usize> = (0..self.len()).filter(|&p| free[p]).collect();
        all.push((rest, Outcome::Retry(Failure::new("not attempted"))));
        all.retain(|(places, _)| !places.is_empty());
        if let [(places, outcome)] = &mut all[..]
            && places.len() == self.len()
        {
            // All alike: the batch stays what it was, key and bytes included.
            let outcome = std::mem::replace(outcome, Outcome::Delivered);
            return vec![(self, outcome)];
        }
        all.into_iter().map(|(places, outcome)| (self.pick(&places), outcome)).collect()
    }
}

impl LagTracker {
    /// When the oldest event that is on its way came, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.lock().parcels.first().map(|(came_ms, _)| *came_ms)
    }

    fn enter(ages: &Arc<LagTracker>, came_ms: u64) -> Age {
        let mut inner = ages.lock();
        inner.entered += 1;
        let key = (came_ms, inner.entered);
        inner.parcels.insert(key);
        drop(inner);
        Age { ages: Arc::clone(ages), key }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Age {
    fn drop(&mut self) {
        self.ages.lock().parcels.remove(&self.key);
    }
}

/// A copy that holds on to nothing else: a record is a slice of the block that the spool read, and
/// a few poison events that are tried for hours must not keep their neighbours in memory.
pub fn detached(record: &Bytes) -> Bytes {
    Bytes::copy_from_slice(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(len: usize) -> InFlightBatch<usize> {
        let records = (0..len).map(|n| Bytes::from(n.to_string())).collect();
        InFlightBatch::of(records, (0..len).collect())
    }

    fn retry() -> Outcome {
        Outcome::Retry(Failure::new("test"))
    }

    /// A parcel of five is taken apart: which seats come out, with which outcome?
    fn check(parts: Vec<(Vec<usize>, Outcome)>, expect: &[(&[usize], &str)]) {
        let parts = parts.into_iter().map(|(places, outcome)| Part { places, outcome });
        let parted = parcel(5).part(parts.collect());
        let got: Vec<_> = parted.iter().map(|(p, o)| (p.seats.as_slice(), o.label())).collect();
        assert_eq!(got, expect);
        for (parcel, _) in &parted {
            let records: Vec<_> = parcel.batch.records().iter().map(|r| r.to_vec()).collect();
            let expect: Vec<_> = parcel.seats.iter().map(|s| s.to_string().into_bytes()).collect();
            assert_eq!(records, expect, "a record changed its seat");
        }
    }

    #[test]
    fn every_event_comes_out_once_whatever_the_parts_say() {
        use Outcome::Delivered;
        check(vec![], &[(&[0, 1, 2, 3, 4], "retry")]);
        check(vec![(vec![0, 2], Delivered)], &[(&[0, 2], "delivered"), (&[1, 3, 4], "retry")]);
        check(vec![(vec![9, 1], Delivered)], &[(&[1], "delivered"), (&[0, 2, 3, 4], "retry")]);
        let overlap = vec![(vec![0, 1, 1, 2], Delivered), (vec![2, 3, 4], retry())];
        check(overlap, &[(&[0, 1, 2], "delivered"), (&[3, 4], "retry")]);
        let about_the_upstream = vec![(vec![], retry()), (vec![4, 3, 2, 1, 0], Delivered)];
        check(about_the_upstream, &[(&[0, 1, 2, 3, 4], "delivered")]);
    }

    #[test]
    fn a_batch_whose_events_all_ended_alike_keeps_its_key() {
        let whole = parcel(3);
        let id = whole.batch.id();
        let parted = whole.part(vec![Part { places: vec![0, 1, 2], outcome: retry() }]);
        assert_eq!(parted[0].0.batch.id(), id);
    }

    #[test]
    fn halves_keep_the_order_and_have_keys_of_their_own() {
        let whole = parcel(5);
        let id = whole.batch.id();
        let [front, back] = whole.halve();
        assert_eq!((front.seats.as_slice(), back.seats.as_slice()), (&[0, 1][..], &[2, 3, 4][..]));
        assert!(front.batch.id() != id && back.batch.id() != id);
        assert_ne!(front.batch.id(), back.batch.id());
    }

    #[test]
    fn a_part_holds_on_to_no_memory_of_the_whole() {
        let whole = parcel(2);
        let place = whole.batch.records()[0].as_ptr();
        let [front, _] = whole.halve();
        assert_ne!(front.batch.records()[0].as_ptr(), place);
    }

    #[test]
    fn the_age_is_that_of_the_oldest_parcel_until_its_last_part_is_gone() {
        let ages = Arc::new(LagTracker::default());
        let gathered = || OpenBatch::of_one(Bytes::from("x"), 0_usize);
        let old = InFlightBatch::new(gathered(), 7, &ages);
        let young = InFlightBatch::new(gathered(), 9, &ages);
        assert_eq!(ages.oldest_ms(), Some(7));
        let part = old.pick(&[0]);
        drop(old);
        assert_eq!(ages.oldest_ms(), Some(7));
        drop(part);
        assert_eq!(ages.oldest_ms(), Some(9));
        drop(young);
        assert_eq!(ages.oldest_ms(), None);
    }
}
