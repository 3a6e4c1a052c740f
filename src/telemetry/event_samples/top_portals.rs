//! The number of accepted events of each portal, and of the parameters that were dropped from them,
//! over the current and the previous period.
//!
//! The counters are in a table of fixed size, which every thread increments without a lock. A hash
//! of a portal's number selects [`PROBES_MAX`] slots, of which the portal takes the first free one.
//! If other portals hold all of them, the event is counted under "others". The table needs the same
//! memory for a million portals as for a thousand.
//!
//! There are two tables. [`TopPortals::rotate`] begins a period: it empties the table of the
//! previous period and counts in it from then on. The ranking covers both tables.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The most portals that have a count of their own in one period.
pub const TOP_PORTALS_MAX: usize = 1024;
/// The number of slots in which a portal is searched.
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
    /// The portal's number. 0, which is no portal's number, marks a free slot.
    portal: AtomicU64,
    accepted: AtomicU64,
    ignored: AtomicU64,
}

/// The counts of one portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortalCounts {
    /// The portal's number.
    pub portal: u64,
    /// Accepted events.
    pub accepted: u64,
    /// Parameters that were dropped from the accepted events (SPEC 3).
    pub ignored: u64,
}

/// The portals, the one with the most accepted events first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// The portals with a count of their own.
    pub portals: Vec<PortalCounts>,
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
    /// Counts one accepted event of this portal, from which `ignored` parameters were dropped.
    #[inline]
    pub fn count(&self, portal: u64, ignored: usize) {
        self.tables[self.current.load(Relaxed) % 2].count(portal, ignored as u64);
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
        let mut all: Vec<PortalCounts> = self.tables.iter().flat_map(Table::portals).collect();
        all.sort_unstable();
        all.dedup_by(|later, earlier| {
            let same = later.portal == earlier.portal;
            if same {
                earlier.accepted += later.accepted;
                earlier.ignored += later.ignored;
            }
            same
        });
        all.sort_by_key(|counts| (std::cmp::Reverse(counts.accepted), counts.portal));
        let others = self.tables.iter().map(|table| table.others.load(Relaxed)).sum();
        Ranking { portals: all, others }
    }
}

impl Table {
    fn count(&self, portal: u64, ignored: u64) {
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
                slot.accepted.fetch_add(1, Relaxed);
                if ignored > 0 {
                    slot.ignored.fetch_add(ignored, Relaxed);
                }
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    fn portals(&self) -> impl Iterator<Item = PortalCounts> {
        let counts = |slot: &Slot| PortalCounts {
            portal: slot.portal.load(Relaxed),
            accepted: slot.accepted.load(Relaxed),
            ignored: slot.ignored.load(Relaxed),
        };
        let is_used = |counts: &PortalCounts| counts.portal != 0 && counts.accepted != 0;
        self.slots.iter().map(counts).filter(is_used)
    }

    fn clear(&self) {
        for slot in &self.slots {
            slot.accepted.store(0, Relaxed);
            slot.ignored.store(0, Relaxed);
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
        let ranking = |top: &TopPortals| -> Vec<_> {
            let portals = top.ranking().portals;
            portals.iter().map(|counts| (counts.portal, counts.accepted, counts.ignored)).collect()
        };
        for (portal, ignored) in [(7, 0), (7, 0), (8, 5)] {
            top.count(portal, ignored);
        }
        top.rotate();
        for (portal, ignored) in [(8, 0), (8, 2), (9, 0)] {
            top.count(portal, ignored);
        }
        assert_eq!(ranking(&top), [(8, 3, 7), (7, 2, 0), (9, 1, 0)]);
        top.rotate();
        assert_eq!(ranking(&top), [(8, 2, 2), (9, 1, 0)]);
    }

    #[test]
    fn more_portals_than_slots_are_counted_together() {
        let top = TopPortals::default();
        let portals = 10 * TOP_PORTALS_MAX as u64;
        for portal in 1..=portals {
            top.count(portal, 0);
        }
        let Ranking { portals: each, others } = top.ranking();
        assert!(each.len() <= TOP_PORTALS_MAX);
        assert!(each.len() > TOP_PORTALS_MAX / 2, "{}", each.len());
        assert_eq!(each.iter().map(|counts| counts.accepted).sum::<u64>() + others, portals);
    }
}
