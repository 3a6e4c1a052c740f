//! The part of [`Lane`] that checks whether its files are at their paths, where a following process
//! looks for them.

use std::io;
use std::path::Path;

use super::fs::{FileId, is_absent};
use super::lane::Lane;
use super::lane_files::IDENTITY;

impl Lane {
    /// Checks that the lane is still at its path, where a following process looks for it.
    pub fn check_place(&self) -> io::Result<()> {
        let Some(lock) = self.lock.lock().clone() else { return Ok(()) };
        self.check_path(&self.dir().join(IDENTITY), lock.id()?)
    }

    /// Checks that the file of a segment is still at its path.
    pub fn check_segment(&self, number: u64, id: FileId) -> io::Result<()> {
        let checked = self.check_path(&self.segment_path(number), id);
        if checked.is_err() {
            self.state().vanished.insert(number);
        }
        checked
    }

    /// Checks that there is a file at the path of the last segment.
    pub fn check_last_segment(&self) -> io::Result<()> {
        let number = self.state().segment_index.last_number();
        if number == 0 {
            return Ok(());
        }
        let found = self.find(&self.segment_path(number)).map(drop);
        if is_absent(&found) {
            self.state().vanished.insert(number);
        }
        found
    }

    fn find(&self, path: &Path) -> io::Result<FileId> {
        self.fs().id(path).map_err(|error| {
            let text = format!("{} cannot be found any more: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
    }

    /// Checks that the file with this identity is still at its path.
    pub fn check_path(&self, path: &Path, id: FileId) -> io::Result<()> {
        if self.find(path)? != id {
            let text = format!("another file has taken the place of {}", path.display());
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    /// Whether the file with this identity is not at its path in this lane any more. Where the lane
    /// itself was moved, its files were moved with it and are not lost.
    pub fn has_lost(&self, path: &Path, id: FileId) -> bool {
        self.check_path(path, id).is_err() && self.check_place().is_ok()
    }
}
