//! Taking over the lane of a process that is gone.
//!
//! Only the last segment is read here, to find where the lane ends; a damaged spot elsewhere is
//! found, quarantined and counted by the readers when they come to it. So a start costs one
//! segment however much is waiting. Nothing here fails because of what a file holds: an error
//! means that the disk did not answer, and then the lane is tried again later.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::quarantine::Quarantine;
use crate::spool::format::{
    ChecksumSeed, Found, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeader, probe, u32_at, u64_at,
};
use crate::spool::fs::{File, Fs, Open, read_full};
use crate::spool::lane::{CURSOR, IDENTITY, Lane, lane_dir, remove_leftovers, segment_number};
use crate::spool::read::ack_file;
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey, POSITIONS_MAX};
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::read::scanner::{Scanner, Step, first_record};
use crate::spool::segment_index::SegmentIndex;

/// What is known of a segment before its records are read.
pub(crate) struct Segment {
    pub number: u64,
    pub base: u64,
    pub bytes: u64,
    pub recycled: bool,
}

/// A lane that was taken over, and the lanes whose totals it says it has in it.
pub struct Adopted {
    pub lane: Lane,
    pub absorbed: Vec<LaneKey>,
}

/// Takes a lane over if its process is gone; `None` if it lives.
pub fn adopt(
    fs: &Arc<dyn Fs>,
    root: &Path,
    id: u64,
    upstreams: &[String],
    quarantine: &Quarantine,
) -> io::Result<Option<Adopted>> {
    let dir = lane_dir(root, id);
    let lock = fs.open(&dir.join(IDENTITY), Open::Ensure)?;
    if !lock.try_lock()? {
        return Ok(None);
    }
    let (cursor_file, cursor) = CursorFile::load(fs.open(&dir.join(CURSOR), Open::Ensure)?)?;
    let cursor = cursor.filter(|cursor| cursor.lane == id);
    let salt = salt(&**fs, &dir, id, &*lock, cursor.as_ref())?;
    remove_leftovers(&**fs, &dir)?;
    let segments = survey(&**fs, &dir, id, salt, Some(quarantine))?;
    let segment_index = rebuild(&**fs, &dir, id, salt, &segments, quarantine)?;
    let resume = |position| ack_file::resume(&**fs, &dir, (id, salt), position);
    let (segment_index, positions) =
        restore_positions(segment_index, cursor.as_ref(), upstreams, resume)?;
    if positions.len() > POSITIONS_MAX {
        let what = "events wait for too many removed upstreams: `pixelgate spool forget` them";
        return Err(io::Error::other(what));
    }
    let absorbed = cursor.map(|cursor| cursor.absorbed).unwrap_or_default();
    let lane = Lane::assemble(
        Arc::clone(fs),
        (id, dir),
        salt,
        lock,
        cursor_file,
        segment_index,
        positions,
    );
    Ok(Some(Adopted { lane, absorbed }))
}

/// The lane's salt: it stands in the identity, in each cursor slot and in each segment, and any
/// of them is enough.
pub(crate) fn salt(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    identity: &dyn File,
    cursor: Option<&Cursor>,
) -> io::Result<u64> {
    if let Some(header) = header(identity)?
        && header.lane == id
    {
        return Ok(header.salt);
    }
    if let Some(cursor) = cursor {
        return Ok(cursor.salt);
    }
    for entry in fs.list(dir)? {
        if segment_number(&entry.name).is_some()
            && let Some(header) = header(&*fs.open(&dir.join(&entry.name), Open::Read)?)?
            && header.lane == id
        {
            return Ok(header.salt);
        }
    }
    Ok(0)
}

pub(crate) fn header(file: &dyn File) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let filled = read_full(file, &mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes[..filled]))
}

/// The segments of a lane in order. A file that is none is moved to the quarantine, if one is
/// given, and left out.
pub(crate) fn survey(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    salt: u64,
    quarantine: Option<&Quarantine>,
) -> io::Result<Vec<Segment>> {
    let mut files: Vec<_> = fs
        .list(dir)?
        .into_iter()
        .filter_map(|entry| segment_number(&entry.name).map(|number| (number, entry)))
        .collect();
    files.sort_by_key(|(number, _)| *number);
    let mut segments: Vec<Segment> = Vec::new();
    for (number, entry) in files {
        let path = dir.join(&entry.name);
        let file = fs.open(&path, Open::Read)?;
        let found = match header(&*file)? {
            Some(header) if header.lane == id && header.number == number => {
                Some((header.base_seq, header.recycled))
            }
            // A sound header of another lane or segment: copied here by mistake.
            Some(_) => None,
            // Its header is damaged, its records need not be.
            None => first_record(&*file, ChecksumSeed::new(salt, number), entry.bytes)?
                .map(|(_, seq)| (seq, true)),
        };
        let least = segments.last().map_or(0, |before| before.base);
        match found {
            Some((base, recycled)) if base >= least => {
                segments.push(Segment { number, base, bytes: entry.bytes, recycled });
            }
            _ => {
                if let Some(quarantine) = quarantine {
                    quarantine.take(id, number, &path, entry.bytes);
                }
            }
        }
    }
    Ok(segments)
}

/// The lane's log, up to its last sound record; what is behind it is cut off.
fn rebuild(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    salt: u64,
    segments: &[Segment],
    quarantine: &Quarantine,
) -> io::Result<SegmentIndex> {
    let mut segment_index = SegmentIndex::new(segments.first().map_or(1, |first| first.base));
    for segment in segments {
        segment_index.push(segment.number, segment.base, segment.recycled, segment.bytes);
    }
    let Some(last) = segments.last() else { return Ok(segment_index) };
    let path = dir.join(crate::spool::lane::segment_name(last.number));
    let file = fs.open(&path, Open::Write)?;
    let (offset, end) = scan_to_end(&*file, last, salt)?;
    if let Some(torn) = torn_bytes(&*file, last, salt, offset, end)? {
        quarantine.keep(id, last.number, &*file, torn);
    }
    if offset < last.bytes {
        // Gives the unused part of a preallocated segment back. Not needed to be right.
        if let Err(error) = file.set_len(offset) {
            ::log::warn!("spool: lane {id}, segment {}, could not be cut: {error}", last.number);
        }
    }
    segment_index.publish(offset, end);
    Ok(segment_index)
}

/// Where the sound records of the last segment end: offset and sequence number.
pub(crate) fn scan_to_end(file: &dyn File, last: &Segment, salt: u64) -> io::Result<(u64, u64)> {
    let mut scanner = Scanner::new(last.number, salt, last.base);
    loop {
        match scanner.step(file, last.bytes, u64::MAX)? {
            Step::Record { .. } | Step::Gap { .. } => {}
            Step::Tail | Step::End => return Ok((scanner.offset, scanner.seq)),
        }
    }
}

/// The bytes behind the last sound record that are damage: a torn record, or one with a flipped
/// bit. In a file that was never another segment any byte but zero is; in a recycled one only
/// what still looks like the record that is due.
pub(crate) fn torn_bytes(
    file: &dyn File,
    last: &Segment,
    salt: u64,
    offset: u64,
    end: u64,
) -> io::Result<Option<std::ops::Range<u64>>> {
    if last.recycled {
        let mut bytes = vec![0; RECORD_HEADER_BYTES + RECORD_BYTES_MAX];
        let filled = read_full(file, &mut bytes, offset)?;
        bytes.truncate(filled);
        return Ok(due_record(&mut bytes, ChecksumSeed::new(salt, last.number), end)
            .map(|bytes| offset..last.bytes.min(offset + bytes as u64)));
    }
    let mut until = None;
    let mut at = offset;
    let mut block = vec![0; 1 << 20];
    while at < last.bytes {
        let want = block.len().min((last.bytes - at) as usize);
        let filled = read_full(file, &mut block[..want], at)?;
        if filled == 0 {
            break;
        }
        if let Some(nonzero) = block[..filled].iter().rposition(|byte| *byte != 0) {
            until = Some(at + nonzero as u64 + 1);
        }
        at += filled as u64;
    }
    Ok(until.map(|until| offset..until))
}

/// Whether these bytes begin with what is left of record `seq`, and how long it says it is.
fn due_record(bytes: &mut [u8], seed: ChecksumSeed, seq: u64) -> Option<usize> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return None;
    }
    let len = u32_at(bytes, 4) as usize;
    let whole = RECORD_HEADER_BYTES + len;
    if (1..=RECORD_BYTES_MAX).contains(&len) && u64_at(bytes, 8) == seq {
        return Some(whole);
    }
    // Its number may be what was damaged.
    bytes[8..16].copy_from_slice(&seq.to_le_bytes());
    matches!(probe(bytes, seed, seq..seq + 1), Found::Record { .. }).then_some(whole)
}

/// The positions of the upstreams, and the index sealed at its end: first those of the configured
/// upstreams, in their order, then those of removed ones for which events wait here.
///
/// An upstream that the cursor does not know begins at the oldest record that any upstream of the
/// lane still waited for: under a new name nothing that was pending is lost, and a newcomer does
/// not get what the others are through with. `resume` adds what the cursor is too old to know.
fn restore_positions(
    mut segment_index: SegmentIndex,
    cursor: Option<&Cursor>,
    upstreams: &[String],
    resume: impl Fn(ConsumerPosition) -> io::Result<ConsumerPosition>,
) -> io::Result<(SegmentIndex, Vec<ConsumerPosition>)> {
    let known = cursor.map_or(&[][..], |cursor| &cursor.positions);
    let oldest = segment_index.spans().next().map_or(segment_index.end(), |span| span.base);
    let lows = || known.iter().map(|position| position.low);
    let start = lows().min().unwrap_or(oldest);
    let position = |name: &String| {
        let found = known.iter().find(|position| position.name == *name);
        resume(found.cloned().unwrap_or_else(|| ConsumerPosition::new(name, start)))
    };
    let removed: Vec<_> = known.iter().filter(|p| !upstreams.contains(&p.name)).cloned().collect();
    let removed = removed.into_iter().map(&resume).collect::<io::Result<Vec<_>>>()?;
    let mut positions = upstreams.iter().map(position).collect::<io::Result<Vec<_>>>()?;
    // A cursor beyond the last record: segments at the end are missing.
    let ends = positions.iter().chain(&removed).map(ConsumerPosition::end);
    let end = ends.fold(segment_index.end(), u64::max);
    segment_index.seal(end);
    positions.extend(removed.into_iter().filter(|position| position.low < end));
    Ok((segment_index, positions))
}
