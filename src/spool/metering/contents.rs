//! Reading a lane's `portals` file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::book::Book;
use super::counts::Counts;
use super::format::{self, Item, Marks, RawColumn};
use crate::spool::fs::{Fs, Open, read_block};
use crate::spool::lane_files::PORTALS;
use crate::spool::read::cursor::LaneKey;

/// What a file says.
#[derive(Default)]
pub struct Contents {
    /// The counts of the lane, and of the lanes folded into it.
    pub counts: Counts,
    pub marks: Option<Marks>,
    /// By upstream: records that went to the dead letters, if they have ended.
    pub dead: BTreeMap<String, Vec<Range<u64>>>,
    /// Lanes whose counts the file has, and whether these count.
    pub folds: Vec<(LaneKey, bool)>,
}

/// What is sound of a file.
pub struct Sound {
    /// `None`: the header is not this lane's.
    pub since_ms: Option<u64>,
    /// Where the sound entries end.
    pub end: usize,
    pub contents: Contents,
    /// Whether bytes are damaged, and not only the last write torn.
    pub is_damaged: bool,
}

impl Sound {
    /// Reads a whole file.
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
        // A summary ends with the marks, and takes its name as a whole.
        let is_cut = contents.marks.is_none() && !contents.counts.is_empty();
        Sound { since_ms, end, contents, is_damaged: is_damaged || is_cut }
    }
}

/// Takes what a lane's file says into `book`, for a command. Returns where it is damaged; `None` if
/// it is sound or there is none.
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
        book.take_in(&sound.contents.counts);
        book.note_since(sound.since_ms.unwrap_or(0));
    }
    Ok(sound.is_damaged.then_some(sound.end as u64))
}

impl Contents {
    /// Reads entries. `is_folded` says whether the counts of a lane that is folded in count.
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

/// Calls `each` with the items of each entry, and the lane in whose counts they stand.
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

/// Calls `each` with the counts of each entry, and the lane whose they are.
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
