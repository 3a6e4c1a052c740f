//! Lists dead letters, and sends their events again.
//!
//! A replay renames the letters' file, so that the running edge starts a new one. It sends the
//! events in batches under their own ids, and puts back the letters of events that are refused
//! again or that cannot be delivered now. Only then does it remove the renamed file. When a replay
//! ends early, the next one continues with the renamed file; events that were delivered already
//! arrive twice, under the same ids.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;

use super::letter::{Letter, Reason};
use super::store::{DeadError, Files};
use crate::clock::{Clock, SystemClock};
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::delivery::retries;
use crate::event::Record;
use crate::upstream::{Batch, BatchConfig, Failure, Outcome, Upstream};

/// Longest line that is read as a letter, in bytes. An event's limits allow for a tenth of it.
pub const LETTER_BYTES_MAX: usize = 1 << 20;
/// Attempts at one batch before a replay gives up. Bounded, since an operator waits at a terminal.
pub const ATTEMPTS_MAX: u32 = 5;

/// What [`list`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Letters that were read.
    pub letters: u64,
    /// Lines that are not a letter.
    pub damaged: u64,
}

/// How far a [`replay`] is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that the upstream accepted.
    pub delivered: u64,
    /// Events that the upstream refused again. They are dead letters again, with the new reason.
    pub refused: u64,
    /// Events put back because the upstream was unreachable or misconfigured.
    pub put_back: u64,
    /// Lines that are not a letter, put back unchanged.
    pub damaged: u64,
    /// The first failure that made the replay put events back.
    pub gave_up: Option<String>,
}

/// A line of the file, and the record in it; `None` where the line is not a letter.
struct Line {
    raw: Vec<u8>,
    record: Option<Bytes>,
}

/// How the attempts at a line's event ended.
enum End {
    Delivered,
    Refused(Reason, Failure),
    Undelivered(Failure),
}

/// Calls `show` with every dead letter of an upstream, oldest first.
///
/// # Errors
///
/// [`DeadError::Io`] for the file system's errors.
pub fn list(
    dir: &Path,
    upstream: &str,
    mut show: impl FnMut(&Letter),
) -> Result<Summary, DeadError> {
    let files = Files::new(dir, upstream);
    let mut summary = Summary::default();
    for path in [&files.replaying, &files.letters] {
        let Some(mut reader) = open(path)? else { continue };
        while let Some(raw) = read_line(&mut reader)? {
            match serde_json::from_slice(&raw) {
                Ok(letter) => {
                    summary.letters += 1;
                    show(&letter);
                }
                Err(_) => summary.damaged += 1,
            }
        }
    }
    Ok(summary)
}

/// Sends every dead letter of an upstream again. Calls `progress` after each batch.
///
/// # Errors
///
/// [`DeadError::Busy`] while another process replays these letters, [`DeadError::Io`] for the file
/// system's errors.
pub async fn replay(
    dir: &Path,
    name: &str,
    upstream: &dyn Upstream,
    batch: &BatchConfig,
    mut progress: impl FnMut(&Progress),
) -> Result<Progress, DeadError> {
    let files = Files::new(dir, name);
    let Some(_replaying) = files.lock_replay()? else { return Err(DeadError::Busy) };
    let mut so_far = Progress::default();
    take_aside(&files)?;
    let Some(mut reader) = open(&files.replaying)? else { return Ok(so_far) };
    while let Some(lines) = read_batch(&mut reader, batch)? {
        let ends = if so_far.gave_up.is_none() {
            deliver(upstream, &lines).await
        } else {
            lines.iter().map(|_| End::Undelivered(Failure::new("given up"))).collect()
        };
        let back = so_far.note(name, lines, ends)?;
        if !back.is_empty() {
            let _lock = files.lock()?;
            // The bound does not apply: these letters were in the file before.
            files.append(&back, u64::MAX)?;
        }
        progress(&so_far);
    }
    fs::remove_file(&files.replaying)?;
    files.sync()?;
    Ok(so_far)
}

impl Progress {
    /// Counts how `lines` ended, and returns those that go back into the file.
    fn note(&mut self, name: &str, lines: Vec<Line>, ends: Vec<End>) -> Result<Vec<u8>, DeadError> {
        let mut back = Vec::new();
        for (line, end) in lines.into_iter().zip(ends) {
            match (line.record, end) {
                (None, _) => {
                    self.damaged += 1;
                    back.extend_from_slice(&line.raw);
                }
                (Some(_), End::Delivered) => {
                    self.delivered += 1;
                    continue;
                }
                (Some(record), End::Refused(reason, failure)) => {
                    self.refused += 1;
                    let now = SystemClock.unix_ms();
                    let letter = Letter::new(name, now, reason, &failure, &record);
                    serde_json::to_writer(&mut back, &letter).map_err(io::Error::from)?;
                }
                (Some(_), End::Undelivered(failure)) => {
                    self.put_back += 1;
                    self.gave_up.get_or_insert_with(|| failure.what.into_owned());
                    back.extend_from_slice(&line.raw);
                }
            }
            back.push(b'\n');
        }
        Ok(back)
    }
}

/// Renames the letters' file, or appends it to the renamed file of a replay that ended early.
fn take_aside(files: &Files) -> Result<(), DeadError> {
    let _lock = files.lock()?;
    if !files.letters.exists() {
        return Ok(());
    }
    if files.replaying.exists() {
        let mut old = File::options().read(true).append(true).open(&files.replaying)?;
        crate::upstream::file::cut_torn_line(&mut old)?;
        io::copy(&mut File::open(&files.letters)?, &mut old)?;
        old.sync_all()?;
        fs::remove_file(&files.letters)?;
    } else {
        fs::rename(&files.letters, &files.replaying)?;
    }
    files.sync()?;
    Ok(())
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The next line, without its line feed; `None` at the end of the file, or where a crash has torn
/// the last line. A line that is too long is cut to [`LETTER_BYTES_MAX`] bytes, and counts as
/// damaged.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = memchr::memchr(b'\n', chunk);
        let used = end.unwrap_or(chunk.len());
        let room = LETTER_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&chunk[..used.min(room)]);
        reader.consume(used + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

fn read_batch(reader: &mut impl BufRead, batch: &BatchConfig) -> io::Result<Option<Vec<Line>>> {
    let bytes_max = usize::try_from(batch.bytes_max.as_u64()).unwrap_or(usize::MAX);
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while lines.len() < batch.events_max && bytes < bytes_max {
        let Some(raw) = read_line(reader)? else { break };
        let letter: Option<Letter> = serde_json::from_slice(&raw).ok();
        let record = letter.and_then(|l| l.record());
        bytes += record.as_ref().map_or(0, |r| r.len() + Batch::EVENT_OVERHEAD_BYTES);
        lines.push(Line { raw, record });
    }
    Ok(if lines.is_empty() { None } else { Some(lines) })
}

/// Attempts to deliver the lines that hold a record. Returns one end for each line.
async fn deliver(upstream: &dyn Upstream, lines: &[Line]) -> Vec<End> {
    let mut ends: Vec<End> = lines.iter().map(|_| End::Delivered).collect();
    let (mut records, mut places) = (Vec::new(), Vec::new());
    for (place, line) in lines.iter().enumerate() {
        let Some(record) = &line.record else { continue };
        // Upstreams do not check records, and a letter has no checksum.
        if Record::decode(record).is_err() {
            let failure = Failure::new("a spool record cannot be read");
            ends[place] = End::Refused(Reason::Rejected, failure);
            continue;
        }
        records.push(record.clone());
        places.push(place);
    }
    if records.is_empty() {
        return ends;
    }
    let mut queue = VecDeque::from([InFlightBatch::of(records, places)]);
    while let Some(batch) = queue.pop_front() {
        let results = match upstream.send(&batch.batch).await {
            Outcome::Mixed(parts) => batch.split(parts),
            outcome => vec![(batch, outcome)],
        };
        for (mut batch, outcome) in results {
            let mut end = |end: &dyn Fn() -> End| batch.ids.iter().for_each(|&n| ends[n] = end());
            match outcome {
                Outcome::Delivered => {}
                Outcome::TooLarge(_) | Outcome::Rejected(_) if batch.len() > 1 => {
                    queue.extend(batch.halve());
                }
                Outcome::TooLarge(s) => end(&|| End::Refused(Reason::TooLarge, s.clone())),
                Outcome::Rejected(s) => end(&|| End::Refused(Reason::Rejected, s.clone())),
                Outcome::Dead(s) => end(&|| End::Refused(Reason::Undeliverable, s.clone())),
                Outcome::Retry(s) if batch.failures + 1 < ATTEMPTS_MAX => {
                    batch.failures += 1;
                    tokio::time::sleep(retries::wait(batch.failures, s.after)).await;
                    queue.push_front(batch);
                }
                Outcome::Retry(s) | Outcome::Fault(s) => end(&|| End::Undelivered(s.clone())),
                Outcome::Mixed(_) => end(&|| End::Undelivered(Failure::new("mixed"))),
            }
        }
    }
    ends
}
