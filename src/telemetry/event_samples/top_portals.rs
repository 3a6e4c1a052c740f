//! The number of accepted events of each portal, over the current and the previous period.
//!
//! A fixed table of counters that every worker increments without a lock. A portal finds its slot
//! by a hash of its number and may take one of [`PROBES_MAX`] slots; if other portals hold all of
//! them, the event is counted under "others". The table needs the same memory for a million
//! portals as for a thousand.
//!
//! There are two tables. [`TopPortals::rotate`] begins a period: it empties the table of the
//! previous period and counts in it from then on. The ranking covers both tables.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Most portals that have a count of their own in one period.
pub const TOP_PORTALS_MAX: usize = 1024;
/// The number of slots in which a portal is looked for.
const PROBES_MAX: usize = 8;

/// Counters of accepted events by portal.
pub struct TopPortals {
    tables: [Table; 2],
    current: AtomicUsize,
}

struct Table {
    slots: Box<[Slot]>,
    others: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// The portal's number. 0, which is no portal's number: the slot is free.
    portal: AtomicU64,
    count: AtomicU64,
}

/// Portals by their number of accepted events, highest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// Portal number and its count.
    pub portals: Vec<(u64, u64)>,
    /// Accepted events of portals that found no slot.
    pub others: u64,
}

impl Default for TopPortals {
    fn default() -> Self {
        let table = || Table {
            slots: (0..TOP_PORTALS_MAX).map(|_| Slot::default()).collect(),
            others: AtomicU64::new(0),
        };
        Self { tables: [table(), table()], current: AtomicUsize::new(0) }
    }
}

impl TopPortals {
    /// Counts one accepted event of this portal.
    #[inline]
    pub fn count(&self, portal: u64) {
        self.tables[self.current.load(Relaxed) % 2].count(portal);
    }

    /// Begins a period and forgets the one before the last. A worker that chose its table before
    /// the previous rotation may still increment the emptied one; its event is then miscounted.
    pub fn rotate(&self) {
        let older = (self.current.load(Relaxed) + 1) % 2;
        self.tables[older].clear();
        self.current.store(older, Relaxed);
    }

    /// The portals of the current and the previous period.
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
            let slot = &self.slots[(mixed as usize + probe) % TOP_PORTALS_MAX];
            let mut owner = slot.portal.load(Relaxed);
            if owner == 0 {
                let taken = slot.portal.compare_exchange(0, portal, Relaxed, Relaxed);
                owner = taken.map_or_else(|other| other, |_| portal);
            }
            if owner == portal {
                slot.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    fn portals(&self) -> impl Iterator<Item = (u64, u64)> {
        let both = |slot: &Slot| (slot.portal.load(Relaxed), slot.count.load(Relaxed));
        self.slots.iter().map(both).filter(|&(portal, count)| portal != 0 && count != 0)
    }

    fn clear(&self) {
        for slot in &self.slots {
            slot.count.store(0, Relaxed);
            slot.portal.store(0, Relaxed);
        }
        self.others.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_ranked_over_two_periods() {
        let top = TopPortals::default();
        for portal in [7, 7, 8] {
            top.count(portal);
        }
        top.rotate();
        top.count(8);
        top.count(8);
        top.count(9);
        assert_eq!(top.ranking().portals, [(8, 3), (7, 2), (9, 1)]);
        top.rotate();
        assert_eq!(top.ranking().portals, [(8, 2), (9, 1)]);
    }

    #[test]
    fn more_portals_than_slots_are_counted_together() {
        let top = TopPortals::default();
        let portals = 10 * TOP_PORTALS_MAX as u64;
        for portal in 1..=portals {
            top.count(portal);
        }
        let Ranking { portals: each, others } = top.ranking();
        assert!(each.len() <= TOP_PORTALS_MAX);
        assert!(each.len() > TOP_PORTALS_MAX / 2, "{}", each.len());
        assert_eq!(each.iter().map(|(_, count)| count).sum::<u64>() + others, portals);
    }
}
