//! The totals by portal of lanes whose process lives, as their files have them.

use std::collections::BTreeMap;

use super::counts::{Counts, Totals};

/// The totals of each of these lanes, by the number of the lane.
#[derive(Default)]
pub struct LivingLanes(BTreeMap<u64, LivingLane>);

struct LivingLane {
    totals: Totals,
    /// See [`Counts::sums`].
    sums: [u64; 3],
}

impl LivingLanes {
    /// Replaces the totals of a lane. Returns whether the number of its accepted events changed.
    pub fn set(&mut self, lane: u64, counts: &Counts, today: u32) -> bool {
        let mut totals = Totals::default();
        counts.iter().for_each(|(column, tally)| totals.add(*column, tally.iter(), today));
        let sums = counts.sums();
        let before = self.0.insert(lane, LivingLane { totals, sums });
        before.is_none_or(|before| before.sums[0] != sums[0])
    }

    /// Removes the totals of the lanes that are not to be kept.
    pub fn retain(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.0.retain(|lane, _| is_kept(*lane));
    }

    /// The totals of each lane.
    pub fn totals(&self) -> impl Iterator<Item = &Totals> {
        self.0.values().map(|lane| &lane.totals)
    }

    /// The sums over all lanes and portals: see [`Counts::sums`].
    pub fn sums(&self) -> [u64; 3] {
        let each = self.0.values().map(|lane| lane.sums);
        each.fold([0; 3], |sums, lane| std::array::from_fn(|at| sums[at] + lane[at]))
    }
}
