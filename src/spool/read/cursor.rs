//! A lane's cursor file: how far each upstream has come.
//!
//! Two slots, written in turn and synced: a write that is torn costs one slot, and the other is
//! about a second older. What an older cursor forgets is read again (at least once). Bytes of a
//! slot, little-endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `pxgcurs1` |
//! | 8 | 4 | crc32c of bytes 12 to the end |
//! | 12 | 4 | length of the whole |
//! | 16 | 8 | generation: the greater one of two sound slots counts |
//! | 24 | 8 | lane |
//! | 32 | 8 | the lane's salt |
//! | 40 | 2, 2 | how many lanes are folded in, how many positions follow |
//! | 44 | 8 + 8 each | number and salt of lanes whose totals are in `carried` already |
//! | | 2 + name | a consumer position: the upstream's name |
//! | | 9 × 8 | start, low, delivered, dead, lost; carried: accepted, delivered, dead, lost |

use std::io;
use std::sync::Arc;

use super::ledger::{ConsumerPosition, Counts};
use crate::spool::format::{u32_at, u64_at};
use crate::spool::fs::{File, read_full, write_full};

/// Bytes of one slot. Holds [`POSITIONS_MAX`] positions with the longest names.
const SLOT_BYTES: usize = 32 << 10;
/// Most upstreams of one spool.
pub const UPSTREAMS_MAX: usize = 64;
/// Most positions of a lane: those of configured upstreams, and of removed ones with events that
/// wait.
pub const POSITIONS_MAX: usize = 120;
/// Longest name of an upstream.
pub const UPSTREAM_NAME_BYTES_MAX: usize = 128;
/// Most folded lanes that may wait for their removal at a time.
pub const ABSORBED_MAX: usize = 512;

const MAGIC: [u8; 8] = *b"pxgcurs1";
const HEADER_BYTES: usize = 44;
const POSITION_WORDS: usize = 9;

const _: () = assert!(
    HEADER_BYTES
        + ABSORBED_MAX * 16
        + POSITIONS_MAX * (2 + UPSTREAM_NAME_BYTES_MAX + POSITION_WORDS * 8)
        <= SLOT_BYTES
);

/// A lane's number and salt: which lane it is, even if a later one got the same number.
pub type LaneKey = (u64, u64);

/// What a slot says.
#[derive(Debug, Clone)]
pub struct Cursor {
    pub lane: u64,
    pub salt: u64,
    /// Lanes whose totals are counted here already.
    pub absorbed: Vec<LaneKey>,
    pub positions: Vec<ConsumerPosition>,
}

/// The open file, and which slot is next.
pub struct CursorFile {
    file: Arc<dyn File>,
    generation: u64,
}

impl CursorFile {
    /// Reads both slots. Neither being sound is no error: then there is no cursor.
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

    /// Writes the older slot and makes it durable. After an error the other slot still stands,
    /// and the next attempt writes this one again.
    pub fn save(&mut self, cursor: &Cursor) -> io::Result<()> {
        let generation = self.generation + 1;
        let bytes = encode(generation, cursor);
        write_full(&*self.file, &bytes, (generation % 2) * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.generation = generation;
        Ok(())
    }
}

/// Offsets of slots that were written and cannot be read.
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

fn encode(generation: u64, cursor: &Cursor) -> Vec<u8> {
    let mut out = vec![0; 16];
    out[0..8].copy_from_slice(&MAGIC);
    for word in [generation, cursor.lane, cursor.salt] {
        out.extend_from_slice(&word.to_le_bytes());
    }
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
        let words: [u64; POSITION_WORDS] = [
            position.start,
            position.low,
            below.delivered,
            below.dead,
            below.lost,
            carried.accepted,
            carried.delivered,
            carried.dead,
            carried.lost,
        ];
        for word in words {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    let len = out.len() as u32;
    out[12..16].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<(u64, Cursor)> {
    let header = bytes.get(..HEADER_BYTES)?;
    let whole = bytes.get(..u32_at(header, 12) as usize)?;
    if header[0..8] != MAGIC || whole.len() < HEADER_BYTES {
        return None;
    }
    if crc32c::crc32c(&whole[12..]) != u32_at(header, 8) {
        return None;
    }
    let (absorbed, positions) = (u16_at(header, 40), u16_at(header, 42));
    let mut rest = &whole[HEADER_BYTES..];
    let absorbed = (0..absorbed)
        .map(|_| Some((take_u64(&mut rest)?, take_u64(&mut rest)?)))
        .collect::<Option<Vec<_>>>()?;
    let positions = (0..positions).map(|_| take_position(&mut rest)).collect::<Option<Vec<_>>>()?;
    let cursor = Cursor { lane: u64_at(header, 24), salt: u64_at(header, 32), absorbed, positions };
    Some((u64_at(header, 16), cursor))
}

fn take_position(rest: &mut &[u8]) -> Option<ConsumerPosition> {
    let name_bytes = usize::from(u16_at(rest.get(..2)?, 0));
    let name = std::str::from_utf8(rest.get(2..2 + name_bytes)?).ok()?;
    *rest = rest.get(2 + name_bytes..)?;
    let mut position = ConsumerPosition::new(name, take_u64(rest)?);
    position.low = take_u64(rest)?;
    position.below.delivered = take_u64(rest)?;
    position.below.dead = take_u64(rest)?;
    position.below.lost = take_u64(rest)?;
    position.carried = Counts {
        accepted: take_u64(rest)?,
        delivered: take_u64(rest)?,
        dead: take_u64(rest)?,
        lost: take_u64(rest)?,
    };
    // The identity, as it was written: a cursor that breaks it was not written by this code.
    let below = position.below;
    let done = below.delivered.checked_add(below.dead)?.checked_add(below.lost)?;
    (position.low.checked_sub(position.start)? == done).then_some(position)
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

    fn cursor(low: u64) -> Cursor {
        let mut position = ConsumerPosition::new("collector", 5);
        position.low = low;
        position.below.delivered = low - 5;
        position.carried = Counts { accepted: 9, delivered: 6, dead: 2, lost: 1 };
        Cursor { lane: 3, salt: 4, absorbed: vec![(1, 8), (2, 9)], positions: vec![position] }
    }

    #[test]
    fn a_slot_reads_back_and_no_flipped_bit_passes() {
        let bytes = encode(8, &cursor(11));
        let (generation, read) = decode(&bytes).expect("sound");
        assert_eq!((generation, read.lane, read.salt), (8, 3, 4));
        assert_eq!(read.absorbed, [(1, 8), (2, 9)]);
        assert_eq!(read.positions[0].low, 11);
        assert_eq!(read.positions[0].carried.accepted, 9);
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
