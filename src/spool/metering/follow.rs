//! Reads the `portals` file of a lane whose process lives, again and again.
//!
//! That process appends an entry once a second if something has changed, and makes a new file when
//! this one has no room left. So only the entries that are new are read, unless another file has
//! taken the place of this one, or the counts of a folded lane begin or cease to count here.

use std::io;
use std::path::Path;

use super::book::Book;
use super::contents::{Contents, Sound};
use super::counts::Tallies;
use super::format::{self, ENTRY_HEADER_BYTES};
use super::living::Found;
use crate::spool::fs::{File, Fs, Open, read_block};
use crate::spool::lane_files::PORTALS;
use crate::spool::read::cursor::LaneKey;

/// What is known of a file after it was read.
#[derive(Clone)]
pub struct Seen {
    /// The offset at which the entries that were read end.
    end: u64,
    /// The offset and the header of the last entry that was read. No other file has the same bytes
    /// there. If the file has no entry: 0 and the header of the file.
    last: (u64, Vec<u8>),
    /// The folded lanes whose counts the file has, and whether these count here.
    folds: Vec<(LaneKey, bool)>,
    /// The time from which the counts are complete, in milliseconds since 1970. 0: always.
    pub since_ms: u64,
    /// Accepted records before this one are counted.
    pub counted_to: u64,
}

/// Reads the counts of a lane's file. `is_folded` returns whether the counts of a folded lane count
/// here. A file that is missing, or that of another lane, has no counts.
pub fn follow(
    fs: &dyn Fs,
    dir: &Path,
    key: LaneKey,
    is_folded: &dyn Fn(LaneKey) -> bool,
    book: &Book,
    seen: Option<&Seen>,
) -> io::Result<(Found, Option<Seen>)> {
    let file = match fs.open(&dir.join(PORTALS), Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Found::Whole(Tallies::default()), None));
        }
        other => other?,
    };
    if let Some(seen) = seen
        && seen.folds.iter().all(|(lane, counts)| is_folded(*lane) == *counts)
        && begins_with(&*file, &seen.last)?
    {
        return further(&*file, key.1, is_folded, book, seen.clone());
    }
    let bytes = read_block(&*file, usize::try_from(file.bytes()?).unwrap_or(0), 0)?;
    let Sound { since_ms, end, contents, .. } = Sound::read(&bytes, key, is_folded, book);
    let seen = since_ms.map(|since_ms| {
        let last = format::last_entry(&bytes[..end], key.1);
        let begin = bytes[last..].iter().copied().take(ENTRY_HEADER_BYTES).collect();
        let counted_to = contents.marks.map_or(0, |marks| marks.counted_to);
        let (last, folds) = ((last as u64, begin), contents.folds);
        Seen { end: end as u64, last, folds, since_ms, counted_to }
    });
    Ok((Found::Whole(contents.counts), seen))
}

fn begins_with(file: &dyn File, (at, begin): &(u64, Vec<u8>)) -> io::Result<bool> {
    Ok(read_block(file, begin.len(), *at)? == *begin)
}

/// Reads the entries behind those that were seen.
fn further(
    file: &dyn File,
    salt: u64,
    is_folded: &dyn Fn(LaneKey) -> bool,
    book: &Book,
    mut seen: Seen,
) -> io::Result<(Found, Option<Seen>)> {
    let (room, mut entries) = (file.bytes()?, Vec::new());
    loop {
        let header = read_block(file, ENTRY_HEADER_BYTES, seen.end)?;
        let Some(bytes) = format::entry_bytes(&header) else { break };
        if bytes as u64 > room.saturating_sub(seen.end) {
            break;
        }
        let entry = read_block(file, bytes, seen.end)?;
        if format::entry(&entry, salt).is_none() {
            // The process of the lane is just writing this entry.
            break;
        }
        seen.last = (seen.end, header);
        seen.end += bytes as u64;
        entries.extend(entry);
    }
    let contents = Contents::read(&entries, salt, is_folded, book);
    seen.counted_to = contents.marks.map_or(seen.counted_to, |marks| marks.counted_to);
    for fold in contents.folds {
        if !seen.folds.contains(&fold) {
            seen.folds.push(fold);
        }
    }
    Ok((Found::Further(contents.counts), Some(seen)))
}
