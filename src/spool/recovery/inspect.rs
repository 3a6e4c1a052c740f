//! Looking at a spool from outside: what `pixelgate spool stat | verify | dump` says.
//!
//! Read-only, and without the spool's locks, so it may run beside a living process: what a
//! process is writing or trimming at the moment is no finding. Nothing is repaired here; the next
//! start does that by itself.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::recover::{Segment, salt, survey, torn_bytes, walk_to_end};
use crate::spool::UpstreamStatus;
use crate::spool::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::spool::fs::{File, Fs, Open, SystemFs, read_full};
use crate::spool::lane::{CURSOR, IDENTITY, lane_dir, segment_name, segment_number};
use crate::spool::maintenance::lane_ids;
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey, damaged_slots};
use crate::spool::read::ledger::Counts;
use crate::spool::read::reader::RecordId;
use crate::spool::read::scanner::{Scanner, Step};

/// Most findings that a report lists; the others are only counted.
pub const FINDINGS_MAX: usize = 1_000;

/// A spool at one moment.
#[derive(Debug, Clone)]
pub struct Stat {
    /// Its lanes, oldest first.
    pub lanes: Vec<LaneStat>,
    /// Bytes in the quarantine folder.
    pub quarantined_bytes: u64,
    /// Totals over the spool's life, as of the cursors on disk (about a second old).
    pub upstreams: Vec<UpstreamStatus>,
}

/// A lane at one moment.
#[derive(Debug, Clone)]
pub struct LaneStat {
    /// Its number.
    pub id: u64,
    /// Whether a living process holds it.
    pub living: bool,
    /// How many segments it has.
    pub segments: usize,
    /// Bytes of its segment files, preallocated ones included.
    pub file_bytes: u64,
    /// Sequence number of the oldest record held.
    pub first_seq: u64,
    /// Sequence number that the next record would have.
    pub end_seq: u64,
}

/// What `verify` found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// No findings.
    pub ok: bool,
    /// Sound records.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Where something is wrong; at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub findings_unlisted: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.offset, self.what)
    }
}

/// A lane's files as they are.
struct Look {
    id: u64,
    dir: PathBuf,
    living: bool,
    salt: u64,
    cursor: Option<Cursor>,
    segments: Vec<Segment>,
}

/// Counts lanes, segments and events. Fails only where the folder cannot be read.
pub fn stat(dir: &Path) -> io::Result<Stat> {
    let looks = look_at_all(dir)?;
    let folded: Vec<LaneKey> = looks
        .iter()
        .filter_map(|look| look.cursor.as_ref())
        .flat_map(|cursor| cursor.absorbed.iter().copied())
        .collect();
    let mut totals: Vec<(String, Counts)> = Vec::new();
    let mut lanes = Vec::new();
    for look in &looks {
        let end_seq = end_of(look)?;
        let accounts = look.cursor.as_ref().map_or(&[][..], |cursor| &cursor.accounts);
        let end_seq = accounts.iter().map(|account| account.low).fold(end_seq, u64::max);
        for account in accounts.iter().filter(|_| !folded.contains(&(look.id, look.salt))) {
            let counts = account.totals(end_seq);
            match totals.iter_mut().find(|(name, _)| *name == account.name) {
                Some((_, total)) => total.add(counts),
                None => totals.push((account.name.clone(), counts)),
            }
        }
        lanes.push(LaneStat {
            id: look.id,
            living: look.living,
            segments: look.segments.len(),
            file_bytes: look.segments.iter().map(|segment| segment.bytes).sum(),
            first_seq: look.segments.first().map_or(end_seq, |first| first.base),
            end_seq,
        });
    }
    let quarantined = SystemFs.list(&dir.join("quarantine")).unwrap_or_default();
    Ok(Stat {
        lanes,
        quarantined_bytes: quarantined.iter().map(|entry| entry.bytes).sum(),
        upstreams: totals.into_iter().map(|(name, counts)| counts.named(name)).collect(),
    })
}

/// Reads every record and says where something is wrong. `progress` is told bytes done and in
/// all, now and then.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let looks = look_at_all(dir)?;
    let total = looks.iter().flat_map(|look| &look.segments).map(|segment| segment.bytes).sum();
    let mut done = 0;
    for look in &looks {
        verify_small_files(look, &mut report)?;
        for at in 0..look.segments.len() {
            let mut attempt = verify_segment(look, at)?;
            if look.living && !attempt.findings.is_empty() {
                // It may have been cut, trimmed or recycled while it was read.
                attempt = match still_there(look, &look.segments[at])? {
                    true => verify_segment(look, at)?,
                    false => VerifyReport::default(),
                };
            }
            report.merge(attempt);
            done += look.segments[at].bytes;
            progress(done, total);
        }
    }
    report.ok = report.findings.is_empty();
    Ok(report)
}

/// Gives each sound record to `each`, oldest lane first, each lane in order; those that all
/// upstreams have already and that are not trimmed yet, too.
pub fn dump(
    dir: &Path,
    mut each: impl FnMut(RecordId, &Bytes) -> ControlFlow<()>,
) -> io::Result<()> {
    for look in look_at_all(dir)? {
        for at in 0..look.segments.len() {
            let segment = &look.segments[at];
            let limit = limit(&look, at);
            let Some(file) = open(&look, segment)? else { continue };
            let mut walk = Scanner::new(segment.number, look.salt, segment.base);
            loop {
                match walk.step(&*file, segment.bytes, limit)? {
                    Step::Record { seq, payload } => {
                        if each(RecordId { lane: look.id, seq }, &payload).is_break() {
                            return Ok(());
                        }
                    }
                    Step::Gap { .. } => {}
                    Step::Tail | Step::End => break,
                }
            }
        }
    }
    Ok(())
}

impl VerifyReport {
    fn find(&mut self, file: PathBuf, offset: u64, what: String) {
        self.merge(VerifyReport {
            findings: vec![Finding { file, offset, what }],
            ..VerifyReport::default()
        });
    }

    fn merge(&mut self, other: VerifyReport) {
        self.records += other.records;
        self.payload_bytes += other.payload_bytes;
        self.findings_unlisted += other.findings_unlisted;
        for finding in other.findings {
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push(finding);
            } else {
                self.findings_unlisted += 1;
            }
        }
    }
}

fn look_at_all(dir: &Path) -> io::Result<Vec<Look>> {
    let mut looks = Vec::new();
    for id in lane_ids(&SystemFs, dir)? {
        match look_at(dir, id) {
            Ok(look) => looks.push(look),
            // Delivered and removed at this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(looks)
}

fn look_at(root: &Path, id: u64) -> io::Result<Look> {
    let dir = lane_dir(root, id);
    let identity = SystemFs.open(&dir.join(IDENTITY), Open::Read)?;
    let living = !identity.is_unlocked()?;
    let (_, cursor) = CursorFile::load(SystemFs.open(&dir.join(CURSOR), Open::Read)?)?;
    let cursor = cursor.filter(|cursor| cursor.lane == id);
    let salt = salt(&SystemFs, &dir, id, &*identity, cursor.as_ref())?;
    let segments = survey(&SystemFs, &dir, id, salt, None)?;
    Ok(Look { id, dir, living, salt, cursor, segments })
}

fn end_of(look: &Look) -> io::Result<u64> {
    let Some(last) = look.segments.last() else { return Ok(1) };
    match open(look, last)? {
        Some(file) => Ok(walk_to_end(&*file, last, look.salt)?.1),
        None => Ok(last.base),
    }
}

fn verify_small_files(look: &Look, report: &mut VerifyReport) -> io::Result<()> {
    let identity = look.dir.join(IDENTITY);
    if header(&*SystemFs.open(&identity, Open::Read)?)?.is_none_or(|found| found.lane != look.id) {
        report.find(identity, 0, "the lane's identity is damaged".to_owned());
    }
    let path = look.dir.join(CURSOR);
    let file = SystemFs.open(&path, Open::Read)?;
    let damaged = damaged_slots(&*file)?;
    // A living process may be writing one of them at the moment.
    let again = if look.living { damaged_slots(&*file)? } else { damaged.clone() };
    for offset in damaged.into_iter().filter(|offset| again.contains(offset)) {
        report.find(path.clone(), offset, "a cursor slot is damaged".to_owned());
    }
    for entry in SystemFs.list(&look.dir)? {
        let Some(number) = segment_number(&entry.name) else { continue };
        if !look.living && look.segments.iter().all(|segment| segment.number != number) {
            report.find(look.dir.join(entry.name), 0, "no segment of this lane".to_owned());
        }
    }
    let low = look.cursor.as_ref().and_then(|cursor| cursor.accounts.iter().map(|a| a.low).min());
    if let (Some(low), Some(first)) = (low, look.segments.first())
        && first.base > low
        && !look.living
    {
        let what = format!("the records from {low} to {} are missing", first.base - 1);
        report.find(look.dir.join(segment_name(first.number)), 0, what);
    }
    Ok(())
}

fn verify_segment(look: &Look, at: usize) -> io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let segment = &look.segments[at];
    let path = look.dir.join(segment_name(segment.number));
    let Some(file) = open(look, segment)? else { return Ok(report) };
    if header(&*file)?.is_none() {
        report.find(path.clone(), 0, "the segment's header is damaged".to_owned());
    }
    let limit = limit(look, at);
    let mut walk = Scanner::new(segment.number, look.salt, segment.base);
    loop {
        match walk.step(&*file, segment.bytes, limit)? {
            Step::Record { payload, .. } => {
                report.records += 1;
                report.payload_bytes += payload.len() as u64;
            }
            Step::Gap { seqs, bytes } => {
                let what = damage(seqs.start, seqs.end, bytes.end - bytes.start);
                report.find(path.clone(), bytes.start, what);
            }
            Step::End => break,
            Step::Tail if limit != u64::MAX => {
                let what = damage(walk.seq, limit, segment.bytes.saturating_sub(walk.offset));
                report.find(path.clone(), walk.offset, what);
                break;
            }
            Step::Tail => {
                let torn = torn_bytes(&*file, segment, look.salt, walk.offset, walk.seq)?;
                if let Some(torn) = torn.filter(|_| !look.living) {
                    let what = format!("{} bytes are no record", torn.end - torn.start);
                    report.find(path.clone(), torn.start, what);
                }
                break;
            }
        }
    }
    Ok(report)
}

fn damage(from: u64, to: u64, bytes: u64) -> String {
    format!("{bytes} bytes are damaged: records {from} to {}", to - 1)
}

/// Where a segment ends: where the next begins. The last one's end is not known beforehand.
fn limit(look: &Look, at: usize) -> u64 {
    look.segments.get(at + 1).map_or(u64::MAX, |next| next.base)
}

fn open(look: &Look, segment: &Segment) -> io::Result<Option<std::sync::Arc<dyn File>>> {
    match SystemFs.open(&look.dir.join(segment_name(segment.number)), Open::Read) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn header(file: &dyn File) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let filled = read_full(file, &mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes[..filled]))
}

fn still_there(look: &Look, segment: &Segment) -> io::Result<bool> {
    Ok(match open(look, segment)? {
        Some(file) => header(&*file)?.is_none_or(|header| header.number == segment.number),
        None => false,
    })
}
