//! A batch in flight, together with the spool's record ids of its events.

use std::sync::Arc;

use bytes::Bytes;

use super::batches::Arrival;
use super::tracker::{Entry, Tracker, Trouble};
use crate::spool::RecordId;
use crate::upstream::{Batch, Failure, Outcome, Part};

/// A batch until each of its events is delivered or a dead letter. The type of the ids is open:
/// the spool's record ids in delivery, line numbers in a replay.
#[derive(Debug)]
pub struct InFlightBatch<T = RecordId> {
    pub batch: Batch,
    /// The id of each record of the batch, in the batch's order.
    pub ids: Vec<T>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// The failed attempts for which the events may be to blame, and how often the upstream had
    /// taken something when the first of them ended. `None`: there are none.
    pub suspect: Option<Suspicion>,
    /// Whether the batch is a single event that failed `attempts_max` times or more, while it is
    /// not known whether the upstream takes others.
    pub is_stuck: bool,
    /// Whether the batch, or the batch that it is a part of, failed again and again while the
    /// upstream took others.
    pub is_poison: bool,
    entry: Option<Entry>,
}

/// Why the events of a batch may be to blame for its failures: see [`InFlightBatch::suspect`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Failed attempts that were not limited to a portal.
    pub failures: u32,
    /// Attempts that had delivered something when the first of them ended.
    pub deliveries: u64,
}

impl<T: Copy> InFlightBatch<T> {
    /// A batch of the events of a closed batch. The tracker knows them until they have ended.
    pub fn new(closed: Vec<Arrival<T>>, tracker: &Arc<Tracker>) -> InFlightBatch<T> {
        let (ids, records): (_, Vec<Bytes>) = closed.into_iter().map(|a| (a.id, a.record)).unzip();
        let entry = Some(Entry::new(tracker, &records));
        InFlightBatch { entry, ..InFlightBatch::of(records, ids) }
    }

    /// A batch of records that do not come from the spool. No tracker knows them.
    pub fn of(records: Vec<Bytes>, ids: Vec<T>) -> InFlightBatch<T> {
        InFlightBatch {
            batch: Batch::new(records),
            ids,
            failures: 0,
            suspect: None,
            is_stuck: false,
            is_poison: false,
            entry: None,
        }
    }

    /// Bytes of the records.
    pub fn bytes(&self) -> usize {
        self.batch.records().iter().map(Bytes::len).sum()
    }

    /// Notes in the tracker that the last attempt failed. `is_fault`: a changed configuration
    /// would help.
    pub fn note_failure(&self, is_fault: bool) {
        let trouble = match is_fault {
            true => Trouble::Misconfigured,
            false if self.is_poison => Trouble::Poison,
            false => Trouble::Retrying,
        };
        if let Some(entry) = &self.entry {
            entry.set(trouble, self.len());
        }
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The events at these places, as a batch of their own.
    fn pick(&self, places: &[usize]) -> InFlightBatch<T> {
        let records: Vec<Bytes> =
            places.iter().map(|&p| detached(&self.batch.records()[p])).collect();
        let entry = self.entry.as_ref().map(|entry| entry.another(&records));
        InFlightBatch {
            batch: Batch::new(records),
            ids: places.iter().map(|&p| self.ids[p]).collect(),
            failures: self.failures,
            suspect: self.suspect,
            is_stuck: self.is_stuck,
            is_poison: self.is_poison,
            entry,
        }
    }

    /// Two halves, in order. The batch must hold at least two events, or the first half is empty.
    pub fn halve(self) -> [InFlightBatch<T>; 2] {
        let middle = self.len() / 2;
        let places: Vec<usize> = (0..self.len()).collect();
        [self.pick(&places[..middle]), self.pick(&places[middle..])].map(|mut half| {
            (half.failures, half.suspect) = (0, None);
            half
        })
    }

    /// The event at this place as a batch of its own that has not failed yet, and the others.
    pub fn take_out(self, place: usize) -> (InFlightBatch<T>, Option<InFlightBatch<T>>) {
        let others: Vec<usize> = (0..self.len()).filter(|&other| other != place).collect();
        let others = (!others.is_empty()).then(|| self.pick(&others));
        let mut taken = self.pick(&[place]);
        (taken.failures, taken.suspect, taken.is_poison) = (0, None, false);
        (taken, others)
    }

    /// Splits a batch by the outcomes of its events. Each event is in exactly one of the results,
    /// whatever `parts` say: the first part that names an event counts, and an event that no part
    /// names is to be retried.
    pub fn split(self, parts: Vec<Part>) -> Vec<(InFlightBatch<T>, Outcome)> {
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
            // All events have one outcome: the batch stays what it was, with its key and bytes.
            let outcome = std::mem::replace(outcome, Outcome::Delivered);
            return vec![(self, outcome)];
        }
        all.into_iter().map(|(places, outcome)| (self.pick(&places), outcome)).collect()
    }
}

/// A copy with memory of its own. A record is a slice of a block that the spool read; without the
/// copy, a few events that are retried for hours would keep whole blocks in memory.
pub fn detached(record: &Bytes) -> Bytes {
    Bytes::copy_from_slice(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(len: usize) -> InFlightBatch<usize> {
        let records = (0..len).map(|n| Bytes::from(n.to_string())).collect();
        InFlightBatch::of(records, (0..len).collect())
    }

    fn retry() -> Outcome {
        Outcome::Retry(Failure::new("test"))
    }

    /// A batch of five events is split: which ids come out, with which outcome?
    fn check(parts: Vec<(Vec<usize>, Outcome)>, expect: &[(&[usize], &str)]) {
        let parts = parts.into_iter().map(|(places, outcome)| Part { places, outcome });
        let results = in_flight(5).split(parts.collect());
        let got: Vec<_> = results.iter().map(|(b, o)| (b.ids.as_slice(), o.label())).collect();
        assert_eq!(got, expect);
        for (part, _) in &results {
            let records: Vec<_> = part.batch.records().iter().map(|r| r.to_vec()).collect();
            let expect: Vec<_> = part.ids.iter().map(|s| s.to_string().into_bytes()).collect();
            assert_eq!(records, expect, "a record changed its id");
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
        let whole = in_flight(3);
        let id = whole.batch.id();
        let results = whole.split(vec![Part { places: vec![0, 1, 2], outcome: retry() }]);
        assert_eq!(results[0].0.batch.id(), id);
    }

    #[test]
    fn halves_keep_the_order_and_have_keys_of_their_own() {
        let whole = in_flight(5);
        let id = whole.batch.id();
        let [front, back] = whole.halve();
        assert_eq!((front.ids.as_slice(), back.ids.as_slice()), (&[0, 1][..], &[2, 3, 4][..]));
        assert!(front.batch.id() != id && back.batch.id() != id);
        assert_ne!(front.batch.id(), back.batch.id());
    }

    #[test]
    fn a_part_holds_on_to_no_memory_of_the_whole() {
        let whole = in_flight(2);
        let place = whole.batch.records()[0].as_ptr();
        let [front, _] = whole.halve();
        assert_ne!(front.batch.records()[0].as_ptr(), place);
    }

    #[test]
    fn a_tracker_knows_of_each_part_until_it_is_dropped() {
        let tracker = Arc::new(Tracker::default());
        let arrival = |id| Arrival { id, record: Bytes::from_static(b"x") };
        let mut batch = InFlightBatch::new(vec![arrival(1), arrival(2)], &tracker);
        batch.is_poison = true;
        batch.note_failure(false);
        assert_eq!(tracker.troubles().poison_events, 2);
        let [front, back] = batch.halve();
        assert_eq!((tracker.troubles().poison_events, front.suspect), (0, None));
        back.note_failure(false);
        drop(front);
        assert_eq!(tracker.troubles().poison_events, 1);
        drop(back);
        assert_eq!(tracker.oldest_ms(), None);
    }
}
