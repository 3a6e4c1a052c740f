//! The spool: accepted events, on disk before they are answered, until every upstream has them.
//!
//! (head follows)

mod bounds;
mod commit;
mod config;
mod cursor;
mod format;
pub mod fs;
mod group;
pub mod inspect;
mod keeper;
mod lane;
mod ledger;
mod log;
mod quarantine;
mod reader;
mod recover;
mod scan;
mod segment;
mod shared;
mod sync;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock};

pub use bounds::PENDING_BYTES_MAX;
pub use config::{Config, ConfigError, Durability};
pub use cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
pub use format::RECORD_BYTES_MAX;
pub use group::{Commit, Overloaded};
pub use ledger::{Fate, RUN_AHEAD_EVENTS_MAX};
pub use reader::{Acknowledger, Entry, Reader, Seat};

use format::RECORD_HEADER_BYTES;
use shared::Shared;

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
    Io { path: PathBuf, source: io::Error },
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
    shared: Arc<Shared>,
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
    /// A full disk is not an error: appends are refused until there is room.
    pub fn open(config: &Config, upstreams: &[String], env: Env) -> Result<Spool, OpenError> {
        config.validate().map_err(OpenError::Config)?;
        check_upstreams(upstreams)?;
        let io_error = |source| OpenError::Io { path: config.dir.clone(), source };
        env.fs.create_dir_all(&config.dir).map_err(io_error)?;
        let lock = wait_for_lock(config, &env)?;
        let shared = Shared::open(config, upstreams, env).map_err(io_error)?;
        drop(lock);
        let shared = Arc::new(shared);
        shared.look_at_disk();
        let mut committer = commit::Committer::new(Arc::clone(&shared));
        committer.prepare();
        let keeper = keeper::Keeper::new(Arc::clone(&shared));
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

    /// The reader of an upstream; `None` if it is not configured or its reader was taken.
    pub fn reader(&self, upstream: &str) -> Option<Reader> {
        let shared = &self.handle.shared;
        let at = shared.upstreams.iter().position(|known| known.name == upstream)?;
        shared.upstreams[at].take().then(|| Reader::new(Arc::clone(shared), at))
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
        let result = keeper::Keeper::finish(&self.shared);
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
        match keeper::lock_spool(&*env.fs, &config.dir) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if Instant::now() >= until => {
                return Err(OpenError::Busy(config.dir.clone()));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(OpenError::Io { path: config.dir.clone(), source }),
        }
    }
}
