//! The files of the dead letters, one for each upstream: `<dir>/<upstream>.ndjson`, one letter a
//! line.
//!
//! A letter is on disk before its event counts as dead. The file is bounded. When it is full no
//! event is dropped: the events wait in the spool, and the upstream's state is
//! `dead_letters_failing`. Several processes may write to one file; a lock file beside it orders
//! them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::letter::Letter;
use crate::file_lock;

/// Largest size in bytes of one upstream's dead letters, by default. At about 700 bytes for each,
/// 380,000 letters fit. If there are more, the backend is at fault and not the events.
pub const DEAD_BYTES_MAX: u64 = 256 << 20;

/// Letters hold personal data: the owner may write, the group may read.
pub(super) const FILE_MODE: u32 = 0o640;

/// The dead letters of one upstream, for appending.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use pixelgate::custom::Failure;
/// use pixelgate::tools::dead_letters::{
///     DEAD_BYTES_MAX, DeadLetters, Filter, Letter, Reason, list,
/// };
///
/// let refused = Failure::answered(422);
/// let letter = Letter::new("collector", 0, Reason::Rejected, &refused, b"the spool's record");
/// DeadLetters::new(dir, "collector", DEAD_BYTES_MAX).append(&[letter])?;
/// assert_eq!(list(dir, "collector", &Filter::default(), |_| {})?.letters, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    letters: PathBuf,
    /// Older letters: a replay of version 0.1.0 moved them here, and did not end.
    replaying: PathBuf,
    lock: PathBuf,
    replay_lock: PathBuf,
}

/// Why dead letters could not be written or read.
///
/// ```
/// use pixelgate::tools::dead_letters::DeadError;
///
/// fn is_worth_a_retry(error: &DeadError) -> bool {
///     matches!(error, DeadError::Busy)
/// }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The file has reached its bound.
    #[error("the dead letters have reached their bound of {bytes_max} bytes")]
    Full {
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// Another process replays or removes the same letters.
    #[error("another process replays or removes these letters")]
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
    /// [`DeadError::Full`] if the letters do not fit, and [`DeadError::Io`] for the errors of the
    /// file system.
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

    /// The files that may hold letters, the one with the older letters first.
    pub(super) fn all(&self) -> [&PathBuf; 2] {
        [&self.replaying, &self.letters]
    }

    /// The upstream whose letters a file of this name holds.
    pub(super) fn upstream_of(name: &str) -> Option<&str> {
        let name = name.strip_suffix(".ndjson")?;
        Some(name.strip_suffix(".replaying").unwrap_or(name))
    }

    /// Takes the lock of the letters' file. Waits a limited time for a process that holds it.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = self.open_lock(&self.lock)?;
        file_lock::lock(&lock)?;
        Ok(lock)
    }

    /// Takes the same lock for reading, which needs no right to write. `None` if there is no lock
    /// file, because no process has written to the folder.
    pub(super) fn lock_shared(&self) -> io::Result<Option<File>> {
        match File::open(&self.lock) {
            Ok(lock) => file_lock::lock_shared(&lock).map(|()| Some(lock)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
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
            // The spool's folder above it is not made anew: if its disk is not mounted, a new
            // folder would hide the letters when the disk is mounted again.
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
    fn append(&self, lines: &[u8], bytes_max: u64) -> Result<(), DeadError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(FILE_MODE);
        let mut file = options.open(&self.letters)?;
        let len = file.metadata()?.len();
        // A last line without its end, left by a crash or an editor, stays a line of its own.
        let mut last = *b"\n";
        if len > 0 {
            file.read_exact_at(&mut last, len - 1)?;
        }
        let end: &[u8] = if last == *b"\n" { b"" } else { b"\n" };
        if len + (end.len() + lines.len()) as u64 > bytes_max {
            return Err(DeadError::Full { bytes_max });
        }
        // The folder is synced each time: the process that made the file may have ended before it
        // synced the folder.
        let written = file.write_all(end).and_then(|()| file.write_all(lines));
        let synced = written.and_then(|()| file.sync_data()).and_then(|()| sync_dir(&self.dir));
        if let Err(e) = synced {
            let _ = file.set_len(len);
            return Err(e.into());
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
