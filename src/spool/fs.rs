//! The file system, as a parameter.
//!
//! Every call that the spool makes to a disk goes through [`Fs`] and [`File`], so that a test can
//! replace the disk by one that tears writes, fills up, fails a sync, stalls or loses power. The
//! calls promise as little as those of POSIX: a write may be short, a sync may fail, and a name is
//! durable only after its folder was synced. This file retries interrupted calls and nothing else.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Offset and length of each write to a file that was opened with [`Open::Direct`], and the address
/// of what is written, are multiples of so many bytes: a block of all common file systems, and no
/// less than a sector of any disk.
pub const DIRECT_BLOCK_BYTES: usize = 4096;

/// How a file is opened. Reading and writing are always at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// An existing file, to write around the page cache (`O_DIRECT | O_DSYNC`): bytes are durable
    /// when a write returns, as after [`File::sync_data`]. Many file systems refuse this, some of
    /// them not before the first write: see [`refuses_direct`].
    Direct,
    /// A file that is made, or emptied if it is there.
    Create,
    /// A file that is made if it is not there, and left as it is if it is.
    Ensure,
}

/// Which file a path or an open file is. Another file under the same path has another one.
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
    /// Its name without the folder.
    pub name: OsString,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Its size in bytes; 0 for a folder.
    pub bytes: u64,
}

/// What the spool needs of a file system.
pub trait Fs: Send + Sync + 'static {
    /// Makes a folder and those above it; one that is there already is no error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The entries of a folder, in no order. An entry that vanishes meanwhile may be missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames a file, replacing what has the name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Which file or folder has this path.
    fn id(&self, path: &Path) -> io::Result<FileId>;
    /// Bytes that an unprivileged process may still write on the disk below `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// One open file. Dropping it closes it and gives back its lock.
pub trait File: Send + Sync {
    /// Reads at `offset`; fewer bytes than asked for only near the end, 0 at it.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Like [`File::read_at`], but appends to `buf`, at most as many bytes as its spare capacity.
    /// The system's files do so without zeroing that capacity first.
    fn read_spare(&self, buf: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        let filled = buf.len();
        buf.resize(buf.capacity(), 0);
        let read = self.read_at(&mut buf[filled..], offset);
        buf.truncate(filled + read.as_ref().map_or(0, |bytes| *bytes));
        read
    }
    /// Writes at `offset`; may write less than it was given.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// `fdatasync`: the bytes, and the size needed to find them, are durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes the file `bytes` long with its blocks reserved, where the file system can.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// The file's size in bytes.
    fn bytes(&self) -> io::Result<u64>;
    /// Which file this is.
    fn id(&self) -> io::Result<FileId>;
    /// Takes the file's exclusive lock; `false` if a living process, this one included, holds it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Whether no process holds the file's exclusive lock at the moment.
    fn is_unlocked(&self) -> io::Result<bool>;
}

/// Reads exactly `buf.len()` bytes, or fewer at the end of the file; returns how many.
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

/// Reads `bytes` bytes into memory of their own, or fewer at the end of the file.
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
    // An allocator may have given more room than was asked for.
    block.truncate(bytes);
    Ok(block)
}

/// Writes all of `buf`. After an error an unknown part of it has been written.
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

/// Makes a folder and those above it, with durable names. The folder's own name is synced on each
/// call, because an earlier process may have ended before it did so.
pub(super) fn create_dir_durable(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    // A relative path of one part lies in the working folder.
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if is_absent(&fs.id(parent)) {
        create_dir_durable(fs, parent)?;
    }
    fs.create_dir_all(dir)?;
    match fs.sync_dir(parent) {
        // A folder that this process may not read cannot be opened, and so not synced.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            ::log::warn!("spool: the folder {} cannot be synced: {error}", parent.display());
            Ok(())
        }
        other => other,
    }
}

/// Whether a call failed because the file system has no writes around its cache, or only of larger
/// blocks.
pub(super) fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Whether a call failed because there is no such file or folder.
pub(super) fn is_absent<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The machine's own file system.
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
            let metadata = entry.metadata();
            if is_absent(&metadata) {
                // A living process has trimmed it since the listing.
                continue;
            }
            let metadata = metadata?;
            let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
            entries.push(Entry { name: entry.file_name(), is_dir: metadata.is_dir(), bytes });
        }
        Ok(entries)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(how != Open::Read);
        match how {
            Open::Read | Open::Write => {}
            Open::Direct => set_direct(&mut options)?,
            Open::Create => _ = options.create(true).truncate(true),
            Open::Ensure => _ = options.create(true),
        }
        // Events are personal data: only the owner may read them.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Arc::new(SystemFile(options.open(path)?)))
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
            // A file system without reservation still serves: a full disk then shows at the write.
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

#[cfg(target_os = "linux")]
fn set_direct(options: &mut std::fs::OpenOptions) -> io::Result<()> {
    use rustix::fs::OFlags;
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags.cast_signed());
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_: &mut std::fs::OpenOptions) -> io::Result<()> {
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
