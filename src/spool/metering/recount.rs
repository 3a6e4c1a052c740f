//! Counts the records of a lane that its `portals` file does not count yet, at a start.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::book::Book;
use super::counts::{Column, Tallies};
use super::format::Marks;
use super::table::OTHER;
use crate::spool::fs::Fs;
use crate::spool::read::counts::Counts;
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::recovery::count_foreign::{Stretch, scan};
use crate::spool::routing::Routing;

/// A lane as a start found it, and up to which record its file counts.
pub struct FoundLane<'a> {
    pub fs: &'a dyn Fs,
    pub dir: &'a Path,
    pub salt: u64,
    /// All segments of the lane.
    pub stretches: &'a [Stretch],
    /// The number after that of the last record.
    pub end: u64,
    pub positions: &'a [ConsumerPosition],
    pub marks: Option<&'a Marks>,
    pub dead: &'a BTreeMap<String, Vec<Range<u64>>>,
    pub routing: &'a Routing,
}

/// The result of a recount.
pub struct Recounted {
    /// The counts that the file does not have.
    pub counts: Tallies,
    /// Whether records that the file does not count are missing.
    pub has_gap: bool,
}

/// The records that have ended for one upstream, and whose end is not counted yet.
struct Uncounted<'a> {
    name: &'a str,
    place: usize,
    ranges: Vec<Range<u64>>,
    /// The records that the file names as dead letters.
    dead: Vec<Range<u64>>,
    /// How many of the remaining records went to the dead letters, and how many were delivered.
    dead_left: u64,
    delivered_left: u64,
    /// How many records of `ranges` were not read, although the lane should hold them.
    unread: u64,
}

impl Uncounted<'_> {
    /// Returns whether a record was delivered or went to the dead letters. The names in the file
    /// are only a hint: a named record may have been delivered in the end, and an earlier version
    /// named none. The sums are always those of the position.
    fn column(&mut self, seq: u64) -> Column {
        let is_dead = self.dead_left > 0 && (has(&self.dead, seq) || self.delivered_left == 0);
        let left = if is_dead { &mut self.dead_left } else { &mut self.delivered_left };
        *left = left.saturating_sub(1);
        if is_dead { Column::Dead(self.place) } else { Column::Delivered(self.place) }
    }

    /// Counts the records that were not read under [`OTHER`], because their portal is unknown.
    fn count_unread(&self, counts: &mut Tallies) {
        let dead = self.dead_left.min(self.unread);
        let delivered = self.delivered_left.min(self.unread - dead);
        counts.tally(Column::Dead(self.place)).add(OTHER, dead);
        counts.tally(Column::Delivered(self.place)).add(OTHER, delivered);
    }
}

/// Reads and counts the records that are not counted yet.
///
/// # Errors
///
/// The error of the file system. A missing segment is not an error.
pub fn recount(found: &FoundLane<'_>, book: &Book) -> io::Result<Recounted> {
    let counted_to = found.marks.map_or(0, |marks| marks.counted_to);
    let oldest = found.stretches.first().map_or(found.end, |(_, seqs)| seqs.start);
    let positions = found.positions.iter();
    let mut uncounted: Vec<Uncounted<'_>> =
        positions.map(|position| uncounted(position, found, oldest, book)).collect();
    let firsts = uncounted.iter().filter_map(|upstream| upstream.ranges.first());
    let first = firsts.map(|range| range.start).fold(counted_to.min(found.end), u64::min);
    let has_gap = found.marks.is_some() && first < oldest;
    let mut counts = Tallies::default();
    let (mut accepted, mut numbers) = (0, book.numbering());
    for stretch in found.stretches {
        let seqs = &stretch.1;
        let meets = |range: &Range<u64>| range.start < seqs.end && seqs.start < range.end;
        let is_needed = counted_to < seqs.end
            || uncounted.iter().any(|upstream| upstream.ranges.iter().any(meets));
        if !is_needed {
            continue;
        }
        let scanned = scan(found.fs, found.dir, found.salt, stretch, |seq, record| {
            let (number, day) = numbers.number(record);
            if seq >= counted_to {
                counts.tally(Column::Accepted(day)).add(number, 1);
                accepted += 1;
            }
            for upstream in &mut uncounted {
                if !has(&upstream.ranges, seq) {
                    continue;
                }
                upstream.unread = upstream.unread.saturating_sub(1);
                if !found.routing.is_foreign(record, upstream.name) {
                    let column = upstream.column(seq);
                    counts.tally(column).add(number, 1);
                }
            }
        });
        match scanned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    // The portal of a damaged or missing record is unknown.
    let from = counted_to.max(oldest);
    let unread = found.end.saturating_sub(from).saturating_sub(accepted);
    counts.tally(Column::Accepted(0)).add(OTHER, unread);
    uncounted.iter().for_each(|upstream| upstream.count_unread(&mut counts));
    Ok(Recounted { counts, has_gap })
}

fn uncounted<'a>(
    position: &'a ConsumerPosition,
    found: &FoundLane<'a>,
    oldest: u64,
    book: &Book,
) -> Uncounted<'a> {
    let mark = found.marks.and_then(|marks| {
        marks
            .positions
            .iter()
            .find(|mark| mark.name == position.name && mark.start == position.start)
    });
    let counted: Vec<Range<u64>> = mark.map_or(Vec::new(), |mark| mark.ended().collect());
    let sum = |of: fn(&Counts) -> u64| {
        let sum = |position: &ConsumerPosition| {
            of(&position.below).saturating_add(of(&position.runs().totals()))
        };
        sum(position).saturating_sub(mark.map_or(0, sum))
    };
    let named = found.dead.get(&position.name);
    let ranges = without(position.ended(), &counted);
    let held = |range: &Range<u64>| range.end.saturating_sub(range.start.max(oldest));
    Uncounted {
        name: &position.name,
        place: book.name(&position.name),
        unread: ranges.iter().map(held).sum(),
        ranges,
        dead: named.map_or(Vec::new(), |ranges| joined(ranges)),
        dead_left: sum(|ended| ended.dead),
        delivered_left: sum(|ended| ended.delivered),
    }
}

/// Returns the numbers that are in `all` and not in `taken`. Both are sorted and without overlaps.
fn without(all: impl Iterator<Item = Range<u64>>, taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut taken = taken.iter().peekable();
    for mut range in all {
        while let Some(hole) = taken.peek() {
            if hole.start >= range.end {
                break;
            }
            if range.start < hole.start {
                left.push(range.start..hole.start);
            }
            range.start = range.start.max(hole.end);
            if hole.end > range.end {
                break;
            }
            taken.next();
        }
        if range.start < range.end {
            left.push(range);
        }
    }
    left
}

/// Returns the same numbers in sorted ranges without overlaps.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.start);
    sorted.dedup_by(|range, kept| {
        let touches = range.start <= kept.end;
        kept.end = if touches { kept.end.max(range.end) } else { kept.end };
        touches
    });
    sorted
}

/// Whether a number is in one of these sorted ranges.
fn has(ranges: &[Range<u64>], seq: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= seq);
    behind.checked_sub(1).is_some_and(|at| seq < ranges[at].end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(seqs: &[bool]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (seq, _) in seqs.iter().enumerate().filter(|(_, is_in)| **is_in) {
            let seq = seq as u64;
            match ranges.last_mut() {
                Some(last) if last.end == seq => last.end += 1,
                _ => ranges.push(seq..seq + 1),
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn what_is_left_is_in_the_one_and_not_in_the_other(
            seqs in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..40),
        ) {
            let (all, taken): (Vec<bool>, Vec<bool>) = seqs.iter().copied().unzip();
            let left: Vec<bool> = seqs.iter().map(|(all, taken)| *all && !taken).collect();
            prop_assert_eq!(without(ranges(&all).into_iter(), &ranges(&taken)), ranges(&left));
        }
    }
}
