//! Takes over the lane of a process that has ended.
//!
//! Only the last segment is read here, to find the end of the lane. The readers find, quarantine
//! and count damage elsewhere when they come to it. So a start reads one segment of a lane, however
//! many events wait in it. The content of a file never causes an error here: an error means that
//! the disk failed, and then the lane is tried again each second.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::count_foreign;
use super::identity::{check_name, header, salt};
use super::living::{self, Living, Reading};
use super::positions::{has_new, restore_foreign, restore_positions, resume_marks};
use super::quarantine::Quarantine;
use crate::spool::faults::Loss;
use crate::spool::format::{
    ChecksumSeed, Found, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SegmentHeader, probe, u32_at,
    u64_at,
};
use crate::spool::fs::{File, Fs, Open, read_full};
use crate::spool::lane::Lane;
use crate::spool::lane_create::METERED;
use crate::spool::lane_files::{
    CURSOR, IDENTITY, PORTALS, lane_dir, remove_leftovers, segment_name, segment_number,
};
use crate::spool::metering::book::Book;
use crate::spool::metering::format::Marks;
use crate::spool::metering::journal::{EARLIER_VERSION, Journal, Loaded};
use crate::spool::metering::recount::{self, Recounted};
use crate::spool::read::ack_file;
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey, POSITIONS_MAX};
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::read::scanner::{Scanner, Step, first_record};
use crate::spool::read_around::ReadAroundFs;
use crate::spool::routing::Routing;
use crate::spool::segment_index::{SegmentIndex, Span};
use crate::telemetry::faults::FaultKind;

/// A segment, as far as it is known before its records are read.
pub(crate) struct Segment {
    pub number: u64,
    pub base: u64,
    pub bytes: u64,
    pub recycled: bool,
    /// The number of the segment before this one; 0 if it is not known.
    pub previous: u64,
    /// Whether the header is sound. If not, `base` is that of the first sound record.
    pub sound: bool,
}

/// The segments of a lane, as their files were found.
pub(crate) struct Survey {
    /// The segments in order.
    pub segments: Vec<Segment>,
    /// The greatest number of a segment's file, which may be empty; 0 if there is none.
    last_file: u64,
}

impl Survey {
    /// The segments for an index.
    pub fn spans(&self) -> Vec<Span> {
        self.segments.iter().map(Segment::span).collect()
    }

    /// Sets in the index which segments are missing. `last_known` is the number of the last segment
    /// that the lane is known to have had.
    pub fn note_missing(&self, last_known: u64, segment_index: &mut SegmentIndex) {
        // If the first segment's header is damaged, its bytes were read, and no segment before it
        // counts as missing.
        let first = self.segments.first().filter(|first| first.sound);
        let last = if last_known > self.last_file { last_known } else { 0 };
        segment_index.set_missing(first.map_or(0, |first| first.base), last);
    }
}

/// The end of a lane and its last segment, as its small files prove them.
pub(crate) struct Proven {
    /// The number after the last record.
    pub end: u64,
    /// The number of the last segment; 0 if there is none.
    pub last_segment: u64,
}

impl Proven {
    /// What the cursor and the counts by portal prove.
    pub fn by(cursor: Option<&Cursor>, marks: Option<&Marks>) -> Proven {
        let end = cursor.and_then(|cursor| cursor.end).unwrap_or(1);
        let end = marks.map_or(end, |marks| marks.counted_to.max(end));
        // Without the number, the lane is known to have had a segment if it had a record.
        let last_segment = cursor.and_then(|cursor| cursor.last_segment);
        Proven { end, last_segment: last_segment.unwrap_or(u64::from(end > 1)) }
    }
}

impl Segment {
    /// A segment without a sound header and without records.
    fn none(number: u64, base: u64) -> Segment {
        Segment { number, base, bytes: 0, recycled: false, previous: 0, sound: false }
    }

    fn span(&self) -> Span {
        let mut span = Span::found(self.number, self.base, self.recycled, self.bytes);
        span.previous = self.previous;
        span
    }
}

/// The outcome of taking over a lane.
pub enum Adoption {
    /// The lane was taken over.
    Adopted(Arc<Lane>),
    /// The process of the lane lives.
    Living {
        /// The lanes whose totals the lane has.
        absorbed: Vec<LaneKey>,
        /// The totals of the lane. `None`: it has none yet.
        totals: io::Result<Option<Living>>,
    },
}

/// The inputs for taking over a lane.
pub struct AdoptionInputs<'a> {
    pub routing: &'a Routing,
    pub quarantine: &'a Quarantine,
    /// The inputs that a lane whose process lives needs, too.
    pub reading: &'a Reading<'a>,
}

/// Takes over a lane if its process has ended. With `around`, sectors that the device refuses to
/// read count as damaged.
pub fn adopt(
    fs: &Arc<dyn Fs>,
    root: &Path,
    id: u64,
    with: &AdoptionInputs<'_>,
    around: bool,
) -> io::Result<Adoption> {
    let dir = lane_dir(root, id);
    let reading: Arc<dyn Fs> =
        if around { Arc::new(ReadAroundFs(Arc::clone(fs))) } else { fs.clone() };
    let lock = reading.open(&dir.join(IDENTITY), Open::Ensure)?;
    if lock.try_lock()? {
        let lane = take_over(Arc::clone(fs), &*reading, (id, dir), lock, with)?;
        return Ok(Adoption::Adopted(Arc::new(lane)));
    }
    Ok(living_lane(&*reading, &dir, id, with))
}

/// Restores a lane whose lock is held from its files: cursor, segments, counts, positions.
/// `reading` reads them, around bad sectors if need be; the lane itself uses `fs`.
fn take_over(
    fs: Arc<dyn Fs>,
    reading: &dyn Fs,
    (id, dir): (u64, PathBuf),
    lock: Arc<dyn File>,
    with: &AdoptionInputs<'_>,
) -> io::Result<Lane> {
    let &AdoptionInputs { routing, quarantine, reading: common } = with;
    let &Reading { upstreams, book, lanes, .. } = common;
    let identity = header(&*lock)?;
    check_name(identity.as_ref(), id)?;
    let (cursor_file, cursor) = open_cursor(reading, &dir, id)?;
    let salt = salt(reading, &dir, id, Some(&*lock), cursor.as_ref())?;
    remove_leftovers(reading, &dir)?;
    // The next cursor proves the segments that are found now, so their names must be durable.
    reading.sync_dir(&dir)?;
    let survey = survey(reading, &dir, id, salt, Some(quarantine))?;
    let mut segment_index = rebuild(reading, &dir, id, salt, &survey, quarantine)?;
    let absorbed = cursor.as_ref().map_or(&[][..], |cursor| &cursor.absorbed);
    let is_folded = |key: LaneKey| absorbed.contains(&key) || !lanes.contains(&key.0);
    let is_metered = identity.is_some_and(|identity| identity.previous == METERED);
    let mut counted = Journal::load(reading, &dir, (id, salt), is_metered, is_folded, book)?;
    let marks = counted.contents.marks.as_ref();
    let proven = Proven::by(cursor.as_ref(), marks);
    segment_index.seal(segment_index.end().max(proven.end));
    survey.note_missing(proven.last_segment, &mut segment_index);
    let resume = |position| {
        let position = ack_file::resume(reading, &dir, (id, salt), position)?;
        Ok(resume_marks(position, cursor.as_ref(), marks))
    };
    let (segment_index, mut positions) =
        restore_positions(segment_index, cursor.as_ref(), marks, upstreams, resume)?;
    if positions.len() > POSITIONS_MAX {
        let what = "events wait for too many removed upstreams: `pixelgate spool forget` them";
        return Err(io::Error::other(what));
    }
    let stretches = |from| count_foreign::stretches(&segment_index, from);
    let scan = |from, each: &mut dyn FnMut(u64, &[u8])| {
        count_foreign::each_routed(reading, &dir, salt, &stretches(from), from, routing, each);
    };
    let end = segment_index.end();
    let routed = restore_foreign(&mut positions, cursor.as_ref(), routing, scan);
    let uncounted = UncountedRecords { fs: reading, dir: &dir, salt, end, routing, book };
    let lost_counts = uncounted.count(&mut counted, &stretches(0), &positions)?;
    let lost_cursor = (cursor.is_none() && end > 1).then(|| lost_cursor(&dir));
    let lane = Lane::assemble(
        fs,
        (id, dir),
        salt,
        lock,
        (cursor_file, counted.journal),
        segment_index,
        positions,
    );
    let mut state = lane.state();
    (state.routed, state.losses) = (routed, lost_cursor.into_iter().chain(lost_counts).collect());
    let has_new = has_new(cursor.as_ref(), upstreams);
    let known = cursor.map(|cursor| (cursor.absorbed, cursor.removed));
    (state.absorbed, state.removed) = known.unwrap_or_default();
    state.take_back_totals();
    drop(state);
    if has_new {
        // A kill must not lose the counts of a new upstream. Maintenance tries again.
        _ = lane.save_cursor();
    }
    Ok(lane)
}

/// The cursor of a lane, which is made if the lane has none.
fn open_cursor(fs: &dyn Fs, dir: &Path, id: u64) -> io::Result<(CursorFile, Option<Cursor>)> {
    let file = fs.open(&dir.join(CURSOR), Open::Ensure)?;
    // The newer slot may be in the page cache. It must be durable before the other is written.
    file.sync_data()?;
    let (file, cursor) = CursorFile::load(file)?;
    Ok((file, cursor.filter(|cursor| cursor.lane == id)))
}

/// The outcome for a lane whose process lives.
fn living_lane(fs: &dyn Fs, dir: &Path, id: u64, with: &AdoptionInputs<'_>) -> Adoption {
    match living::cursor(fs, dir, id) {
        Ok(Some(cursor)) => Adoption::Living {
            totals: living::totals(fs, dir, &cursor, with.reading).map(Some),
            absorbed: cursor.absorbed,
        },
        other => Adoption::Living { absorbed: Vec::new(), totals: other.map(|_| None) },
    }
}

/// The records of a lane that its file `portals` does not count yet, with all that counting them
/// needs.
struct UncountedRecords<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    salt: u64,
    end: u64,
    routing: &'a Routing,
    book: &'a Book,
}

impl UncountedRecords<'_> {
    /// Counts these records. Returns the loss if the counts begin anew.
    fn count(
        &self,
        counted: &mut Loaded,
        stretches: &[count_foreign::Stretch],
        positions: &[ConsumerPosition],
    ) -> io::Result<Option<Loss>> {
        let &UncountedRecords { fs, dir, salt, end, routing, book } = self;
        let (marks, dead) = (counted.contents.marks.as_ref(), &counted.contents.dead);
        let found =
            recount::FoundLane { fs, dir, salt, stretches, end, positions, marks, dead, routing };
        let recounted = recount::recount(&found, book)?;
        Ok(lost_counts(counted, recounted, dir, end, book))
    }
}

/// Adds what was counted again to the counts of a lane. Returns the loss if they begin anew.
fn lost_counts(
    counted: &mut Loaded,
    recounted: Recounted,
    dir: &Path,
    end: u64,
    book: &Book,
) -> Option<Loss> {
    counted.journal.add(recounted.counts);
    if counted.is_damaged && counted.reset.is_none() {
        let file = dir.join(PORTALS);
        ::log::warn!("spool: {} is damaged; its records are counted again", file.display());
    }
    let gap = "events were removed that its file `portals` does not count";
    let why = counted.reset.or(recounted.has_gap.then_some(gap))?;
    counted.journal.since_ms = book.now_ms();
    let lane = dir.display().to_string();
    if why == EARLIER_VERSION {
        ::log::info!("spool: the totals per portal begin with the events in {lane}: {why}");
        return None;
    }
    // The process of an empty lane may have ended before it made the file.
    (end > 1).then(|| Loss {
        what: FaultKind::PortalTotals,
        text: format!("the totals per portal begin anew with what {lane} holds: {why}"),
        subject: lane,
        advice: "The older counts are lost; no event is affected. `since` in /status?portal= is \
                 the time from which the totals count. The fault ends with the next start.",
    })
}

/// The loss of a cursor of which neither slot can be read.
fn lost_cursor(dir: &Path) -> Loss {
    let path = dir.join(CURSOR).display().to_string();
    Loss {
        what: FaultKind::SpoolCursor,
        text: format!(
            "{path} is missing or damaged: the lane's events are delivered again from the oldest \
             one that is left, and the totals of each upstream begin with it"
        ),
        subject: path,
        advice: "Look at the disk. An event that arrives again has the same id. The fault ends \
                 with the next start.",
    }
}

/// The segments of a lane in order. A file that is not a segment of the lane is left out. If a
/// quarantine is given, the file is moved there, an empty file takes its place, and a segment
/// without records takes its place in the order. The empty file says that the bytes were read and
/// are damaged; a segment whose file is missing may come back. Empty files behind the last segment
/// are only in `last_file`.
pub(crate) fn survey(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    salt: u64,
    quarantine: Option<&Quarantine>,
) -> io::Result<Survey> {
    let mut files: Vec<_> = fs
        .list(dir)?
        .into_iter()
        .filter_map(|entry| segment_number(&entry.name).map(|number| (number, entry)))
        .collect();
    files.sort_by_key(|(number, _)| *number);
    let last_file = files.last().map_or(0, |(number, _)| *number);
    let mut segments: Vec<Segment> = Vec::new();
    let mut least = 0;
    for (number, entry) in files {
        let path = dir.join(&entry.name);
        let file = fs.open(&path, Open::Read)?;
        let bytes = entry.bytes;
        let found = match header(&*file)? {
            Some(header) if header.lane == id && header.number == number => {
                let SegmentHeader { base_seq: base, recycled, previous, .. } = header;
                Some(Segment { number, base, bytes, recycled, previous, sound: true })
            }
            // A sound header of another lane or segment: the file was copied here by mistake.
            Some(_) => None,
            // The header is damaged, but the records may be sound.
            None => {
                let record = first_record(&*file, ChecksumSeed::new(salt, number), bytes)?;
                record.map(|(_, base)| Segment {
                    bytes,
                    recycled: true,
                    ..Segment::none(number, base)
                })
            }
        };
        match found.filter(|found| found.base >= least) {
            Some(found) => {
                least = found.base;
                segments.push(found);
            }
            None => {
                let Some(quarantine) = quarantine else { continue };
                if bytes > 0 {
                    quarantine.take(id, number, &path, bytes);
                }
                segments.push(Segment::none(number, u64::MAX));
            }
        }
    }
    // A segment without records begins where the next one begins.
    let mut base = u64::MAX;
    for segment in segments.iter_mut().rev() {
        base = base.min(segment.base);
        segment.base = base;
    }
    segments.retain(|segment| segment.base < u64::MAX);
    Ok(Survey { segments, last_file })
}

/// The index of the lane's segments up to its last sound record. The bytes after it are cut off.
fn rebuild(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    salt: u64,
    survey: &Survey,
    quarantine: &Quarantine,
) -> io::Result<SegmentIndex> {
    let segments = &survey.segments;
    let mut segment_index = SegmentIndex::new(segments.first().map_or(1, |first| first.base));
    survey.spans().into_iter().for_each(|span| segment_index.push_span(span));
    let Some(last) = segments.last() else { return Ok(segment_index) };
    let path = dir.join(segment_name(last.number));
    let file = fs.open(&path, Open::Write)?;
    let (offset, end) = scan_to_end(&*file, last, salt)?;
    if let Some(torn) = torn_bytes(&*file, last, salt, offset, end)? {
        quarantine.keep(id, last.number, &*file, torn);
    }
    if offset < last.bytes {
        // This only gives the unused part of a preallocated segment back to the disk.
        if let Err(error) = file.set_len(offset) {
            ::log::warn!("spool: lane {id}, segment {}, could not be cut: {error}", last.number);
        }
    }
    segment_index.publish(offset, end);
    Ok(segment_index)
}

/// The offset and the sequence number at which the sound records of the last segment end.
pub(crate) fn scan_to_end(file: &dyn File, last: &Segment, salt: u64) -> io::Result<(u64, u64)> {
    let mut scanner = Scanner::new(last.number, salt, last.base);
    loop {
        match scanner.step(file, last.bytes, u64::MAX)? {
            Step::Record { .. } | Step::Gap { .. } => {}
            Step::Tail | Step::End => return Ok((scanner.offset, scanner.seq)),
        }
    }
}

/// The bytes after the last sound record that are damage: a torn record, or one with a flipped bit.
/// In a file that was never another segment, every byte but zero is damage. In a recycled file,
/// only bytes that still look like the next record are damage.
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

/// The length of record `seq`, if `bytes` begins with the remains of it.
fn due_record(bytes: &mut [u8], seed: ChecksumSeed, seq: u64) -> Option<usize> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return None;
    }
    let len = u32_at(bytes, 4) as usize;
    let whole = RECORD_HEADER_BYTES + len;
    if (1..=RECORD_BYTES_MAX).contains(&len) && u64_at(bytes, 8) == seq {
        return Some(whole);
    }
    // Perhaps only the number of the record is damaged.
    bytes[8..16].copy_from_slice(&seq.to_le_bytes());
    matches!(probe(bytes, seed, seq..seq + 1), Found::Record { .. }).then_some(whole)
}
