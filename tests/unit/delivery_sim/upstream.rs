//! Upstreams that answer as a seed says, and note what breaks a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pixelgate::internals::event::Record;
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Part, Upstream};
use tokio::time::{Instant, sleep};

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 up to but not including `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// From 0 up to but not including 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What an upstream does, beside taking what it is sent.
#[derive(Debug, Clone)]
pub struct Script {
    /// One in so many events always gets a 500; 0: none.
    pub poison: u64,
    /// One in so many events gets a 400; 0: none.
    pub rejected: u64,
    /// One in so many attempts ends with a 429 and a pause; 0: none.
    pub pauses: u64,
    /// One in so many attempts ends with a 503; 0: none.
    pub flaky: u64,
    /// One in so many attempts is taken and its answer lost; 0: none.
    pub lost_answers: u64,
    /// One in so many attempts panics; 0: none.
    pub panics: u64,
    /// One in so many attempts takes up to a minute; 0: none.
    pub stalls: u64,
    /// One in so many attempts ends differently for each half; 0: none.
    pub mixed: u64,
    /// One in so many attempts ends with a failure that says nothing about the upstream; 0: none.
    pub local: u64,
    pub in_order: bool,
    pub concurrency: usize,
}

/// How an upstream is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Works,
    Down,
    Misconfigured,
}

#[derive(Debug)]
pub struct State {
    mode: Mode,
    /// Since when the upstream works, and the process runs. `None`: it does not work.
    works_since: Option<Instant>,
    /// When the last attempt at each event began.
    pub attempted_at: BTreeMap<u64, Instant>,
    /// When an attempt last began or ended.
    pub busy_at: Instant,
    random: Random,
    /// How often each event was taken.
    pub taken: BTreeMap<u64, u32>,
    /// How often each event may have been taken: one more after a crash or a lost answer.
    pub allowed: BTreeMap<u64, u32>,
    /// When the minute began in which each event was attempted so often.
    attempted: BTreeMap<u64, (Instant, u32)>,
    /// Events of attempts under way, by attempt, and whether they are taken already.
    under_way: BTreeMap<u64, Vec<u64>>,
    /// Events of attempts that ended at this moment: the worker may not know of them yet.
    just_ended: (Option<Instant>, Vec<u64>),
    attempts: u64,
    paused_until: Option<Instant>,
    /// When the last pause was asked for: the worker may not know of it at the same moment.
    asked_at: Option<Instant>,
    pub broken: Vec<String>,
}

pub struct Scripted {
    pub script: Script,
    pub state: Mutex<State>,
}

impl Scripted {
    pub fn new(script: Script, random: Random) -> Arc<Scripted> {
        let state = State {
            mode: Mode::Works,
            works_since: Some(Instant::now()),
            attempted_at: BTreeMap::new(),
            busy_at: Instant::now(),
            random,
            taken: BTreeMap::new(),
            allowed: BTreeMap::new(),
            attempted: BTreeMap::new(),
            under_way: BTreeMap::new(),
            just_ended: (None, Vec::new()),
            attempts: 0,
            paused_until: None,
            asked_at: None,
            broken: Vec::new(),
        };
        Arc::new(Scripted { script, state: Mutex::new(state) })
    }

    /// Whether this upstream always answers 500 to the event.
    fn is_poison(&self, event: u64) -> bool {
        self.script.poison > 0 && Random(event).once_in(self.script.poison)
    }

    fn is_rejected(&self, event: u64) -> bool {
        self.script.rejected > 0 && Random(event ^ 0xBAD).once_in(self.script.rejected)
    }

    /// Whether this upstream never takes the event.
    pub fn refuses(&self, event: u64) -> bool {
        self.is_poison(event) || self.is_rejected(event)
    }

    pub fn in_flight(&self) -> usize {
        self.state.lock().under_way.len()
    }

    /// The process is gone: what was on its way may come again.
    pub fn crashed(&self) {
        let mut state = self.state.lock();
        state.busy_at = Instant::now();
        let mut again: BTreeSet<u64> = BTreeSet::new();
        for events in std::mem::take(&mut state.under_way).into_values() {
            again.extend(events);
        }
        if state.just_ended.0 == Some(Instant::now()) {
            again.extend(std::mem::take(&mut state.just_ended.1));
        }
        again.into_iter().for_each(|event| state.allow(event));
        // A new process knows nothing of the waits and of the pause.
        state.attempted.clear();
        state.works_since = state.works_since.map(|_| Instant::now());
        state.paused_until = None;
    }

    /// What the attempt comes to, how long it takes, and whether the events are taken although it
    /// fails.
    fn judge(&self, events: &[u64]) -> (Outcome, Duration, bool) {
        let mut state = self.state.lock();
        let mode = state.mode;
        let random = &mut state.random;
        let (script, mut takes) = (&self.script, Duration::from_millis(1 + random.below(200)));
        let mut chance = |times: u64| times > 0 && random.once_in(times);
        let (stalls, panics) = (chance(script.stalls), chance(script.panics));
        let (pauses, flaky) = (chance(script.pauses), chance(script.flaky));
        let (loses, mixed) = (chance(script.lost_answers), chance(script.mixed));
        let local = chance(script.local);
        if stalls {
            takes = Duration::from_millis(random.below(60_000));
        }
        let after = Duration::from_secs(1 + random.below(90));
        let failure = Failure::answered;
        let outcome = match mode {
            Mode::Down => Outcome::Retry(Failure::new("connection refused")),
            Mode::Misconfigured => Outcome::Fault(failure(404)),
            Mode::Works if local => Outcome::Retry(failure(503).of_these_events()),
            // Without the message of a panic.
            Mode::Works if panics => std::panic::resume_unwind(Box::new("as the seed says")),
            Mode::Works if pauses => Outcome::Retry(Failure { after: Some(after), ..failure(429) }),
            Mode::Works if flaky || loses => Outcome::Retry(failure(503)),
            Mode::Works if events.iter().any(|event| self.is_poison(*event)) => {
                Outcome::Retry(failure(500))
            }
            Mode::Works if events.iter().any(|event| self.is_rejected(*event)) => {
                Outcome::Rejected(failure(400))
            }
            Mode::Works if mixed && events.len() > 1 => {
                let half = events.len() / 2;
                let delivered = Part { places: (0..half).collect(), outcome: Outcome::Delivered };
                Outcome::Mixed(vec![delivered])
            }
            Mode::Works => Outcome::Delivered,
        };
        (outcome, takes, loses && !local && mode == Mode::Works)
    }
}

/// Most attempts at one event within a minute, those of a batch that is halved again and again
/// included. Without its wait an event would be attempted some 600 times.
const ATTEMPTS_PER_MINUTE_MAX: u32 = 100;

impl State {
    pub fn set_mode(&mut self, mode: Mode) {
        self.works_since = match mode {
            Mode::Works => self.works_since.or(Some(Instant::now())),
            Mode::Down | Mode::Misconfigured => None,
        };
        self.mode = mode;
    }

    /// How long the upstream has worked, at this process.
    pub fn works_for(&self) -> Duration {
        self.works_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn attempt(&mut self, event: u64, now: Instant) {
        let (began, count) = self.attempted.entry(event).or_insert((now, 0));
        if now > *began + Duration::from_secs(60) {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        let count = *count;
        self.attempted_at.insert(event, now);
        self.busy_at = now;
        if count > ATTEMPTS_PER_MINUTE_MAX {
            self.broken.push(format!("event {event}: {count} attempts in a minute"));
        }
    }

    fn allow(&mut self, event: u64) {
        *self.allowed.entry(event).or_insert(1) += 1;
    }

    fn take(&mut self, event: u64) {
        let taken = self.taken.entry(event).or_default();
        *taken += 1;
        let (taken, allowed) = (*taken, self.allowed.get(&event).copied().unwrap_or(1));
        if taken > allowed {
            self.broken.push(format!("event {event} came {taken} times, {allowed} are allowed"));
        }
    }
}

/// The number that an event carries.
pub fn number_of(record: &[u8]) -> u64 {
    let record = Record::decode(record).expect("as written");
    let event = record.event().expect("as written");
    event.external_id.expect("as written").parse().expect("a number")
}

/// Takes an attempt that panics off the list.
struct UnderWay<'a>(&'a Scripted, u64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state.lock().under_way.remove(&self.1);
        }
    }
}

#[async_trait]
impl Upstream for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let events: Vec<u64> = batch.records().iter().map(|record| number_of(record)).collect();
        let attempt = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let until = state.paused_until.filter(|until| now < *until);
            if let Some(until) = until.filter(|_| state.asked_at < Some(now)) {
                let early = until - now;
                state.broken.push(format!("an attempt {early:?} before the pause was over"));
            }
            events.iter().for_each(|event| state.attempt(*event, now));
            state.attempts += 1;
            let attempt = state.attempts;
            state.under_way.insert(attempt, events.clone());
            attempt
        };
        let (outcome, takes, is_taken) = {
            let _under_way = UnderWay(self, attempt);
            self.judge(&events)
        };
        sleep(takes).await;
        let mut state = self.state.lock();
        state.under_way.remove(&attempt);
        if is_taken {
            events.iter().for_each(|event| state.allow(*event));
        }
        let delivered = match &outcome {
            Outcome::Delivered => events.len(),
            Outcome::Mixed(_) => events.len() / 2,
            _ if is_taken => events.len(),
            _ => 0,
        };
        events[..delivered].iter().for_each(|event| state.take(*event));
        let now = Instant::now();
        state.busy_at = now;
        if state.just_ended.0 != Some(now) {
            state.just_ended = (Some(now), Vec::new());
        }
        state.just_ended.1.extend(&events);
        if let Outcome::Retry(Failure { after: Some(after), .. }) = &outcome {
            state.paused_until = state.paused_until.max(Some(now + *after));
            state.asked_at = Some(now);
        }
        outcome
    }

    fn concurrency_max(&self) -> usize {
        self.script.concurrency
    }

    fn keeps_portal_order(&self) -> bool {
        self.script.in_order
    }
}
