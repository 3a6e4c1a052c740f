//! The cursor file of a lane: the position of each upstream.
//!
//! The file has two slots that are written in turn and synced. A torn write costs one slot, and the
//! other is about a second older. Records that an older cursor does not count as ended are read
//! again (at least once, SPEC 7). The bytes of a slot, little-endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 40 | magic `pxgcurs1`, or `pxgcurs2` if the lane holds routed records; see `slot.rs` |
//! | 40 | 2, 2 | the number of folded lanes, and of positions, that follow |
//! | 44 | 8 + 8 each | number and salt of lanes whose totals are in `carried` already |
//! | | 2 + name | a consumer position: the upstream's name |
//! | | 9 × 8 | start, low, delivered, dead, lost; carried: accepted, delivered, dead, lost |
//! | | 2 × 8 | only in `pxgcurs2`: foreign records before `low`, and all that are counted |
//! | | 2 + runs | after all positions, for each: the runs above `low`, see `runs.rs` |
//! | | 8 | the number up to which foreign records are counted: that after the last record |
//! | | 2 | the number of removed upstreams that follow |
//! | | 2 + name | a removed upstream that has no position here |
//! | | 4 × 8 | its totals: accepted, delivered, dead, lost |
//! | | 8 | the number of the lane's last segment |
//!
//! Of two sound slots, the one with the greater generation counts. The numbers of the last
//! record and of the last segment prove that the lane had these, if segments are missing.
//!
//! Earlier versions of this program wrote slots without the runs, or without what follows them.
//! They read a slot and ignore the parts that they do not know, so records in a run are delivered
//! again, and the totals of removed upstreams are forgotten.
//! They do not read `pxgcurs2`, nor the records that make it necessary: after a downgrade they read
//! such a lane from its oldest segment. Runs that do not fit are in the upstream's
//! [ack file](super::ack_file).

use std::io;
use std::sync::Arc;

use super::counts::Counts;
use super::ledger::ConsumerPosition;
use super::named_totals::NamedTotals;
use super::runs::Runs;
pub use super::slot::LaneKey;
use super::slot::{self, Kind, Opened};
use crate::spool::format::u64_at;
use crate::spool::fs::{File, FileId, read_full, write_full};

/// The size of one slot, in bytes. It has room for [`POSITIONS_MAX`] positions with the longest
/// names, and for runs.
const SLOT_BYTES: usize = 32 << 10;
/// The most upstreams of one spool.
pub const UPSTREAMS_MAX: usize = 64;
/// The most positions of a lane: those of configured upstreams, and of removed ones. A removed
/// upstream of which only the totals are kept counts as one.
pub const POSITIONS_MAX: usize = 120;
/// The longest name of an upstream, in bytes.
pub const UPSTREAM_NAME_BYTES_MAX: usize = 128;
/// The most folded lanes that may wait for their removal at a time.
pub const ABSORBED_MAX: usize = 384;
const KIND: Kind = Kind { magic: *b"pxgcurs1", magic_routed: *b"pxgcurs2" };
const HEADER_BYTES: usize = 44;
const POSITION_WORDS: usize = 9;
/// The further words of a position in a lane with routed records.
const ROUTED_WORDS: usize = 2;

const _: () = assert!(
    HEADER_BYTES
        + ABSORBED_MAX * 16
        + POSITIONS_MAX * (2 + UPSTREAM_NAME_BYTES_MAX + (POSITION_WORDS + ROUTED_WORDS) * 8 + 2)
        + 8
        + 2
        + 8
        <= SLOT_BYTES
);

/// The content of a slot.
#[derive(Debug, Clone)]
pub struct Cursor {
    pub lane: u64,
    pub salt: u64,
    /// The lanes whose totals are counted here already.
    pub absorbed: Vec<LaneKey>,
    pub positions: Vec<ConsumerPosition>,
    /// Whether a record before `end` is not meant for all upstreams.
    pub routed: bool,
    /// The number after the last record, up to which the positions count foreign records. `None`:
    /// the slot was written by a version that knew no routed records.
    pub end: Option<u64>,
    /// The totals of removed upstreams that have no position here.
    pub removed: NamedTotals,
    /// The number of the lane's last segment; 0 if it has none. `None`: the slot was written by a
    /// version that did not store it.
    pub last_segment: Option<u64>,
}

/// The open file of a lane.
pub struct CursorFile {
    file: Arc<dyn File>,
    generation: u64,
}

impl CursorFile {
    /// Reads both slots. The cursor is `None` if neither slot is sound.
    pub fn load(file: Arc<dyn File>) -> io::Result<(CursorFile, Option<Cursor>)> {
        let mut best: Option<(u64, Cursor)> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES];
            let filled = read_full(&*file, &mut bytes, slot * SLOT_BYTES as u64)?;
            if let Some((generation, cursor)) = decode(&bytes[..filled])
                && best.as_ref().is_none_or(|(newest, _)| generation > *newest)
            {
                best = Some((generation, cursor));
            }
        }
        let generation = best.as_ref().map_or(0, |(generation, _)| *generation);
        Ok((CursorFile { file, generation }, best.map(|(_, cursor)| cursor)))
    }

    /// The identity of the file.
    pub fn id(&self) -> io::Result<FileId> {
        self.file.id()
    }

    /// Goes on with another file, which has the same path and whose slots are older.
    pub fn replace(&mut self, file: Arc<dyn File>) {
        self.file = file;
    }

    /// Writes the older slot and makes it durable. After an error, the other slot is still sound,
    /// and the next attempt writes this one again. Returns the places of the positions whose runs
    /// did not all fit.
    pub fn save(&mut self, cursor: &Cursor) -> io::Result<Vec<usize>> {
        let generation = self.generation + 1;
        let (bytes, cut) = encode(generation, cursor);
        write_full(&*self.file, &bytes, (generation % 2) * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.generation = generation;
        Ok(cut)
    }
}

/// The offsets of slots that were written and cannot be read.
pub fn damaged_slots(file: &dyn File) -> io::Result<Vec<u64>> {
    let mut damaged = Vec::new();
    for slot in 0..2 {
        let mut bytes = vec![0; SLOT_BYTES];
        let offset = slot * SLOT_BYTES as u64;
        let filled = read_full(file, &mut bytes, offset)?;
        let written = bytes.iter().any(|byte| *byte != 0);
        if written && decode(&bytes[..filled]).is_none() {
            damaged.push(offset);
        }
    }
    Ok(damaged)
}

/// The bytes of a slot, and the places of the positions whose runs did not all fit.
fn encode(generation: u64, cursor: &Cursor) -> (Vec<u8>, Vec<usize>) {
    let mut out = KIND.begin(cursor.routed, generation, (cursor.lane, cursor.salt));
    out.extend_from_slice(&(cursor.absorbed.len() as u16).to_le_bytes());
    out.extend_from_slice(&(cursor.positions.len() as u16).to_le_bytes());
    for (lane, salt) in &cursor.absorbed {
        out.extend_from_slice(&lane.to_le_bytes());
        out.extend_from_slice(&salt.to_le_bytes());
    }
    for position in &cursor.positions {
        out.extend_from_slice(&(position.name.len() as u16).to_le_bytes());
        out.extend_from_slice(position.name.as_bytes());
        let (below, carried) = (position.below, position.carried);
        let words: [u64; POSITION_WORDS + ROUTED_WORDS] = [
            position.start,
            position.low,
            below.delivered,
            below.dead,
            below.lost,
            carried.accepted,
            carried.delivered,
            carried.dead,
            carried.lost,
            below.foreign,
            position.foreign,
        ];
        for word in &words[..POSITION_WORDS + if cursor.routed { ROUTED_WORDS } else { 0 }] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    let behind = encode_behind(cursor);
    let cut = encode_runs(cursor, SLOT_BYTES - behind.len(), &mut out);
    out.extend_from_slice(&behind);
    slot::seal(&mut out);
    (out, cut)
}

/// What follows the runs.
fn encode_behind(cursor: &Cursor) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(end) = cursor.end else { return out };
    out.extend_from_slice(&end.to_le_bytes());
    out.extend_from_slice(&(cursor.removed.0.len() as u16).to_le_bytes());
    for (name, totals) in &cursor.removed.0 {
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        for word in [totals.accepted, totals.delivered, totals.dead, totals.lost] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    if let Some(number) = cursor.last_segment {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out
}

/// Appends the runs of each position, which may use its share of the room up to `end`.
fn encode_runs(cursor: &Cursor, end: usize, out: &mut Vec<u8>) -> Vec<usize> {
    let mut cut = Vec::new();
    for (place, position) in cursor.positions.iter().enumerate() {
        let left = cursor.positions.len() - place;
        let share = end.saturating_sub(out.len()) / left;
        let share = share.saturating_sub(2);
        let at = out.len();
        out.extend_from_slice(&[0; 2]);
        if !position.runs().encode(position.low, cursor.routed, share, out) {
            cut.push(place);
        }
        let bytes = (out.len() - at - 2) as u16;
        out[at..at + 2].copy_from_slice(&bytes.to_le_bytes());
    }
    cut
}

fn take_runs(rest: &mut &[u8], low: u64, routed: bool) -> Option<Runs> {
    let bytes = usize::from(u16_at(rest.get(..2)?, 0));
    let runs = Runs::decode(low, routed, rest.get(2..)?.get(..bytes)?)?;
    *rest = &rest[2 + bytes..];
    Some(runs)
}

fn decode(bytes: &[u8]) -> Option<(u64, Cursor)> {
    let Opened { whole, routed, generation, key: (lane, salt) } = KIND.open(bytes)?;
    let header = whole.get(..HEADER_BYTES)?;
    let (absorbed, positions) = (u16_at(header, 40), u16_at(header, 42));
    let mut rest = &whole[HEADER_BYTES..];
    let absorbed = (0..absorbed)
        .map(|_| Some((take_u64(&mut rest)?, take_u64(&mut rest)?)))
        .collect::<Option<Vec<_>>>()?;
    let mut positions =
        (0..positions).map(|_| take_position(&mut rest, routed)).collect::<Option<Vec<_>>>()?;
    if !rest.is_empty() {
        for position in &mut positions {
            position.resume_runs(take_runs(&mut rest, position.low, routed)?);
        }
    }
    let end = take_u64(&mut rest);
    let removed = match take_u16(&mut rest) {
        None => NamedTotals::default(),
        Some(removed) => take_totals(&mut rest, removed)?,
    };
    let last_segment = take_u64(&mut rest);
    let cursor = Cursor { lane, salt, absorbed, positions, routed, end, removed, last_segment };
    Some((generation, cursor))
}

fn take_position(rest: &mut &[u8], routed: bool) -> Option<ConsumerPosition> {
    let name = take_name(rest)?;
    let position = ConsumerPosition::new(&name, take_u64(rest)?);
    let low = take_u64(rest)?;
    let mut below = Counts::default();
    for count in [&mut below.delivered, &mut below.dead, &mut below.lost] {
        *count = take_u64(rest)?;
    }
    let carried = take_counts(rest)?;
    let mut foreign = 0;
    if routed {
        (below.foreign, foreign) = (take_u64(rest)?, take_u64(rest)?);
    }
    let mut position = position.resume(low, below, Runs::default())?;
    (position.carried, position.foreign) = (carried, foreign);
    Some(position)
}

fn take_name(rest: &mut &[u8]) -> Option<String> {
    let bytes = usize::from(take_u16(rest)?);
    let (name, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    std::str::from_utf8(name).ok().map(str::to_owned)
}

fn take_totals(rest: &mut &[u8], upstreams: u16) -> Option<NamedTotals> {
    let totals = (0..upstreams).map(|_| Some((take_name(rest)?, take_counts(rest)?)));
    totals.collect::<Option<_>>().map(NamedTotals)
}

fn take_counts(rest: &mut &[u8]) -> Option<Counts> {
    Some(Counts {
        accepted: take_u64(rest)?,
        delivered: take_u64(rest)?,
        dead: take_u64(rest)?,
        lost: take_u64(rest)?,
        foreign: 0,
    })
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    let (word, behind) = rest.split_at_checked(2)?;
    *rest = behind;
    Some(u16_at(word, 0))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (word, behind) = rest.split_at_checked(8)?;
    *rest = behind;
    Some(u64_at(word, 0))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::fs::{Fs, Open, SystemFs};
    use crate::spool::read::counts::Ack;

    fn cursor(low: u64) -> Cursor {
        let below = Counts { delivered: low - 5, ..Counts::default() };
        let position = ConsumerPosition::new("collector", 5);
        let mut position = position.resume(low, below, Runs::default()).expect("sound");
        let carried = Counts { accepted: 9, delivered: 6, dead: 2, lost: 1, foreign: 0 };
        position.carried = carried;
        position.hand_out(30);
        position.settle(low + 3..low + 7, Ack::Delivered);
        position.settle(low + 9..low + 10, Ack::Dead);
        let (absorbed, positions) = (vec![(1, 8), (2, 9)], vec![position]);
        let removed = NamedTotals(vec![("gone".into(), Counts { accepted: 7, ..carried })]);
        let (routed, end, last_segment) = (false, Some(30), Some(7));
        Cursor { lane: 3, salt: 4, absorbed, positions, routed, end, removed, last_segment }
    }

    /// The same slot as versions wrote it that knew neither runs nor routed records.
    fn without_runs(mut bytes: Vec<u8>, runs_bytes: usize) -> Vec<u8> {
        bytes.truncate(bytes.len() - runs_bytes);
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_slot_of_a_version_without_runs_is_read_and_its_place_is_the_same() {
        let (bytes, _) = encode(8, &cursor(11));
        let removed_bytes = 2 + 2 + "gone".len() + 4 * 8;
        let runs_bytes = 2 + 2 + 4 + 8 + removed_bytes + 8;
        let (_, old) = decode(&without_runs(bytes, runs_bytes)).expect("sound");
        assert_eq!((old.positions[0].low, old.positions[0].runs().len()), (11, 0));
        assert_eq!((old.end, old.last_segment), (None, None));
        assert_eq!(old.positions[0].carried.accepted, 9);
    }

    #[test]
    fn runs_that_do_not_fit_are_left_out_and_named() {
        let mut many = cursor(11);
        let mut position = ConsumerPosition::new("many", 5);
        position.hand_out(60_000);
        (10..30_000).for_each(|n| position.settle(2 * n..2 * n + 1, Ack::Delivered));
        many.positions.insert(0, position);
        let (bytes, cut) = encode(8, &many);
        assert_eq!(cut, [0]);
        assert!(bytes.len() <= SLOT_BYTES);
        let (_, read) = decode(&bytes).expect("sound");
        assert!(read.positions[0].runs().len() > 5_000);
        assert_eq!(read.positions[1].runs().len(), 2);
    }

    #[test]
    fn a_slot_reads_back_and_no_flipped_bit_passes() {
        let (bytes, cut) = encode(8, &cursor(11));
        assert_eq!(cut, [0; 0]);
        let (generation, read) = decode(&bytes).expect("sound");
        assert_eq!((generation, read.lane, read.salt), (8, 3, 4));
        assert_eq!(read.absorbed, [(1, 8), (2, 9)]);
        assert_eq!(read.positions[0].low, 11);
        assert_eq!(read.positions[0].carried.accepted, 9);
        assert_eq!(read.removed, cursor(11).removed);
        assert_eq!(read.positions[0].next(), 11..14);
        let runs = read.positions[0].runs();
        assert_eq!((runs.len(), runs.totals().delivered, runs.totals().dead), (2, 4, 1));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_none(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_none(), "cut {cut}");
        }
    }

    #[test]
    fn a_slot_of_a_lane_with_routed_records_reads_back() {
        let mut routed = Cursor { routed: true, ..cursor(11) };
        routed.positions[0].pass_over(11..14);
        routed.positions[0].pass_over(20..22);
        routed.positions[0].foreign = 8;
        assert!(routed.positions[0].advance());
        let (bytes, _) = encode(8, &routed);
        let (_, read) = decode(&bytes).expect("sound");
        assert_eq!((read.routed, read.end, read.last_segment), (true, Some(30), Some(7)));
        assert_eq!(format!("{:?}", read.positions), {
            let mut expect = routed.positions[0].clone();
            // It goes on behind `low`.
            expect.resume_runs(expect.runs().clone());
            format!("{:?}", [expect])
        });
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_newest_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cursor");
        let open = || SystemFs.open(&path, Open::Ensure).expect("opens");
        let (mut file, none) = CursorFile::load(open()).expect("reads");
        assert!(none.is_none());
        for low in [5, 6, 7] {
            file.save(&cursor(low)).expect("saves");
        }
        let low = || CursorFile::load(open()).expect("reads").1.map(|c| c.positions[0].low);
        assert_eq!(low(), Some(7));
        open().write_at(&[0xff], SLOT_BYTES as u64 + 20).expect("damages");
        assert_eq!(low(), Some(6));
        open().write_at(&[0xff], 20).expect("damages");
        assert_eq!(low(), None);
    }
}
