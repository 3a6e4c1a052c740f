//! A sparse set of records that have ended, stored as runs of consecutive records.
//!
//! A run costs the same whatever its length: ten million events after one that is stuck are one
//! run. Runs that touch are joined, with the sum of their counts.

use std::collections::BTreeMap;
use std::ops::Range;

use super::counts::{Ack, Counts, End};

/// The longest encoded number, in bytes of seven bits.
const NUMBER_BYTES_MAX: usize = 10;
/// The longest encoded run, in bytes.
const RUN_BYTES_MAX: usize = 5 * NUMBER_BYTES_MAX;

/// The runs of one upstream in one lane.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    /// The runs, by their first sequence numbers.
    runs: BTreeMap<u64, Run>,
    totals: Counts,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    /// The sequence number after the last record.
    end: u64,
    counts: Counts,
}

impl Runs {
    /// The number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// The counts of all runs.
    pub fn totals(&self) -> Counts {
        self.totals
    }

    /// The sequence number after the last run.
    pub fn end(&self) -> Option<u64> {
        self.runs.last_key_value().map(|(_, run)| run.end)
    }

    /// The runs, the lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|(start, run)| *start..run.end)
    }

    /// The first number from `seq` on that is in no run.
    pub fn skip(&self, seq: u64) -> u64 {
        match self.runs.range(..=seq).next_back() {
            Some((_, run)) if run.end > seq => run.end,
            _ => seq,
        }
    }

    /// The first number from `seq` on at which a run begins.
    pub fn start_after(&self, seq: u64) -> Option<u64> {
        self.runs.range(seq..).next().map(|(start, _)| *start)
    }

    /// Ends the records of `seqs` that are in no run. The others keep their end.
    pub fn mark(&mut self, seqs: Range<u64>, end: End) {
        let mut at = self.skip(seqs.start);
        while at < seqs.end {
            let until = self.start_after(at).map_or(seqs.end, |start| start.min(seqs.end));
            self.insert(at, Run { end: until, counts: Counts::of(end, until - at) });
            at = self.skip(until);
        }
    }

    /// Removes the first run if it begins at `low`. Returns its end and its counts.
    pub fn take_at(&mut self, low: u64) -> Option<(u64, Counts)> {
        let first = self.runs.first_entry().filter(|first| *first.key() == low)?;
        let run = first.remove();
        self.totals.subtract(run.counts);
        Some((run.end, run.counts))
    }

    /// Removes the runs that begin before `low`.
    pub fn drop_before(&mut self, low: u64) {
        while let Some(first) = self.runs.first_entry().filter(|first| *first.key() < low) {
            let run = first.remove();
            self.totals.subtract(run.counts);
        }
    }

    /// Adds a run that overlaps no other, and joins it with those that it touches.
    fn insert(&mut self, mut start: u64, mut run: Run) {
        self.totals.add(run.counts);
        if let Some((&before, touching)) = self.runs.range(..start).next_back()
            && touching.end == start
        {
            run.counts.add(touching.counts);
            start = before;
        }
        if let Some(behind) = self.runs.remove(&run.end) {
            run.counts.add(behind.counts);
            run.end = behind.end;
        }
        self.runs.insert(start, run);
    }

    /// Appends the runs to `out`, the lowest first, as far as they fit into `bytes_max` bytes.
    /// Returns whether all of them fit. Without `routed`, no run may hold foreign records.
    ///
    /// A run is two numbers: its distance from the run before it (the first run: from `low`), and
    /// twice the number of its delivered records. If it also holds other records, the second number
    /// is one more, and the numbers of its dead, of its lost and, if `routed`, of its foreign
    /// records follow. Numbers have seven bits a byte, the lowest bits first.
    pub fn encode(&self, low: u64, routed: bool, bytes_max: usize, out: &mut Vec<u8>) -> bool {
        let until = out.len() + bytes_max;
        let mut before = low;
        for (start, run) in &self.runs {
            if out.len() + RUN_BYTES_MAX > until {
                return false;
            }
            let Counts { delivered, dead, lost, foreign, .. } = run.counts;
            let others = u64::from(dead + lost + foreign > 0);
            put(start - before, out);
            put(delivered << 1 | others, out);
            if others == 1 {
                put(dead, out);
                put(lost, out);
                if routed {
                    put(foreign, out);
                }
            }
            before = run.end;
        }
        true
    }

    /// Reads runs that [`Runs::encode`] wrote. `None` for bytes that it does not write.
    pub fn decode(mut low: u64, routed: bool, mut bytes: &[u8]) -> Option<Runs> {
        let mut runs = Runs::default();
        while !bytes.is_empty() {
            let start = low.checked_add(take(&mut bytes)?)?;
            let word = take(&mut bytes)?;
            let delivered = Counts::of(End::Acknowledged(Ack::Delivered), word >> 1);
            let mut counts = delivered;
            if word & 1 == 1 {
                counts.dead = take(&mut bytes)?;
                counts.lost = take(&mut bytes)?;
                if routed {
                    counts.foreign = take(&mut bytes)?;
                }
            }
            let end = start.checked_add(counts.ended())?;
            if end == start {
                return None;
            }
            runs.insert(start, Run { end, counts });
            low = end;
        }
        Some(runs)
    }
}

/// Appends a number, seven bits a byte, the lowest bits first.
pub fn put(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number that [`put`] has appended.
pub fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..NUMBER_BYTES_MAX {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DELIVERED: End = End::Acknowledged(Ack::Delivered);
    const DEAD: End = End::Acknowledged(Ack::Dead);

    proptest! {
        #[test]
        fn runs_are_a_set_of_numbers_that_keep_their_first_end(
            marks in proptest::collection::vec((0..200_u64, 0..30_u64, 0..4_usize), 0..40),
            low in 0..150_u64,
        ) {
            let ends = [DELIVERED, DEAD, End::Lost, End::Foreign];
            let mut runs = Runs::default();
            let mut naive: BTreeMap<u64, End> = BTreeMap::new();
            for (start, len, end) in marks {
                runs.mark(start..start + len, ends[end]);
                (start..start + len).for_each(|seq| _ = naive.entry(seq).or_insert(ends[end]));
            }
            let count = |end| naive.values().filter(|other| **other == end).count() as u64;
            let counts = runs.totals();
            prop_assert_eq!(counts.delivered, count(DELIVERED));
            prop_assert_eq!((counts.dead, counts.lost), (count(DEAD), count(End::Lost)));
            prop_assert_eq!(counts.foreign, count(End::Foreign));
            for seq in 0..240 {
                let free = (seq..).find(|seq| !naive.contains_key(seq)).unwrap();
                prop_assert_eq!(runs.skip(seq), free);
            }
            let numbers: Vec<u64> = naive.keys().copied().collect();
            let pairs = numbers.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            prop_assert_eq!(runs.len(), numbers.len() - pairs);

            for routed in [true, counts.foreign > 0] {
                let mut bytes = Vec::new();
                prop_assert!(runs.encode(0, routed, 1 << 20, &mut bytes));
                let read = Runs::decode(0, routed, &bytes).expect("as written");
                prop_assert_eq!(format!("{read:?}"), format!("{runs:?}"));
            }
            runs.drop_before(low);
            prop_assert!(runs.start_after(0).is_none_or(|start| start >= low));
        }

        #[test]
        fn bytes_of_any_kind_decode_to_runs_or_to_none(
            low: u64, routed: bool, bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            _ = Runs::decode(low, routed, &bytes);
        }
    }

    #[test]
    fn ten_million_records_behind_one_are_one_run() {
        let mut runs = Runs::default();
        (0..20_000).for_each(|batch| runs.mark(2 + batch * 500..502 + batch * 500, DELIVERED));
        assert_eq!((runs.len(), runs.totals().delivered), (1, 10_000_000));
        let mut bytes = Vec::new();
        assert!(runs.encode(1, false, RUN_BYTES_MAX, &mut bytes));
        assert!(bytes.len() <= 6, "{bytes:?}");
    }

    #[test]
    fn what_does_not_fit_is_left_out_at_the_end() {
        let mut runs = Runs::default();
        (0..100).for_each(|n| runs.mark(2 * n + 1..2 * n + 2, DELIVERED));
        let mut bytes = Vec::new();
        assert!(!runs.encode(0, false, 120, &mut bytes));
        let read = Runs::decode(0, false, &bytes).expect("whole runs");
        assert!(bytes.len() <= 120 && read.len() > 20, "{} in {}", read.len(), bytes.len());
        assert_eq!(read.skip(1), 2);
    }
}
