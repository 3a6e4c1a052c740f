//! Reading dead letters, and sending them again.
//!
//! A replay takes the letters' file aside, so that the running edge starts a new one, sends the
//! events in batches under their own ids, and puts back what is refused again or cannot be
//! delivered now. Only then is the file that was taken aside removed: a replay that dies is
//! taken up by the next, and what it had delivered already arrives twice, under the same ids.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;

use super::store::{DeadError, Files, Letter, Reason};
use crate::clock::{Clock, SystemClock};
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::delivery::retries;
use crate::event::Record;
use crate::upstream::{Batch, BatchConfig, Failure, Outcome, Upstream};

/// Longest line that is read as a letter: an event's limits allow for a tenth of it.
pub const LETTER_BYTES_MAX: usize = 1 << 20;
/// Attempts at one batch before a replay gives up: somebody is waiting for it at a terminal.
pub const ATTEMPTS_MAX: u32 = 5;

/// What a list has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Letters that were shown.
    pub letters: u64,
    /// Lines that are no letter.
    pub damaged: u64,
}

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that the upstream took.
    pub delivered: u64,
    /// Events that it refused again: they are dead letters again, with the new reason.
    pub refused: u64,
    /// Events put back because the upstream could not be reached or was not configured right.
    pub put_back: u64,
    /// Lines that are no letter, put back as they are.
    pub damaged: u64,
    /// Why events were put back.
    pub gave_up: Option<String>,
}

/// A line of the file, and what it holds.
struct Line {
    raw: Vec<u8>,
    record: Option<Bytes>,
}

/// What has become of a line's event.
enum End {
    Delivered,
    Refused(Reason, Failure),
    Undelivered(Failure),
}

/// Shows every dead letter of an upstream, oldest first.
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

/// Sends every dead letter of an upstream again. `progress` is called after each batch.
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
            // Beyond the bound if need be: these letters were in the file before.
            files.append(&back, u64::MAX)?;
        }
        progress(&so_far);
    }
    fs::remove_file(&files.replaying)?;
    files.sync()?;
    Ok(so_far)
}

impl Progress {
    /// Counts what has become of `lines`, and gives those that go back into the file.
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
                (Some(record), End::Refused(reason, setback)) => {
                    self.refused += 1;
                    let now = SystemClock.unix_ms();
                    let letter = Letter::new(name, now, reason, &setback, &record);
                    serde_json::to_writer(&mut back, &letter).map_err(io::Error::from)?;
                }
                (Some(_), End::Undelivered(setback)) => {
                    self.put_back += 1;
                    self.gave_up.get_or_insert_with(|| setback.what.into_owned());
                    back.extend_from_slice(&line.raw);
                }
            }
            back.push(b'\n');
        }
        Ok(back)
    }
}

/// Renames the letters' file, or adds it to what a replay that died has left.
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

/// The next line, without its end. A line torn by a crash at the very end is none. Of a line
/// that is too long, the first [`LETTER_BYTES_MAX`] bytes: no letter, so it counts as damaged.
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

/// Attempts to deliver what can be read of `lines`; one end for each.
async fn deliver(upstream: &dyn Upstream, lines: &[Line]) -> Vec<End> {
    let mut ends: Vec<End> = lines.iter().map(|_| End::Delivered).collect();
    let (mut records, mut places) = (Vec::new(), Vec::new());
    for (place, line) in lines.iter().enumerate() {
        let Some(record) = &line.record else { continue };
        // Upstreams take records on trust, and no checksum vouches for a letter.
        if Record::decode(record).is_err() {
            let setback = Failure::new("a spool record cannot be read");
            ends[place] = End::Refused(Reason::Rejected, setback);
            continue;
        }
        records.push(record.clone());
        places.push(place);
    }
    if records.is_empty() {
        return ends;
    }
    let mut work = VecDeque::from([InFlightBatch::of(records, places)]);
    while let Some(parcel) = work.pop_front() {
        let parted = match upstream.send(&parcel.batch).await {
            Outcome::Mixed(parts) => parcel.part(parts),
            outcome => vec![(parcel, outcome)],
        };
        for (mut parcel, outcome) in parted {
            let mut end =
                |end: &dyn Fn() -> End| parcel.seats.iter().for_each(|&n| ends[n] = end());
            match outcome {
                Outcome::Delivered => {}
                Outcome::TooLarge(_) | Outcome::Rejected(_) if parcel.len() > 1 => {
                    work.extend(parcel.halve());
                }
                Outcome::TooLarge(s) => end(&|| End::Refused(Reason::TooLarge, s.clone())),
                Outcome::Rejected(s) => end(&|| End::Refused(Reason::Rejected, s.clone())),
                Outcome::Dead(s) => end(&|| End::Refused(Reason::Undeliverable, s.clone())),
                Outcome::Retry(s) if parcel.setbacks + 1 < ATTEMPTS_MAX => {
                    parcel.setbacks += 1;
                    tokio::time::sleep(retries::wait(parcel.setbacks, s.after)).await;
                    work.push_front(parcel);
                }
                Outcome::Retry(s) | Outcome::Fault(s) => end(&|| End::Undelivered(s.clone())),
                Outcome::Mixed(_) => end(&|| End::Undelivered(Failure::new("mixed"))),
            }
        }
    }
    ends
}
