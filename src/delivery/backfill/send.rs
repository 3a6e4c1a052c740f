//! Sends files of events, one after the other, and counts what becomes of the events.

use std::borrow::Cow;
use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::BackfillError;
use super::input::{Counts, Input};
use super::options::Options;
use super::progress::Line;
use crate::clock::{Clock, SystemClock};
use crate::delivery::dead_letters::{DEAD_BYTES_MAX, DeadLetters, Letter, Notes, Reason, Resender};
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::upstream::{Failure, Upstream};

/// A backfill of one upstream.
///
/// ```
/// use pixelgate::Upstream;
/// use pixelgate::tools::backfill::{Backfill, BackfillError, Options, Totals};
/// use std::{fs::File, io::BufReader, path::Path};
///
/// /// Sends the events of one file to the upstream that `options` names.
/// async fn send(
///     options: &Options,
///     upstream: &dyn Upstream,
///     path: &Path,
/// ) -> Result<Totals, BackfillError> {
///     let (_stop, stopped) = tokio::sync::watch::channel(false);
///     let mut backfill = Backfill::new(options, upstream, stopped);
///     let file = BufReader::new(File::open(path).map_err(BackfillError::Read)?);
///     backfill.send(path, file, |bytes| println!("{bytes} bytes read")).await?;
///     Ok(backfill.totals().clone())
/// }
/// ```
pub struct Backfill<'a> {
    options: &'a Options,
    resender: Resender<'a>,
    dead: DeadLetters,
    /// When the next batch may be sent.
    next_at: Instant,
    totals: Totals,
}

/// What became of the events of all files so far.
///
/// ```
/// use pixelgate::tools::backfill::Totals;
///
/// fn is_complete(totals: &Totals) -> bool {
///     totals.undelivered == 0 && totals.gave_up.is_none()
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// What the lines of the files held.
    pub counts: Counts,
    /// Events that the upstream accepted.
    pub delivered: u64,
    /// Events that the upstream refused. They are its dead letters now.
    pub refused: u64,
    /// Events that could not be delivered now. A later command tries them again.
    pub undelivered: u64,
    /// Why the first of the undelivered events was not delivered.
    pub left: Option<String>,
    /// Why nothing more was sent, if that is so.
    pub gave_up: Option<String>,
}

/// Notes how the events of one file end.
struct FileNotes<'a, 'i, R> {
    input: &'a mut Input<'i, R>,
    dead: &'a DeadLetters,
    totals: &'a mut Totals,
}

impl<'a> Backfill<'a> {
    /// Sends to `upstream`. When `stop` becomes true it waits for the attempt under way, and ends.
    pub fn new(
        options: &'a Options,
        upstream: &'a dyn Upstream,
        stop: watch::Receiver<bool>,
    ) -> Backfill<'a> {
        Backfill {
            options,
            resender: Resender::new(upstream, stop),
            dead: DeadLetters::new(&options.dead_dir, &options.upstream, DEAD_BYTES_MAX),
            next_at: Instant::now(),
            totals: Totals::default(),
        }
    }

    /// What became of the events so far.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Whether nothing more is sent. [`Totals::gave_up`] says why.
    pub fn has_ended(&self) -> bool {
        self.totals.gave_up.is_some()
    }

    /// Sends the events of one file. `path` names it in messages. Calls `progress` with the bytes
    /// read so far, after each batch.
    ///
    /// # Errors
    ///
    /// See [`BackfillError`]. Other files can be sent after any of them but
    /// [`BackfillError::Dead`] and [`BackfillError::Room`].
    pub async fn send(
        &mut self,
        path: &Path,
        reader: impl BufRead,
        mut progress: impl FnMut(u64),
    ) -> Result<(), BackfillError> {
        let mut input = Input::new(reader, path, self.options, true);
        let limits = self.options.limits();
        while !self.resender.has_ended() {
            let Some(batch) = input.next(&limits, &mut self.totals.counts)? else { return Ok(()) };
            if let Err(full) = input.reserve(&batch.ids) {
                self.totals.undelivered += batch.len() as u64;
                return Err(full);
            }
            self.wait_for_turn(batch.len()).await;
            let (dead, totals) = (&self.dead, &mut self.totals);
            let mut notes = FileNotes { input: &mut input, dead, totals };
            self.resender.deliver(batch, &mut notes).await?;
            progress(input.bytes);
        }
        self.totals.gave_up = self.resender.why_ended().map(Cow::into_owned);
        Ok(())
    }

    /// Waits until this many events may be sent.
    async fn wait_for_turn(&mut self, events: usize) {
        let Some(per_second) = self.options.per_second else { return };
        self.resender.pause(self.next_at.saturating_duration_since(Instant::now())).await;
        let taken = Duration::from_secs(events as u64) / per_second.get();
        self.next_at = self.next_at.max(Instant::now()) + taken;
    }
}

/// Counts what a backfill would send of one file. Sends nothing and writes nothing.
///
/// ```
/// use pixelgate::tools::backfill::{BackfillError, Counts, Options, survey};
/// use std::path::Path;
///
/// fn count(options: &Options, path: &Path, text: &[u8]) -> Result<u64, BackfillError> {
///     let mut counts = Counts::default();
///     survey(options, path, text, &mut counts, |_| {})?;
///     Ok(counts.picked)
/// }
/// ```
///
/// # Errors
///
/// [`BackfillError::Read`] and [`BackfillError::Progress`].
pub fn survey(
    options: &Options,
    path: &Path,
    reader: impl BufRead,
    counts: &mut Counts,
    mut progress: impl FnMut(u64),
) -> Result<(), BackfillError> {
    let mut input = Input::new(reader, path, options, false);
    while input.next(&options.limits(), counts)?.is_some() {
        progress(input.bytes);
    }
    Ok(())
}

impl<R: BufRead> Notes<Line> for FileNotes<'_, '_, R> {
    type Error = BackfillError;

    fn delivered(&mut self, lines: &[Line]) -> Result<(), BackfillError> {
        self.totals.delivered += lines.len() as u64;
        self.input.mark(lines)
    }

    fn refused(
        &mut self,
        batch: &InFlightBatch<Line>,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), BackfillError> {
        let now = SystemClock.unix_ms();
        let records = batch.batch.records().iter();
        let letter = |record| Letter::new(self.dead.upstream(), now, reason, failure, record);
        let letters: Vec<Letter> = records.map(|record| letter(record)).collect();
        self.dead.append(&letters)?;
        self.totals.refused += batch.len() as u64;
        self.input.mark(&batch.ids)
    }

    fn undelivered(&mut self, events: usize, why: Cow<'static, str>) {
        self.totals.undelivered += events as u64;
        self.totals.left.get_or_insert_with(|| why.into_owned());
    }
}
