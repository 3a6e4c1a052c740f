//! Writes and reads the bytes of a lane's `portals` file. Does no I/O.
//!
//! All integers are little-endian. A *number* has seven bits in each byte, the lowest first. A
//! *name* is its length in one byte and then its bytes. The file is a header, then entries, then
//! zeros. The first entries are a summary of all earlier ones.
//!
//! | header, at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `pxgmetr1` |
//! | 8 | 8 + 8 | number and salt of the lane |
//! | 24 | 8 | since when its counts are complete, in milliseconds since 1970; 0: always |
//! | 32 | 4 | crc32c of bytes 0 to 31 |
//!
//! | entry, at | bytes | |
//! |---|---|---|
//! | 0 | 4 | crc32c of all that follows, and of the lane's salt |
//! | 4 | 4 | length of the items |
//! | 8 | | items, each with its kind in the first byte |
//!
//! | item | bytes | |
//! |---|---|---|
//! | 1 | 1, 4, name, 4 | counts: column, day, upstream, how many follow |
//! | | 2 numbers each | a portal (0: other) and its events, to be added |
//! | 2 | 8, 2 | up to which record accepted records are counted; how many positions follow |
//! | | name, 6 × 8 | upstream; start, low, delivered, dead, lost, foreign as in the cursor file |
//! | | 4 + runs | length and runs of the records that have ended above `low`, see `read/runs.rs` |
//! | 3 | name, 4 | records that will go to the upstream's dead letters: how many ranges follow |
//! | | 2 × 8 each | the first record of the range, and the one after the last |
//! | 4 | 8 + 8 | number and salt of a folded lane, to which the rest of the entry belongs |
//!
//! An entry counts as a whole or not at all. Columns: 1 accepted on `day` (0: any), 2 rejected,
//! 3 delivered, 4 dead, 5 accepted on `day` and also counted in column 1.

use super::counts::Column;
use crate::spool::format::{u32_at, u64_at};
use crate::spool::read::counts::Counts;
use crate::spool::read::cursor::LaneKey;
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::read::runs::{self, Runs};

/// The length of the file's header, in bytes.
pub const HEADER_BYTES: usize = 36;
const MAGIC: [u8; 8] = *b"pxgmetr1";
/// The length of an entry's header, in bytes.
pub const ENTRY_HEADER_BYTES: usize = 8;
/// The most bytes of the runs of an encoded position.
const RUNS_BYTES_MAX: usize = 16 << 20;

const COUNTS: u8 = 1;
const MARKS: u8 = 2;
const DEAD: u8 = 3;
const FOLD: u8 = 4;

/// Up to which record a file counts.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Accepted records before this one are counted.
    pub counted_to: u64,
    /// The position of each upstream, up to which ended records are counted.
    pub positions: Vec<ConsumerPosition>,
}

impl Marks {
    /// Returns the record before which every record is counted completely: as accepted and, for
    /// each upstream, as ended.
    pub fn low(&self) -> u64 {
        self.positions.iter().map(|position| position.low).fold(self.counted_to, u64::min)
    }
}

/// One item of an entry.
#[derive(Debug)]
pub enum Item<'a> {
    /// The counts of one column.
    Counts {
        column: RawColumn<'a>,
        /// Portals and their events.
        pairs: Vec<(u64, u64)>,
    },
    /// Up to which record the file counts.
    Marks(Marks),
    /// Records that will go to the upstream's dead letters.
    Dead { upstream: &'a str, ranges: Vec<std::ops::Range<u64>> },
    /// The rest of the entry belongs to this folded lane.
    Fold(LaneKey),
}

/// A column in the form in which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawColumn<'a> {
    kind: u8,
    day: u32,
    pub upstream: &'a str,
}

impl<'a> RawColumn<'a> {
    /// Returns the written form of a column. `name` returns the name of the upstream at a place.
    pub fn of(column: Column, name: impl FnOnce(usize) -> &'a str) -> RawColumn<'a> {
        let (kind, day, upstream) = match column {
            Column::Accepted(day) => (1, day, ""),
            Column::Rejected => (2, 0, ""),
            Column::Delivered(place) => (3, 0, name(place)),
            Column::Dead(place) => (4, 0, name(place)),
            Column::Today(day) => (5, day, ""),
        };
        RawColumn { kind, day, upstream }
    }

    /// Returns the column, or `None` if a later version wrote one that this version does not know.
    /// `place` returns the place of an upstream's name.
    pub fn column(&self, place: impl FnOnce(&str) -> usize) -> Option<Column> {
        Some(match self.kind {
            1 => Column::Accepted(self.day),
            2 => Column::Rejected,
            3 => Column::Delivered(place(self.upstream)),
            4 => Column::Dead(place(self.upstream)),
            5 => Column::Today(self.day),
            _ => return None,
        })
    }
}

/// Returns the header of a file.
pub fn header((lane, salt): LaneKey, since_ms: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for word in [lane, salt, since_ms] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

/// Reads the header. Returns the time from which the counts are complete, or `None` if the header
/// is not that of this lane.
pub fn read_header(bytes: &[u8], (lane, salt): LaneKey) -> Option<u64> {
    let header = bytes.get(..HEADER_BYTES)?;
    let is_sound = header[..8] == MAGIC
        && (u64_at(header, 8), u64_at(header, 16)) == (lane, salt)
        && u32_at(header, 32) == crc32c::crc32c(&header[..32]);
    is_sound.then(|| u64_at(header, 24))
}

/// Begins an entry in `out`. Returns its offset for [`end_entry`].
pub fn begin_entry(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; ENTRY_HEADER_BYTES]);
    at
}

/// Ends the entry that begins at `at`, after its items were appended.
pub fn end_entry(out: &mut [u8], at: usize, salt: u64) {
    let bytes = (out.len() - at - ENTRY_HEADER_BYTES) as u32;
    out[at + 4..at + 8].copy_from_slice(&bytes.to_le_bytes());
    let crc = seal(&out[at + 4..], salt);
    out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn seal(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), &salt.to_le_bytes())
}

/// Returns the items of the entry at the start of `bytes`, and the size of the whole entry. Returns
/// `None` if no sound entry is there.
pub fn entry(bytes: &[u8], salt: u64) -> Option<(&[u8], usize)> {
    let header = bytes.get(..ENTRY_HEADER_BYTES)?;
    let len = u32_at(header, 4) as usize;
    let whole = bytes.get(..ENTRY_HEADER_BYTES.checked_add(len)?)?;
    let is_sound = len > 0 && seal(&whole[4..], salt) == u32_at(header, 0);
    is_sound.then(|| (&whole[ENTRY_HEADER_BYTES..], whole.len()))
}

/// Returns the size of the entry that begins with this header. `None` if there is none.
pub fn entry_bytes(header: &[u8]) -> Option<usize> {
    let header = header.get(..ENTRY_HEADER_BYTES)?;
    let len = u32_at(header, 4) as usize;
    (len > 0).then(|| ENTRY_HEADER_BYTES.saturating_add(len))
}

/// Returns the offset of the last entry of a file whose entries are sound to its end; 0 if it has
/// none.
pub fn last_entry(bytes: &[u8], salt: u64) -> usize {
    let (mut last, mut at) = (0, HEADER_BYTES);
    while let Some((_, whole)) = bytes.get(at..).and_then(|rest| entry(rest, salt)) {
        (last, at) = (at, at + whole);
    }
    last
}

/// Returns the offset at which the entries of a file end, and whether a sound entry follows later.
/// If one does, the bytes in between are damaged; if not, the last write was torn.
pub fn end_of_entries(bytes: &[u8], salt: u64) -> (usize, bool) {
    let mut at = HEADER_BYTES;
    while let Some((_, whole)) = bytes.get(at..).and_then(|rest| entry(rest, salt)) {
        at += whole;
    }
    let last = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let is_damaged = (at + 1..last).any(|from| entry(&bytes[from..], salt).is_some());
    (at, is_damaged)
}

/// Appends the counts of one column.
pub fn put_counts(
    column: RawColumn<'_>,
    pairs: impl ExactSizeIterator<Item = (u64, u64)>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&[COUNTS, column.kind]);
    out.extend_from_slice(&column.day.to_le_bytes());
    put_name(column.upstream, out);
    out.extend_from_slice(&(pairs.len() as u32).to_le_bytes());
    for (portal, events) in pairs {
        runs::put(portal, out);
        runs::put(events, out);
    }
}

/// Appends up to which record the file counts.
pub fn put_marks(marks: &Marks, out: &mut Vec<u8>) {
    out.push(MARKS);
    out.extend_from_slice(&marks.counted_to.to_le_bytes());
    out.extend_from_slice(&(marks.positions.len() as u16).to_le_bytes());
    for position in &marks.positions {
        put_name(&position.name, out);
        let Counts { delivered, dead, lost, foreign, .. } = position.below;
        for word in [position.start, position.low, delivered, dead, lost, foreign] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        // All runs fit: see `RUNS_MAX`.
        _ = position.runs().encode(position.low, true, RUNS_BYTES_MAX, out);
        let bytes = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
    }
}

/// Appends the records that will go to an upstream's dead letters.
pub fn put_dead(upstream: &str, ranges: &[std::ops::Range<u64>], out: &mut Vec<u8>) {
    out.push(DEAD);
    put_name(upstream, out);
    out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.to_le_bytes());
    }
}

/// Appends that the rest of the entry belongs to a folded lane.
pub fn put_fold((lane, salt): LaneKey, out: &mut Vec<u8>) {
    out.push(FOLD);
    out.extend_from_slice(&lane.to_le_bytes());
    out.extend_from_slice(&salt.to_le_bytes());
}

/// Takes the next item. Returns `None` at the end, and for an item that this version does not know.
pub fn take_item<'a>(rest: &mut &'a [u8]) -> Option<Item<'a>> {
    Some(match take::<1>(rest)?[0] {
        COUNTS => {
            let [kind] = take::<1>(rest)?;
            let day = u32::from_le_bytes(take(rest)?);
            let upstream = take_name(rest)?;
            let count = u32::from_le_bytes(take(rest)?) as usize;
            // Each pair has at least two bytes, so a damaged count cannot reserve more memory.
            let mut pairs = Vec::with_capacity(count.min(rest.len() / 2));
            for _ in 0..count {
                pairs.push((runs::take(rest)?, runs::take(rest)?));
            }
            Item::Counts { column: RawColumn { kind, day, upstream }, pairs }
        }
        MARKS => {
            let counted_to = u64::from_le_bytes(take(rest)?);
            let count = u16::from_le_bytes(take(rest)?);
            let positions = (0..count).map(|_| take_position(rest)).collect::<Option<Vec<_>>>()?;
            Item::Marks(Marks { counted_to, positions })
        }
        DEAD => {
            let upstream = take_name(rest)?;
            let count = u32::from_le_bytes(take(rest)?);
            let mut ranges = Vec::new();
            for _ in 0..count {
                ranges.push(u64::from_le_bytes(take(rest)?)..u64::from_le_bytes(take(rest)?));
            }
            Item::Dead { upstream, ranges }
        }
        FOLD => Item::Fold((u64::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?))),
        _ => return None,
    })
}

fn take_position(rest: &mut &[u8]) -> Option<ConsumerPosition> {
    let name = take_name(rest)?;
    let mut words = [0; 6];
    for word in &mut words {
        *word = u64::from_le_bytes(take(rest)?);
    }
    let [start, low, delivered, dead, lost, foreign] = words;
    let bytes = u32::from_le_bytes(take(rest)?) as usize;
    let (encoded, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    let below = Counts { accepted: 0, delivered, dead, lost, foreign };
    ConsumerPosition::new(name, start).resume(low, below, Runs::decode(low, true, encoded)?)
}

fn put_name(name: &str, out: &mut Vec<u8>) {
    // The name of an upstream has at most 128 bytes.
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn take_name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let bytes = usize::from(take::<1>(rest)?[0]);
    let (name, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    std::str::from_utf8(name).ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*bytes)
}
