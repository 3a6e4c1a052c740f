//! Gives each counted portal a small number, which is its place in the lists of counts.
//!
//! A hash table has the numbers, and a dense list the portals. They take 16 bytes for each portal.
//! Portals are never removed, so a number stays valid until the process ends.

/// The number of records without a portal, and of all portals above [`PORTALS_MAX`].
pub const OTHER: u32 = 0;
/// The most portals that get a number. Further ones are counted under [`OTHER`].
pub const PORTALS_MAX: usize = 1_000_000;
/// The number of places of a new hash table: a power of two.
const PLACES: usize = 1024;
/// The number of portals by which the lists grow at once. Doubling them would waste memory.
pub(super) const GROWTH: usize = 1 << 16;

/// The numbers of all counted portals.
pub struct Table {
    /// The portals, by number. The first entry is not a portal.
    portals: Vec<u64>,
    /// The numbers, by hash. 0: the place is free. At least half of the places are free.
    places: Box<[u32]>,
    /// A random odd number. Clients do not know it, so they cannot choose portals that collide.
    factor: u64,
}

impl Table {
    pub fn new() -> Table {
        let places = vec![0; PLACES].into_boxed_slice();
        Table { portals: vec![0], places, factor: rand::random::<u64>() | 1 }
    }

    /// Returns the number of a portal, if it has one.
    pub fn find(&self, portal: u64) -> Option<u32> {
        let number = self.places[self.place(portal)];
        (number != 0).then_some(number)
    }

    /// Returns the number of a portal. A portal without one gets a new one, or [`OTHER`] if the
    /// table is full.
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

    /// Returns the portal of a number, or 0 for [`OTHER`].
    pub fn portal(&self, number: u32) -> u64 {
        self.portals.get(number as usize).copied().unwrap_or(0)
    }

    /// The number of portals.
    pub fn len(&self) -> usize {
        self.portals.len() - 1
    }

    /// Whether further portals get no number.
    pub fn is_full(&self) -> bool {
        self.len() >= PORTALS_MAX
    }

    /// Returns the place of the portal, or the free place where it belongs.
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
