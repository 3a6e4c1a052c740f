//! The lines of a file of dead letters.
//!
//! A line is a letter, a letter that was delivered since, or damaged. A replay marks a letter as
//! delivered by replacing its first byte, in place: one byte is never torn, so a replay that is
//! killed leaves each letter either as it was or marked, and the next one sends no marked letter.
//! A later rewrite leaves the marked lines out. Damaged lines are never removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use super::letter::Letter;
use super::store::{FILE_MODE, Files};
use crate::delivery::bounded_line::read_line;

/// Longest line that is read as a letter, in bytes. An event's limits allow for a tenth of it.
pub const LETTER_BYTES_MAX: usize = 1 << 20;
/// The first byte of a letter that was delivered. A letter begins with `{`.
const DELIVERED: u8 = b'#';

/// One line of the file.
pub struct Line {
    /// The offset at which the line begins, in bytes.
    pub offset: u64,
    /// The number of the line, from 1.
    pub number: u64,
    /// The content of the line.
    pub content: Content,
}

/// What a line holds.
pub enum Content {
    Letter(Box<Letter>),
    Delivered,
    Damaged,
}

/// What a rewrite does with a line.
pub enum LineEdit {
    Keep,
    Remove,
    Replace(Box<Letter>),
}

/// Reads the lines that a file has when it is opened, in order.
pub struct Lines {
    reader: io::Take<BufReader<File>>,
    offset: u64,
    number: u64,
}

impl Lines {
    /// Opens the file. `None`: there is none. A process that appends holds the lock, so the length
    /// of the file is read under the lock, and ends with a whole line.
    pub fn open(files: &Files, path: &Path) -> io::Result<Option<Lines>> {
        let _lock = files.lock_shared()?;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let bytes = file.metadata()?.len();
        let reader = BufReader::new(file).take(bytes);
        Ok(Some(Lines { reader, offset: 0, number: 0 }))
    }

    /// The next line; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let mut text = Vec::new();
        let offset = self.offset;
        self.offset += read_line(&mut self.reader, LETTER_BYTES_MAX, &mut text)?;
        if self.offset == offset {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line { offset, number: self.number, content: Content::of(&text) }))
    }
}

impl Content {
    fn of(text: &[u8]) -> Content {
        if text.first() == Some(&DELIVERED) {
            return Content::Delivered;
        }
        match serde_json::from_slice::<Letter>(text) {
            Ok(letter) if text.len() <= LETTER_BYTES_MAX && letter.record().is_some() => {
                Content::Letter(Box::new(letter))
            }
            _ => Content::Damaged,
        }
    }
}

/// Marks the letters at these offsets as delivered, durably.
pub fn mark_delivered(file: &File, offsets: &[u64]) -> io::Result<()> {
    for offset in offsets {
        file.write_all_at(&[DELIVERED], *offset)?;
    }
    file.sync_data()
}

/// Rewrites the file line by line, and removes it where nothing remains. The caller holds the
/// replay's lock, so that nothing but appends changes the file meanwhile. A crash leaves the old
/// file or the new one.
pub fn rewrite(files: &Files, path: &Path, edit: impl FnMut(&Line) -> LineEdit) -> io::Result<()> {
    let Some(lines) = Lines::open(files, path)? else { return Ok(()) };
    let new = path.with_extension("ndjson.new");
    let replaced = replace(files, lines, path, &new, edit);
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced.and_then(|()| files.sync())
}

fn replace(
    files: &Files,
    lines: Lines,
    path: &Path,
    new_path: &Path,
    edit: impl FnMut(&Line) -> LineEdit,
) -> io::Result<()> {
    let mut old = File::open(path)?;
    let (mut new, read) = write_new(lines, &mut old, new_path, edit)?;
    // An upstream's letters do not wait for the many lines above, only for what was appended
    // meanwhile.
    let _lock = files.lock()?;
    let bytes = old.metadata()?.len();
    copy(&mut old, read, bytes, &mut new)?;
    new.sync_all()?;
    if new.metadata()?.len() == 0 {
        fs::remove_file(path)?;
        return fs::remove_file(new_path);
    }
    fs::rename(new_path, path)
}

/// Writes what remains of these lines of the old file, durably. Returns the new file, and the
/// length in bytes of what was read of the old one.
fn write_new(
    mut lines: Lines,
    old: &mut File,
    path: &Path,
    mut edit: impl FnMut(&Line) -> LineEdit,
) -> io::Result<(File, u64)> {
    let was = old.metadata()?;
    let mut options = OpenOptions::new();
    let new = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(path)?;
    // The edge must be able to append, whichever user gives the command.
    new.set_permissions(was.permissions())?;
    let is = new.metadata()?;
    if (is.uid(), is.gid()) != (was.uid(), was.gid()) {
        fchown(&new, Some(was.uid()), Some(was.gid()))?;
    }
    let mut new = BufWriter::new(new);
    // Lines that stay are copied as ranges of bytes, whatever they hold.
    let mut kept_from = 0;
    while let Some(line) = lines.next()? {
        let replacement = match edit(&line) {
            LineEdit::Keep => continue,
            LineEdit::Remove => None,
            LineEdit::Replace(letter) => Some(letter),
        };
        copy(old, kept_from, line.offset, &mut new)?;
        if let Some(letter) = replacement {
            serde_json::to_writer(&mut new, &letter)?;
            new.write_all(b"\n")?;
        }
        kept_from = lines.offset;
    }
    copy(old, kept_from, lines.offset, &mut new)?;
    let new = new.into_inner().map_err(io::IntoInnerError::into_error)?;
    new.sync_all()?;
    Ok((new, lines.offset))
}

fn copy(from: &mut File, start: u64, end: u64, to: &mut impl Write) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    io::copy(&mut Read::take(from, end.saturating_sub(start)), to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::dead_letters::{DeadLetters, Reason};
    use crate::upstream::Failure;

    #[test]
    fn letters_are_appended_while_a_rewrite_goes_through_the_lines() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::new(dir.path(), "u", 1 << 20);
        let letter = |n: u64| Letter::new("u", n, Reason::Rejected, &Failure::new("x"), b"record");
        letters.append(&[letter(0), letter(1)]).unwrap();
        let files = Files::new(dir.path(), "u");
        let path = dir.path().join("u.ndjson");
        let mut next = 2;
        let append_and_remove = |_: &Line| {
            letters.append(&[letter(next)]).unwrap();
            next += 1;
            LineEdit::Remove
        };
        rewrite(&files, &path, append_and_remove).unwrap();
        let mut left = Lines::open(&files, &path).unwrap().unwrap();
        for n in [2, 3] {
            let Content::Letter(found) = left.next().unwrap().unwrap().content else { panic!() };
            assert_eq!(found.time, letter(n).time);
        }
        assert!(left.next().unwrap().is_none());
        rewrite(&files, &path, |_| LineEdit::Remove).unwrap();
        assert!(!path.exists());
    }
}
