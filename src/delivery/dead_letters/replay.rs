//! Sends the events of dead letters again, under their own ids.
//!
//! A letter is marked in its file as soon as the upstream has acknowledged its event. So a replay
//! that ends early, by a signal or a crash, repeats at most the one batch that was on its way. The
//! letter of an event that is refused again gets the new reason; that of an event that cannot be
//! delivered now stays as it is. Letters that the running edge adds meanwhile wait for the next
//! replay.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::watch;

use super::filter::Filter;
use super::letter::{Letter, Reason};
use super::lines::{Content, Line, LineEdit, Lines, mark_delivered, rewrite};
use super::resend::{Notes, Resender};
use super::store::{DeadError, Files};
use crate::clock::{Clock, SystemClock};
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::event::{Record, is_newer_record};
use crate::upstream::{Batch, BatchConfig, Failure, Upstream};

/// What a [`replay`] has done so far.
///
/// ```
/// use pixelgate::tools::dead_letters::Progress;
///
/// fn is_complete(progress: &Progress) -> bool {
///     progress.undelivered == 0 && progress.gave_up.is_none()
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that the upstream accepted.
    pub delivered: u64,
    /// Events that the upstream refused again. They stay dead letters, with the new reason.
    pub refused: u64,
    /// Events that stay dead letters as they were, because they could not be delivered now.
    pub undelivered: u64,
    /// Lines that are not a letter. They stay in the file.
    pub damaged: u64,
    /// Why the first of the undelivered events was not delivered.
    pub gave_up: Option<String>,
}

impl Progress {
    fn leave(&mut self, events: usize, why: Cow<'static, str>) {
        self.undelivered += events as u64;
        self.gave_up.get_or_insert_with(|| why.into_owned());
    }
}

/// The letters' events that are sent together, and where their lines begin.
#[derive(Default)]
struct Next {
    records: Vec<Bytes>,
    offsets: Vec<u64>,
    bytes: usize,
}

/// A replay of one file.
struct Replay<'a> {
    filter: &'a Filter,
    /// The file, opened for marking the letters that were delivered.
    file: File,
    /// The new reasons of refused events, by the offsets of their lines.
    refused: HashMap<u64, (Reason, Failure)>,
    /// Whether a line was marked.
    marked: bool,
    so_far: Progress,
}

/// Sends every dead letter of an upstream that matches again. Calls `progress` after each batch.
/// When `stop` becomes true it waits for the attempt under way, and ends.
///
/// ```
/// use pixelgate::tools::dead_letters::{DeadError, Filter, replay};
/// use pixelgate::{Upstream, config::Batch};
/// use std::path::Path;
///
/// async fn replay_all(dir: &Path, collector: &dyn Upstream) -> Result<(), DeadError> {
///     let (_stop, stopped) = tokio::sync::watch::channel(false);
///     let (batch, all) = (Batch::default(), Filter::default());
///     let end = replay(dir, "collector", collector, &batch, &all, stopped, |_| {}).await?;
///     println!("{} delivered, {} refused again", end.delivered, end.refused);
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// [`DeadError::Busy`] while another process replays or removes these letters, and
/// [`DeadError::Io`] for the errors of the file system.
pub async fn replay(
    dir: &Path,
    name: &str,
    upstream: &dyn Upstream,
    batch: &BatchConfig,
    filter: &Filter,
    stop: watch::Receiver<bool>,
    mut progress: impl FnMut(&Progress),
) -> Result<Progress, DeadError> {
    let files = Files::new(dir, name);
    let Some(_replaying) = files.lock_replay()? else { return Err(DeadError::Busy) };
    let mut so_far = Progress::default();
    let mut resender = Resender::new(upstream, stop);
    for path in files.all() {
        let Some(mut lines) = Lines::open(&files, path)? else { continue };
        let file = File::options().write(true).open(path)?;
        let mut replay = Replay { filter, file, refused: HashMap::new(), marked: false, so_far };
        while let Some(next) = replay.next(&mut lines, batch)? {
            let batch = InFlightBatch::of(next.records, next.offsets);
            resender.deliver(batch, &mut replay).await?;
            progress(&replay.so_far);
        }
        if replay.marked || !replay.refused.is_empty() {
            rewrite(&files, path, |line| replay.edit(name, line))?;
        }
        so_far = replay.so_far;
    }
    Ok(so_far)
}

impl Replay<'_> {
    /// The next events to send; `None` at the end of the file.
    fn next(&mut self, lines: &mut Lines, batch: &BatchConfig) -> io::Result<Option<Next>> {
        let bytes_max = usize::try_from(batch.bytes_max.as_u64()).unwrap_or(usize::MAX);
        let mut next = Next::default();
        while next.records.len() < batch.events_max && next.bytes < bytes_max {
            let Some(line) = lines.next()? else { break };
            match line.content {
                Content::Letter(letter) if self.filter.matches(&letter) => {
                    self.prepare(&letter, line.offset, &mut next);
                }
                Content::Letter(_) => {}
                Content::Delivered => self.marked = true,
                Content::Damaged => self.so_far.damaged += 1,
            }
        }
        Ok(if next.records.is_empty() { None } else { Some(next) })
    }

    /// Adds a letter's event, unless its record cannot be read: upstreams do not check records, and
    /// a letter has no checksum.
    fn prepare(&mut self, letter: &Letter, offset: u64, next: &mut Next) {
        let record = letter.record().unwrap_or_default();
        match Record::decode(&record) {
            Ok(_) => {
                next.bytes += record.len() + Batch::EVENT_OVERHEAD_BYTES;
                next.records.push(record);
                next.offsets.push(offset);
            }
            Err(_) if is_newer_record(&record) => {
                self.so_far.leave(1, "a newer version wrote the record".into());
            }
            Err(_) => {
                let failure = Failure::new("a spool record cannot be read");
                self.refuse(&[offset], Reason::Unreadable, &failure);
            }
        }
    }

    fn refuse(&mut self, offsets: &[u64], reason: Reason, failure: &Failure) {
        self.so_far.refused += offsets.len() as u64;
        self.refused.extend(offsets.iter().map(|offset| (*offset, (reason, failure.clone()))));
    }

    /// What the file holds after the replay: without the letters that were delivered, and with the
    /// new reasons.
    fn edit(&mut self, name: &str, line: &Line) -> LineEdit {
        match &line.content {
            Content::Delivered => LineEdit::Remove,
            Content::Damaged => LineEdit::Keep,
            Content::Letter(letter) => match self.refused.remove(&line.offset) {
                None => LineEdit::Keep,
                Some((reason, failure)) => {
                    let record = letter.record().unwrap_or_default();
                    let now = SystemClock.unix_ms();
                    LineEdit::Replace(Box::new(Letter::new(name, now, reason, &failure, &record)))
                }
            },
        }
    }
}

impl Notes<u64> for Replay<'_> {
    type Error = DeadError;

    fn delivered(&mut self, offsets: &[u64]) -> Result<(), DeadError> {
        mark_delivered(&self.file, offsets)?;
        self.marked = true;
        self.so_far.delivered += offsets.len() as u64;
        Ok(())
    }

    fn refused(
        &mut self,
        batch: &InFlightBatch<u64>,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), DeadError> {
        self.refuse(&batch.ids, reason, failure);
        Ok(())
    }

    fn undelivered(&mut self, events: usize, why: Cow<'static, str>) {
        self.so_far.leave(events, why);
    }
}
