//! The handle to an open spool: opening, appending, reading, closing.
//!
//! It starts and ends the threads of the committer, of maintenance and of the watch, and does no
//! I/O of its own.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::config::{Config, Durability, ValidConfig};
use super::env::Env;
use super::error::{CloseError, OpenError};
use super::maintenance::Maintenance;
use super::metering::book::Book;
use super::read::cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
use super::read::reader::Reader;
use super::state::SpoolState;
use super::status::{PortalTotals, Status};
use super::write::commit::Committer;
use super::write::group::{Commit, Overloaded};
use super::write::syncer::Syncer;
use super::write::watch::{StopWatch, Watch};
use crate::config_error::ConfigError;
use crate::disk_error;

/// How long a start waits for another process that is making or adopting lanes.
const SPOOL_LOCK_WAIT: Duration = Duration::from_secs(10);

/// The spool. A cheap clone; when the last one is dropped it is closed as [`Spool::close`] does.
#[derive(Clone)]
pub struct Spool {
    handle: Arc<Handle>,
}

/// What is accepted of each portal by day.
#[derive(Clone)]
pub struct DayCounts(Arc<Book>);

impl DayCounts {
    /// Events of a portal that were accepted on this UTC day, counted from 1970-01-01.
    pub fn accepted(&self, portal: u64, day: u32) -> u64 {
        self.0.accepted_on(portal, day)
    }

    /// How often the counts of another process were taken in.
    pub fn takeovers(&self) -> u64 {
        self.0.takeovers()
    }
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
    /// A disk that is full, read-only or failing is no error (SPEC 6), unless [`Env::needs_disk`]
    /// is set: appends are refused until it works, and delivering pending events makes room.
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
        let needs_disk = env.needs_disk;
        let state = Arc::new(SpoolState::new(config, upstreams, env));
        match begin(&state) {
            // Maintenance tries again, now and each second, and reports it.
            Err(OpenError::Io { source, .. }) if !needs_disk && !is_mistake(&source) => {
                state.fail(&source);
                state.request_maintenance();
            }
            begun => begun?,
        }
        state.look_at_disk();
        let spool = Spool::start(Arc::clone(&state))?;
        match state.why_failing() {
            // Dropping the spool closes it.
            Some(why) if needs_disk => Err(io_error(config)(io::Error::other(why))),
            _ => Ok(spool),
        }
    }

    fn start(state: Arc<SpoolState>) -> Result<Spool, OpenError> {
        let config = state.config();
        let io_error = io_error(&config);
        let syncer = match state.durability {
            Durability::Interval => Some(Syncer::start(Arc::clone(&state.parker))),
            Durability::Power | Durability::Memory => None,
        };
        let syncer = syncer.transpose().map_err(io_error)?;
        let maintenance = Maintenance::new(Arc::clone(&state));
        let watch = Watch::new(Arc::clone(&state));
        let stop = Arc::new(StopWatch::default());
        let watching = Arc::clone(&stop);
        let committing = Arc::clone(&state);
        let (prepared, is_prepared) = mpsc::sync_channel(1);
        let commit = move || {
            if let Some(lane) = committing.wait_for_own() {
                let mut committer = Committer::new(committing, lane, syncer);
                committer.prepare();
                _ = prepared.send(());
                committer.run();
            }
            // Until the committer has ended, the watch may have to refuse events.
            stop.stop();
        };
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let committer = named("spool-commit").spawn(commit).map_err(io_error)?;
        state.parker.set(committer.thread().clone());
        if state.own().is_some() {
            // Only then maintenance, which makes spares as well. An error means that the committer
            // has panicked, which its own thread reports.
            _ = is_prepared.recv();
        }
        let threads = Threads {
            committer,
            maintenance: named("spool-keep").spawn(move || maintenance.run()).map_err(io_error)?,
            watch: named("spool-watch").spawn(move || watch.run(&watching)).map_err(io_error)?,
        };
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
        self.handle.state.bounds.bytes_max()
    }

    /// Puts other settings in force while the spool runs. Its folder and `durability` stay, and a
    /// segment that is being written keeps its size.
    pub fn set_config(&self, config: &ValidConfig) {
        self.handle.state.set_config(config);
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

    /// One portal's totals over the spool's life; zeros for one that was never seen.
    pub fn portal(&self, portal: u64) -> PortalTotals {
        self.handle.state.book.portal(portal)
    }

    /// The portals with the most events, at most `portals_max`, busiest first, and the sum of all
    /// others.
    pub fn busiest_portals(&self, portals_max: usize) -> (Vec<PortalTotals>, PortalTotals) {
        self.handle.state.book.busiest(portals_max)
    }

    /// From when the totals per portal count, in milliseconds since 1970. `None` while only another
    /// process that uses this spool knows it.
    pub fn portals_since_ms(&self) -> Option<u64> {
        self.handle.state.book.since_ms()
    }

    /// Counts a rejected event of this portal. A portal that has no totals of its own gets some if
    /// `is_listed` says so.
    pub fn count_rejected(&self, portal: u64, is_listed: impl FnOnce() -> bool) {
        self.handle.state.book.reject(portal, is_listed);
    }

    /// What is accepted of each portal by day. Does not hold the spool open.
    pub fn day_counts(&self) -> DayCounts {
        DayCounts(Arc::clone(&self.handle.state.book))
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

fn io_error(config: &Config) -> impl Fn(io::Error) -> OpenError + Copy {
    |source| OpenError::Io { path: config.dir.clone(), source }
}

/// Whether only an operator can end it, and not the disk by itself. The folder is made where it is
/// missing, so what is absent has just vanished.
fn is_mistake(error: &io::Error) -> bool {
    disk_error::is_of_path(error) && error.kind() != io::ErrorKind::NotFound
}

/// Begins as soon as no other process makes or adopts lanes.
fn begin(state: &SpoolState) -> Result<(), OpenError> {
    let until = Instant::now() + SPOOL_LOCK_WAIT;
    loop {
        match state.begin() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Err(io_error(&state.config())(error));
            }
            Err(_) if Instant::now() >= until => return Err(OpenError::Busy(state.root.clone())),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
            Ok(()) => return Ok(()),
        }
    }
}
