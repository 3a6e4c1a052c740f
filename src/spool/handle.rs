//! [`Spool`], the handle to an open spool: opens it, appends, reads and closes.
//!
//! It starts and ends the threads of the committer, of maintenance and of the watch. Each call to
//! the disk is made on a thread of its own, so that a disk that hangs does not delay a start.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::beginning::Beginning;
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

/// The spool. Cheap to clone. Dropping the last clone closes it as [`Spool::close`] does.
#[derive(Clone)]
pub struct Spool {
    handle: Arc<Handle>,
}

/// The counts of each portal's accepted events by day.
#[derive(Clone)]
pub struct DayCounts(Arc<Book>);

impl DayCounts {
    /// Events of a portal that were accepted on this UTC day, counted from 1970-01-01.
    pub fn accepted(&self, portal: u64, day: u32) -> u64 {
        self.0.accepted_on(portal, day)
    }

    /// A number that changes when the counts of another process are taken over.
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
    committer: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Spool {
    /// Opens the spool for these upstreams: adopts the lanes of ended processes and creates a lane
    /// for this one. A host that daemonizes must do so before, because this takes locks and starts
    /// threads.
    ///
    /// `config` is a [`ValidConfig`], or a [`Config`], which is checked here.
    ///
    /// # Errors
    ///
    /// The errors of [`OpenError`]. A disk that is full, read-only, failing or stalled for
    /// `commit_seconds_max` is no error (SPEC 6), unless [`Env::needs_disk`] is set: appends are
    /// refused until the disk works, and delivery of the pending events makes room.
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
        let beginning = Beginning::start(&state).map_err(io_error(config))?;
        if let Err(error) = beginning.wait(config.commit_limit()) {
            let is_locked = error.kind() == io::ErrorKind::WouldBlock;
            if is_locked || needs_disk || is_mistake(&error) {
                if error.kind() != io::ErrorKind::TimedOut {
                    // The thread holds the lanes that it has adopted until it ends.
                    beginning.join();
                }
                let busy = is_locked.then(|| OpenError::Busy(config.dir.clone()));
                return Err(busy.unwrap_or_else(|| io_error(config)(error)));
            }
            // Maintenance tries again at once and then each second, and reports the fault.
            state.note_start(&Err(error));
            state.request_maintenance();
        }
        let spool = Spool::start(Arc::clone(&state), beginning)?;
        match state.why_failing().or_else(|| state.why_stalled()) {
            // The error drops the spool, which closes it.
            Some(why) if needs_disk => Err(io_error(config)(io::Error::other(why))),
            _ => Ok(spool),
        }
    }

    fn start(state: Arc<SpoolState>, beginning: Beginning) -> Result<Spool, OpenError> {
        let config = state.config();
        let io_error = io_error(&config);
        let syncer = match state.durability {
            Durability::Interval => Some(Syncer::start(Arc::clone(&state.parker))),
            Durability::Power | Durability::Memory => None,
        };
        let syncer = syncer.transpose().map_err(io_error)?;
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
            // The watch ends after the committer, whose events it may have to refuse.
            stop.stop();
        };
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let committer = named("spool-commit").spawn(commit).map_err(io_error)?;
        state.parker.set(committer.thread().clone());
        // An error means that the committer has panicked, which its own thread reports.
        let is_late = state.own().is_some()
            && is_prepared.recv_timeout(config.commit_limit()) == Err(RecvTimeoutError::Timeout);
        if is_late {
            state.set_stalled(true);
        }
        let maintained = Arc::clone(&state);
        // Maintenance also creates lanes and spares, as the two threads before it do at a start. So
        // it starts only when they have done so.
        let maintain = move || {
            beginning.join();
            if maintained.own().is_some() {
                maintained.note_start(&Ok(()));
            }
            if is_late {
                _ = is_prepared.recv();
            }
            Maintenance::new(maintained).run();
        };
        let threads = Threads {
            committer,
            maintenance: named("spool-keep").spawn(maintain).map_err(io_error)?,
            watch: named("spool-watch").spawn(move || watch.run(&watching)).map_err(io_error)?,
        };
        Ok(Spool { handle: Arc::new(Handle { state, threads: Mutex::new(Some(threads)) }) })
    }

    /// Appends a record of 1 byte to [`RECORD_BYTES_MAX`](super::RECORD_BYTES_MAX), which `encode`
    /// writes into an empty buffer. Never waits for the disk. The record is as durable as
    /// `spool.durability` says when the [`Commit`] is ready; in `memory` that is at once.
    ///
    /// # Errors
    ///
    /// [`Overloaded`] if the spool is full, failing, stalled or closed, or if the record is empty
    /// or too long.
    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Commit, Overloaded> {
        self.handle.state.append(encode)
    }

    /// Ends the linger of the group that is being gathered. Call this when every request that could
    /// still add an event to the group waits for its answer.
    pub fn flush_now(&self) {
        self.handle.state.flush_now();
    }

    /// The reader of an upstream. `None` if the upstream is not configured, or if its reader was
    /// taken before.
    pub fn reader(&self, upstream: &str) -> Option<Reader> {
        let state = &self.handle.state;
        let at = state.upstreams.iter().position(|known| known.name == upstream)?;
        state.upstreams[at].take().then(|| Reader::new(Arc::clone(state), at))
    }

    /// `spool.bytes_max`, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.handle.state.bounds.bytes_max()
    }

    /// Puts other settings in force while the spool runs. The folder and `durability` do not
    /// change, nor does the size of the segment that is being written.
    pub fn set_config(&self, config: &ValidConfig) {
        self.handle.state.set_config(config);
    }

    /// The time of the last commit, in milliseconds since 1970, UTC; 0 in `memory`. The clock is
    /// read once for all events of a commit.
    pub fn last_commit_ms(&self) -> u64 {
        self.handle.state.last_commit_ms.load(Relaxed)
    }

    /// The figures of the spool at this moment.
    pub fn status(&self) -> Status {
        self.handle.state.status()
    }

    /// The totals of one portal over the spool's life. They are zero for a portal that was never
    /// seen.
    pub fn portal(&self, portal: u64) -> PortalTotals {
        self.handle.state.book.portal(portal)
    }

    /// The portals with the most events, at most `portals_max`, busiest first, and the sum of all
    /// others.
    pub fn busiest_portals(&self, portals_max: usize) -> (Vec<PortalTotals>, PortalTotals) {
        self.handle.state.book.busiest(portals_max)
    }

    /// The time from which the totals by portal count, in milliseconds since 1970, UTC. `None`
    /// while only another process that uses this spool knows it.
    pub fn portals_since_ms(&self) -> Option<u64> {
        self.handle.state.book.since_ms()
    }

    /// Counts a rejected event of this portal. If the portal has no totals of its own yet, it gets
    /// some only if `is_listed` says so.
    pub fn count_rejected(&self, portal: u64, is_listed: impl FnOnce() -> bool) {
        self.handle.state.book.reject(portal, is_listed);
    }

    /// The counts of each portal's accepted events by day. They do not keep the spool open.
    pub fn day_counts(&self) -> DayCounts {
        DayCounts(Arc::clone(&self.handle.state.book))
    }

    /// Runs a turn of maintenance at once, and returns when it has ended: the cursors are durable,
    /// segments that all upstreams have acknowledged are trimmed, and the lanes of ended processes
    /// are adopted.
    pub fn checkpoint(&self) {
        self.handle.state.run_maintenance();
    }

    /// Closes the spool: refuses further appends, writes the staged events, syncs, writes the
    /// cursors and releases the lock of the lane. Waits at most `within`. A second call does
    /// nothing.
    ///
    /// # Errors
    ///
    /// The errors of [`CloseError`].
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
            // An error means a panic, which its own thread has reported.
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
        let reason =
            format!("at most {UPSTREAMS_MAX} are possible, and there are {}", upstreams.len());
        return Err(OpenError::Upstreams(reason));
    }
    for (at, name) in upstreams.iter().enumerate() {
        if name.is_empty() || name.len() > UPSTREAM_NAME_BYTES_MAX {
            let reason = format!("a name has 1 to {UPSTREAM_NAME_BYTES_MAX} bytes");
            return Err(OpenError::Upstreams(reason));
        }
        if upstreams[..at].contains(name) {
            return Err(OpenError::Upstreams(format!("{name:?} is the name of two upstreams")));
        }
    }
    Ok(())
}

fn io_error(config: &Config) -> impl Fn(io::Error) -> OpenError + Copy {
    |source| OpenError::Io { path: config.dir.clone(), source }
}

/// Whether only an operator can end this error. `NotFound` is not such an error: a start creates
/// missing folders, so the folder was removed just now, and the next attempt creates it again.
/// Where no folder can be created, the error is another one.
fn is_mistake(error: &io::Error) -> bool {
    disk_error::is_of_path(error) && error.kind() != io::ErrorKind::NotFound
}
