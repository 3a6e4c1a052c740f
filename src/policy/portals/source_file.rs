//! A list in a file, and the rules by which a changed file is read.
//!
//! A file is watched by reading the metadata that its path leads to: device, inode, size, and the
//! times of change to the nanosecond. This detects rewrites, an editor's rename and a symlink that
//! is swapped anywhere along the path, on every file system. Notifications miss some of these
//! changes on some file systems.
//!
//! **A half-written file must not be taken for a list.** The first part of a `.txt` is still a
//! list, only a shorter one, and the first part of a `.toml` may lack the last rules of a portal.
//! Two conditions guard against this. First, a changed file is read only when two looks in a row, a
//! quarter of `refresh_seconds` apart, found the same stamp. Second, a list is dropped if the file
//! changed while it was read. A writer that pauses for longer in the middle of a file is not
//! detected: an operator writes another file and renames it. At start and on SIGHUP, only the
//! second condition applies.
//!
//! **A fresh stamp is not trusted.** A file that changes twice within one tick of the kernel's
//! clock has the same stamp both times, so a file that was read within 2 seconds of its last change
//! is read again.

use std::{
    fs::{self, Metadata},
    io,
    path::PathBuf,
};

use super::draft::ParseError;
use super::format::Format;
use super::list::{Content, List};
use super::look::Look;
use super::terms::Terms;
use crate::file_stamp::FileStamp;
use crate::regular_file;

/// The number of looks in `refresh_seconds`. One look may find that the old file is gone, the
/// second finds the new file, and the third finds it unchanged; the last quarter is left to read
/// it.
pub(super) const LOOKS_PER_REFRESH: u32 = 4;

/// The most attempts at start to read a file that changes while it is read.
const OPEN_ATTEMPTS_MAX: u32 = 5;

/// A list in a file.
#[derive(Debug)]
pub(super) struct FileSource {
    path: PathBuf,
    format: Format,
    /// The file as it was when the list in use was read.
    taken: Option<FileStamp>,
    /// The file as the last look saw it.
    seen: Option<FileStamp>,
    /// The mistake in the text of the file that has the stamp `seen`.
    rejected: Option<String>,
}

impl FileSource {
    /// Reads the file for the first time.
    pub(super) fn open(
        path: PathBuf,
        format: Format,
        terms: &Terms,
    ) -> Result<(FileSource, List), String> {
        let mut source = FileSource { path, format, taken: None, seen: None, rejected: None };
        for _ in 0..OPEN_ATTEMPTS_MAX {
            match source.look(None, true, terms) {
                Look::New(list) => return Ok((source, *list)),
                Look::Failed(what) | Look::Deferred(what, _) => return Err(what),
                Look::Same | Look::Unsettled => {}
            }
        }
        Err(format!("{}: keeps changing while it is read", source.path.display()))
    }

    /// Reads the file if it has changed and no longer changes; with `at_once`, in any case.
    /// `current` is the list in use.
    pub(super) fn look(&mut self, current: Option<Content>, at_once: bool, terms: &Terms) -> Look {
        let stamp = FileStamp::read(&self.path);
        let before = self.seen;
        self.seen = stamp.as_ref().ok().copied();
        if !at_once && self.seen != before {
            self.rejected = None;
            return Look::Unsettled;
        }
        if !at_once && self.seen.is_some() && self.seen == self.taken {
            return Look::Same;
        }
        if let (Some(what), false) = (&self.rejected, at_once) {
            return Look::Failed(what.clone());
        }
        let read = match stamp {
            Ok(stamp) => self.read(stamp, terms),
            Err(error) => Err(ParseError::from(error)),
        };
        let settled = self.seen.filter(FileStamp::is_settled);
        match read {
            Ok(None) => Look::Unsettled,
            Ok(Some(list)) => {
                self.rejected = None;
                self.taken = settled;
                match current == Some(list.content) {
                    true => Look::Same,
                    false => Look::New(Box::new(list)),
                }
            }
            Err(error) => {
                let what = self.describe(&error);
                // An error in the text stays until the file changes, so the file is not read again.
                // An error of the file system may go away by itself.
                let in_text = error.line.is_some() && settled.is_some();
                self.rejected = in_text.then(|| what.clone());
                Look::Failed(what)
            }
        }
    }

    /// Reads the file. `None` if its stamp differs from `seen` before or after.
    fn read(&self, seen: FileStamp, terms: &Terms) -> Result<Option<List>, ParseError> {
        let mut file = regular_file::open(&self.path)?;
        if FileStamp::of(&file.metadata()?) != seen {
            return Ok(None);
        }
        let list = List::read(self.format, &mut file, terms);
        // Both are checked: the file may have changed, and the path may lead to another file now.
        let still = |metadata: io::Result<Metadata>| {
            metadata.is_ok_and(|metadata| FileStamp::of(&metadata) == seen)
        };
        match still(file.metadata()) && still(fs::metadata(&self.path)) {
            true => list.map(Some),
            false => Ok(None),
        }
    }

    fn describe(&self, error: &ParseError) -> String {
        let ParseError { line, column, what } = error;
        let path = self.path.display();
        match (line, column) {
            (Some(line), Some(column)) => format!("{path}:{line}:{column}: {what}"),
            (Some(line), None) => format!("{path}:{line}: {what}"),
            (None, _) => format!("{path}: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::terms::Bounds;
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use std::{sync::Arc, time::Duration};

    /// A clock that writes to a file whenever it is asked: a list asks it when it has been read.
    struct Meddler(PathBuf);

    impl Clock for Meddler {
        fn unix_ms(&self) -> u64 {
            0
        }

        fn monotonic(&self) -> Duration {
            let list = fs::read_to_string(&self.0).unwrap();
            fs::write(&self.0, list + "44\n").unwrap();
            Duration::ZERO
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.txt");
        fs::write(&path, "11\n").unwrap();
        let with = |clock: Arc<dyn Clock>| Terms { bounds: Bounds::default(), clock };
        let steady = with(Arc::new(SystemClock));
        let (mut source, list) = FileSource::open(path.clone(), Format::Text, &steady).unwrap();
        let current = Some(list.content);
        assert_eq!(source.taken, None, "the stamp of a file just written is not trusted");

        fs::write(&path, "11\n22\n").unwrap();
        let meddler = with(Arc::new(Meddler(path.clone())));
        assert!(matches!(source.look(current, true, &meddler), Look::Unsettled));
        assert!(matches!(source.look(current, false, &steady), Look::Unsettled));
        let Look::New(list) = source.look(current, false, &steady) else { panic!("at rest now") };
        assert_eq!(list.len(), 3);
        // A file that changes during each read cannot be opened.
        fs::write(&path, "11\n").unwrap();
        assert!(FileSource::open(path, Format::Text, &meddler).is_err());
    }
}
