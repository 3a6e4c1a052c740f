//! The files of the dead letters, one for each upstream: `<dir>/<upstream>.ndjson`, one letter a
//! line.
//!
//! A letter is on disk before its event counts as dead. The file is bounded. When it is full no
//! event is dropped: the events wait in the spool, and the upstream's state is
//! `dead_letters_failing`. Several processes may write to one file; a lock file beside it orders
//! them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::letter::Letter;
use crate::upstream;

/// Largest size in bytes of one upstream's dead letters, by default. At some 700 bytes a letter
/// that is a third of a million letters; so many are the sign of a broken backend, not of poison
/// events.
pub const DEAD_BYTES_MAX: u64 = 256 << 20;

/// Letters hold personal data: the owner may write, the group may read.
const FILE_MODE: u32 = 0o640;

/// The dead letters of one upstream, for appending.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    upstream: String,
    files: Files,
    bytes_max: u64,
}

/// The paths of one upstream's dead letters.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    pub(super) letters: PathBuf,
    /// The letters of a replay that runs, or that ended before it was done.
    pub(super) replaying: PathBuf,
    lock: PathBuf,
    replay_lock: PathBuf,
}

/// Why dead letters could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The file has reached its bound.
    #[error("the dead letters have reached their bound of {bytes_max} bytes")]
    Full {
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// Another process replays the same letters.
    #[error("another process replays these letters")]
    Busy,
    /// Reading or writing a file failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl DeadLetters {
    /// The dead letters of `upstream` under `dir`, at most `bytes_max` bytes. Touches no file yet.
    pub fn new(dir: &Path, upstream: &str, bytes_max: u64) -> DeadLetters {
        DeadLetters { upstream: upstream.to_owned(), files: Files::new(dir, upstream), bytes_max }
    }

    /// The name of the upstream.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Appends all letters or none, and returns once they are on disk. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`DeadError::Full`] where the letters do not fit, [`DeadError::Io`] for the file system's
    /// errors.
    pub fn append(&self, letters: &[Letter]) -> Result<(), DeadError> {
        let mut lines = Vec::new();
        for letter in letters {
            serde_json::to_writer(&mut lines, letter).map_err(io::Error::from)?;
            lines.push(b'\n');
        }
        let _lock = self.files.lock()?;
        self.files.append(&lines, self.bytes_max)
    }
}

impl Files {
    pub(super) fn new(dir: &Path, upstream: &str) -> Files {
        Files {
            dir: dir.to_path_buf(),
            letters: dir.join(format!("{upstream}.ndjson")),
            replaying: dir.join(format!("{upstream}.replaying.ndjson")),
            lock: dir.join(format!("{upstream}.lock")),
            replay_lock: dir.join(format!("{upstream}.replay.lock")),
        }
    }

    /// Takes the lock of the letters' file. Waits for other processes that hold it.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = self.open_lock(&self.lock)?;
        lock.lock()?;
        Ok(lock)
    }

    /// Takes the lock of the replay; `None` while another process holds it.
    pub(super) fn lock_replay(&self) -> io::Result<Option<File>> {
        let lock = self.open_lock(&self.replay_lock)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Makes renames and removals durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        if !self.dir.is_dir() {
            // Not the spool's folder above it: where that is gone, a new one would hide the letters
            // when its disk is mounted again.
            match fs::create_dir(&self.dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            if let Some(parent) = self.dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync_dir(parent)?;
            }
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(FILE_MODE);
        options.open(path)
    }

    /// Appends whole lines durably. The caller holds [`Files::lock`].
    pub(super) fn append(&self, lines: &[u8], bytes_max: u64) -> Result<(), DeadError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(FILE_MODE);
        let mut file = options.open(&self.letters)?;
        // A crash may have torn the last line. Its events were not acknowledged, so the spool
        // delivers them again.
        let len = upstream::file::cut_torn_line(&mut file)?;
        if len + lines.len() as u64 > bytes_max {
            return Err(DeadError::Full { bytes_max });
        }
        // The folder each time: the process that made the file may have ended before it could.
        let written = file.write_all(lines).and_then(|()| file.sync_data());
        if let Err(e) = written.and_then(|()| sync_dir(&self.dir)) {
            let _ = file.set_len(len);
            return Err(e.into());
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
