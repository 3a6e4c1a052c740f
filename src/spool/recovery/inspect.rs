//! Reads a spool for `pixelgate spool stat | verify | dump`.
//!
//! It changes nothing and takes no lock, so it may run beside a living process. Records that the
//! process is just writing or trimming are no finding. It repairs nothing; the next start of an
//! edge does that.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::identity::header;
use super::portal_sums;
pub use super::portal_sums::PortalSums;
use super::recover::{Segment, torn_bytes};
use super::snapshot::LaneSnapshot;
use crate::spool::fs::{Fs, SystemFs};
use crate::spool::lane_create::METERED;
use crate::spool::lane_files::{
    CURSOR, IDENTITY, PORTALS, QUARANTINE, segment_name, segment_number,
};
use crate::spool::metering::table::OTHER;
use crate::spool::read::cursor::{LaneKey, damaged_slots};
use crate::spool::read::named_totals::NamedTotals;
use crate::spool::read::scanner::{Scanner, Step};
use crate::spool::record_id::RecordId;
use crate::spool::routing::Routing;
use crate::spool::segment_index::Place;
use crate::spool::status::UpstreamStatus;

/// The most findings that a report lists. The others are only counted.
pub const FINDINGS_MAX: usize = 1_000;
/// The pauses before a segment that a process writes is read again, in milliseconds.
const REREAD_PAUSES_MS: [u64; 4] = [1, 10, 100, 1000];

/// A spool at one moment.
///
/// ```
/// use pixelgate::tools::inspect::Stat;
///
/// /// The events that wait for each upstream.
/// fn pending(stat: &Stat) -> Vec<(&str, u64)> {
///     stat.upstreams.iter().map(|upstream| (upstream.name.as_str(), upstream.pending)).collect()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Stat {
    /// The lanes, oldest first.
    pub lanes: Vec<LaneStat>,
    /// The bytes in the quarantine folder.
    pub quarantined_bytes: u64,
    /// The totals by portal at the last write, about a second ago.
    pub portals: PortalSums,
    /// The totals over the spool's life. `accepted` is up to date; the other counts are those of
    /// the cursors on disk, about a second old.
    pub upstreams: Vec<UpstreamStatus>,
}

/// A lane at one moment.
///
/// ```
/// use pixelgate::tools::inspect::LaneStat;
///
/// fn records(lane: &LaneStat) -> u64 {
///     lane.end_seq - lane.first_seq
/// }
/// ```
#[derive(Debug, Clone)]
pub struct LaneStat {
    /// The number of the lane.
    pub id: u64,
    /// Whether a living process holds the lane.
    pub living: bool,
    /// The number of its segments.
    pub segments: usize,
    /// The bytes of its segment files, preallocated bytes included.
    pub file_bytes: u64,
    /// The sequence number of the oldest record that it holds.
    pub first_seq: u64,
    /// The sequence number that the next record would have.
    pub end_seq: u64,
}

/// The result of [`verify`].
///
/// ```
/// use pixelgate::tools::inspect::VerifyReport;
///
/// fn print(report: &VerifyReport) {
///     report.findings.iter().for_each(|finding| println!("{finding}"));
///     println!("{} sound records, {} more findings", report.records, report.findings_unlisted);
/// }
/// ```
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Whether there are no findings.
    pub ok: bool,
    /// The number of sound records.
    pub records: u64,
    /// The bytes of their payloads.
    pub payload_bytes: u64,
    /// The findings, at most [`FINDINGS_MAX`] of them.
    pub findings: Vec<Finding>,
    /// The number of further findings, which are not listed.
    pub findings_unlisted: u64,
}

/// One fault in a file of the spool.
///
/// ```
/// use pixelgate::tools::inspect::Finding;
///
/// let finding = Finding { file: "a.seg".into(), offset: 64, what: "torn".to_owned() };
/// assert_eq!(finding.to_string(), "a.seg:64: torn");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The offset of the fault in the file, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.offset, self.what)
    }
}

/// Counts lanes, segments and events. `routing` says how to read which upstreams a record is meant
/// for.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let spool = dir.path();
/// use pixelgate::tools::{EVENT_ROUTING, inspect::stat};
///
/// println!("{} lanes", stat(spool, &EVENT_ROUTING)?.lanes.len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The folder or a file in it cannot be read.
pub fn stat(dir: &Path, routing: &Routing) -> io::Result<Stat> {
    let snapshots = LaneSnapshot::all(dir)?;
    let folded: Vec<LaneKey> = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.cursor.as_ref())
        .flat_map(|cursor| cursor.absorbed.iter().copied())
        .collect();
    let mut totals = NamedTotals::default();
    let mut lanes = Vec::new();
    for snapshot in &snapshots {
        let end_seq = snapshot.end();
        if !folded.contains(&snapshot.key()) {
            for position in snapshot.counted_positions(routing) {
                totals.add(&position.name, position.totals(end_seq), usize::MAX);
            }
            for (name, counts) in snapshot.cursor.iter().flat_map(|cursor| &cursor.removed.0) {
                totals.add(name, *counts, usize::MAX);
            }
        }
        lanes.push(LaneStat {
            id: snapshot.id,
            living: snapshot.living,
            segments: snapshot.segments.len(),
            file_bytes: snapshot.segments.iter().map(|segment| segment.bytes).sum(),
            first_seq: snapshot.segments.first().map_or(end_seq, |first| first.base),
            end_seq,
        });
    }
    let files: Vec<(PathBuf, LaneKey)> =
        snapshots.iter().map(|lane| (lane.dir.clone(), lane.key())).collect();
    let portals = portal_sums::read(&files, &folded)?;
    let quarantined = SystemFs.list(&dir.join(QUARANTINE)).unwrap_or_default();
    Ok(Stat {
        lanes,
        portals,
        quarantined_bytes: quarantined.iter().map(|entry| entry.bytes).sum(),
        upstreams: totals.0.into_iter().map(|(name, counts)| counts.named(name)).collect(),
    })
}

/// Reads every record and reports each fault with its place. `progress` is called after each
/// segment with the bytes that were read and the bytes of all segments.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let spool = dir.path();
/// use pixelgate::tools::inspect::verify;
///
/// let report = verify(spool, &mut |read, all| println!("{read} of {all} bytes"))?;
/// assert!(report.ok);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The folder or a file in it cannot be read. The content of a file is never an error, but a
/// finding.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let snapshots = LaneSnapshot::all(dir)?;
    let total =
        snapshots.iter().flat_map(|snapshot| &snapshot.segments).map(|segment| segment.bytes).sum();
    let mut done = 0;
    for snapshot in &snapshots {
        verify_small_files(snapshot, &mut report)?;
        if !snapshot.living {
            verify_names(snapshot, &mut report)?;
        }
        for at in 0..snapshot.segments.len() {
            report.merge(match snapshot.living {
                true => verify_living_segment(snapshot, at)?,
                false => verify_segment(snapshot, at)?,
            });
            done += snapshot.segments[at].bytes;
            progress(done, total);
        }
    }
    report.ok = report.findings.is_empty();
    Ok(report)
}

/// Calls `each` with each sound record, the oldest lane first and each lane in order. Among them
/// are records that all upstreams have and that are not trimmed yet.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let spool = dir.path();
/// use pixelgate::tools::inspect::dump;
/// use std::ops::ControlFlow;
///
/// dump(spool, |id, record| {
///     println!("{id}: {} bytes", record.len());
///     ControlFlow::Continue(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The folder or a file in it cannot be read.
pub fn dump(
    dir: &Path,
    mut each: impl FnMut(RecordId, &Bytes) -> ControlFlow<()>,
) -> io::Result<()> {
    for snapshot in LaneSnapshot::all(dir)? {
        for (at, segment) in snapshot.segments.iter().enumerate() {
            let limit = snapshot.limit(at);
            let Some(file) = snapshot.open(&segment_name(segment.number))? else { continue };
            let mut scanner = Scanner::new(segment.number, snapshot.salt, segment.base);
            loop {
                match scanner.step(&*file, segment.bytes, limit)? {
                    Step::Record { seq, payload } => {
                        if each(RecordId { lane: snapshot.id, seq, portal: OTHER }, &payload)
                            .is_break()
                        {
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

/// Checks the files of a lane that are not segments.
fn verify_small_files(snapshot: &LaneSnapshot, report: &mut VerifyReport) -> io::Result<()> {
    let path = |name| snapshot.dir.join(name);
    let (identity, cursor) = (snapshot.open(IDENTITY)?, snapshot.open(CURSOR)?);
    let (is_metered, damaged) = (snapshot.open(PORTALS)?.is_some(), || {
        portal_sums::damaged_at(&snapshot.dir, snapshot.key())
    });
    let identity = identity.map(|file| header(&*file)).transpose()?;
    let mut found = Vec::new();
    match identity {
        None => found.push((IDENTITY, 0, "the lane's identity is missing")),
        Some(Some(identity)) if identity.lane == snapshot.id => {
            if identity.previous == METERED && !is_metered {
                found.push((PORTALS, 0, "the counts by portal are missing"));
            }
        }
        Some(_) => found.push((IDENTITY, 0, "the lane's identity is damaged")),
    }
    match cursor {
        None => found.push((CURSOR, 0, "the cursor is missing")),
        Some(file) => {
            let damaged = damaged_slots(&*file)?;
            // A living process may be writing one of the slots.
            let again = if snapshot.living { damaged_slots(&*file)? } else { damaged.clone() };
            let offsets = damaged.into_iter().filter(|offset| again.contains(offset));
            found.extend(offsets.map(|offset| (CURSOR, offset, "a cursor slot is damaged")));
        }
    }
    // A living process may be writing the last entry.
    if let Some(offset) = damaged()?
        && (!snapshot.living || damaged()? == Some(offset))
    {
        found.push((PORTALS, offset, "counts by portal are damaged"));
    }
    // Otherwise a living process has delivered and removed the lane meanwhile.
    if snapshot.is_there() {
        for (name, offset, what) in found {
            report.find(path(name), offset, what.to_owned());
        }
    }
    Ok(())
}

/// Checks that a lane has all of its segments and no other ones. A living process removes segments
/// and makes new ones.
fn verify_names(snapshot: &LaneSnapshot, report: &mut VerifyReport) -> io::Result<()> {
    for entry in SystemFs.list(&snapshot.dir)? {
        let Some(number) = segment_number(&entry.name) else { continue };
        if snapshot.segments.iter().all(|segment| segment.number != number) {
            let what = "the file is not a segment of this lane".to_owned();
            report.find(snapshot.dir.join(entry.name), 0, what);
        }
    }
    let positions = snapshot.cursor.iter().flat_map(|cursor| &cursor.positions);
    let Some(low) = positions.map(|position| position.low).min() else { return Ok(()) };
    let until = snapshot.segments.first().map_or(snapshot.end(), |first| first.base);
    match (snapshot.segment_index.place(low), snapshot.segments.first()) {
        (Some(Place::Missing { number }), _) => {
            report.find(snapshot.segment_path(number), 0, missing(low, until));
        }
        (Some(Place::Lost { .. }), Some(first)) => {
            let what = format!("the records from {low} to {} are missing", until - 1);
            report.find(snapshot.segment_path(first.number), 0, what);
        }
        _ => {}
    }
    Ok(())
}

/// Does what [`verify_segment`] does, while a process writes the segment. A block that is being
/// written may look damaged for the time of the write, so only what several readings find is
/// damage.
fn verify_living_segment(snapshot: &LaneSnapshot, at: usize) -> io::Result<VerifyReport> {
    let mut report = verify_segment(snapshot, at)?;
    for pause in REREAD_PAUSES_MS {
        if report.findings.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(pause));
        // The process may have cut, trimmed or recycled the segment meanwhile.
        if !still_there(snapshot, &snapshot.segments[at])? {
            return Ok(VerifyReport::default());
        }
        let mut again = verify_segment(snapshot, at)?;
        again.findings.retain(|finding| report.findings.contains(finding));
        report = again;
    }
    Ok(report)
}

fn verify_segment(snapshot: &LaneSnapshot, at: usize) -> io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let segment = &snapshot.segments[at];
    let path = snapshot.segment_path(segment.number);
    let Some(file) = snapshot.open(&segment_name(segment.number))? else { return Ok(report) };
    if header(&*file)?.is_none() {
        report.find(path.clone(), 0, "the segment's header is damaged".to_owned());
    }
    let limit = snapshot.limit(at);
    let mut scanner = Scanner::new(segment.number, snapshot.salt, segment.base);
    loop {
        match scanner.step(&*file, segment.bytes, limit)? {
            Step::Record { payload, .. } => {
                report.records += 1;
                report.payload_bytes += payload.len() as u64;
            }
            Step::Gap { seqs, bytes } => {
                let what = damage(seqs.start, seqs.end, bytes.end - bytes.start);
                report.find(path.clone(), bytes.start, what);
            }
            Step::End => return Ok(report),
            Step::Tail => break,
        }
    }
    let (offset, seq) = (scanner.offset, scanner.seq);
    let is_last = limit == u64::MAX;
    let torn = match is_last && !snapshot.living {
        true => torn_bytes(&*file, segment, snapshot.salt, offset, seq)?,
        false => None,
    };
    if let Some(torn) = torn {
        let bytes = torn.end - torn.start;
        let what = format!("{bytes} bytes after the last record are not a record");
        report.find(path.clone(), torn.start, what);
    }
    let limit = limit.min(snapshot.end());
    if seq >= limit || is_last && snapshot.living {
        return Ok(report);
    }
    match snapshot.segment_index.missing_behind(at) {
        Some(number) if snapshot.open(&segment_name(number))?.is_none() => {
            report.find(snapshot.segment_path(number), 0, missing(seq, limit));
        }
        _ => {
            let what = damage(seq, limit, segment.bytes.saturating_sub(offset));
            report.find(path, offset, what);
        }
    }
    Ok(report)
}

fn damage(from: u64, to: u64, bytes: u64) -> String {
    format!("{bytes} bytes are damaged: records {from} to {}", to - 1)
}

fn missing(from: u64, to: u64) -> String {
    format!("the segment is missing, and with it records {from} to {}", to - 1)
}

fn still_there(snapshot: &LaneSnapshot, segment: &Segment) -> io::Result<bool> {
    Ok(match snapshot.open(&segment_name(segment.number))? {
        Some(file) => header(&*file)?.is_none_or(|header| header.number == segment.number),
        None => false,
    })
}
