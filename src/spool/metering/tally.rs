//! Counts by number, in the order in which they come, so that adding one is cheap.

/// The least number of counts at which they are merged: see [`Tally::add`].
const MERGED_MIN: usize = 1 << 16;

/// Counts by the number of a portal. It holds at most [`MERGED_MIN`] counts, or twice as many as
/// there are different numbers, whichever is more.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Vec<(u32, u64)>,
    /// The number of counts after the last merge.
    merged: usize,
}

impl Tally {
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Removes the counts and keeps the memory.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.merged = 0;
    }

    /// Counts `events` more events under a number.
    pub fn add(&mut self, number: u32, events: u64) {
        match self.counts.last_mut() {
            Some((last, count)) if *last == number => *count += events,
            _ if events == 0 => {}
            _ => {
                self.counts.push((number, events));
                if self.counts.len() >= MERGED_MIN.max(2 * self.merged) {
                    self.merge();
                }
            }
        }
    }

    /// Adds the counts of `other`.
    pub fn append(&mut self, other: Tally) {
        if self.is_empty() {
            *self = other;
        } else {
            other.iter().for_each(|(number, events)| self.add(number, events));
        }
    }

    /// Returns the number of events counted under a number.
    pub fn of(&self, number: u32) -> u64 {
        self.iter().filter(|(other, _)| *other == number).map(|(_, events)| events).sum()
    }

    /// Adds up the counts of the same number, so that each number is there once.
    pub fn merge(&mut self) {
        self.counts.sort_unstable_by_key(|(number, _)| *number);
        self.counts.dedup_by(|(number, events), (kept, sum)| {
            let is_same = number == kept;
            *sum += if is_same { *events } else { 0 };
            is_same
        });
        self.merged = self.counts.len();
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + Clone {
        self.counts.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_memory_is_bounded_by_the_numbers() {
        let mut tally = Tally::default();
        for nth in 0..1_000_000_u32 {
            tally.add(nth % 1000, 1);
        }
        assert!(tally.counts.len() < MERGED_MIN, "{}", tally.counts.len());
        assert_eq!((tally.of(0), tally.of(999), tally.of(1000)), (1000, 1000, 0));
        tally.merge();
        assert_eq!(tally.iter().collect::<Vec<_>>().len(), 1000);
        let mut other = Tally::default();
        other.add(7, 5);
        other.append(tally);
        assert_eq!(other.of(7), 1005);
    }
}
