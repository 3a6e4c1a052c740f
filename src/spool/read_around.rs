//! Reads around sectors that the device refuses to read.
//!
//! Here, an unreadable sector reads as zeros. Zeros are neither a header nor a record, so a reader
//! finds the sound records before and after the sector, and treats the sector as damage. This is
//! used only after the device has refused for `spool.unreadable_seconds_max` (SPEC 6).

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::fs::{Entry, File, FileId, Fs, Open, forward_writes};

/// The bytes that are read at a time after a larger read failed: one page of the page cache.
const SECTOR_BYTES: usize = 4096;

/// The errors by which a device or its file system refuses to read bytes: `EIO`, `ENODATA` (a bad
/// sector), `EBADMSG` and `EUCLEAN` (a checksum of the file system does not match).
const REFUSALS: [Errno; 4] = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::UCLEAN];

/// Whether an error of a read means that the device refused the bytes.
pub fn is_refusal(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| REFUSALS.contains(&errno))
}

/// A file whose unreadable sectors read as zeros.
pub struct ReadAround(pub Arc<dyn File>);

/// A file system whose files are all [`ReadAround`].
pub struct ReadAroundFs(pub Arc<dyn Fs>);

impl File for ReadAround {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.0.read_at(buf, offset) {
            Err(error) if is_refusal(&error) => {}
            other => return other,
        }
        // Reads one sector at a time, because the others of this range may be readable.
        let to_boundary = SECTOR_BYTES - (offset % SECTOR_BYTES as u64) as usize;
        let left = usize::try_from(self.0.bytes()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = buf.len().min(to_boundary).min(left);
        let sector = &mut buf[..bytes];
        match self.0.read_at(sector, offset) {
            Err(error) if is_refusal(&error) => {
                sector.fill(0);
                Ok(bytes)
            }
            other => other,
        }
    }

    forward_writes!(0);
}

impl Fs for ReadAroundFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.0.list(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(ReadAround(self.0.open(path, how)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn id(&self, path: &Path) -> io::Result<FileId> {
        self.0.id(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.free_bytes(dir)
    }
}
