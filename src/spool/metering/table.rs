//! Which portals are counted, each under a small number that its counts are stored by.
//!
//! A table of the numbers by hash, and a dense list of the portals: 16 bytes for a portal. Portals
//! are never taken out, so a number stays valid for the process's life.

/// The number of what has no number of its own: records without a portal, and the portals beyond
/// [`PORTALS_MAX`].
pub const OTHER: u32 = 0;
/// Most portals with counts of their own. Further ones are counted under [`OTHER`].
pub const PORTALS_MAX: usize = 1_000_000;
/// Places of a new table; a power of two.
const PLACES: usize = 1024;
/// The list grows by so many portals at a time: doubling it would cost memory for nothing.
pub(super) const GROWTH: usize = 1 << 16;

/// See the module.
pub struct Table {
    /// By number. The first is no portal.
    portals: Vec<u64>,
    /// By hash: a portal's number, or 0 where the place is free. Half of them are, at least.
    places: Box<[u32]>,
    /// An odd number that clients cannot know, so that they cannot choose portals that collide.
    factor: u64,
}

impl Table {
    pub fn new() -> Table {
        let places = vec![0; PLACES].into_boxed_slice();
        Table { portals: vec![0], places, factor: rand::random::<u64>() | 1 }
    }

    /// A portal's number, if it has one.
    pub fn find(&self, portal: u64) -> Option<u32> {
        let number = self.places[self.place(portal)];
        (number != 0).then_some(number)
    }

    /// A portal's number, a new one if it has none and there is room.
    pub fn number(&mut self, portal: u64) -> u32 {
        let at = self.place(portal);
        if self.places[at] != 0 {
            return self.places[at];
        }
        if portal == 0 || self.is_full() {
            return OTHER;
        }
        // Cannot overflow: see `PORTALS_MAX`.
        let number = self.portals.len() as u32;
        if self.portals.len() == self.portals.capacity() {
            self.portals.reserve_exact(GROWTH);
        }
        self.portals.push(portal);
        self.places[at] = number;
        if self.portals.len() * 2 > self.places.len() {
            self.grow();
        }
        number
    }

    /// The portal of this number; 0 for [`OTHER`].
    pub fn portal(&self, number: u32) -> u64 {
        self.portals.get(number as usize).copied().unwrap_or(0)
    }

    /// How many portals there are.
    pub fn len(&self) -> usize {
        self.portals.len() - 1
    }

    /// Whether a further portal gets no number.
    pub fn is_full(&self) -> bool {
        self.len() >= PORTALS_MAX
    }

    /// The place that holds the portal, or the free one where it belongs.
    fn place(&self, portal: u64) -> usize {
        let bits = self.places.len().trailing_zeros();
        let hash = (portal ^ (portal >> 32)).wrapping_mul(self.factor);
        let mut at = (hash >> (u64::BITS - bits)) as usize;
        loop {
            match self.places[at] {
                0 => return at,
                number if self.portals[number as usize] == portal => return at,
                _ => at = (at + 1) % self.places.len(),
            }
        }
    }

    fn grow(&mut self) {
        self.places = vec![0; self.places.len() * 2].into_boxed_slice();
        for number in 1..self.portals.len() {
            let at = self.place(self.portals[number]);
            self.places[at] = number as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_portal_keeps_its_number_whatever_its_pattern() {
        for step in [1, 1000, 1 << 20, 1 << 29, 999_999_937] {
            let mut table = Table::new();
            for nth in 1..=10_000_u64 {
                assert_eq!(table.find(nth * step), None);
                assert_eq!(table.number(nth * step), nth as u32);
            }
            for nth in 1..=10_000_u64 {
                assert_eq!(table.number(nth * step), nth as u32);
                assert_eq!(table.portal(nth as u32), nth * step);
            }
            assert_eq!(table.len(), 10_000);
        }
    }

    #[test]
    fn a_portal_beyond_the_limit_is_among_the_others() {
        let mut table = Table::new();
        for portal in 1..=PORTALS_MAX as u64 {
            assert_eq!(table.number(portal), portal as u32);
        }
        assert!(table.is_full());
        assert_eq!(table.number(PORTALS_MAX as u64 + 1), OTHER);
        assert_eq!(table.number(PORTALS_MAX as u64), PORTALS_MAX as u32);
        assert_eq!((table.number(0), table.find(0)), (OTHER, None));
        let bytes = table.portals.capacity() * 8 + table.places.len() * 4;
        assert!(bytes <= 17 << 20, "{bytes} bytes");
    }
}
