//! Reading around sectors that the device does not give back.
//!
//! An unreadable sector reads as zeros here. Zeros are no header and no record, so whatever reads
//! through this finds the sound records before and behind the sector, and takes the sector itself
//! for damage. It is used only once the device has refused for `spool.unreadable_seconds_max`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::fs::{Entry, File, FileId, Fs, Open};

/// Bytes that are read at a time where a larger read fails: one page of the page cache.
const SECTOR_BYTES: usize = 4096;

/// The errors of a read by which a device or its file system refuses bytes: `EIO`, `ENODATA` (a bad
/// sector), `EBADMSG` and `EUCLEAN` (a checksum of the file system's own does not match).
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
        // One sector at a time: the others of this range may be readable.
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

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.0.allocate(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }

    fn id(&self) -> io::Result<FileId> {
        self.0.id()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }

    fn is_unlocked(&self) -> io::Result<bool> {
        self.0.is_unlocked()
    }
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
