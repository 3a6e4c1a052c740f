//! A lane's `portals` file: the counts of its records by portal, and up to where they count.
//!
//! An entry is appended once a second where something has changed. When the file has no room left,
//! a summary of all entries is written aside and takes its name, with zeros behind it for the
//! entries to come: at least [`LOG_BYTES_MIN`], and a quarter of the summary. So the file has at
//! most 5/4 of what its portals need, and a full disk does not keep entries from being written. A
//! write that was torn costs nothing: what it says is counted again from the records. See
//! `format.rs` for the bytes, and [`super`] for what follows from them.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::book::Book;
use super::contents::{Contents, Sound, each_count};
use super::counts::{Column, Counts};
use super::format::{self, Marks, RawColumn};
use crate::spool::fs::{File, Fs, Open, is_absent, read_block, write_full};
use crate::spool::lane_files::{PORTALS, PORTALS_ASIDE};
use crate::spool::read::cursor::LaneKey;
use crate::spool::read::ledger::ConsumerPosition;

/// Bytes for entries behind the summary, at least.
const LOG_BYTES_MIN: u64 = 64 << 10;
/// Why the counts of a lane begin anew that knew none.
pub const EARLIER_VERSION: &str = "an earlier version wrote it";
/// Most portals of one entry of a summary.
const PAIRS_MAX: usize = 1 << 16;

/// Lanes whose counts the file has, and whether these count.
type Folds = Vec<(LaneKey, bool)>;

/// The open file.
pub struct Journal {
    dir: PathBuf,
    key: LaneKey,
    file: Arc<dyn File>,
    /// From when its counts are whole, in milliseconds since 1970; 0: from the lane's beginning.
    pub since_ms: u64,
    /// Where the entries end, and what the file has room for.
    end: u64,
    room: u64,
    /// The next entry goes into a new file: this one is damaged, or a write to it failed.
    is_spent: bool,
    /// The file's name is not durable yet.
    is_unnamed: bool,
    /// Lanes whose counts the file has, and whether these count: see [`Journal::fold`].
    folds: Folds,
    /// Counts of the file that are not in the totals yet.
    history: Counts,
    /// Counted and not written yet.
    unwritten: Counts,
    written: Option<Marks>,
}

/// A file that was read.
pub struct Loaded {
    pub journal: Journal,
    pub contents: Contents,
    /// Whether bytes of it are damaged. What they said is counted again if the records are there.
    pub is_damaged: bool,
    /// Why its counts begin anew; `None`: they do not.
    pub reset: Option<&'static str>,
}

impl Journal {
    /// Makes the file of a new lane, whose name the caller makes durable.
    pub fn create(fs: &dyn Fs, dir: &Path, key: LaneKey, since_ms: u64) -> io::Result<Journal> {
        let file = fs.open(&dir.join(PORTALS), Open::Create)?;
        write_full(&*file, &format::header(key, since_ms), 0)?;
        file.sync_data()?;
        Ok(Journal::new(dir, key, file, since_ms))
    }

    fn new(dir: &Path, key: LaneKey, file: Arc<dyn File>, since_ms: u64) -> Journal {
        let end = format::HEADER_BYTES as u64;
        Journal {
            dir: dir.to_owned(),
            key,
            file,
            since_ms,
            end,
            room: end,
            is_spent: false,
            is_unnamed: false,
            folds: Vec::new(),
            history: Counts::default(),
            unwritten: Counts::default(),
            written: None,
        }
    }

    /// Reads the file of a lane whose process has ended. `is_folded` says whether another lane's
    /// counts in it count. `is_metered`: the lane's process has made the file.
    pub fn load(
        fs: &dyn Fs,
        dir: &Path,
        key: LaneKey,
        is_metered: bool,
        is_folded: impl Fn(LaneKey) -> bool,
        book: &Book,
    ) -> io::Result<Loaded> {
        let path = dir.join(PORTALS);
        let opened = fs.open(&path, Open::Write);
        // A call may report a file as absent that is there.
        let is_missing = is_absent(&opened) && fs.list(dir)?.iter().all(|e| e.name != PORTALS);
        let file = if is_missing { fs.open(&path, Open::Create)? } else { opened? };
        // The last entry may be in the cache alone, and segments are trimmed by it.
        file.sync_data()?;
        let bytes = read_block(&*file, usize::try_from(file.bytes()?).unwrap_or(0), 0)?;
        let Sound { since_ms, end, mut contents, is_damaged } =
            Sound::read(&bytes, key, is_folded, book);
        let reset = match since_ms {
            None if !is_metered => Some(EARLIER_VERSION),
            None if is_missing => Some("its file `portals` is missing"),
            None => Some("its file `portals` is damaged"),
            Some(_) if contents.marks.is_none() && is_damaged => {
                Some("its file `portals` is damaged")
            }
            Some(_) => None,
        };
        let mut journal = Journal::new(dir, key, file, since_ms.unwrap_or(0));
        let is_usable = contents.marks.is_some() || since_ms.is_some() && !is_damaged;
        if is_usable {
            journal.end = end as u64;
            journal.room = bytes.len() as u64;
            journal.folds = std::mem::take(&mut contents.folds);
            journal.history = std::mem::take(&mut contents.counts);
            journal.written = contents.marks.clone();
        }
        journal.is_spent = is_damaged || contents.marks.is_none();
        Ok(Loaded { journal, contents, is_damaged, reset })
    }

    /// Adds counts that are to be written with the next entry.
    pub fn add(&mut self, counts: Counts) {
        self.unwritten.append(counts);
    }

    /// Takes the lane's counts into the totals.
    pub fn take_in(&mut self, book: &Book) {
        book.take_in(&std::mem::take(&mut self.history));
        book.take_in(&self.unwritten);
        book.note_since(self.since_ms);
    }

    /// Whether the file counts up to here, and nothing is to be written.
    pub fn is_at(&self, counted_to: u64, positions: &[ConsumerPosition]) -> bool {
        let Some(written) = &self.written else { return false };
        let ended = |positions: &[ConsumerPosition]| -> Vec<u64> {
            positions.iter().map(ConsumerPosition::ended_count).collect()
        };
        !self.is_spent
            && !self.is_unnamed
            && !self.has_stale_fold()
            && self.unwritten.is_empty()
            && written.counted_to == counted_to
            && ended(&written.positions) == ended(positions)
    }

    /// Every record before it is counted in the file.
    pub fn low(&self) -> u64 {
        self.written.as_ref().filter(|_| !self.is_spent).map_or(0, Marks::low)
    }

    /// Whether the file holds counts of a lane that count elsewhere, until the next entry is
    /// written.
    pub fn has_stale_fold(&self) -> bool {
        self.folds.iter().any(|(_, counts)| !counts)
    }

    /// Writes what was counted, and up to where, and makes it durable. After an error it is written
    /// with the next call. `absorbed`: the lanes whose folders may still be there.
    pub fn save(
        &mut self,
        fs: &dyn Fs,
        book: &Book,
        marks: &Marks,
        absorbed: &[LaneKey],
    ) -> io::Result<()> {
        let entry = self.entry(book, marks);
        let has_room = self.end + entry.len() as u64 <= self.room;
        if has_room && !self.is_spent && !self.has_stale_fold() {
            self.append(&entry)?;
            self.note_written(marks);
        } else {
            self.rewrite(fs, book, marks, absorbed, None)?;
        }
        self.sync_name(fs)
    }

    /// The entry with what is not written.
    fn entry(&mut self, book: &Book, marks: &Marks) -> Vec<u8> {
        self.unwritten.merge();
        let mut items = Vec::new();
        for (column, tally) in self.unwritten.iter().filter(|(_, tally)| !tally.is_empty()) {
            let pairs: Vec<(u32, u64)> = tally.iter().collect();
            put_pairs(*column, &pairs, book, &mut items);
        }
        format::put_marks(marks, &mut items);
        sealed(&items, self.key.1)
    }

    /// Names records that are about to go to an upstream's dead letters, durably.
    pub fn save_dead(&mut self, upstream: &str, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut items = Vec::new();
        format::put_dead(upstream, ranges, &mut items);
        let entry = sealed(&items, self.key.1);
        // Also into a file that is spent or has no room left: it is replaced within a second.
        self.append(&entry)
    }

    /// Takes the counts of a delivered lane in, durably. They count once the cursor of this file's
    /// lane names the other one, and the caller calls [`Journal::confirm_fold`].
    pub fn fold(
        &mut self,
        fs: &dyn Fs,
        book: &Book,
        folded: &Journal,
        marks: &Marks,
        absorbed: &[LaneKey],
    ) -> io::Result<()> {
        let bytes = read_block(&*folded.file, folded.end as usize, 0)?;
        let is_counted = |key| folded.folds.iter().any(|(known, counts)| *known == key && *counts);
        let entries = bytes.get(format::HEADER_BYTES..).unwrap_or_default();
        let mut counts = Contents::read(entries, folded.key.1, is_counted, book).counts;
        counts.merge();
        self.since_ms = self.since_ms.max(folded.since_ms);
        self.rewrite(fs, book, marks, absorbed, Some((folded.key, counts)))?;
        self.sync_name(fs)
    }

    /// The cursor names the folded lane.
    pub fn confirm_fold(&mut self, folded: LaneKey) {
        for (key, counts) in &mut self.folds {
            *counts |= *key == folded;
        }
    }

    fn note_written(&mut self, marks: &Marks) {
        self.unwritten.clear();
        self.written = Some(marks.clone());
    }

    fn append(&mut self, entry: &[u8]) -> io::Result<()> {
        let written = write_full(&*self.file, entry, self.end).and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => self.end += entry.len() as u64,
            // Nothing is known of the file's newest bytes any more.
            Err(_) => self.is_spent = true,
        }
        written
    }

    fn sync_name(&mut self, fs: &dyn Fs) -> io::Result<()> {
        if self.is_unnamed {
            fs.sync_dir(&self.dir)?;
            self.is_unnamed = false;
        }
        Ok(())
    }

    /// Writes a new file with a summary of all that was counted.
    fn rewrite(
        &mut self,
        fs: &dyn Fs,
        book: &Book,
        marks: &Marks,
        absorbed: &[LaneKey],
        fold: Option<(LaneKey, Counts)>,
    ) -> io::Result<()> {
        self.is_spent = true;
        let (mut out, folds) = self.summary(book, absorbed, fold)?;
        out.extend_from_slice(&self.entry(book, marks));
        let end = out.len() as u64;
        let room = end + LOG_BYTES_MIN.max(end / 4);
        let path = self.dir.join(PORTALS_ASIDE);
        let file = fs.open(&path, Open::Create)?;
        // Without it, entries may find the disk full.
        _ = file.allocate(room);
        write_full(&*file, &out, 0)?;
        file.sync_data()?;
        fs.rename(&path, &self.dir.join(PORTALS))?;
        (self.file, self.end, self.room, self.folds) = (file, end, room, folds);
        (self.is_spent, self.is_unnamed) = (false, true);
        self.note_written(marks);
        Ok(())
    }

    /// The header and the entries of a summary of what is written, and of a lane that is folded in.
    /// Counts of a lane that is folded in stay apart until its folder is gone.
    fn summary(
        &self,
        book: &Book,
        absorbed: &[LaneKey],
        fold: Option<(LaneKey, Counts)>,
    ) -> io::Result<(Vec<u8>, Folds)> {
        let bytes = read_block(&*self.file, self.end as usize, 0)?;
        let entries = bytes.get(format::HEADER_BYTES..).unwrap_or_default();
        let mut out = format::header(self.key, self.since_ms);
        let mut folds = Vec::new();
        let is_apart = |key: &LaneKey| absorbed.contains(key);
        let own = |key: LaneKey| {
            !is_apart(&key) && self.folds.iter().any(|(known, counts)| *known == key && *counts)
        };
        self.summarize(entries, None, own, book, &mut out);
        for (key, _) in self.folds.iter().filter(|(key, counts)| *counts && is_apart(key)) {
            self.summarize(entries, Some(*key), |section| section == *key, book, &mut out);
            folds.push((*key, true));
        }
        if let Some((key, counts)) = fold {
            for (column, tally) in counts.iter() {
                let pairs: Vec<(u32, u64)> = tally.iter().collect();
                self.put_column(Some(key), *column, &pairs, book, &mut out);
            }
            folds.push((key, false));
        }
        Ok((out, folds))
    }

    /// Appends the sums of the sections that `is_wanted`; of the lane's own if `fold` is `None`.
    fn summarize(
        &self,
        entries: &[u8],
        fold: Option<LaneKey>,
        is_wanted: impl Fn(LaneKey) -> bool,
        book: &Book,
        out: &mut Vec<u8>,
    ) {
        let mut columns = BTreeSet::new();
        let is_in = |section: Option<LaneKey>| section.map_or(fold.is_none(), &is_wanted);
        each_count(entries, self.key.1, |section, column, _| {
            if is_in(section)
                && let Some(column) = column.column(|name| book.name(name))
            {
                columns.insert(column);
            }
        });
        let newest = columns.iter().filter_map(|column| match column {
            Column::Accepted(day) | Column::Today(day) => Some(*day),
            _ => None,
        });
        let newest = newest.max().unwrap_or(0);
        // One column at a time, so that a million portals need 8 MB and not as much for each.
        let mut sum = |wanted: &dyn Fn(Column) -> bool, as_column: Column| {
            let mut sums: Vec<u64> = vec![0; book.numbers()];
            each_count(entries, self.key.1, |section, column, pairs| {
                let column = column.column(|name| book.name(name));
                if is_in(section) && column.is_some_and(wanted) {
                    for (portal, events) in pairs {
                        let number = book.number_of(*portal) as usize;
                        if number >= sums.len() {
                            sums.resize(number + 1, 0);
                        }
                        sums[number] = sums[number].saturating_add(*events);
                    }
                }
            });
            let nonzero = sums.iter().enumerate().filter(|(_, events)| **events > 0);
            let pairs: Vec<(u32, u64)> = nonzero.map(|(at, events)| (at as u32, *events)).collect();
            self.put_column(fold, as_column, &pairs, book, out);
        };
        sum(&|column| matches!(column, Column::Accepted(_)), Column::Accepted(0));
        let is_newest =
            |column| matches!(column, Column::Accepted(on) | Column::Today(on) if on == newest);
        sum(&is_newest, Column::Today(newest));
        for column in columns {
            if !matches!(column, Column::Accepted(_) | Column::Today(_)) {
                sum(&|other| other == column, column);
            }
        }
    }

    fn put_column(
        &self,
        fold: Option<LaneKey>,
        column: Column,
        pairs: &[(u32, u64)],
        book: &Book,
        out: &mut Vec<u8>,
    ) {
        for chunk in pairs.chunks(PAIRS_MAX) {
            let at = format::begin_entry(out);
            if let Some(key) = fold {
                format::put_fold(key, out);
            }
            put_pairs(column, chunk, book, out);
            format::end_entry(out, at, self.key.1);
        }
    }
}

fn put_pairs(column: Column, pairs: &[(u32, u64)], book: &Book, out: &mut Vec<u8>) {
    let name = match column {
        Column::Delivered(place) | Column::Dead(place) => book.name_at(place),
        _ => String::new(),
    };
    let pairs = pairs.iter().map(|(number, events)| (book.portal_of(*number), *events));
    format::put_counts(RawColumn::of(column, |_| &name), pairs, out);
}

/// An entry of these items.
fn sealed(items: &[u8], salt: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(items.len() + 8);
    let at = format::begin_entry(&mut out);
    out.extend_from_slice(items);
    format::end_entry(&mut out, at, salt);
    out
}
