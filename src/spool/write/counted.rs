//! The counts of a commit until it is published.

use crate::spool::lane::{Lane, LaneState};
use crate::spool::metering::counts::Tallies;
use crate::spool::routing::Foreign;
use crate::spool::state::SpoolState;

/// The foreign records and the records by portal of one commit.
#[derive(Default)]
pub struct Counted {
    foreign: Foreign,
    portals: Tallies,
}

impl Counted {
    /// Counts consecutive staged records.
    pub fn count(&mut self, staged: &[u8], state: &SpoolState) {
        state.count_foreign(staged, &mut self.foreign);
        state.book.count_staged(staged, &mut self.portals);
    }

    /// Adds the counts to the lane, together with the change of its state that publishes or answers
    /// the records.
    pub fn add_to(&mut self, lane: &Lane, changed: &mut LaneState, state: &SpoolState) {
        changed.add_foreign(&mut self.foreign);
        state.book.add(lane.id, &mut self.portals);
    }

    /// Drops the counts of records that were refused.
    pub fn clear(&mut self) {
        self.foreign.clear();
        self.portals.clear();
    }
}
