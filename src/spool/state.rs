//! What the handles, the readers and the two threads of a spool share.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::config::{Config, Durability};
use super::env::Env;
use super::format::{self, RECORD_BYTES_MAX, RECORD_HEADER_BYTES};
use super::fs::Fs;
use super::lane::Lane;
use super::parker::Parker;
use super::read::counts::Counts;
use super::read::cursor::{ABSORBED_MAX, LaneKey};
use super::recovery::adoption::{adopt_dead, lane_ids};
use super::recovery::quarantine::Quarantine;
use super::recovery::recover::Adopted;
use super::removed;
use super::status::{Status, UpstreamStatus};
use super::write::admission::{Bounds, GROUP_BYTES_MAX, Growth};
use super::write::group::{Commit, Overloaded, Shard};
use crate::clock::Clock;
use crate::telemetry::faults::Faults;

/// Most staging buffers; more threads than that share.
const SHARDS_MAX: usize = 64;

/// An upstream's place among readers.
pub struct Upstream {
    pub name: String,
    /// Something may be readable.
    pub readable: Notify,
    taken: AtomicBool,
}

impl Upstream {
    /// Takes the one reader. Says no the second time.
    pub fn take(&self) -> bool {
        !self.taken.swap(true, SeqCst)
    }
}

// Maintenance turns: how many were asked for, begun and done.
#[derive(Default)]
struct Turns {
    stop: bool,
    asked: u64,
    begun: u64,
    done: u64,
}

/// Everything but the threads.
pub struct SpoolState {
    pub config: Config,
    pub root: PathBuf,
    pub fs: Arc<dyn Fs>,
    pub clock: Arc<dyn Clock>,
    pub commit_seconds: Option<prometheus::Histogram>,
    pub faults: Faults,
    pub bounds: Bounds,
    pub shards: Box<[Shard]>,
    pub parker: Arc<Parker>,
    /// The group that is gathered shall not linger.
    pub flush_requested: AtomicBool,
    /// This process's own lane; also in `lanes`.
    pub own: Arc<Lane>,
    /// All lanes that this process delivers, oldest first.
    pub lanes: Mutex<Vec<Arc<Lane>>>,
    /// Lanes whose totals are in the own one's, locked until their folders are removed.
    pub folded: Mutex<Vec<Arc<Lane>>>,
    pub upstreams: Vec<Upstream>,
    pub quarantine: Quarantine,
    failing: Mutex<Option<String>>,
    growth: Mutex<Growth>,
    reads_failed: AtomicBool,
    turns: Mutex<Turns>,
    turned: Condvar,
}

impl SpoolState {
    /// Adopts, makes the own lane, and puts everything together. Under the folder's lock.
    pub fn open(config: &Config, upstreams: &[String], env: Env) -> io::Result<SpoolState> {
        let root = config.dir.clone();
        let quarantine = Quarantine::open(Arc::clone(&env.fs), &root);
        let ids = lane_ids(&*env.fs, &root)?;
        let adopted = adopt_dead(&env.fs, &root, &ids, upstreams, &quarantine);
        // Above those that are mentioned, too: a number should mean one lane to a reader of logs.
        let mentioned = adopted.iter().flat_map(|adopted| adopted.absorbed.iter());
        let mentioned = mentioned.map(|(id, _)| *id);
        let id = ids.into_iter().chain(mentioned).max().unwrap_or(0) + 1;
        let own = Arc::new(Lane::create(&env.fs, &root, id, rand::random(), upstreams)?);
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let state = SpoolState {
            config: config.clone(),
            root,
            fs: env.fs,
            clock: env.clock,
            commit_seconds: env.commit_seconds,
            faults: env.faults,
            bounds: Bounds::new(config.bytes_max.as_u64()),
            shards: (0..threads.clamp(1, SHARDS_MAX)).map(|_| Shard::new()).collect(),
            parker: Arc::new(Parker::default()),
            flush_requested: AtomicBool::new(false),
            lanes: Mutex::new(vec![Arc::clone(&own)]),
            own,
            folded: Mutex::new(Vec::new()),
            upstreams: upstreams
                .iter()
                .map(|name| Upstream {
                    name: name.clone(),
                    readable: Notify::new(),
                    taken: AtomicBool::new(false),
                })
                .collect(),
            quarantine,
            failing: Mutex::new(None),
            growth: Mutex::new(Growth::default()),
            reads_failed: AtomicBool::new(false),
            turns: Mutex::new(Turns::default()),
            turned: Condvar::new(),
        };
        state.take_in(adopted);
        Ok(state)
    }

    /// Adds adopted lanes. Those whose totals another one has in it already, because a crash came
    /// before they were removed, only wait for that.
    pub fn take_in(&self, adopted: Vec<Adopted>) {
        if adopted.is_empty() {
            return;
        }
        let absorbed: Vec<LaneKey> =
            adopted.iter().flat_map(|adopted| adopted.absorbed.iter().copied()).collect();
        let adopted = adopted.into_iter().map(|adopted| Arc::new(adopted.lane));
        let (leftovers, adopted): (Vec<_>, Vec<_>) =
            adopted.partition(|lane| absorbed.contains(&lane.key()));
        if !absorbed.is_empty() {
            let mut own = self.own.state();
            own.absorbed.extend(absorbed);
            own.absorbed.truncate(ABSORBED_MAX);
            own.dirty = true;
        }
        self.folded.lock().extend(leftovers);
        let mut lanes = self.lanes.lock();
        for lane in adopted {
            let state = lane.state();
            let events = state.segment_index.end().saturating_sub(state.low());
            lane.publish_held(&state, &self.bounds);
            drop(state);
            ::log::info!("spool: lane {} adopted, {events} events to deliver", lane.id);
            lanes.push(lane);
        }
        lanes.sort_by_key(|lane| lane.id);
        removed::report(&lanes, self.upstreams.len(), &self.faults);
        drop(lanes);
        self.wake_readers();
    }

    pub fn append(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Commit, Overloaded> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with(|buffer| match buffer.try_borrow_mut() {
            Ok(mut record) => self.append_with(&mut record, encode),
            // An encoder that appends by itself gets a buffer of its own.
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
        let header = format::stage(record);
        let bytes = (RECORD_HEADER_BYTES + payload) as u64;
        let shard = &self.shards[thread_number() % self.shards.len()];
        let now = || self.clock.monotonic();
        let group = shard.append(now, &header, record, || self.bounds.admit(bytes))?;
        let staged = self.bounds.staged_bytes();
        // The append that crosses the mark wakes the committer, which may be lingering.
        let crossed = staged >= GROUP_BYTES_MAX && staged.saturating_sub(bytes) < GROUP_BYTES_MAX;
        self.parker.wake(crossed);
        Ok(match self.config.durability {
            Durability::Memory => Commit::ready(),
            Durability::Power | Durability::Interval => Commit::waiting(group),
        })
    }

    /// See [`Spool::flush_now`](super::Spool::flush_now).
    pub fn flush_now(&self) {
        // In `memory` no request waits.
        if self.config.durability != Durability::Memory && !self.flush_requested.swap(true, SeqCst)
        {
            self.parker.unpark();
        }
    }

    pub fn has_staged(&self) -> bool {
        self.first_at().is_some()
    }

    /// When the first record that waits was staged.
    pub fn first_at(&self) -> Option<Duration> {
        self.shards.iter().filter_map(Shard::first_at).min()
    }

    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.lock().clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.upstreams.iter().map(|upstream| upstream.name.clone()).collect()
    }

    pub fn wake_readers(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.readable.notify_one());
    }

    /// The disk does not take what is written: refuse until it does.
    pub fn fail(&self, error: &io::Error) {
        *self.failing.lock() = Some(error.to_string());
        if !self.bounds.set_failing(true) {
            ::log::error!("spool: failing, events are refused: {error}");
        }
    }

    /// The disk takes it again.
    pub fn recover(&self) {
        if self.bounds.is_failing() {
            self.bounds.set_failing(false);
            *self.failing.lock() = None;
            ::log::info!("spool: working again");
        }
    }

    pub fn is_failing(&self) -> bool {
        self.bounds.is_failing()
    }

    /// Notes the disk's free space and the spool's growth.
    pub fn look_at_disk(&self) {
        let least = self.config.free_bytes_min.as_u64();
        match self.fs.free_bytes(&self.root) {
            Err(error) => ::log::warn!("spool: the disk's free space is unknown: {error}"),
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

    /// A read failed: maintenance wakes the readers at its next turn.
    pub fn retry_reads(&self) {
        self.reads_failed.store(true, SeqCst);
    }

    pub fn wake_failed_reads(&self) {
        if self.reads_failed.swap(false, SeqCst) {
            self.wake_readers();
        }
    }

    /// Waits for the next maintenance turn, which is over with the next call. Says whether to stop.
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
        let room = (self.bounds.bytes_max.saturating_sub(bytes))
            .min(self.bounds.free_bytes().saturating_sub(self.config.free_bytes_min.as_u64()));
        let growth = self.growth.lock();
        let seconds_to_full = growth.seconds_until(room);
        drop(growth);
        Status {
            bytes,
            free_bytes: self.bounds.free_bytes(),
            seconds_to_full,
            quarantined_bytes: self.quarantine.bytes(),
            failing: self.why_refusing(),
            upstreams: self.totals(),
        }
    }

    fn why_refusing(&self) -> Option<String> {
        let failing = self.failing.lock().clone();
        failing
            .or_else(|| {
                self.bounds.is_disk_low().then(|| "spool.free_bytes_min is reached".to_owned())
            })
            .or_else(|| self.bounds.is_full().then(|| "spool.bytes_max is reached".to_owned()))
    }

    fn totals(&self) -> Vec<UpstreamStatus> {
        // Under the list's lock, so that a lane that is being folded is counted once.
        let lanes = self.lanes.lock();
        let mut totals = vec![Counts::default(); self.upstreams.len()];
        for lane in lanes.iter() {
            let state = lane.state();
            let end = state.end();
            for (total, position) in totals.iter_mut().zip(&state.positions) {
                total.add(position.totals(end));
            }
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
