//! The state that the handles, the readers and the threads of a spool share.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::config::{Config, Durability};
use super::env::Env;
use super::faults::DiskFaults;
use super::format::{self, RECORD_BYTES_MAX, RECORD_HEADER_BYTES};
use super::fs::Fs;
use super::lane::Lane;
use super::metering::book::Book;
use super::parker::Parker;
use super::predecessors::Predecessors;
use super::read::counts::Counts;
use super::recovery::adoption::{Adopter, Unheld};
use super::recovery::living::Living;
use super::recovery::quarantine::Quarantine;
use super::routing::{AnyRouted, Foreign, Routing};
use super::status::{Status, UpstreamStatus};
use super::write::admission::{Bounds, GROUP_BYTES_MAX, Growth};
use super::write::group::{Commit, Overloaded, Shard};
use super::write::waiting::Waiting;
use crate::clock::Clock;
use crate::telemetry::faults::{FaultKind, Faults};

/// The most staging buffers. If there are more threads, they share them.
const SHARDS_MAX: usize = 64;

/// An upstream and its reader.
pub struct Upstream {
    pub name: String,
    /// Notified when records may be readable.
    pub readable: Notify,
    /// Whether all of its events are in lanes that are not held: see `held_back.rs`.
    pub held_back: AtomicBool,
    taken: AtomicBool,
}

impl Upstream {
    /// Takes the one reader. Returns `false` if it was taken before.
    pub fn take(&self) -> bool {
        !self.taken.swap(true, SeqCst)
    }
}

// The numbers of maintenance turns that were asked for, begun and done.
#[derive(Default)]
struct Turns {
    stop: bool,
    asked: u64,
    begun: u64,
    done: u64,
}

/// The state of a spool, without its threads.
pub struct SpoolState {
    /// The settings in force, without `durability`, which stays.
    config: ArcSwap<Config>,
    pub durability: Durability,
    /// `spool.unreadable_seconds_max` in force, which the readers and the adoption share.
    pub unreadable_seconds_max: Arc<AtomicU64>,
    pub root: PathBuf,
    pub fs: Arc<dyn Fs>,
    pub clock: Arc<dyn Clock>,
    pub commit_seconds: Option<prometheus::Histogram>,
    pub faults: Faults,
    pub routing: Routing,
    /// The totals by portal.
    pub book: Arc<Book>,
    any_routed: AnyRouted,
    pub bounds: Bounds,
    pub shards: Box<[Shard]>,
    pub parker: Arc<Parker>,
    /// Whether the group that is being gathered must not linger.
    pub flush_requested: AtomicBool,
    /// The groups of the commit that is under way.
    pub waiting: Waiting,
    /// The time of the last commit, in milliseconds since 1970, UTC.
    pub last_commit_ms: AtomicU64,
    /// Whether the segment in use is written around the page cache.
    pub direct_writes: AtomicBool,
    /// The own lane of this process, once it could be created. It is also in `lanes`.
    pub own: OnceLock<Arc<Lane>>,
    /// The highest number of a lane that was found, or that another lane mentions.
    pub newest_lane: AtomicU64,
    /// All lanes that this process delivers, oldest first.
    pub lanes: Mutex<Vec<Arc<Lane>>>,
    /// The lanes whose totals another lane has. They stay locked until their folders are removed.
    pub folded: Mutex<Vec<Arc<Lane>>>,
    /// The lanes that are adopted when older ones are delivered. Changed with `lanes` locked.
    pub unheld: Mutex<Vec<Unheld>>,
    /// The totals of lanes whose processes live. Changed with `lanes` locked.
    pub living: Mutex<Vec<Living>>,
    /// The lanes of living processes, for which an upstream that keeps an order waits. Changed
    /// with `lanes` locked.
    pub predecessors: Predecessors,
    pub upstreams: Vec<Upstream>,
    pub quarantine: Arc<Quarantine>,
    pub disk_faults: Arc<DiskFaults>,
    pub adopter: Adopter,
    failing: Mutex<Option<String>>,
    growth: Mutex<Growth>,
    reads_failed: AtomicBool,
    turns: Mutex<Turns>,
    turned: Condvar,
}

impl SpoolState {
    /// The state of a spool that holds no lane yet: see [`SpoolState::begin`].
    pub fn new(config: &Config, upstreams: &[String], env: Env) -> SpoolState {
        let root = config.dir.clone();
        let faults = Arc::new(DiskFaults::new(env.faults.clone(), Arc::clone(&env.clock)));
        let quarantine = Arc::new(Quarantine::open(Arc::clone(&env.fs), &root));
        let book = Book::new(env.metering, upstreams, env.clock.clone(), env.faults.clone());
        let book = Arc::new(book);
        let unreadable_seconds_max = Arc::new(AtomicU64::new(config.unreadable_seconds_max));
        let adopter = Adopter {
            fs: Arc::clone(&env.fs),
            routing: env.routing,
            received_ms: env.received_ms,
            book: Arc::clone(&book),
            root: root.clone(),
            upstreams: upstreams.to_vec(),
            quarantine: Arc::clone(&quarantine),
            faults: Arc::clone(&faults),
            unreadable_seconds_max: Arc::clone(&unreadable_seconds_max),
            files_max: env.lane_files_max,
        };
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let upstream = |name: &String| Upstream {
            name: name.clone(),
            readable: Notify::new(),
            held_back: AtomicBool::new(false),
            taken: AtomicBool::new(false),
        };
        let predecessors = Predecessors::new(env.clock.monotonic());
        SpoolState {
            config: ArcSwap::from_pointee(config.clone()),
            durability: config.durability,
            unreadable_seconds_max,
            root,
            fs: env.fs,
            clock: env.clock,
            commit_seconds: env.commit_seconds,
            faults: env.faults,
            routing: env.routing,
            book,
            any_routed: AnyRouted::default(),
            bounds: Bounds::new(config.bytes_max.as_u64()),
            shards: (0..threads.clamp(1, SHARDS_MAX)).map(|_| Shard::new()).collect(),
            parker: Arc::new(Parker::default()),
            flush_requested: AtomicBool::new(false),
            waiting: Waiting::default(),
            last_commit_ms: AtomicU64::new(0),
            direct_writes: AtomicBool::new(false),
            own: OnceLock::new(),
            newest_lane: AtomicU64::new(0),
            lanes: Mutex::default(),
            folded: Mutex::default(),
            unheld: Mutex::default(),
            living: Mutex::default(),
            predecessors,
            upstreams: upstreams.iter().map(upstream).collect(),
            quarantine,
            disk_faults: faults,
            adopter,
            failing: Mutex::new(None),
            growth: Mutex::new(Growth::default()),
            reads_failed: AtomicBool::new(false),
            turns: Mutex::new(Turns::default()),
            turned: Condvar::new(),
        }
    }

    /// The settings in force.
    pub fn config(&self) -> Guard<Arc<Config>> {
        self.config.load()
    }

    /// Puts these settings in force, except the folder and `durability`.
    pub fn set_config(&self, new: &Config) {
        let old = self.config.load_full();
        let (dir, durability) = (old.dir.clone(), old.durability);
        self.config.store(Arc::new(Config { dir, durability, ..new.clone() }));
        self.bounds.set_bytes_max(new.bytes_max.as_u64());
        self.unreadable_seconds_max.store(new.unreadable_seconds_max, Relaxed);
        // Maintenance compares the disk's free space with the new bound.
        self.request_maintenance();
    }

    /// Notes the time of a commit. Call this before the groups of the commit are answered.
    pub fn note_commit(&self) {
        self.last_commit_ms.store(self.clock.unix_ms(), Relaxed);
    }

    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Commit, Overloaded> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with(|buffer| match buffer.try_borrow_mut() {
            Ok(mut record) => self.append_with(&mut record, encode),
            // The encoder of another record calls this, and its record is in the buffer.
            Err(_) => self.append_with(&mut Vec::new(), encode),
        })
    }

    fn append_with(
        &self,
        record: &mut Vec<u8>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Commit, Overloaded> {
        record.clear();
        encode(record);
        let payload = record.len();
        if payload == 0 || payload > RECORD_BYTES_MAX {
            return Err(Overloaded);
        }
        self.any_routed.note((self.routing.is_routed)(record));
        let header = format::stage(record);
        let bytes = (RECORD_HEADER_BYTES + payload) as u64;
        let shard = &self.shards[thread_number() % self.shards.len()];
        let now = || self.clock.monotonic();
        let group = shard.append(now, &header, record, || self.bounds.admit(bytes))?;
        let staged = self.bounds.staged_bytes();
        // The append that crosses the mark wakes the committer, which may be lingering.
        let crossed = staged >= GROUP_BYTES_MAX && staged.saturating_sub(bytes) < GROUP_BYTES_MAX;
        self.parker.wake(crossed);
        Ok(match self.durability {
            Durability::Memory => Commit::ready(),
            Durability::Power | Durability::Interval => Commit::waiting(group),
        })
    }

    /// Adds the foreign records among staged ones to `foreign`.
    pub fn count_foreign(&self, staged: &[u8], foreign: &mut Foreign) {
        if self.any_routed.get() {
            let names = self.upstreams.iter().map(|upstream| upstream.name.as_str());
            foreign.count(staged, &self.routing, names);
        }
    }

    /// Does what [`Spool::flush_now`](super::Spool::flush_now) says.
    pub fn flush_now(&self) {
        // In `memory`, no request waits.
        if self.durability != Durability::Memory && !self.flush_requested.swap(true, SeqCst) {
            self.parker.unpark();
        }
    }

    pub fn has_staged(&self) -> bool {
        self.first_at().is_some()
    }

    /// The time at which the first waiting record was staged.
    pub fn first_at(&self) -> Option<Duration> {
        self.shards.iter().filter_map(Shard::first_at).min()
    }

    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.lock().clone()
    }

    pub fn wake_readers(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.readable.notify_one());
    }

    /// Refuses events from now on, because the disk failed with this error.
    pub fn fail(&self, error: &io::Error) {
        let why = match self.own() {
            Some(_) => error.to_string(),
            None => format!("no lane can be made in {}: {error}", self.root.display()),
        };
        if !self.bounds.set_failing(true) {
            ::log::error!("spool: failing, events are refused: {why}");
        }
        *self.failing.lock() = Some(why);
    }

    /// Reports the result of creating the own lane. After an error, events are refused.
    pub fn note_start(&self, begun: &io::Result<()>) {
        let root = self.root.display().to_string();
        self.disk_faults.note(FaultKind::SpoolStart, &root, "making a lane in", begun);
        if let Err(error) = begun {
            self.fail(error);
        }
    }

    /// Accepts events again, because the disk works.
    pub fn recover(&self) {
        if self.bounds.is_failing() {
            self.bounds.set_failing(false);
            *self.failing.lock() = None;
            ::log::info!("spool: working again, events are accepted");
        }
    }

    /// Sets whether the disk has stalled. Events are refused while it has.
    pub fn set_stalled(&self, stalled: bool) {
        let seconds = self.config().commit_seconds_max;
        match (self.bounds.set_stalled(stalled), stalled) {
            (false, true) => ::log::error!(
                "spool: the disk has stalled for spool.commit_seconds_max ({seconds} s): events \
                 are refused"
            ),
            (true, false) => ::log::info!("spool: the disk answers again, events are accepted"),
            _ => {}
        }
    }

    pub fn is_failing(&self) -> bool {
        self.bounds.is_failing()
    }

    /// Measures the free space of the disk and the growth of the spool.
    pub fn look_at_disk(&self) {
        let least = self.config().free_bytes_min.as_u64();
        match self.fs.free_bytes(&self.root) {
            Err(error) => {
                let root = self.root.display();
                ::log::warn!("spool: the free space of the disk of {root} is unknown: {error}");
            }
            Ok(free) => match self.bounds.set_free_bytes(free, least) {
                Some(true) => ::log::error!(
                    "spool: {free} bytes free, spool.free_bytes_min is {least}: events are refused"
                ),
                Some(false) => ::log::info!("spool: {free} bytes free, events are accepted again"),
                None => {}
            },
        }
        let held = self.bounds.bytes();
        let mut growth = self.growth.lock();
        growth.observe(self.clock.monotonic(), held);
    }

    /// Makes maintenance wake the readers at its next turn, because a read failed.
    pub fn retry_reads(&self) {
        self.reads_failed.store(true, SeqCst);
    }

    pub fn wake_failed_reads(&self) {
        if self.reads_failed.swap(false, SeqCst) {
            self.wake_readers();
        }
    }

    /// Waits for the next maintenance turn, which ends with the next call. Returns whether
    /// maintenance must stop.
    pub fn wait_for_turn(&self, turn: Duration) -> bool {
        let mut turns = self.turns.lock();
        turns.done = turns.begun;
        self.turned.notify_all();
        let idle = |turns: &mut Turns| !turns.stop && turns.asked <= turns.begun;
        self.turned.wait_while_for(&mut turns, idle, turn);
        turns.begun = turns.asked;
        turns.stop
    }

    /// Asks for a maintenance turn now, and does not wait for it.
    pub fn request_maintenance(&self) {
        self.turns.lock().asked += 1;
        self.turned.notify_all();
    }

    /// Waits for a maintenance turn that begins after this call.
    pub fn run_maintenance(&self) {
        let mut turns = self.turns.lock();
        turns.asked += 1;
        let mine = turns.asked;
        self.turned.notify_all();
        self.turned.wait_while(&mut turns, |turns| !turns.stop && turns.done < mine);
    }

    pub fn maintenance_stops(&self) -> bool {
        self.turns.lock().stop
    }

    pub fn stop_maintenance(&self) {
        self.turns.lock().stop = true;
        self.turned.notify_all();
    }

    pub fn status(&self) -> Status {
        let bytes = self.bounds.bytes();
        let room = (self.bounds.bytes_max().saturating_sub(bytes))
            .min(self.bounds.free_bytes().saturating_sub(self.config().free_bytes_min.as_u64()));
        let growth = self.growth.lock();
        let seconds_to_full = growth.seconds_until(room);
        drop(growth);
        let lanes_of_other_processes = self.living.lock().len();
        Status {
            bytes,
            free_bytes: self.bounds.free_bytes(),
            seconds_to_full,
            quarantined_bytes: self.quarantine.bytes(),
            direct_writes: self.direct_writes.load(Relaxed),
            failing: self.why_refusing(),
            lanes_of_other_processes,
            upstreams: self.totals(),
        }
    }

    /// Why the disk takes no events. `None` while it does.
    pub fn why_failing(&self) -> Option<String> {
        self.failing.lock().clone()
    }

    /// Why events are refused while the disk does not answer. `None` while it does.
    pub fn why_stalled(&self) -> Option<String> {
        let stalled = || "the disk has stalled for spool.commit_seconds_max".to_owned();
        self.bounds.is_stalled().then(stalled)
    }

    fn why_refusing(&self) -> Option<String> {
        self.why_stalled()
            .or_else(|| self.why_failing())
            .or_else(|| {
                self.bounds.is_disk_low().then(|| "spool.free_bytes_min is reached".to_owned())
            })
            .or_else(|| self.bounds.is_full().then(|| "spool.bytes_max is reached".to_owned()))
    }

    fn totals(&self) -> Vec<UpstreamStatus> {
        // The lock ensures that a lane that is being folded or adopted is counted once.
        let lanes = self.lanes.lock();
        let mut totals = vec![Counts::default(); self.upstreams.len()];
        for lane in lanes.iter() {
            let state = lane.state();
            let end = state.end();
            for (total, position) in totals.iter_mut().zip(&state.positions) {
                total.add(position.totals(end));
            }
        }
        for lane in self.unheld.lock().iter() {
            totals.iter_mut().zip(&lane.counts).for_each(|(total, counts)| total.add(*counts));
        }
        for lane in self.living.lock().iter() {
            totals.iter_mut().zip(&lane.counts).for_each(|(total, counts)| total.add(*counts));
        }
        let named = self.upstreams.iter().zip(totals);
        named.map(|(upstream, counts)| counts.named(upstream.name.clone())).collect()
    }
}

/// A small number for each thread, so that each worker stages into a buffer of its own.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}
