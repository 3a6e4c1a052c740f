//! Reads a file of events and picks those that are to be sent.

use std::io::BufRead;
use std::path::Path;

use bytes::Bytes;

use super::error::BackfillError;
use super::options::Options;
use super::progress::{Line, Progress};
use crate::delivery::bounded_line::read_line;
use crate::delivery::dead_letters::{DAMAGED_NAMED_MAX, Place};
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::event::{FromWire, WireError};
use crate::upstream::{Batch, BatchConfig};

/// Longest line that is read as an event, in bytes. An event's limits allow for a tenth of it.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// The byte order mark, which some editors write at the start of a file in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The lines of the files, counted by what they held.
///
/// ```
/// use pixelgate::tools::backfill::Counts;
///
/// fn events(counts: &Counts) -> u64 {
///     counts.picked + counts.sent_before + counts.unmatched + counts.of_others
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events to send: they match the filter and have not been sent before.
    pub picked: u64,
    /// Events that an earlier command has sent.
    pub sent_before: u64,
    /// Events that do not match the filter.
    pub unmatched: u64,
    /// Events of portals whose events go to other upstreams only.
    pub of_others: u64,
    /// Lines that are not an event. Empty lines are in no count.
    pub malformed: u64,
    /// The places of the first [`DAMAGED_NAMED_MAX`] malformed lines, and what is wrong with each.
    pub places: Vec<(Place, WireError)>,
}

/// A file of events, as it is read.
pub struct Input<'a, R> {
    reader: R,
    path: &'a Path,
    options: &'a Options,
    /// Whether the events are sent, so that their progress is written. `false`: they are counted.
    is_sent: bool,
    /// The progress of the file, which is found by the id of its first event. `None`: no event was
    /// read yet, or none of the file was sent.
    progress: Option<Progress>,
    /// Whether the first event was read.
    has_begun: bool,
    line: Vec<u8>,
    number: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

impl<'a, R: BufRead> Input<'a, R> {
    /// `path` names the file in messages. With `is_sent` the progress is locked and can be marked.
    pub fn new(reader: R, path: &'a Path, options: &'a Options, is_sent: bool) -> Input<'a, R> {
        Input {
            reader,
            path,
            options,
            is_sent,
            progress: None,
            has_begun: false,
            line: Vec::new(),
            number: 0,
            bytes: 0,
        }
    }

    /// The next events to send; `None` at the end of the file.
    pub fn next(
        &mut self,
        limits: &BatchConfig,
        counts: &mut Counts,
    ) -> Result<Option<InFlightBatch<Line>>, BackfillError> {
        let bytes_max = usize::try_from(limits.bytes_max.as_u64()).unwrap_or(usize::MAX);
        let (mut records, mut lines, mut bytes) = (Vec::new(), Vec::new(), 0);
        while records.len() < limits.events_max && bytes < bytes_max {
            let read = read_line(&mut self.reader, LINE_BYTES_MAX, &mut self.line);
            let read = read.map_err(BackfillError::Read)?;
            if read == 0 {
                break;
            }
            self.bytes += read;
            self.number += 1;
            let Some(event) = self.event(counts)? else { continue };
            counts.picked += 1;
            bytes += event.record.len() + Batch::EVENT_OVERHEAD_BYTES;
            lines.push(Line { number: self.number, id: event.id });
            records.push(Bytes::from(event.record));
        }
        Ok((!records.is_empty()).then(|| InFlightBatch::of(records, lines)))
    }

    /// The event of the current line, if it is to be sent.
    fn event(&mut self, counts: &mut Counts) -> Result<Option<FromWire>, BackfillError> {
        let text = match self.number {
            1 => self.line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.line),
            _ => &self.line,
        };
        let text = text.trim_ascii();
        if text.is_empty() {
            return Ok(None);
        }
        let event = match self.line.len() <= LINE_BYTES_MAX {
            true => FromWire::read(text),
            false => Err(WireError::TooLong),
        };
        let event = match event {
            Ok(event) => event,
            Err(why) => {
                counts.malformed += 1;
                if counts.places.len() < DAMAGED_NAMED_MAX {
                    let place = Place { file: self.path.to_owned(), line: self.number };
                    counts.places.push((place, why));
                }
                return Ok(None);
            }
        };
        if !std::mem::replace(&mut self.has_begun, true) {
            self.open_progress(event.id)?;
        }
        let line = Line { number: self.number, id: event.id };
        if !self.options.filter.matches(&event) {
            counts.unmatched += 1;
            return Ok(None);
        }
        if !self.options.are_meant(&event) {
            counts.of_others += 1;
            return Ok(None);
        }
        if let Some(progress) = &mut self.progress
            && progress.holds(&line).map_err(BackfillError::Progress)?
        {
            counts.sent_before += 1;
            return Ok(None);
        }
        Ok(Some(event))
    }

    fn open_progress(&mut self, first: [u8; 16]) -> Result<(), BackfillError> {
        let (sent, upstream) = (&self.options.sent_dir, &self.options.upstream);
        self.progress = match self.is_sent {
            false => Progress::look(sent, upstream, first).map_err(BackfillError::Progress)?,
            true => {
                let opened = Progress::open(sent, upstream, first);
                let opened = opened.map_err(BackfillError::Progress)?;
                Some(opened.ok_or(BackfillError::Busy)?)
            }
        };
        Ok(())
    }

    /// Makes sure that there is room to note that the events of these lines have ended.
    pub fn reserve(&mut self, lines: &[Line]) -> Result<(), BackfillError> {
        match &mut self.progress {
            Some(progress) => progress.reserve(lines).map_err(BackfillError::Room),
            None => Ok(()),
        }
    }

    /// Notes durably that the events of these lines have ended.
    pub fn mark(&mut self, lines: &[Line]) -> Result<(), BackfillError> {
        match &mut self.progress {
            Some(progress) => progress.mark(lines).map_err(BackfillError::Progress),
            None => Ok(()),
        }
    }
}
