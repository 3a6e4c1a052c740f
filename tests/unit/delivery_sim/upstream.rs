//! Upstreams that answer as a seed says, and note what breaks a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pixelgate::internals::event::Record;
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Part, Upstream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::BASE_MS;
use super::load::Load;
use super::script::{Random, Script, asks_for_pause};

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
    /// Since when it does not work. `None`: it works.
    fails_since: Option<Instant>,
    /// Since when it has taken something at least once in each [`TAKES_WITHIN`].
    takes_since: Instant,
    /// When it last took something.
    pub took_at: Instant,
    /// Whether it takes the events to which it always answered 500.
    pub is_mended: bool,
    /// When the last attempt at each event began.
    pub attempted_at: BTreeMap<u64, Instant>,
    /// When an attempt last began or ended.
    pub busy_at: Instant,
    random: Random,
    /// How often each event was taken.
    pub taken: BTreeMap<u64, u32>,
    /// How often each event may have been taken: one more after a crash or a lost answer.
    pub allowed: BTreeMap<u64, u32>,
    /// For each event, the beginning of its present minute and the attempts in it, by this process.
    attempted: BTreeMap<u64, (Instant, u32)>,
    /// The events whose last attempt failed in a way that speaks against them, by this process.
    failing: BTreeMap<u64, Failing>,
    /// The number of attempts that took something.
    takes: u64,
    /// Events of attempts under way, by attempt.
    under_way: BTreeMap<u64, Vec<u64>>,
    load: Load,
    /// Events of attempts that ended at this moment: the worker may not know of them yet.
    just_ended: (Option<Instant>, Vec<u64>),
    attempts: u64,
    paused_until: Option<Instant>,
    /// When the last pause was asked for: the worker may not know of it at the same moment.
    asked_at: Option<Instant>,
    /// Events of attempts that the last stop has cut off.
    cut_off: Vec<u64>,
    /// Events that must not be sent again, because a stop has cut them off.
    unknown: BTreeSet<u64>,
    pub broken: Vec<String>,
}

/// An event that fails.
#[derive(Debug)]
struct Failing {
    /// The number of events in its batch. The parts of a batch begin to count anew.
    batch_len: usize,
    /// What [`State::takes`] was when it failed first in such a batch.
    takes: u64,
    /// How often it has failed since the upstream took something meanwhile.
    beside_others: u32,
}

pub struct Scripted {
    pub script: Script,
    pub state: Mutex<State>,
    began: Instant,
    cut: Notify,
}

/// The end of an attempt.
struct Answer {
    outcome: Outcome,
    /// How long it takes.
    takes: Duration,
    /// Whether the events are taken although the attempt fails.
    is_taken: bool,
    /// The pause that it asks for.
    asks: Option<Duration>,
}

impl Scripted {
    pub fn new(script: Script, random: Random) -> Arc<Scripted> {
        let state = State {
            mode: Mode::Works,
            works_since: Some(Instant::now()),
            fails_since: None,
            takes_since: Instant::now(),
            took_at: Instant::now(),
            is_mended: false,
            attempted_at: BTreeMap::new(),
            busy_at: Instant::now(),
            random,
            taken: BTreeMap::new(),
            allowed: BTreeMap::new(),
            attempted: BTreeMap::new(),
            failing: BTreeMap::new(),
            takes: 0,
            under_way: BTreeMap::new(),
            load: Load::new(script.concurrency),
            just_ended: (None, Vec::new()),
            attempts: 0,
            paused_until: None,
            asked_at: None,
            cut_off: Vec::new(),
            unknown: BTreeSet::new(),
            broken: Vec::new(),
        };
        let (began, cut) = (Instant::now(), Notify::new());
        Arc::new(Scripted { script, state: Mutex::new(state), began, cut })
    }

    pub fn in_flight(&self) -> usize {
        self.state.lock().under_way.len()
    }

    /// The process is gone: what was on its way may come again.
    pub fn crashed(&self) {
        let mut state = self.state.lock();
        let mut again: BTreeSet<u64> = BTreeSet::new();
        for events in std::mem::take(&mut state.under_way).into_values() {
            again.extend(events);
        }
        if state.just_ended.0 == Some(Instant::now()) {
            again.extend(std::mem::take(&mut state.just_ended.1));
        }
        again.into_iter().for_each(|event| state.allow(event));
    }

    /// A process begins. It knows nothing of the waits and of the pause.
    pub fn started(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.busy_at = now;
        state.attempted.clear();
        state.failing.clear();
        state.load = Load::new(self.script.concurrency);
        state.works_since = state.works_since.map(|_| now);
        state.fails_since = state.fails_since.map(|_| now);
        state.paused_until = None;
    }

    /// The attempts that the last stop has cut off, of which it is unknown whether they were taken.
    pub fn take_cut_off(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().cut_off)
    }

    /// Lets these events come again, because their letters could not be written.
    pub fn allow_again(&self, events: Vec<u64>) {
        let mut state = self.state.lock();
        for event in events {
            state.unknown.remove(&event);
            state.allow(event);
        }
    }

    fn judge(&self, events: &[u64]) -> Answer {
        let mut state = self.state.lock();
        let (mode, is_mended, random) = (state.mode, state.is_mended, &mut state.random);
        let (script, mut takes) = (&self.script, Duration::from_millis(1 + random.below(200)));
        let chances = Chances::drawn(script, random);
        if chances.stalls {
            takes = Duration::from_millis(random.below(60_000));
        }
        let after = Duration::from_secs(1 + random.below(90));
        let answer = |outcome| Answer { outcome, takes, is_taken: false, asks: None };
        match mode {
            Mode::Down => return answer(Outcome::Retry(Failure::new("connection refused"))),
            Mode::Misconfigured => return answer(Outcome::Fault(Failure::answered(404))),
            Mode::Works => {}
        }
        let any = |is: &dyn Fn(u64) -> bool| events.iter().any(|event| is(*event));
        let failed = |status| Outcome::Retry(Failure::answered(status));
        answer(match () {
            () if chances.local => Outcome::Retry(Failure::answered(503).of_these_events()),
            // A panic without its message on standard error.
            () if chances.panics => std::panic::resume_unwind(Box::new("as the seed says")),
            () if chances.pauses => {
                let answered_at = BASE_MS + (self.began.elapsed() + takes).as_millis() as u64;
                let outcome = asks_for_pause(after, answered_at, random);
                return Answer { asks: Some(after), ..answer(outcome) };
            }
            () if chances.loses => return Answer { is_taken: true, ..answer(failed(503)) },
            () if chances.flaky => failed(503),
            () if !is_mended && any(&|event| script.is_poison(event)) => failed(500),
            () if any(&|event| script.is_rejected(event)) => {
                Outcome::Rejected(Failure::answered(400))
            }
            () if chances.mixed && events.len() > 1 => {
                let half = events.len() / 2;
                let delivered = Part { places: (0..half).collect(), outcome: Outcome::Delivered };
                Outcome::Mixed(vec![delivered])
            }
            () => Outcome::Delivered,
        })
    }

    /// An attempt begins. Returns its number, and whether none of its events was attempted before.
    fn begin(&self, events: &[u64]) -> (u64, bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let until = state.paused_until.filter(|until| now < *until);
        if let Some(until) = until.filter(|_| state.asked_at < Some(now)) {
            let early = until - now;
            state.broken.push(format!("an attempt {early:?} before the pause was over"));
        }
        let is_fresh = events.iter().all(|event| !state.attempted.contains_key(event));
        events.iter().for_each(|event| state.attempt(*event, now));
        state.attempts += 1;
        let attempt = state.attempts;
        state.under_way.insert(attempt, events.to_vec());
        if let Err(many) = state.load.begin(attempt) {
            state.broken.push(many);
        }
        (attempt, is_fresh)
    }

    /// An attempt has ended.
    fn end(&self, attempt: u64, is_fresh: bool, events: &[u64], answer: &Answer) {
        let mut state = self.state.lock();
        state.under_way.remove(&attempt);
        if answer.is_taken {
            events.iter().for_each(|event| state.allow(*event));
        }
        let delivered = match &answer.outcome {
            Outcome::Delivered => events.len(),
            Outcome::Mixed(_) => events.len() / 2,
            _ if answer.is_taken => events.len(),
            _ => 0,
        };
        events[..delivered].iter().for_each(|event| state.take(*event));
        match &answer.outcome {
            Outcome::Fault(_) => state.load.end(attempt),
            Outcome::Retry(failure) if failure.local => state.load.end(attempt),
            // What failed before may fail for itself, and halves nothing.
            Outcome::Retry(_) if !is_fresh && answer.asks.is_none() => state.load.end(attempt),
            Outcome::Retry(_) => state.load.pressed(attempt),
            _ => state.load.succeeded(attempt),
        }
        state.note_failures(events, &answer.outcome);
        let now = Instant::now();
        state.busy_at = now;
        if state.just_ended.0 != Some(now) {
            state.just_ended = (Some(now), Vec::new());
        }
        state.just_ended.1.extend(events);
        if let Some(after) = answer.asks {
            state.paused_until = state.paused_until.max(Some(now + after));
            state.asked_at = Some(now);
        }
    }

    /// A stop has cut an attempt off: its events may have been taken.
    fn cut(&self, attempt: u64, events: &[u64]) -> Outcome {
        let mut state = self.state.lock();
        state.under_way.remove(&attempt);
        state.load.end(attempt);
        if state.random.once_in(2) {
            events.iter().for_each(|event| state.take(*event));
        }
        state.cut_off.extend(events);
        state.unknown.extend(events);
        Outcome::Dead(Failure::new("cut off by a stop"))
    }
}

/// What becomes of one attempt, by chance.
struct Chances {
    stalls: bool,
    panics: bool,
    pauses: bool,
    flaky: bool,
    loses: bool,
    mixed: bool,
    local: bool,
}

impl Chances {
    fn drawn(script: &Script, random: &mut Random) -> Chances {
        let mut chance = |times: u64| times > 0 && random.once_in(times);
        Chances {
            stalls: chance(script.stalls),
            panics: chance(script.panics),
            pauses: chance(script.pauses),
            flaky: chance(script.flaky),
            loses: chance(script.lost_answers),
            mixed: chance(script.mixed),
            local: chance(script.local),
        }
    }
}

/// Most attempts at one event within a minute, those of a batch that is halved again and again
/// included. Without its wait an event would be attempted some 600 times.
const ATTEMPTS_PER_MINUTE_MAX: u32 = 100;
/// An event that failed so often while its upstream took others must be shown as poison: one more
/// than in the product, because two attempts that end at the same moment have no order.
const POISON_FAILURES: u32 = 4;
/// An upstream that takes nothing for longer than this seems to be down.
const TAKES_WITHIN: Duration = Duration::from_secs(5 * 60);

impl State {
    pub fn set_mode(&mut self, mode: Mode) {
        let now = Instant::now();
        let works = mode == Mode::Works;
        self.works_since = works.then(|| self.works_since.unwrap_or(now));
        self.fails_since = (!works).then(|| self.fails_since.unwrap_or(now));
        self.mode = mode;
    }

    /// The upstream takes the events to which it always answered 500.
    pub fn mend(&mut self) {
        self.is_mended = true;
    }

    /// How long the upstream has worked, at this process.
    pub fn works_for(&self) -> Duration {
        self.works_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How long the upstream has taken something at least once in each [`TAKES_WITHIN`].
    pub fn takes_for(&self) -> Duration {
        match self.took_at.elapsed() > TAKES_WITHIN {
            true => Duration::ZERO,
            false => self.takes_since.elapsed(),
        }
    }

    /// How long the upstream has not worked, at this process.
    pub fn fails_for(&self) -> Duration {
        self.fails_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The events that have failed again and again while the upstream took others.
    pub fn poison(&self) -> impl Iterator<Item = u64> {
        let is_poison = |failing: &Failing| failing.beside_others >= POISON_FAILURES;
        self.failing.iter().filter(move |(_, failing)| is_poison(failing)).map(|(event, _)| *event)
    }

    fn note_failures(&mut self, events: &[u64], outcome: &Outcome) {
        match outcome {
            // A failure of the whole upstream, or of this side, says nothing about the events.
            Outcome::Retry(failure) if failure.local => return,
            Outcome::Retry(_) => {}
            outcome => {
                self.takes += u64::from(matches!(outcome, Outcome::Delivered | Outcome::Mixed(_)));
                events.iter().for_each(|event| _ = self.failing.remove(event));
                return;
            }
        }
        let (batch_len, takes) = (events.len(), self.takes);
        for event in events {
            let first = || Failing { batch_len, takes, beside_others: 0 };
            let failing = self.failing.entry(*event).or_insert_with(first);
            if failing.batch_len != batch_len {
                *failing = first();
            }
            failing.beside_others += u32::from(takes > failing.takes);
        }
    }

    fn attempt(&mut self, event: u64, now: Instant) {
        if self.unknown.contains(&event) {
            self.broken.push(format!("event {event} was cut off, and is sent again"));
        }
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
        if self.took_at.elapsed() > TAKES_WITHIN {
            self.takes_since = Instant::now();
        }
        self.took_at = Instant::now();
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
            let mut state = self.0.state.lock();
            state.under_way.remove(&self.1);
            state.load.end(self.1);
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
        let (attempt, is_fresh) = self.begin(&events);
        let answer = {
            let _under_way = UnderWay(self, attempt);
            self.judge(&events)
        };
        tokio::select! {
            biased;
            () = sleep(answer.takes) => self.end(attempt, is_fresh, &events, &answer),
            () = self.cut.notified(), if self.script.counts_money => {
                return self.cut(attempt, &events);
            }
        }
        answer.outcome
    }

    fn cut_off(&self) {
        self.cut.notify_waiters();
    }

    fn concurrency_max(&self) -> usize {
        self.script.concurrency
    }

    fn keeps_portal_order(&self) -> bool {
        self.script.in_order
    }
}
