//! The spool: accepted events, on disk before they are answered, until every upstream has them.
//!
//! It stores bytes and knows nothing of events. It does not encode, batch or deliver; it does not
//! repair what a disk has damaged, it steps around it and says so. Why not a database: no crate
//! gives a multi-producer append below a microsecond, trimming in order, and several processes at
//! once. Why `write` and not `mmap`: a full disk is an error before the answer, not a SIGBUS.
//!
//! # Files
//!
//! ```text
//! <dir>/lock                         held while lanes are made and adopted
//! <dir>/lane-00000001/lane           identity; its flock says that the lane's process lives
//! <dir>/lane-00000001/cursor         two slots, see `cursor.rs`
//! <dir>/lane-00000001/0000000001.seg segments, oldest first
//! <dir>/lane-00000001/*.spare        files to make segments of: trimmed segments, and zeros
//! <dir>/lane-00000001/making, filling    a segment, and a spare, in the making
//! <dir>/quarantine/<lane>-<segment>-<offset>.bin   damaged bytes, at most 64 MiB of them
//! ```
//!
//! A lane is written by one process in its life. All integers are little-endian.
//!
//! | segment header, at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `pxgspool` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags: 1, the file was another segment before |
//! | 16 | 8 | lane |
//! | 24 | 8 | number in the lane, from 1, never used twice (0: the identity file) |
//! | 32 | 8 | sequence number of the first record |
//! | 40 | 8 | the lane's random salt |
//! | 48 | 12 | zero |
//! | 60 | 4 | crc32c of bytes 0 to 59 |
//!
//! | record, at | bytes | |
//! |---|---|---|
//! | 0 | 4 | crc32c of payload, length, sequence number, lane salt, segment number, in this order |
//! | 4 | 4 | length of the payload, 1 to 262,144 |
//! | 8 | 8 | sequence number: contiguous in the lane, from 1 |
//! | 16 | | payload |
//!
//! The salt and the segment number are in the checksum and not in the record: what a recycled file
//! still holds, what was copied from elsewhere, and what a client wrote into an event to look like
//! a record, all fail it; and zeros fail by their length.
//!
//! Two rules replace every other mark on disk. **A segment ends where the next one begins**: its
//! records from the next one's first sequence number on do not count. **A lane ends at its last
//! sound record.**
//!
//! # Assumptions
//!
//! A local file system with working `flock`, on which `fdatasync` makes a file's bytes and size
//! durable, `fsync` of a folder its names, and `rename` is atomic; a disk that does not lie about
//! it. A write may tear at any byte and sectors may arrive in any order until then. After a
//! failed `fdatasync` nothing is known of the bytes since the last good one.
//!
//! One case is known where a file system breaks this: an ext4 (Linux 6.18) that is shut down by
//! its ioctl, with the process living on, while an `fdatasync` of blocks is under way that were
//! reserved and never written: it may return success for it and lose them, because a word in the
//! journal is missing that says that they are written. A bare loop of `pwrite` and `fdatasync` lost
//! an acknowledged write in 11 of 60 such shutdowns, and in blocks that had been written before in
//! none of 60. So segments are made of the latter where that is possible, see *Spares*.
//!
//! # Spares
//!
//! A sync in blocks that have been written before needs no word in the journal: on ext4 a `pwrite`
//! and `fdatasync` of 73 KB cost 40 us of CPU and 110 us of time there, and 96 us and 267 us in
//! blocks that were only reserved. A lane therefore begins with one small segment of zeros; in the
//! first second, or as soon as that one is full, the keeper makes a large one, and one more when it
//! is used; and what is trimmed is written again. So a steady flow uses the same few files for
//! ever. A spool that grows beyond them, or before they are there, takes new files with reserved
//! blocks, each twice as large as the one before, up to `segment_bytes`: zeros for each would
//! double what is written.
//!
//! # What a crash can do, per operation
//!
//! - *Append.* In memory only; no answer was given (`memory` promises a graceful stop, not more; it
//!   syncs every few MiB all the same, so that the kernel never has much to write at one go).
//! - *Group commit.* Torn anywhere: none of its events was answered in `power`, and in `interval`
//!   a crash of the process does not undo a finished `write`. Recovery keeps the sound records;
//!   an event that was not answered may thereby be delivered, which at-least-once allows.
//! - *New segment.* Header and the group that opens it durable, then the name. Before the name
//!   there is no segment; behind it, it is whole.
//! - *Failed write or sync.* The segment is given up and never written again; all that is not yet
//!   durable goes once more into a new segment that begins at the first such number. With its
//!   name, and not before, it cuts the old one, whatever that one's file holds: so in `interval`
//!   what was answered after `write` is always in one of the two. If that fails too the group is
//!   refused, its numbers are free again, and the next segment cuts in the same way. Only a crash
//!   in between, before any further segment could be made and where cutting the file failed as
//!   well, can let refused events be delivered.
//! - *Cursor.* One of two slots, in turn; the other stands. What the older one forgets is read
//!   again.
//! - *Trim.* Only segments that both slots have passed; so either slot is enough. A segment that
//!   comes back after a power loss lies before every cursor and is trimmed again.
//! - *Recycle.* A spare is taken when its name is durable, and is no segment by name until its
//!   new header is durable; its old records carry another segment's number in their checksums.
//! - *Adopt.* Reads, and cuts off what is behind the end. Done again it does the same.
//! - *Fold and remove.* A delivered lane's totals go into the own cursor together with the lane's
//!   name, into both slots, before its folder goes. A folder that is still there is recognized by
//!   that name and only removed, not counted twice.
//!
//! Corruption at rest costs the records it touches. A reader that meets a bad spot searches for
//! the next sound record, copies the bytes between to the quarantine, and counts the missing
//! sequence numbers as lost. A damaged segment header costs nothing (the salt stands in three
//! places), a lost cursor re-reads the lane from its oldest segment. A read that fails without
//! giving bytes (`EIO`) is no corruption: it is tried again each second, and that upstream waits.
//!
//! # Upstreams that come and go
//!
//! Accounts are made anew from the configuration at each start. A new upstream begins at the
//! oldest event that any upstream still waited for: after renaming one nothing pending is lost,
//! and a newcomer does not get what the others are through with. A removed one no longer holds
//! anything back, and its counts are forgotten. `accepted` counts from where an upstream began.
//! Without any upstream nothing is trimmed.
//!
//! # Threads
//!
//! Any thread appends into a staging buffer of its own (`group.rs`); one committer writes and
//! syncs (`commit.rs`), in `interval` with a syncer beside it (`syncer.rs`); one keeper turns each
//! second (`keeper.rs`); readers read in the tasks of their upstreams, from the page cache as a
//! rule (`reader.rs`).

mod config;
mod format;
pub mod fs;
mod lane;
mod segment_index;
mod maintenance;
mod read;
pub mod recovery;
mod state;
mod write;

use crate::config_error::ConfigError;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock};

pub use config::{Config, Durability};
pub use format::RECORD_BYTES_MAX;
pub use read::cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
pub use read::ledger::{Ack, RUN_AHEAD_EVENTS_MAX};
pub use read::reader::{Acknowledger, Entry, Reader, RecordId};
pub use write::admission::PENDING_BYTES_MAX;
pub use write::group::{Commit, Overloaded};

use format::RECORD_HEADER_BYTES;
use state::SpoolState;

/// How long a start waits for another process that is making or adopting lanes.
const SPOOL_LOCK_WAIT: Duration = Duration::from_secs(10);

/// What the spool stands on.
#[derive(Clone)]
pub struct Env {
    /// The file system.
    pub fs: Arc<dyn fs::Fs>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// `pixelgate_spool_commit_seconds`: from a group's first append to its answer, once a group.
    pub commit_seconds: Option<prometheus::Histogram>,
}

impl Env {
    /// The machine's own.
    pub fn system() -> Env {
        Env { fs: Arc::new(fs::SystemFs), clock: Arc::new(SystemClock), commit_seconds: None }
    }
}

/// Why a spool could not be opened. Never because of what its files hold.
#[derive(Debug)]
pub enum OpenError {
    /// A value that cannot be used.
    Config(ConfigError),
    /// Too many upstreams, a name too long, or two with one name.
    Upstreams(String),
    /// Another process has kept the folder's lock.
    Busy(PathBuf),
    /// The folder cannot be used.
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Config(_) => f.write_str("the spool's configuration cannot be used"),
            OpenError::Upstreams(reason) => write!(f, "the spool's upstreams: {reason}"),
            OpenError::Busy(path) => {
                write!(f, "another process keeps the spool {} locked", path.display())
            }
            OpenError::Io { path, .. } => {
                write!(f, "the spool {} cannot be used", path.display())
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Config(error) => Some(error),
            OpenError::Io { source, .. } => Some(source),
            OpenError::Upstreams(_) | OpenError::Busy(_) => None,
        }
    }
}

/// Why closing did not do all.
#[derive(Debug)]
pub enum CloseError {
    /// The disk took longer than the time given; the threads go on by themselves.
    TimedOut,
    /// The cursors could not be written: some delivered events will be delivered again.
    Io(io::Error),
}

impl std::fmt::Display for CloseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CloseError::TimedOut => f.write_str("the spool did not close in time"),
            CloseError::Io(_) => f.write_str("the spool's cursors could not be written"),
        }
    }
}

impl std::error::Error for CloseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CloseError::Io(error) => Some(error),
            CloseError::TimedOut => None,
        }
    }
}

/// What the spool holds, at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// Bytes of events that some upstream still waits for.
    pub bytes: u64,
    /// Bytes free on the spool's disk, as of the last second.
    pub free_bytes: u64,
    /// Seconds until appends are refused, at the growth of about the last half minute.
    pub seconds_to_full: Option<u64>,
    /// Damaged bytes found, those still in the quarantine folder included.
    pub quarantined_bytes: u64,
    /// Why appends are refused, if they are.
    pub failing: Option<String>,
    /// Totals over the spool's life.
    pub upstreams: Vec<UpstreamStatus>,
}

/// `accepted = delivered + dead + lost + pending`.
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Events appended since it exists, and those it took over when it was added.
    pub accepted: u64,
    /// Events it has.
    pub delivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
    /// Events lost to corruption.
    pub lost: u64,
    /// Events it has still to get.
    pub pending: u64,
}

/// The spool. A cheap clone; when the last one is dropped it is closed as [`Spool::close`] does.
#[derive(Clone)]
pub struct Spool {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<SpoolState>,
    // None when closed.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    committer: std::thread::JoinHandle<()>,
    keeper: std::thread::JoinHandle<()>,
}

impl Spool {
    /// Opens the spool for these upstreams: adopts what processes before this one have left, and
    /// makes a lane for this one. Call it after daemonizing: it takes locks and starts threads.
    ///
    /// A full disk is not an error as long as it takes a lane's two small files: appends are
    /// refused until there is room, and delivering what is there makes room.
    pub fn open(config: &Config, upstreams: &[String], env: Env) -> Result<Spool, OpenError> {
        config.validate().map_err(OpenError::Config)?;
        check_upstreams(upstreams)?;
        let io_error = |source| OpenError::Io { path: config.dir.clone(), source };
        env.fs.create_dir_all(&config.dir).map_err(io_error)?;
        let lock = wait_for_lock(config, &env)?;
        let shared = SpoolState::open(config, upstreams, env).map_err(io_error)?;
        drop(lock);
        let shared = Arc::new(shared);
        shared.look_at_disk();
        let mut committer = write::commit::Committer::new(Arc::clone(&shared)).map_err(io_error)?;
        committer.prepare();
        let keeper = maintenance::Maintenance::new(Arc::clone(&shared));
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = Threads {
            committer: named("spool-commit").spawn(move || committer.run()).map_err(io_error)?,
            keeper: named("spool-keep").spawn(move || keeper.run()).map_err(io_error)?,
        };
        shared.parker.set(threads.committer.thread().clone());
        Ok(Spool { handle: Arc::new(Handle { shared, threads: Mutex::new(Some(threads)) }) })
    }

    /// Appends what `encode` writes into the empty buffer it is given: 1 byte to
    /// [`RECORD_BYTES_MAX`]. Never waits for the disk. The event is safe when the [`Commit`] says
    /// so; in `memory` it is ready at once.
    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Commit, Overloaded> {
        self.handle.shared.append(encode)
    }

    /// Whoever could report an event waits for one already: the group that is gathered does not
    /// linger any longer.
    pub fn flush_now(&self) {
        self.handle.shared.flush_now();
    }

    /// The reader of an upstream; `None` if it is not configured or its reader was taken.
    pub fn reader(&self, upstream: &str) -> Option<Reader> {
        let shared = &self.handle.shared;
        let at = shared.upstreams.iter().position(|known| known.name == upstream)?;
        shared.upstreams[at].take().then(|| Reader::new(Arc::clone(shared), at))
    }

    /// `spool.bytes_max`, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.handle.shared.bounds.bytes_max
    }

    /// What it holds now.
    pub fn status(&self) -> Status {
        self.handle.shared.status()
    }

    /// Does at once what is otherwise done once a second, and returns when it is done: cursors are
    /// durable, what all upstreams have is trimmed, lanes of dead processes are adopted.
    pub fn checkpoint(&self) {
        self.handle.shared.ask_keeper();
    }

    /// Refuses further appends, writes what is staged, syncs, writes the cursors and gives the
    /// lane up. Once closed, closing again does nothing.
    pub fn close(&self, within: Duration) -> Result<(), CloseError> {
        self.handle.close(within)
    }
}

impl Handle {
    fn close(&self, within: Duration) -> Result<(), CloseError> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(threads) = threads else { return Ok(()) };
        let until = Instant::now() + within;
        self.shared.bounds.close();
        self.shared.parker.unpark();
        self.shared.stop_keeper();
        for thread in [threads.committer, threads.keeper] {
            while !thread.is_finished() {
                if Instant::now() >= until {
                    return Err(CloseError::TimedOut);
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            // A panic was reported by its own thread.
            _ = thread.join();
        }
        let result = maintenance::Maintenance::finish(&self.shared);
        self.shared.lanes().iter().for_each(|lane| lane.release());
        result.map_err(CloseError::Io)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close(Duration::from_secs(10)) {
            ::log::error!("{error}");
        }
    }
}

fn check_upstreams(upstreams: &[String]) -> Result<(), OpenError> {
    if upstreams.len() > UPSTREAMS_MAX {
        return Err(OpenError::Upstreams(format!("at most {UPSTREAMS_MAX}")));
    }
    for (at, name) in upstreams.iter().enumerate() {
        if name.is_empty() || name.len() > UPSTREAM_NAME_BYTES_MAX {
            let reason = format!("a name has 1 to {UPSTREAM_NAME_BYTES_MAX} bytes");
            return Err(OpenError::Upstreams(reason));
        }
        if upstreams[..at].contains(name) {
            return Err(OpenError::Upstreams(format!("{name:?} is there twice")));
        }
    }
    Ok(())
}

fn wait_for_lock(config: &Config, env: &Env) -> Result<Arc<dyn fs::File>, OpenError> {
    let until = Instant::now() + SPOOL_LOCK_WAIT;
    loop {
        match maintenance::lock_spool(&*env.fs, &config.dir) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if Instant::now() >= until => {
                return Err(OpenError::Busy(config.dir.clone()));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(OpenError::Io { path: config.dir.clone(), source }),
        }
    }
}
