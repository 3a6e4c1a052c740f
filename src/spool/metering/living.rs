//! The totals by portal of lanes whose process lives, as their files have them.

use std::collections::BTreeMap;

use super::counts::{Tallies, Totals};

/// The counts that were read of a lane's file.
pub enum Found {
    /// The counts of the whole file.
    Whole(Tallies),
    /// The counts of the entries that are new.
    Further(Tallies),
}

/// The totals of each of these lanes, by the number of the lane.
#[derive(Default)]
pub struct LivingLanes(BTreeMap<u64, LivingLane>);

#[derive(Default)]
struct LivingLane {
    totals: Totals,
    /// See [`Tallies::sums`].
    sums: [u64; 3],
}

impl LivingLanes {
    /// Takes over the totals of a lane, as its file has them. Returns whether the number of its
    /// accepted events changed.
    pub fn take_in(&mut self, lane: u64, found: &Found, today: u32) -> bool {
        let accepted = self.0.get(&lane).map(|known| known.sums[0]);
        let counts = match found {
            Found::Whole(counts) => {
                self.0.remove(&lane);
                counts
            }
            Found::Further(counts) => counts,
        };
        let known = self.0.entry(lane).or_default();
        for (column, tally) in counts.iter() {
            known.totals.add(*column, tally.iter(), today);
        }
        let sums = counts.sums();
        known.sums = std::array::from_fn(|at| known.sums[at] + sums[at]);
        accepted != Some(known.sums[0])
    }

    /// Removes the totals of the lanes that are not to be kept.
    pub fn retain(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.0.retain(|lane, _| is_kept(*lane));
    }

    /// The totals of each lane.
    pub fn totals(&self) -> impl Iterator<Item = &Totals> {
        self.0.values().map(|lane| &lane.totals)
    }

    /// The sums over all lanes and portals: see [`Tallies::sums`].
    pub fn sums(&self) -> [u64; 3] {
        let each = self.0.values().map(|lane| lane.sums);
        each.fold([0; 3], |sums, lane| std::array::from_fn(|at| sums[at] + lane[at]))
    }
}
