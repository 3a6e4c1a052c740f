//! The events that a route has in memory: how old the oldest is, and which of them are in trouble.
//!
//! `/status` reads this while the worker runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::event::RawRecord;

/// How the last attempt at a batch ended, if it failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trouble {
    /// The batch was not attempted yet, or its last attempt did not fail.
    #[default]
    None,
    /// The attempt failed and is repeated.
    Retrying,
    /// The batch failed again and again while the upstream took others.
    Poison,
    /// The upstream's answer shows that the configuration is wrong.
    Misconfigured,
}

/// Counts of a route's batches by their trouble.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Batches that failed, whatever the kind of their trouble.
    pub failing: usize,
    /// Batches whose last answer shows that the configuration is wrong.
    pub misconfigured: usize,
    /// Events in batches that fail while the upstream takes others.
    pub poison_events: usize,
}

/// The batches of one route, with the age and the trouble of each.
#[derive(Debug, Default)]
pub struct Tracker {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The trouble and the number of events of each batch. The key is the time at which its oldest
    /// event was received, and a number that keeps batches of the same millisecond apart.
    batches: BTreeMap<(u64, u64), (Trouble, usize)>,
    entered: u64,
    /// When the first event was received of each batch that is still open.
    open: Vec<Option<u64>>,
    /// When the oldest event was received that waits for a newer version of this program.
    set_aside: Option<u64>,
    troubles: Troubles,
}

/// Keeps a batch in its [`Tracker`] until it is dropped.
#[derive(Debug)]
pub struct Entry {
    tracker: Arc<Tracker>,
    key: (u64, u64),
}

impl Tracker {
    /// When the oldest event was received, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<u64> {
        let inner = self.inner.lock();
        let closed = inner.batches.first_key_value().map(|((received_ms, _), _)| *received_ms);
        let open = inner.open.iter().flatten().copied();
        closed.into_iter().chain(open).chain(inner.set_aside).min()
    }

    /// What is in trouble.
    pub fn troubles(&self) -> Troubles {
        self.inner.lock().troubles
    }

    /// The first record of a queue's open batch; `None` if it has none.
    pub fn set_open(&self, queue: usize, first: Option<&Bytes>) {
        let mut inner = self.inner.lock();
        if inner.open.len() <= queue {
            inner.open.resize(queue + 1, None);
        }
        inner.open[queue] = first.map(received_ms);
    }

    /// Adds an event that was received at this time and waits until this process has ended.
    pub fn set_aside(&self, received_ms: u64) {
        let mut inner = self.inner.lock();
        inner.set_aside = Some(inner.set_aside.unwrap_or(u64::MAX).min(received_ms));
    }

    fn change(&self, key: (u64, u64), now: Option<(Trouble, usize)>) {
        let mut inner = self.inner.lock();
        let before = match now {
            Some(now) => inner.batches.insert(key, now),
            None => inner.batches.remove(&key),
        };
        if let Some((trouble, events)) = before {
            inner.troubles.count(trouble, events, usize::wrapping_sub);
        }
        if let Some((trouble, events)) = now {
            inner.troubles.count(trouble, events, usize::wrapping_add);
        }
    }
}

impl Troubles {
    fn count(&mut self, trouble: Trouble, events: usize, by: fn(usize, usize) -> usize) {
        if trouble != Trouble::None {
            self.failing = by(self.failing, 1);
        }
        match trouble {
            Trouble::None | Trouble::Retrying => {}
            Trouble::Poison => self.poison_events = by(self.poison_events, events),
            Trouble::Misconfigured => self.misconfigured = by(self.misconfigured, 1),
        }
    }
}

impl Entry {
    /// Enters a batch of these records, the oldest first.
    pub fn new(tracker: &Arc<Tracker>, records: &[Bytes]) -> Entry {
        let mut inner = tracker.inner.lock();
        inner.entered += 1;
        let key = (records.first().map_or(u64::MAX, received_ms), inner.entered);
        drop(inner);
        tracker.change(key, Some((Trouble::None, records.len())));
        Entry { tracker: Arc::clone(tracker), key }
    }

    /// Enters a part of the batch, which is split.
    pub fn another(&self, records: &[Bytes]) -> Entry {
        Entry::new(&self.tracker, records)
    }

    /// Notes how the last attempt at the batch ended. The batch holds `events` events.
    pub fn set(&self, trouble: Trouble, events: usize) {
        self.tracker.change(self.key, Some((trouble, events)));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tracker.change(self.key, None);
    }
}

/// When a record was received. A record that cannot be read has no age.
fn received_ms(record: &Bytes) -> u64 {
    RawRecord::read(record).map_or(u64::MAX, |record| record.received_at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize) -> Vec<Bytes> {
        (0..count).map(|n| Bytes::from(n.to_string())).collect()
    }

    #[test]
    fn troubles_are_counted_until_their_batch_is_dropped() {
        let tracker = Arc::new(Tracker::default());
        let (a, b) = (Entry::new(&tracker, &records(3)), Entry::new(&tracker, &records(2)));
        assert_eq!(tracker.troubles(), Troubles::default());
        a.set(Trouble::Retrying, 3);
        a.set(Trouble::Poison, 3);
        b.set(Trouble::Misconfigured, 2);
        let expect = Troubles { failing: 2, misconfigured: 1, poison_events: 3 };
        assert_eq!(tracker.troubles(), expect);
        drop(a);
        let expect = Troubles { failing: 1, misconfigured: 1, poison_events: 0 };
        assert_eq!(tracker.troubles(), expect);
        drop(b);
        assert_eq!(tracker.troubles(), Troubles::default());
    }

    #[test]
    fn an_open_batch_counts_for_the_oldest() {
        let tracker = Arc::new(Tracker::default());
        assert_eq!(tracker.oldest_ms(), None);
        tracker.set_open(1, Some(&Bytes::from("unreadable")));
        assert_eq!(tracker.oldest_ms(), Some(u64::MAX));
        tracker.set_open(1, None);
        assert_eq!(tracker.oldest_ms(), None);
        tracker.set_aside(7);
        tracker.set_aside(8);
        assert_eq!(tracker.oldest_ms(), Some(7));
    }
}
