//! Detects that a file has changed, without reading it.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The least age of a stamp for which [`FileStamp::is_settled`] is true. File systems of today
/// stamp to some milliseconds, older ones to 2 seconds.
const SETTLED_AGE_MIN: Duration = Duration::from_secs(2);

/// The state of a file as its metadata shows it. Two equal stamps mean the same content, unless the
/// file was changed twice within one tick of the kernel's clock: see [`FileStamp::is_settled`].
///
/// Device and inode reveal a rename and a symlink that points elsewhere; size and the times of the
/// last change, to the nanosecond, reveal a rewrite.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("portals.txt");
/// use pixelgate::tools::FileStamp;
///
/// std::fs::write(&path, "62515\n")?;
/// let before = FileStamp::read(&path)?;
/// std::fs::write(&path, "62515\n56043\n")?;
/// assert_ne!(FileStamp::read(&path)?, before);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl FileStamp {
    /// The stamp of the file that `path` leads to, symlinks followed.
    ///
    /// # Errors
    ///
    /// The file's metadata cannot be read.
    pub fn read(path: &Path) -> io::Result<FileStamp> {
        fs::metadata(path).map(|metadata| FileStamp::of(&metadata))
    }

    /// The stamp in a file's metadata.
    pub fn of(metadata: &Metadata) -> FileStamp {
        let stamp = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: stamp(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: stamp(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a further change is certain to give another stamp, because the last change is more
    /// than 2 seconds away from now. Reads the clock of the machine, by which the kernel stamps
    /// files.
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // A stamp in the future counts as well: the next change will get a different one.
        i128::try_from(now)
            .is_ok_and(|now| now.abs_diff(self.changed_ns) > SETTLED_AGE_MIN.as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_stamp_is_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = FileStamp::read(dir.path()).unwrap();
        assert!(!fresh.is_settled());
        let by = |seconds: i128| FileStamp {
            changed_ns: fresh.changed_ns + seconds * 1_000_000_000,
            ..fresh
        };
        assert!(by(-60).is_settled());
        assert!(by(60).is_settled());
    }
}
