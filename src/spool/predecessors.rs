//! The lanes of processes that still live, such as the old process of an upgrade.
//!
//! An upstream with `order = "portal"` reads no lane while an older one belongs to another process
//! that lives: the events in the older lane come first, and only that process can deliver them.
//! Upstreams without an order do not wait.

use std::time::Duration;

use parking_lot::Mutex;

use super::lane::Lane;
use crate::plural::counted;

/// How long after the start of this process its events wait for older processes, in seconds. An old
/// process that is stopped ends long before. Where two processes share a spool for good, the events
/// of the later one must not wait for ever.
pub const PREDECESSOR_SECONDS_MAX: u64 = 600;

/// The lanes that belong to other processes, and that may still get events.
pub struct Predecessors {
    /// The numbers of the lanes.
    living: Mutex<Vec<u64>>,
    /// When events stop waiting for these lanes, on the monotonic clock.
    pub until: Duration,
}

impl Predecessors {
    /// No lanes so far, in a process that starts `now`.
    pub fn new(now: Duration) -> Predecessors {
        let until = now + Duration::from_secs(PREDECESSOR_SECONDS_MAX);
        Predecessors { living: Mutex::default(), until }
    }

    /// Adds the lanes that were found to belong to a living process, and removes those that this
    /// process has taken over. A lane that could not be looked at stays what it was.
    pub fn note(&self, found: &[u64], is_taken: impl Fn(u64) -> bool) {
        let mut living = self.living.lock();
        living.extend_from_slice(found);
        living.sort_unstable();
        living.dedup();
        living.retain(|id| !is_taken(*id));
    }

    /// Forgets the lanes that are not among these, because they were removed.
    pub fn retain(&self, ids: &[u64]) {
        self.living.lock().retain(|id| ids.contains(id));
    }

    fn oldest(&self) -> Option<u64> {
        self.living.lock().first().copied()
    }
}

/// Makes one upstream wait for the lanes of older processes.
pub struct PredecessorWait {
    name: String,
    /// The number of the upstream.
    upstream: usize,
    /// Whether events wait at present.
    waits: bool,
    /// Whether the log says that the wait has taken too long.
    is_reported: bool,
}

impl PredecessorWait {
    /// The wait of the upstream with this name and number.
    pub fn new(name: &str, upstream: usize) -> PredecessorWait {
        PredecessorWait { name: name.to_owned(), upstream, waits: false, is_reported: false }
    }

    /// Whether events wait at present.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Begins a read, and returns the oldest lane that belongs to another process. Call this before
    /// the own lanes are listed: a lane that is taken over in between is then listed.
    pub fn begin(&mut self, predecessors: &Predecessors) -> Option<u64> {
        self.waits = false;
        predecessors.oldest()
    }

    /// Whether this lane must wait for the lane `oldest` of another process, `now` on the monotonic
    /// clock.
    pub fn must_wait(&mut self, lane: &Lane, oldest: u64, until: Duration, now: Duration) -> bool {
        if lane.id <= oldest {
            return false;
        }
        let events = {
            let state = lane.state();
            state.positions[self.upstream].totals(state.end()).pending()
        };
        if now < until {
            self.waits |= events > 0;
            return true;
        }
        if events > 0 && !self.is_reported {
            self.is_reported = true;
            ::log::warn!(
                "spool: lane {oldest} belongs to another process, which has not ended within \
                 {PREDECESSOR_SECONDS_MAX} s: {} of upstream {:?} in lane {} may overtake older \
                 events of the same portal",
                counted(events, "event"),
                self.name,
                lane.id
            );
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lane_of_a_living_process_counts_until_it_is_taken_over_or_removed() {
        let predecessors = Predecessors::new(Duration::ZERO);
        assert_eq!(predecessors.oldest(), None);
        predecessors.note(&[4, 2], |_| false);
        predecessors.note(&[2, 7], |_| false);
        assert_eq!(predecessors.oldest(), Some(2));
        predecessors.note(&[], |id| id == 2);
        assert_eq!(predecessors.oldest(), Some(4));
        predecessors.note(&[], |_| false);
        assert_eq!(predecessors.oldest(), Some(4), "a lane that was not looked at stays");
        predecessors.retain(&[7, 9]);
        assert_eq!(predecessors.oldest(), Some(7));
    }
}
