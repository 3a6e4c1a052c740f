//! An immutable set of portal ids.
//!
//! A million ids take 8 MB, and their index 2 MB. A lookup touches two places in memory: the
//! index entry of the id's bucket, and the bucket, which holds two ids on average and so usually
//! lies on one cache line. Each id also has a *slot*, a number below `len`, so that an array beside
//! the set can hold data about each portal.
//!
//! Ids are stored *mixed*: a reversible function spreads any pattern among them (all even, all in
//! one range) over the buckets. It does not protect against ids chosen to collide. That is not
//! needed: the list comes from the operator, and clients only look ids up.

/// The largest number of ids a set holds: slots are `u32`.
const IDS_MAX: usize = u32::MAX as usize;

/// An immutable set of portal ids.
#[derive(Debug)]
pub(super) struct Set {
    /// Mixed ids, ascending.
    mixed: Box<[u64]>,
    /// The start of each bucket in `mixed`, then the end of the last bucket.
    starts: Box<[u32]>,
    /// A mixed id shifted right by this many bits is the number of its bucket.
    shift: u32,
}

/// An id that occurs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duplicate(pub u64);

impl Set {
    /// Builds a set of ids in any order. Reuses the vector, so that building needs little more
    /// memory than the set itself.
    pub(super) fn new(mut ids: Vec<u64>) -> Result<Set, Duplicate> {
        assert!(ids.len() <= IDS_MAX, "a list's size in bytes bounds its ids far below this");
        for id in &mut ids {
            *id = mix(*id);
        }
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Duplicate(unmix(pair[0])));
        }
        // Two ids per bucket. At least one bit, because a shift by 64 overflows.
        let bits = (ids.len() / 2).next_power_of_two().trailing_zeros().max(1);
        let shift = u64::BITS - bits;
        Ok(Set { starts: starts(&ids, bits, shift), mixed: ids.into_boxed_slice(), shift })
    }

    /// The number of ids.
    pub(super) fn len(&self) -> usize {
        self.mixed.len()
    }

    /// The slot of an id. `None` if it is not in the set.
    #[inline]
    pub(super) fn slot(&self, id: u64) -> Option<usize> {
        let sought = mix(id);
        let bucket = (sought >> self.shift) as usize;
        let (start, end) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        let within = self.mixed[start..end].iter().position(|&mixed| mixed == sought)?;
        Some(start + within)
    }

    /// Whether an id is in the set.
    #[inline]
    pub(super) fn contains(&self, id: u64) -> bool {
        self.slot(id).is_some()
    }

    /// The ids, in the order of their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.mixed.iter().map(|&mixed| unmix(mixed))
    }
}

fn starts(mixed: &[u64], bits: u32, shift: u32) -> Box<[u32]> {
    let buckets = 1_usize << bits;
    let mut starts = Vec::with_capacity(buckets + 1);
    starts.push(0);
    for (slot, &mixed) in mixed.iter().enumerate() {
        // Every bucket up to the bucket of this id begins here or earlier.
        while starts.len() <= (mixed >> shift) as usize {
            starts.push(slot as u32);
        }
    }
    starts.resize(buckets + 1, mixed.len() as u32);
    starts.into_boxed_slice()
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const UNMIX: u64 = inverse(MIX);

/// Mixes an id. The multiplication spreads the low bits to the high bits, which select the bucket.
/// The high half is folded down first, which also spreads ids that differ only there. Both steps
/// are reversible.
#[inline]
const fn mix(id: u64) -> u64 {
    (id ^ (id >> 32)).wrapping_mul(MIX)
}

const fn unmix(mixed: u64) -> u64 {
    let folded = mixed.wrapping_mul(UNMIX);
    folded ^ (folded >> 32)
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the
/// number of correct bits, and an odd number is its own inverse in the lowest three.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut correct_bits = 3;
    while correct_bits < 64 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        correct_bits *= 2;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_set_holds_nothing() {
        let set = Set::new(Vec::new()).unwrap();
        assert_eq!(set.len(), 0);
        assert!(!set.contains(0));
        assert!(!set.contains(u64::MAX));
    }

    #[test]
    fn a_duplicate_is_named() {
        assert_eq!(Set::new(vec![5, 62515, 7, 62515]).unwrap_err(), Duplicate(62515));
    }

    #[test]
    fn mixing_can_be_undone() {
        for id in [0, 1, 62515, 999_999_999_999_999, 1 << 32, u64::MAX] {
            assert_eq!(unmix(mix(id)), id);
        }
    }

    #[test]
    fn ids_in_steps_spread_over_the_buckets() {
        for step in [1, 2, 1000, 1 << 20, 1 << 29, 999_999_937] {
            let set = Set::new((1..=100_000).map(|n| n * step).collect()).unwrap();
            let longest = set.starts.windows(2).map(|pair| pair[1] - pair[0]).max();
            assert!(longest < Some(24), "step {step}: a bucket of {longest:?}");
        }
    }

    /// Ids have 15 digits at most.
    const ID_END: u64 = 1_000_000_000_000_000;

    proptest! {
        #[test]
        fn it_agrees_with_a_tree(
            ids in prop::collection::vec(prop_oneof![0..64_u64, 1..ID_END], 0..400),
            probes in prop::collection::vec(prop_oneof![0..64_u64, any::<u64>()], 50),
        ) {
            let tree: BTreeSet<u64> = ids.iter().copied().collect();
            let set = Set::new(ids.clone());
            if tree.len() < ids.len() {
                let Duplicate(twice) = set.unwrap_err();
                prop_assert!(ids.iter().filter(|&&id| id == twice).count() > 1);
                return Ok(());
            }
            let set = set.unwrap();
            prop_assert_eq!(set.len(), tree.len());
            prop_assert_eq!(&set.iter().collect::<BTreeSet<_>>(), &tree);
            for (slot, id) in set.iter().enumerate() {
                prop_assert_eq!(set.slot(id), Some(slot));
            }
            for probe in probes {
                prop_assert_eq!(set.contains(probe), tree.contains(&probe));
            }
        }
    }
}
