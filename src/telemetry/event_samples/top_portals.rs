//! How many events each portal had accepted, lately.
//!
//! A fixed table of counters that every worker adds to without a lock, as to any other counter. A
//! portal finds its place by its number; where the few places that it may take are taken, it is
//! counted among the others. So a million portals cost no more room than a thousand.
//!
//! There are two tables: the one that is counted in, and the one before it. Every so often the
//! owner turns them ([`TopPortals::turn`]), which forgets the older one; the ranking is over both.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Most portals that are counted each by itself, between two turns.
pub const TALLIED_PORTALS_MAX: usize = 1024;
/// How many places a portal may take.
const PROBES_MAX: usize = 8;

/// See the module.
pub struct TopPortals {
    tables: [Table; 2],
    current: AtomicUsize,
}

struct Table {
    places: Box<[Place]>,
    others: AtomicU64,
}

#[derive(Default)]
struct Place {
    /// 0, which is no portal's number: free.
    portal: AtomicU64,
    count: AtomicU64,
}

/// Portals by their accepted events, most first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// Portal and count.
    pub portals: Vec<(u64, u64)>,
    /// Events of portals that found no place.
    pub others: u64,
}

impl Default for TopPortals {
    fn default() -> Self {
        let table = || Table {
            places: (0..TALLIED_PORTALS_MAX).map(|_| Place::default()).collect(),
            others: AtomicU64::new(0),
        };
        Self { tables: [table(), table()], current: AtomicUsize::new(0) }
    }
}

impl TopPortals {
    /// Counts one event of this portal.
    #[inline]
    pub fn count(&self, portal: u64) {
        self.tables[self.current.load(Relaxed) % 2].count(portal);
    }

    /// Forgets all but what was counted since the last turn. Whoever still counts in the table
    /// that is emptied began before the last turn but one; they may be miscounted by one.
    pub fn turn(&self) {
        let older = (self.current.load(Relaxed) + 1) % 2;
        self.tables[older].clear();
        self.current.store(older, Relaxed);
    }

    /// Over the current table and the one before it.
    pub fn ranking(&self) -> Ranking {
        let mut all: Vec<(u64, u64)> = self.tables.iter().flat_map(Table::portals).collect();
        all.sort_unstable();
        all.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            earlier.1 += if same { later.1 } else { 0 };
            same
        });
        all.sort_by_key(|&(portal, count)| (std::cmp::Reverse(count), portal));
        let others = self.tables.iter().map(|table| table.others.load(Relaxed)).sum();
        Ranking { portals: all, others }
    }
}

impl Table {
    fn count(&self, portal: u64) {
        // Fibonacci hashing: the upper bits of the product are well mixed.
        let mixed = portal.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        for probe in 0..PROBES_MAX {
            let place = &self.places[(mixed as usize + probe) % TALLIED_PORTALS_MAX];
            let mut owner = place.portal.load(Relaxed);
            if owner == 0 {
                let taken = place.portal.compare_exchange(0, portal, Relaxed, Relaxed);
                owner = taken.map_or_else(|other| other, |_| portal);
            }
            if owner == portal {
                place.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    fn portals(&self) -> impl Iterator<Item = (u64, u64)> {
        let both = |place: &Place| (place.portal.load(Relaxed), place.count.load(Relaxed));
        self.places.iter().map(both).filter(|&(portal, count)| portal != 0 && count != 0)
    }

    fn clear(&self) {
        for place in &self.places {
            place.count.store(0, Relaxed);
            place.portal.store(0, Relaxed);
        }
        self.others.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_ranked_over_two_turns() {
        let tally = TopPortals::default();
        for portal in [7, 7, 8] {
            tally.count(portal);
        }
        tally.turn();
        tally.count(8);
        tally.count(8);
        tally.count(9);
        assert_eq!(tally.ranking().portals, [(8, 3), (7, 2), (9, 1)]);
        tally.turn();
        assert_eq!(tally.ranking().portals, [(8, 2), (9, 1)]);
    }

    #[test]
    fn more_portals_than_places_are_counted_together() {
        let tally = TopPortals::default();
        let portals = 10 * TALLIED_PORTALS_MAX as u64;
        for portal in 1..=portals {
            tally.count(portal);
        }
        let Ranking { portals: each, others } = tally.ranking();
        assert!(each.len() <= TALLIED_PORTALS_MAX);
        assert!(each.len() > TALLIED_PORTALS_MAX / 2, "{}", each.len());
        assert_eq!(each.iter().map(|(_, count)| count).sum::<u64>() + others, portals);
    }
}
