//! The `portals` file of a lane: the counts of its records by portal, and up to which record they
//! count.
//!
//! Once a second an entry is appended if something has changed. When the file has no room left, a
//! new file with a summary of all entries takes its place. Behind the summary it has zeros for
//! further entries: at least [`LOG_BYTES_MIN`], and a quarter of the summary. So the file takes at
//! most 5/4 of the bytes that its portals need, and entries can be written on a full disk. A torn
//! write loses nothing, because its content is counted again from the records. See `format.rs` for
//! the bytes, and [`super`] for why the counts are exact.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::book::Book;
use super::contents::{Contents, Sound, each_count};
use super::counts::{Column, Tallies};
use super::format::{self, Marks, RawColumn};
use crate::spool::fs::{File, Fs, Open, is_absent, read_block, write_full};
use crate::spool::lane_files::{PORTALS, PORTALS_ASIDE};
use crate::spool::read::cursor::LaneKey;
use crate::spool::read::ledger::ConsumerPosition;

/// The least number of bytes for entries behind the summary.
const LOG_BYTES_MIN: u64 = 64 << 10;
/// Why the counts of a lane begin anew, if it has no file because its version had none.
pub const EARLIER_VERSION: &str = "an earlier version wrote it";
/// The most portals in one entry of a summary.
const PAIRS_MAX: usize = 1 << 16;

/// The folded lanes whose counts a file has, and whether these count there.
type Folds = Vec<(LaneKey, bool)>;

/// The open file.
pub struct Journal {
    dir: PathBuf,
    key: LaneKey,
    file: Arc<dyn File>,
    /// The time from which the counts are complete, in milliseconds since 1970. 0: from the
    /// beginning of the lane.
    pub since_ms: u64,
    /// The offset at which the entries end.
    end: u64,
    /// The size of the file.
    room: u64,
    /// Whether the next entry goes into a new file, because this file is damaged or a write to it
    /// has failed.
    is_spent: bool,
    /// Whether the name of the file is not durable yet.
    is_unnamed: bool,
    /// The folded lanes whose counts the file has: see [`Journal::fold`].
    folds: Folds,
    /// The counts of the file that are not in the totals yet.
    history: Tallies,
    /// The counts that are not written yet.
    unwritten: Tallies,
    /// The positions up to which the file counts. `None`: nothing was written yet.
    written: Option<Marks>,
}

/// A file that was read at a start.
pub struct Loaded {
    pub journal: Journal,
    pub contents: Contents,
    /// Whether bytes of the file are damaged. Their counts are counted again if the records are
    /// still there.
    pub is_damaged: bool,
    /// Why the counts begin anew. `None`: they do not.
    pub reset: Option<&'static str>,
}

impl Journal {
    /// Makes the file of a new lane. The caller must make its name durable.
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
            history: Tallies::default(),
            unwritten: Tallies::default(),
            written: None,
        }
    }

    /// Reads the file of a lane whose process has ended. `is_metered` is whether that process has
    /// made the file. `is_folded` returns whether the counts of a folded lane count there.
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
        // The listing is the proof: a file system may report a file as absent that is there.
        let is_missing = is_absent(&opened) && fs.list(dir)?.iter().all(|e| e.name != PORTALS);
        let file = if is_missing { fs.open(&path, Open::Create)? } else { opened? };
        // The last entry may not be on disk yet, and segments are trimmed by what it counts.
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

    /// Adds counts, which the next entry will hold.
    pub fn add(&mut self, counts: Tallies) {
        self.unwritten.append(counts);
    }

    /// Adds the counts of the lane to the totals.
    pub fn take_in(&mut self, book: &Book) {
        let history = std::mem::take(&mut self.history);
        book.take_in(self.key.0, &[&history, &self.unwritten], self.since_ms);
    }

    /// Whether the file counts up to these positions, so that nothing must be written.
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

    /// Returns the record before which every record is counted in the file.
    pub fn low(&self) -> u64 {
        self.written.as_ref().filter(|_| !self.is_spent).map_or(0, Marks::low)
    }

    /// Whether the file holds counts of a folded lane that count elsewhere. The next
    /// [`Journal::save`] removes them.
    pub fn has_stale_fold(&self) -> bool {
        self.folds.iter().any(|(_, counts)| !counts)
    }

    /// Writes the unwritten counts and up to which record they count, durably. After an error the
    /// next call writes them. `absorbed` are the folded lanes whose folders may still exist.
    pub fn save(
        &mut self,
        fs: &dyn Fs,
        book: &Book,
        marks: &Marks,
        absorbed: &[LaneKey],
    ) -> io::Result<()> {
        let entry = self.entry(book, marks);
        let has_room = self.end + entry.len() as u64 <= self.room;
        if has_room && !self.is_spent && !self.has_stale_fold() && self.is_at_its_path(fs)? {
            self.append(&entry)?;
            self.note_written(marks);
        } else {
            self.rewrite(fs, book, marks, absorbed, None)?;
        }
        self.sync_name(fs)
    }

    /// Whether a following process would find this file: it may have been removed or replaced.
    pub fn is_at_its_path(&self, fs: &dyn Fs) -> io::Result<bool> {
        let found = fs.id(&self.dir.join(PORTALS));
        if is_absent(&found) { Ok(false) } else { Ok(found? == self.file.id()?) }
    }

    /// Returns an entry with the unwritten counts and the marks.
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

    /// Writes, durably, which records will go to an upstream's dead letters.
    pub fn save_dead(&mut self, upstream: &str, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut items = Vec::new();
        format::put_dead(upstream, ranges, &mut items);
        let entry = sealed(&items, self.key.1);
        // The file may be damaged or have no room left: a new one replaces it within a second.
        self.append(&entry)
    }

    /// Adds the counts of a delivered lane, durably. They count here once the cursor of this lane
    /// names the delivered one. The caller then calls [`Journal::confirm_fold`].
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

    /// Records that the cursor names the folded lane, so that its counts count here.
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
            // After an error the newest bytes of the file are unknown.
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

    /// Replaces the file by a new one with a summary of all counts, and with those of `fold`.
    fn rewrite(
        &mut self,
        fs: &dyn Fs,
        book: &Book,
        marks: &Marks,
        absorbed: &[LaneKey],
        fold: Option<(LaneKey, Tallies)>,
    ) -> io::Result<()> {
        self.is_spent = true;
        let (mut out, folds) = self.summary(book, absorbed, fold)?;
        out.extend_from_slice(&self.entry(book, marks));
        let end = out.len() as u64;
        let room = end + LOG_BYTES_MIN.max(end / 4);
        let path = self.dir.join(PORTALS_ASIDE);
        let file = fs.open(&path, Open::Create)?;
        // If the blocks cannot be reserved, later entries may find the disk full.
        _ = file.allocate(room);
        write_full(&*file, &out, 0)?;
        file.sync_data()?;
        fs.rename(&path, &self.dir.join(PORTALS))?;
        (self.file, self.end, self.room, self.folds) = (file, end, room, folds);
        (self.is_spent, self.is_unnamed) = (false, true);
        self.note_written(marks);
        Ok(())
    }

    /// Returns the header and the entries of a summary of the written counts and of `fold`. The
    /// counts of a folded lane have entries of their own until its folder is gone.
    fn summary(
        &self,
        book: &Book,
        absorbed: &[LaneKey],
        fold: Option<(LaneKey, Tallies)>,
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

    /// Appends the sums over the sections of the folded lanes that `is_wanted` names, and over
    /// those of the lane itself if `fold` is `None`.
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
        let days = columns.iter().filter_map(|column| match column {
            Column::Accepted(day) | Column::Today(day) if *day > 0 => Some(*day),
            _ => None,
        });
        // The clock may be a day ahead for a while, or behind, so today is not only the newest day.
        let (come, ahead): (BTreeSet<u32>, BTreeSet<u32>) =
            days.partition(|day| *day <= book.today());
        let days = come.into_iter().rev().take(2).chain(ahead.last().copied());
        // Sums one column at a time, so that a million portals need only 8 MB at once.
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
        for day in days {
            let is_day =
                |column| matches!(column, Column::Accepted(on) | Column::Today(on) if on == day);
            sum(&is_day, Column::Today(day));
        }
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

/// Returns an entry of these items.
fn sealed(items: &[u8], salt: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(items.len() + 8);
    let at = format::begin_entry(&mut out);
    out.extend_from_slice(items);
    format::end_entry(&mut out, at, salt);
    out
}
