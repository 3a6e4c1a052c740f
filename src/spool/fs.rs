//! The file system as a parameter.
//!
//! Every call that the spool makes to a disk goes through [`Fs`] and [`File`], so that a test can
//! replace the disk by one that tears writes, fills up, fails a sync, stalls or loses power. The
//! calls promise as little as those of POSIX: a write may be short, a sync may fail, and a name is
//! durable only after its folder was synced. This file retries calls that were interrupted, and no
//! others.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

/// The size of a block, in bytes. A write to a file that was opened with [`Open::Direct`] has an
/// offset, a length and a memory address that are multiples of it. It is the block of all common
/// file systems, and no disk has larger sectors.
pub const DIRECT_BLOCK_BYTES: usize = 4096;

/// How a file is opened. Reading and writing are always at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Opens an existing file for reading.
    Read,
    /// Opens an existing file for reading and writing.
    Write,
    /// Opens an existing file for writing around the page cache (`O_DIRECT | O_DSYNC`). The bytes
    /// are durable when a write returns, as after [`File::sync_data`]. Many file systems refuse
    /// this, some of them only at the first write: see [`refuses_direct`].
    Direct,
    /// Creates a file, or empties the file that exists.
    Create,
    /// Creates a file if it does not exist, and leaves an existing one as it is.
    Ensure,
}

/// The identity of a file. Another file under the same path has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The device, which tells mounts apart.
    pub device: u64,
    /// The number of the file on the device.
    pub inode: u64,
}

/// One entry of a folder.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name without the folder.
    pub name: OsString,
    /// The size in bytes; 0 for a folder.
    pub bytes: u64,
}

/// The calls of a file system that the spool uses.
pub trait Fs: Send + Sync + 'static {
    /// Creates a folder and its parents. A folder that exists is no error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The entries of a folder, in no order. An entry that vanishes meanwhile may be missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Opens a regular file. Anything else at the path is an error.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames a file, and replaces a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The identity of the file or folder with this path.
    fn id(&self, path: &Path) -> io::Result<FileId>;
    /// The bytes that an unprivileged process may still write on the disk of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// One open file. Dropping it closes the file and releases its lock.
pub trait File: Send + Sync {
    /// Reads at `offset`. Returns fewer bytes than asked for only near the end of the file, and 0
    /// at its end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads as [`File::read_at`] does, but appends to `buf`, at most as many bytes as its spare
    /// capacity. The files of the system do this without zeroing that capacity first.
    fn read_spare(&self, buf: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        let filled = buf.len();
        buf.resize(buf.capacity(), 0);
        let read = self.read_at(&mut buf[filled..], offset);
        buf.truncate(filled + read.as_ref().map_or(0, |bytes| *bytes));
        read
    }
    /// Writes at `offset`. May write fewer bytes than it was given.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes the bytes, and the size needed to find them, durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Sets the length of the file: cuts it, or extends it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Sets the length of the file and, if the file system can, reserves its blocks.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// The size of the file in bytes.
    fn bytes(&self) -> io::Result<u64>;
    /// The identity of the file.
    fn id(&self) -> io::Result<FileId>;
    /// Takes the exclusive lock of the file. `false` if a living process, perhaps this one, holds
    /// it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Whether no process holds the file's exclusive lock at the moment.
    fn is_unlocked(&self) -> io::Result<bool>;
}

/// Implements the calls of [`File`] other than the reads by those of the field `$inner`.
macro_rules! forward_writes {
    ($inner:tt) => {
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
            self.$inner.write_at(buf, offset)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.$inner.sync_data()
        }

        fn set_len(&self, bytes: u64) -> io::Result<()> {
            self.$inner.set_len(bytes)
        }

        fn allocate(&self, bytes: u64) -> io::Result<()> {
            self.$inner.allocate(bytes)
        }

        fn bytes(&self) -> io::Result<u64> {
            self.$inner.bytes()
        }

        fn id(&self) -> io::Result<FileId> {
            self.$inner.id()
        }

        fn try_lock(&self) -> io::Result<bool> {
            self.$inner.try_lock()
        }

        fn is_unlocked(&self) -> io::Result<bool> {
            self.$inner.is_unlocked()
        }
    };
}
pub(super) use forward_writes;

/// Reads exactly `buf.len()` bytes, or fewer at the end of the file. Returns their number.
pub(super) fn read_full(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads `bytes` bytes into a new buffer, or fewer at the end of the file.
pub(super) fn read_block(file: &dyn File, bytes: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(bytes);
    while block.len() < bytes {
        let from = offset + block.len() as u64;
        match file.read_spare(&mut block, from) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // An allocator may give more capacity than was asked for.
    block.truncate(bytes);
    Ok(block)
}

/// Writes all of `buf`. After an error, an unknown part of it has been written.
pub(super) fn write_full(file: &dyn File, buf: &[u8], offset: u64) -> io::Result<()> {
    let mut written = 0;
    while written < buf.len() {
        match file.write_at(&buf[written..], offset + written as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Creates a folder and its parents, and makes their names durable. The name of the folder is
/// synced on each call, because an earlier process may have ended before it did so.
pub(super) fn create_dir_durable(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    // A relative path of one part is in the working folder.
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if is_absent(&fs.id(parent)) {
        create_dir_durable(fs, parent)?;
    }
    fs.create_dir_all(dir)?;
    match fs.sync_dir(parent) {
        // A folder that this process may not read cannot be opened, so it cannot be synced.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            ::log::warn!("spool: the folder {} cannot be synced: {error}", parent.display());
            Ok(())
        }
        other => other,
    }
}

/// Whether a call failed because the file system does not allow writes around its cache, or only
/// with larger blocks.
pub(super) fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Whether a call failed because there is no such file or folder.
pub(super) fn is_absent<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemFs;

struct SystemFile(std::fs::File);

impl Fs for SystemFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // The length is that of the file. Opening a link to nothing says what is missing.
                Ok(link) if link.is_symlink() => std::fs::metadata(entry.path()).or(Ok(link)),
                found => found,
            };
            if is_absent(&metadata) {
                // A living process has removed the file since the listing.
                continue;
            }
            let metadata = metadata?;
            let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
            entries.push(Entry { name: entry.file_name(), bytes });
        }
        Ok(entries)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(how != Open::Read);
        match how {
            Open::Read | Open::Write | Open::Direct => {}
            Open::Create => _ = options.create(true).truncate(true),
            Open::Ensure => _ = options.create(true),
        }
        let flags = match how {
            Open::Direct => direct_flags()?,
            // A FIFO in the place of the file must not hold the call.
            _ => OFlags::NONBLOCK,
        };
        // Events are personal data: only the owner may read them.
        let file = options.mode(0o600).custom_flags(flags.bits().cast_signed()).open(path);
        let file = file.map_err(|error| named(path, error))?;
        match file.metadata()?.is_file() {
            true => Ok(Arc::new(SystemFile(file))),
            false => Err(io::Error::other(format!("{} is not a regular file", path.display()))),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }

    fn id(&self, path: &Path) -> io::Result<FileId> {
        Ok(file_id(&std::fs::metadata(path)?))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl File for SystemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buf, offset)
    }

    fn read_spare(&self, buf: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.0, rustix::buffer::spare_capacity(buf), offset)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // A file system without reservation can be used as well: a full disk then shows when
            // the file is written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.0.set_len(bytes),
            other => Ok(other?),
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(file_id(&self.0.metadata()?))
    }

    fn try_lock(&self) -> io::Result<bool> {
        unlocked(self.0.try_lock())
    }

    fn is_unlocked(&self) -> io::Result<bool> {
        let free = unlocked(self.0.try_lock_shared())?;
        if free {
            self.0.unlock()?;
        }
        Ok(free)
    }
}

/// Adds the path to an error of which the path is the reason. Other errors stay as they are,
/// because callers compare their numbers.
fn named(path: &Path, error: io::Error) -> io::Error {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    match error.kind() {
        kind @ (IsADirectory | NotADirectory | NotFound | PermissionDenied) => {
            io::Error::new(kind, format!("{}: {error}", path.display()))
        }
        _ => error,
    }
}

#[cfg(target_os = "linux")]
fn direct_flags() -> io::Result<OFlags> {
    Ok(OFlags::DIRECT | OFlags::DSYNC)
}

#[cfg(not(target_os = "linux"))]
fn direct_flags() -> io::Result<OFlags> {
    Err(io::ErrorKind::Unsupported.into())
}

fn file_id(metadata: &std::fs::Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

fn unlocked(result: Result<(), std::fs::TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that has only what it must have, and reads little at a time.
    struct Slow(Arc<dyn File>);

    impl File for Slow {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let bytes = buf.len().min(3);
            self.0.read_at(&mut buf[..bytes], offset)
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

    #[test]
    fn a_block_is_what_stands_there_and_ends_where_the_file_does() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = SystemFs.open(&dir.path().join("file"), Open::Create).expect("a file");
        let all: Vec<u8> = (0..=255).collect();
        write_full(&*file, &all, 0).expect("a write");
        for file in [Arc::clone(&file), Arc::new(Slow(file))] {
            for (bytes, offset) in
                [(0, 0), (1, 0), (7, 100), (256, 0), (257, 0), (9, 250), (5, 256)]
            {
                let block = read_block(&*file, bytes, offset).expect("a block");
                let end = 256.min(offset as usize + bytes);
                assert_eq!(block, all[offset as usize..end], "{bytes} at {offset}");
            }
        }
    }
}
