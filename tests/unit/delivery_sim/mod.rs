//! Delivery as a whole, simulated: workers, breaker, limiter, spool and scripted upstreams on one
//! thread and tokio's paused time. A seed draws traffic, answers, outages, stalls, crashes and
//! stops. The spool's own threads run in real time beside it, on a disk in memory.
//!
//! After each step: accepted = delivered + dead + lost + pending; no event comes twice but by a
//! rule; no attempt begins within a pause; no event waits long for its next attempt while its
//! upstream works, whatever fails beside it; no upstream is left alone while an event waits for it;
//! the lag is that of the oldest; no event is attempted without end in a minute; the state is not
//! `ok` while an event waits for nothing; a stop cuts off no attempt before its time. At the end
//! every event has ended, those that the upstreams never take as dead letters.
//!
//! In one seed of eight the upstreams fail for nothing but events that they never take: those are
//! dead letters at the end, and no others. In every other seed the workers have no tick, which
//! would hide a wake-up that is lost, and at the end there are quiet stretches without traffic,
//! which would hide it as well.
//!
//! `PIXELGATE_TEST_SEEDS=10000` runs more seeds, from `PIXELGATE_TEST_SEED_FIRST` on, and
//! `PIXELGATE_TEST_SEED=7` one. A failure names its seed; a seed that has found a defect is kept in
//! [`FOUND`].

mod rules;
mod upstream;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use bytesize::ByteSize;
use parking_lot::Mutex;
use pixelgate::internals::clock::Clock;
use pixelgate::internals::delivery::{
    self, Backoff, CLOSE_MS_MAX, CUT_OFF_MS_MAX, Forwarder, Options, Route,
};
use pixelgate::internals::event::{Context, Event, encode_record};
use pixelgate::internals::spool::{Config, Durability, Env, Spool};
use pixelgate::internals::upstream::{BatchConfig, Upstream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::upstream::{Mode, Random, Script, Scripted};
use crate::spool_model::wait;
use crate::spool_sim::SimFs;

/// Seeds that have found a defect.
const FOUND: &[u64] = &[];
const SEEDS: u64 = 100;
const STEPS: u64 = 40;
const BASE_MS: u64 = 1_750_000_000_000;
const NAMES: [&str; 2] = ["a", "b"];
/// An upstream that works, and neither stalls nor asks for pauses, is sent each event that waits
/// within this time, whatever else it refuses.
const NEXT_ATTEMPT_MAX: Duration = Duration::from_secs(20 * 60);
/// No attempt begins or ends within this time while an event waits: longer than any wait, pause,
/// linger or stall.
const QUIET_MAX: Duration = Duration::from_secs(120);
/// As good as no tick.
const NO_TICK: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a seed may run in real time: a worker that spins never lets the paused time go on.
const REAL_MAX: Duration = Duration::from_secs(300);
/// So long after the upstreams work, each event has ended.
const SETTLE: Duration = Duration::from_secs(4 * 3600);

/// The paused time as a clock.
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn unix_ms(&self) -> u64 {
        BASE_MS + self.0.elapsed().as_millis() as u64
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// One process.
struct Process {
    fs: SimFs,
    spool: Spool,
    forwarder: Forwarder,
    workers: JoinSet<()>,
    started: Instant,
}

struct World {
    random: Random,
    disk: SimFs,
    dead_dir: tempfile::TempDir,
    /// Whether no dead letter can be written.
    dead_fails: bool,
    /// When that last changed.
    dead_changed: Instant,
    clock: Arc<PausedClock>,
    upstreams: Vec<Arc<Scripted>>,
    /// The events that are dead letters of each upstream, as far as they were read.
    dead: [BTreeSet<u64>; NAMES.len()],
    /// The first event that has not ended at each upstream: all before it have.
    first_left: [u64; NAMES.len()],
    tick_every: Option<Duration>,
    is_sober: bool,
    batch: BatchConfig,
    attempts_max: u32,
    process: Option<Process>,
    accepted: u64,
    /// When each event was accepted, by its number less 1.
    accepted_at: Vec<Instant>,
    seed: u64,
}

/// The portal of an event, by its number.
fn portal_of(event: u64) -> u64 {
    1 + event % 7
}

/// Lets the tasks do what is due at this moment.
async fn due_now() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// What an upstream does. `is_sober`: it fails for the events that it never takes alone.
fn script(random: &mut Random, is_sober: bool) -> Script {
    let in_order = random.once_in(4);
    let mut one_in = |often: u64| if random.once_in(2) { often } else { 0 };
    let (poison, rejected) = (one_in(40), one_in(50));
    let mut one_in = |often: u64| if is_sober { 0 } else { one_in(often) };
    Script {
        poison,
        rejected,
        pauses: one_in(30),
        flaky: one_in(10),
        lost_answers: one_in(40),
        panics: one_in(60),
        stalls: one_in(20),
        mixed: one_in(10),
        local: one_in(15),
        in_order,
        concurrency: 1 + random.below(6) as usize,
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let is_sober = seed % 8 == 3;
        let upstreams = NAMES
            .iter()
            .map(|_| Scripted::new(script(&mut random, is_sober), Random(random.next())))
            .collect();
        let batch = BatchConfig {
            events_max: 1 + random.below(20) as usize,
            bytes_max: ByteSize::kib(64),
            linger_ms: random.below(2_000),
        };
        World {
            disk: SimFs::new(seed),
            dead_dir: tempfile::tempdir().unwrap(),
            dead_fails: false,
            dead_changed: Instant::now(),
            dead: Default::default(),
            first_left: [1; NAMES.len()],
            is_sober,
            tick_every: (seed % 2 == 1).then_some(NO_TICK),
            clock: Arc::new(PausedClock(Instant::now())),
            upstreams,
            batch,
            attempts_max: 2 + random.below(4) as u32,
            process: None,
            accepted: 0,
            accepted_at: Vec::new(),
            random,
            seed,
        }
    }

    fn start(&mut self) {
        let config = Config {
            dir: "/spool".into(),
            durability: Durability::Interval,
            linger_ms: 0,
            sync_ms: 1_000,
            segment_bytes: ByteSize::kib(16),
            bytes_max: ByteSize::mib(64),
            ..Config::default()
        };
        let fs = self.disk.process();
        let env = Env { fs: Arc::new(fs.clone()), ..Env::system() };
        let spool = Spool::open(&config, &NAMES.map(str::to_owned), env).expect("opens");
        let random = Mutex::new(Random(self.random.next()));
        let options = Options {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            backoff: Backoff::new(move || random.lock().unit()),
            ..Options::new(self.dead_dir.path().join("dead"))
        };
        let options = match self.tick_every {
            Some(tick_every) => Options { tick_every, ..options },
            None => options,
        };
        let route = |(name, upstream): (&&str, &Arc<Scripted>)| Route {
            name: (*name).to_owned(),
            upstream: Arc::clone(upstream) as Arc<dyn Upstream>,
            batch: self.batch.clone(),
            attempts_max: self.attempts_max,
            reader: spool.reader(name).expect("configured"),
        };
        let routes = NAMES.iter().zip(&self.upstreams).map(route).collect();
        let (forwarder, all) = delivery::prepare(routes, &options);
        let mut workers = JoinSet::new();
        all.into_iter().for_each(|worker| _ = workers.spawn(worker.run()));
        let started = Instant::now();
        self.process = Some(Process { fs, spool, forwarder, workers, started });
    }

    fn spool(&self) -> &Spool {
        &self.process.as_ref().expect("runs").spool
    }

    /// Accepts events, and waits in real time until they can be read.
    async fn accept(&mut self, count: u64) {
        let mut commits = Vec::new();
        for _ in 0..count {
            self.accepted += 1;
            self.accepted_at.push(Instant::now());
            let (mut record, number) = (Vec::new(), self.accepted.to_string());
            let event = Event {
                portal: portal_of(self.accepted),
                name: "simulated".into(),
                email: None,
                revenue: None,
                external_id: Some(number.into()),
                properties: Default::default(),
            };
            let id = u128::from(self.accepted).to_be_bytes();
            let now_ms = self.clock.unix_ms();
            encode_record(&mut record, &id, now_ms, &event, &Context::default());
            let commit = self.spool().append(|out| out.extend_from_slice(&record));
            commits.push(commit.expect("there is room"));
        }
        // The readers are woken before the answers are given.
        commits.into_iter().for_each(|commit| wait(commit).expect("committed"));
        tokio::task::yield_now().await;
    }

    /// The process is killed, and another one starts.
    async fn crash(&mut self) {
        let mut process = self.process.take().expect("runs");
        self.upstreams.iter().for_each(|upstream| upstream.crashed());
        process.workers.shutdown().await;
        self.disk.kill(&process.fs);
        drop(process);
        self.start();
    }

    /// A graceful stop, and another process starts.
    async fn restart(&mut self) {
        let within = Duration::from_millis(self.random.below(20_000));
        let mut process = self.process.take().expect("runs");
        let began = Instant::now();
        process.forwarder.begin_stop(within);
        while process.workers.join_next().await.is_some() {}
        let limit = within + Duration::from_millis(CUT_OFF_MS_MAX + CLOSE_MS_MAX + 100);
        assert!(began.elapsed() <= limit, "the stop took {:?} of {limit:?}", began.elapsed());
        let cut_off: usize = self.upstreams.iter().map(|upstream| upstream.in_flight()).sum();
        let is_early = began.elapsed() < within;
        assert!(!(is_early && cut_off > 0), "{cut_off} attempts cut off before their time");
        // What was cut off may come again.
        self.upstreams.iter().for_each(|upstream| upstream.crashed());
        process.spool.close(Duration::from_secs(60)).expect("closes");
        drop(process);
        self.start();
    }

    /// Has no dead letter be written from now on, or ends that.
    fn fail_dead_letters(&mut self, fails: bool) {
        let [dead, away] = ["dead", "away"].map(|name| self.dead_dir.path().join(name));
        if fails && !self.dead_fails {
            std::fs::create_dir_all(&dead).unwrap();
            std::fs::rename(&dead, &away).unwrap();
            std::fs::write(&dead, "no folder").unwrap();
        } else if !fails && self.dead_fails {
            std::fs::remove_file(&dead).unwrap();
            std::fs::rename(&away, &dead).unwrap();
        }
        (self.dead_fails, self.dead_changed) = (fails, Instant::now());
    }

    async fn step(&mut self) {
        let mode = |random: &mut Random| match random.below(4) {
            0 => Mode::Down,
            1 => Mode::Misconfigured,
            _ => Mode::Works,
        };
        match self.random.below(20) {
            0 => self.crash().await,
            1 => self.restart().await,
            2 | 3 if !self.is_sober => {
                let at = self.random.below(NAMES.len() as u64) as usize;
                let mode = mode(&mut self.random);
                self.upstreams[at].state.lock().set_mode(mode);
            }
            4 => self.fail_dead_letters(!self.dead_fails),
            5..8 => sleep(Duration::from_secs(self.random.below(120))).await,
            8..12 => sleep(Duration::from_millis(self.random.below(2_000))).await,
            12..14 => {
                let count = self.random.below(200);
                self.accept(count).await;
            }
            _ => self.accept(1).await,
        }
    }

    /// Every rule, of what is due at this moment.
    async fn check_all(&mut self) {
        due_now().await;
        self.check();
        self.check_attempts();
        self.check_lag();
        self.check_states().await;
    }

    async fn run(mut self) {
        self.start();
        for _ in 0..STEPS {
            self.step().await;
            self.check_all().await;
        }
        for upstream in &self.upstreams {
            upstream.state.lock().set_mode(Mode::Works);
        }
        self.fail_dead_letters(false);
        let last = self.accepted;
        let began = Instant::now();
        while !self.have_ended(last) {
            assert!(began.elapsed() < SETTLE, "{}", self.describe());
            if began.elapsed() < QUIET_MAX || self.random.once_in(4) {
                sleep(2 * QUIET_MAX).await;
            } else {
                self.accept(3).await;
                sleep(Duration::from_secs(10)).await;
            }
            self.check_all().await;
        }
        for (upstream, dead) in self.upstreams.iter().zip(&self.dead).filter(|_| self.is_sober) {
            let refused = (1..=last).filter(|event| upstream.refuses(*event));
            let dead = dead.iter().copied().filter(|event| *event <= last);
            assert_eq!(dead.collect::<Vec<_>>(), refused.collect::<Vec<_>>());
        }
        let began = Instant::now();
        self.restart().await;
        assert!(began.elapsed() < Duration::from_secs(60), "seed {}", self.seed);
    }
}

fn run(seed: u64) {
    let (ended, has_ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if has_ended.recv_timeout(REAL_MAX) == Err(RecvTimeoutError::Timeout) {
            eprintln!("PIXELGATE_TEST_SEED={seed} has not ended after {REAL_MAX:?}");
            std::process::exit(101);
        }
    });
    let world = async move {
        World::new(seed).run().await;
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(world)));
    runtime.shutdown_background();
    drop(ended);
    assert!(ran.is_ok(), "PIXELGATE_TEST_SEED={seed} fails");
}

#[test]
fn delivery_keeps_its_rules_in_every_order_of_events() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    if let Some(seed) = number("PIXELGATE_TEST_SEED") {
        return run(seed);
    }
    let first = number("PIXELGATE_TEST_SEED_FIRST").unwrap_or(0);
    let last = first + number("PIXELGATE_TEST_SEEDS").unwrap_or(SEEDS);
    let seeds = Mutex::new(FOUND.iter().copied().chain(first..last));
    let next = || seeds.lock().next();
    let run_all = || {
        while let Some(seed) = next() {
            run(seed);
            if seed % 1000 == 999 {
                println!("seed {seed}");
            }
        }
    };
    // Each seed waits at times for the threads of its spool.
    let threads = 2 * std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(run_all)));
}
