//! Reads the `portals` file of a lane. `format.rs` has its bytes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::book::Book;
use super::counts::Tallies;
use super::format::{self, Item, Marks, RawColumn};
use crate::spool::fs::{Fs, Open, read_block};
use crate::spool::lane_files::PORTALS;
use crate::spool::read::cursor::LaneKey;

/// The content of a file.
#[derive(Default)]
pub struct Contents {
    /// The counts of the lane, and those of folded lanes that count here.
    pub counts: Tallies,
    /// Up to where the file counts. `None`: the file has no entry that says it.
    pub marks: Option<Marks>,
    /// The records of each upstream that went to the dead letters, if they have ended.
    pub dead: BTreeMap<String, Vec<Range<u64>>>,
    /// The folded lanes whose counts the file has, and whether these count here.
    pub folds: Vec<(LaneKey, bool)>,
}

/// The sound part of a file.
pub struct Sound {
    /// The time from which the counts are complete. `None`: the header is not that of this lane.
    pub since_ms: Option<u64>,
    /// The offset at which the sound entries end.
    pub end: usize,
    pub contents: Contents,
    /// Whether bytes are damaged. A torn last write is not damage.
    pub is_damaged: bool,
}

impl Sound {
    /// Reads a whole file. `is_folded` returns whether the counts of a folded lane count here.
    pub fn read(
        bytes: &[u8],
        key: LaneKey,
        is_folded: impl Fn(LaneKey) -> bool,
        book: &Book,
    ) -> Sound {
        let since_ms = format::read_header(bytes, key);
        let (end, is_damaged) = match since_ms {
            Some(_) => format::end_of_entries(bytes, key.1),
            None => (format::HEADER_BYTES, true),
        };
        let entries = bytes.get(format::HEADER_BYTES..end).filter(|_| since_ms.is_some());
        let contents = Contents::read(entries.unwrap_or_default(), key.1, is_folded, book);
        // A new file is renamed to its name only when it is complete, and ends with the marks. So
        // counts without marks mean damage.
        let is_cut = contents.marks.is_none() && !contents.counts.is_empty();
        Sound { since_ms, end, contents, is_damaged: is_damaged || is_cut }
    }
}

/// Adds the counts of a lane's file to `book`, for a command. Returns the offset of the damage, or
/// `None` if the file is sound or missing.
pub fn inspect(
    fs: &dyn Fs,
    dir: &Path,
    key: LaneKey,
    is_folded: impl Fn(LaneKey) -> bool,
    book: &Book,
) -> io::Result<Option<u64>> {
    let file = match fs.open(&dir.join(PORTALS), Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let bytes = read_block(&*file, usize::try_from(file.bytes()?).unwrap_or(0), 0)?;
    let sound = Sound::read(&bytes, key, is_folded, book);
    if sound.contents.marks.is_some() {
        book.take_in(key.0, &[&sound.contents.counts], sound.since_ms.unwrap_or(0));
    }
    Ok(sound.is_damaged.then_some(sound.end as u64))
}

impl Contents {
    /// Reads entries. `is_folded` returns whether the counts of a folded lane count here.
    pub fn read(
        entries: &[u8],
        salt: u64,
        is_folded: impl Fn(LaneKey) -> bool,
        book: &Book,
    ) -> Contents {
        let mut contents = Contents::default();
        each_item(entries, salt, |section, item| match item {
            Item::Counts { column, pairs } => {
                if section.is_none_or(&is_folded)
                    && let Some(column) = column.column(|name| book.name(name))
                {
                    let tally = contents.counts.tally(column);
                    for (portal, events) in pairs {
                        tally.add(book.number_of(portal), events);
                    }
                }
            }
            Item::Marks(marks) => contents.marks = Some(marks),
            Item::Dead { upstream, ranges } => {
                contents.dead.entry(upstream.to_owned()).or_default().extend(ranges);
            }
            Item::Fold(key) => {
                if contents.folds.iter().all(|(known, _)| *known != key) {
                    contents.folds.push((key, is_folded(key)));
                }
            }
        });
        contents
    }
}

/// Calls `each` with each item, and with the folded lane whose counts it belongs to. `None`: the
/// lane of the file.
fn each_item<'a>(
    mut entries: &'a [u8],
    salt: u64,
    mut each: impl FnMut(Option<LaneKey>, Item<'a>),
) {
    while let Some((mut items, whole)) = format::entry(entries, salt) {
        let mut section = None;
        while let Some(item) = format::take_item(&mut items) {
            if let Item::Fold(key) = item {
                section = Some(key);
            }
            each(section, item);
        }
        entries = &entries[whole..];
    }
}

/// Calls `each` with the counts of each entry, and with the folded lane that they belong to.
/// `None`: the lane of the file.
pub fn each_count<'a>(
    entries: &'a [u8],
    salt: u64,
    mut each: impl FnMut(Option<LaneKey>, RawColumn<'a>, &[(u64, u64)]),
) {
    each_item(entries, salt, |section, item| {
        if let Item::Counts { column, pairs } = item {
            each(section, column, &pairs);
        }
    });
}
