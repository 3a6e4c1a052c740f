//! The handle to an open spool: opening, appending, reading, closing.
//!
//! It starts and ends the threads of the committer, of maintenance and of the watch. Its own I/O is
//! making the folder and locking it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::config::{Config, ValidConfig};
use super::env::Env;
use super::error::{CloseError, OpenError};
use super::fs::{File, create_dir_durable};
use super::maintenance::Maintenance;
use super::read::cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
use super::read::reader::Reader;
use super::recovery::adoption::lock_spool;
use super::state::SpoolState;
use super::status::Status;
use super::write::commit::Committer;
use super::write::group::{Commit, Overloaded};
use super::write::watch::{StopWatch, Watch};
use crate::config_error::ConfigError;

/// How long a start waits for another process that is making or adopting lanes.
const SPOOL_LOCK_WAIT: Duration = Duration::from_secs(10);

/// The spool. A cheap clone; when the last one is dropped it is closed as [`Spool::close`] does.
#[derive(Clone)]
pub struct Spool {
    handle: Arc<Handle>,
}

struct Handle {
    state: Arc<SpoolState>,
    // `None` once the spool is closed.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    committer: std::thread::JoinHandle<()>,
    maintenance: std::thread::JoinHandle<()>,
    watch: std::thread::JoinHandle<()>,
}

impl Spool {
    /// Opens the spool for these upstreams: adopts the lanes of dead processes and makes a lane
    /// for this one. Call it after daemonizing, because it takes locks and starts threads.
    ///
    /// A full disk is not an error as long as it has room for a lane's two small files: appends
    /// are refused until there is room, and delivering pending events makes room.
    ///
    /// `config` is a [`Config`], which is checked here, or a [`ValidConfig`].
    pub fn open<C>(config: C, upstreams: &[String], env: Env) -> Result<Spool, OpenError>
    where
        C: TryInto<ValidConfig>,
        C::Error: Into<ConfigError>,
    {
        let config = config.try_into().map_err(|error| OpenError::Config(error.into()))?;
        Spool::open_valid(&config, upstreams, env)
    }

    fn open_valid(config: &Config, upstreams: &[String], env: Env) -> Result<Spool, OpenError> {
        check_upstreams(upstreams)?;
        let io_error = |source| OpenError::Io { path: config.dir.clone(), source };
        create_dir_durable(&*env.fs, &config.dir).map_err(io_error)?;
        let lock = wait_for_lock(config, &env)?;
        let state = SpoolState::open(config, upstreams, env).map_err(io_error)?;
        drop(lock);
        let state = Arc::new(state);
        state.look_at_disk();
        let mut committer = Committer::new(Arc::clone(&state)).map_err(io_error)?;
        committer.prepare();
        let maintenance = Maintenance::new(Arc::clone(&state));
        let watch = Watch::new(Arc::clone(&state));
        let stop = Arc::new(StopWatch::default());
        let watching = Arc::clone(&stop);
        // Until the committer has ended, the watch may have to refuse events.
        let commit = move || {
            committer.run();
            stop.stop();
        };
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = Threads {
            committer: named("spool-commit").spawn(commit).map_err(io_error)?,
            maintenance: named("spool-keep").spawn(move || maintenance.run()).map_err(io_error)?,
            watch: named("spool-watch").spawn(move || watch.run(&watching)).map_err(io_error)?,
        };
        state.parker.set(threads.committer.thread().clone());
        Ok(Spool { handle: Arc::new(Handle { state, threads: Mutex::new(Some(threads)) }) })
    }

    /// Appends what `encode` writes into the empty buffer it is given: 1 byte to
    /// [`RECORD_BYTES_MAX`](super::RECORD_BYTES_MAX). Never waits for the disk. The event is safe
    /// when the [`Commit`] says
    /// so; in `memory` it is ready at once.
    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Commit, Overloaded> {
        self.handle.state.append(encode)
    }

    /// Ends the linger of the group that is being gathered. Call it when every request that could
    /// still add an event to the group is waiting for its answer already.
    pub fn flush_now(&self) {
        self.handle.state.flush_now();
    }

    /// The reader of an upstream; `None` if it is not configured or its reader was taken.
    pub fn reader(&self, upstream: &str) -> Option<Reader> {
        let state = &self.handle.state;
        let at = state.upstreams.iter().position(|known| known.name == upstream)?;
        state.upstreams[at].take().then(|| Reader::new(Arc::clone(state), at))
    }

    /// `spool.bytes_max`, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.handle.state.bounds.bytes_max
    }

    /// When the last commit was done, in milliseconds since 1970, UTC; not in `memory`. One reading
    /// of the clock serves all events of a commit.
    pub fn last_commit_ms(&self) -> u64 {
        self.handle.state.last_commit_ms.load(Relaxed)
    }

    /// The spool's content now.
    pub fn status(&self) -> Status {
        self.handle.state.status()
    }

    /// Runs the maintenance of each second at once and returns when it has ended: cursors are
    /// durable, segments that all upstreams have acknowledged are trimmed, and the lanes of dead
    /// processes are adopted.
    pub fn checkpoint(&self) {
        self.handle.state.run_maintenance();
    }

    /// Refuses further appends, writes staged events, syncs, writes the cursors and releases the
    /// lane's lock, waiting at most `within`. A second call does nothing.
    pub fn close(&self, within: Duration) -> Result<(), CloseError> {
        self.handle.close(within)
    }
}

impl Handle {
    fn close(&self, within: Duration) -> Result<(), CloseError> {
        let threads = self.threads.lock().take();
        let Some(threads) = threads else { return Ok(()) };
        let until = Instant::now() + within;
        self.state.bounds.close();
        self.state.parker.unpark();
        self.state.stop_maintenance();
        for thread in [threads.committer, threads.maintenance, threads.watch] {
            while !thread.is_finished() {
                if Instant::now() >= until {
                    return Err(CloseError::TimedOut);
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            // A panic was reported by its own thread.
            _ = thread.join();
        }
        let result = Maintenance::finish(&self.state);
        self.state.lanes().iter().for_each(|lane| lane.release());
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

fn wait_for_lock(config: &Config, env: &Env) -> Result<Arc<dyn File>, OpenError> {
    let until = Instant::now() + SPOOL_LOCK_WAIT;
    loop {
        match lock_spool(&*env.fs, &config.dir) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if Instant::now() >= until => {
                return Err(OpenError::Busy(config.dir.clone()));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(OpenError::Io { path: config.dir.clone(), source }),
        }
    }
}
