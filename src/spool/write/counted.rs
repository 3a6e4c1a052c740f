//! What a commit adds to the counts, until it is published.

use crate::spool::lane::{Lane, LaneState};
use crate::spool::metering::counts::Counts;
use crate::spool::routing::Foreign;
use crate::spool::state::SpoolState;

/// See the module.
#[derive(Default)]
pub struct Counted {
    foreign: Foreign,
    portals: Counts,
}

impl Counted {
    /// Counts staged records, one behind the other.
    pub fn count(&mut self, staged: &[u8], state: &SpoolState) {
        state.count_foreign(staged, &mut self.foreign);
        state.book.count_staged(staged, &mut self.portals);
    }

    /// The records are published or answered with this change of the lane's state.
    pub fn add_to(&mut self, lane: &Lane, changed: &mut LaneState, state: &SpoolState) {
        changed.add_foreign(&mut self.foreign);
        state.book.add(lane.id, &mut self.portals);
    }

    /// Forgets records that were refused.
    pub fn clear(&mut self) {
        self.foreign.clear();
        self.portals.clear();
    }
}
