//! Dead letters: events that an upstream will never take, kept for people to look at.
//!
//! One file for each upstream, `<dir>/<upstream>.ndjson`, one letter a line:
//!
//! ```json
//! {"time":"2026-11-23T02:45:13.123Z","upstream":"collector","reason":"rejected",
//!  "detail":"answered 400","status":400,"event":{"id":"0197…","…":"…"},"record":"base64"}
//! ```
//!
//! `event` is the wire form of SPEC 7, `record` the spool's bytes, from which `replay` sends the
//! event again under the same id. A letter is on disk before its event counts as dead. The file
//! is bounded; when it is full nothing is dropped: the events wait in the spool, and the
//! upstream's state says so. Several processes may write to one file: a lock file beside it
//! orders them.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::Record;
use crate::upstream;
use crate::upstream::Failure;

/// Size of one upstream's dead letters, at most. At some 700 bytes a letter, the third of a
/// million: whoever has that many has a broken backend, not poison events.
pub const DEAD_BYTES_MAX: u64 = 256 << 20;

/// Letters hold personal data: the owner writes, the group reads.
const FILE_MODE: u32 = 0o640;

/// Why an event became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The upstream refuses it, even alone (400, 422).
    Rejected,
    /// The upstream finds it too large, even alone (413).
    TooLarge,
    /// The upstream's kind knows that it can never be delivered, or must not be sent again.
    Undeliverable,
    /// The spool's record is not one that this version can read.
    Unreadable,
}

/// One dead letter, as it stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Letter {
    /// When it was written, RFC 3339 in UTC.
    pub time: String,
    /// By which upstream's delivery.
    pub upstream: String,
    /// The sort of failure.
    pub reason: Reason,
    /// The failure in words; nothing of the event or of the upstream's answer.
    pub detail: String,
    /// The answer's status, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The event in its wire form, where the record can be read. Holds personal data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<RawValue>>,
    /// The spool's record in base64.
    pub record: String,
}

/// The dead letters of one upstream, for appending.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    upstream: String,
    files: Files,
    bytes_max: u64,
}

/// Where they are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    pub(super) letters: PathBuf,
    /// What `replay` is at work on, or was when it died.
    pub(super) replaying: PathBuf,
    lock: PathBuf,
    replay_lock: PathBuf,
}

/// Why dead letters could not be written or read.
#[derive(Debug)]
pub enum DeadError {
    /// The file has reached its bound.
    Full {
        /// The bound.
        bytes_max: u64,
    },
    /// Another process replays the same letters.
    Busy,
    /// The disk.
    Io(io::Error),
}

impl Letter {
    /// A letter about `record`.
    pub fn new(
        upstream: &str,
        time_ms: u64,
        reason: Reason,
        setback: &Failure,
        record: &[u8],
    ) -> Letter {
        let time = i64::try_from(time_ms).ok();
        let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        Letter {
            time: format!("{:.3}", time.unwrap_or_default()),
            upstream: upstream.to_owned(),
            reason,
            detail: setback.what.clone().into_owned(),
            status: setback.status,
            event: wire_form(record),
            record: STANDARD.encode(record),
        }
    }

    /// The event's id, where the record can be read.
    pub fn id(&self) -> Option<Uuid> {
        let record = self.record()?;
        Record::decode(&record).ok().map(|r| Uuid::from_bytes(r.id))
    }

    /// The spool's record again; `None` where the line was damaged.
    pub fn record(&self) -> Option<Bytes> {
        STANDARD.decode(&self.record).ok().map(Bytes::from)
    }
}

fn wire_form(record: &[u8]) -> Option<Box<RawValue>> {
    let record = Record::decode(record).ok()?;
    let bot = upstream::is_bot(record.context.user_agent.as_deref().map(str::as_bytes));
    let mut json = Vec::new();
    record.write_json(&mut json, bot);
    RawValue::from_string(String::from_utf8(json).ok()?).ok()
}

impl DeadLetters {
    /// Those of `upstream` under `dir`, at most `bytes_max` of them. Touches nothing yet.
    pub fn new(dir: &Path, upstream: &str, bytes_max: u64) -> DeadLetters {
        DeadLetters { upstream: upstream.to_owned(), files: Files::new(dir, upstream), bytes_max }
    }

    /// Whose they are.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Appends letters, all or none, and returns when they are on disk. Blocks on the disk.
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

    /// Waits for other processes that write here.
    pub(super) fn lock(&self) -> io::Result<File> {
        let lock = self.open_lock(&self.lock)?;
        lock.lock()?;
        Ok(lock)
    }

    /// Keeps a second replay of these letters out; `None` when there is one already.
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
            fs::create_dir_all(&self.dir)?;
            if let Some(parent) = self.dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync_dir(parent)?;
            }
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(FILE_MODE);
        options.open(path)
    }

    /// Appends whole lines durably. Wants the lock held.
    pub(super) fn append(&self, lines: &[u8], bytes_max: u64) -> Result<(), DeadError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(FILE_MODE);
        let mut file = options.open(&self.letters)?;
        // A crash may have torn the last line. It was not synced, so its events come again.
        let len = upstream::file::cut_torn_line(&mut file)?;
        if len + lines.len() as u64 > bytes_max {
            return Err(DeadError::Full { bytes_max });
        }
        if let Err(e) = file.write_all(lines).and_then(|()| file.sync_data()) {
            let _ = file.set_len(len);
            return Err(e.into());
        }
        if len == 0 {
            sync_dir(&self.dir)?;
        }
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl From<io::Error> for DeadError {
    fn from(error: io::Error) -> DeadError {
        DeadError::Io(error)
    }
}

impl fmt::Display for DeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeadError::Full { bytes_max } => {
                write!(f, "the dead letters have reached their bound of {bytes_max} bytes")
            }
            DeadError::Busy => f.write_str("another process replays these letters"),
            DeadError::Io(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for DeadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DeadError::Full { .. } | DeadError::Busy => None,
            DeadError::Io(e) => Some(e),
        }
    }
}
