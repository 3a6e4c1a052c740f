//! The delivery worker of one route: reads the spool, sends batches, and acts on their outcomes.
//!
//! One task does everything but the attempts and the writes of dead letters, which are tasks of
//! their own. It waits only in the `select!` of [`DeliveryWorker::run`]. A batch that has to wait
//! is in the schedule, with the moment at which it is due, and holds nothing that another needs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::batches::{Arrival, Batcher};
use super::breaker::{Admission, Breaker, FAILURES_MAX, Pass};
use super::dead_letters::DeadLetters;
use super::health::State;
use super::in_flight_batch::{self, InFlightBatch};
use super::letter_queue::{LetterQueue, Written};
use super::limiter::{Limiter, Permit};
use super::monitor::{Bound, HELD_BYTES_MAX, Monitor, STUCK_SECONDS};
use super::newer_records::NewerRecords;
use super::options::{Options, Route, RouteLimits};
use super::retries::Backoff;
use super::schedule::{Schedule, Work};
use crate::event::RawRecord;
use crate::spool::{Ack, Acknowledger, Entry, Reader};
use crate::upstream::{BatchConfig, Failure, Outcome, Upstream};

/// The longest wait for attempts to end after [`Upstream::cut_off`], in milliseconds.
pub const CUT_OFF_MS_MAX: u64 = 500;
/// How long [`Upstream::close`] may take, in milliseconds.
pub const CLOSE_MS_MAX: u64 = 2000;

/// Pause after a read that gave less than half a batch. Without it the worker would wake up for
/// each committed group, hundreds of times for one batch, which lingers for more events anyway. A
/// longer pause would let more events pile up, and delivering those at once would keep a core from
/// answering requests.
const READ_PAUSE: Duration = Duration::from_millis(4);

/// When attempts under way are cut off; `None` while delivery runs.
pub type Stop = Option<Instant>;

/// The delivery worker of one route.
pub struct DeliveryWorker {
    pub(super) monitor: Arc<Monitor>,
    pub(super) upstream: Arc<dyn Upstream>,
    pub(super) acknowledger: Acknowledger,
    pub(super) letters: LetterQueue,
    pub(super) schedule: Schedule,
    pub(super) queues: Vec<Queue>,
    /// Whether the order of events is kept: a queue has one batch under way at a time, and the
    /// parts of a batch stay in order.
    pub(super) in_order: bool,
    pub(super) attempts_max: u32,
    /// Attempts that delivered something.
    pub(super) deliveries: u64,
    pub(super) breaker: Breaker,
    pub(super) limiter: Limiter,
    pub(super) backoff: Backoff,
    pub(super) delivered: IntCounter,
    pub(super) dead: IntCounter,
    reader: Reader,
    newer_records: NewerRecords,
    batch: BatchConfig,
    limits: watch::Receiver<RouteLimits>,
    attempts: JoinSet<Attempt>,
    /// When the last attempt ended or, if that was later, the last tick at which none was under
    /// way.
    pub(super) ended_at: Instant,
    /// Nothing is read before this moment.
    read_at: Instant,
    tick_every: Duration,
    tick_at: Instant,
    stopping: watch::Receiver<Stop>,
}

/// Events on their way to a batch.
pub(super) struct Queue {
    pub(super) batcher: Batcher,
    /// Whether a batch of this queue is in flight or waits. Matters only where an order is kept.
    pub(super) is_busy: bool,
    /// Whether the batch waits for an event of another portal, as its probe: see `probe.rs`.
    pub(super) seeks_probe: bool,
}

/// An attempt that has ended.
pub(super) struct Attempt {
    pub(super) work: Work,
    pub(super) outcome: Outcome,
    pub(super) pass: Pass,
    pub(super) permit: Permit,
    /// See [`DeliveryWorker::deliveries`], at its beginning.
    pub(super) deliveries: u64,
}

impl DeliveryWorker {
    /// The worker of one route, not running yet. `limits` are those in force, and `stopping` says
    /// when it is to stop.
    pub fn new(
        mut route: Route,
        options: &Options,
        limits: watch::Receiver<RouteLimits>,
        stopping: watch::Receiver<Stop>,
    ) -> DeliveryWorker {
        let in_order = route.upstream.keeps_portal_order();
        if in_order {
            route.reader.keep_order();
        }
        let Route { name, upstream, batch, attempts_max, .. } = &route;
        let letters = DeadLetters::new(&options.dead_dir, name, options.dead_bytes_max);
        // `order = "portal"`: N queues with one batch each in flight. Otherwise one queue with N
        // batches.
        let concurrency = upstream.concurrency_max();
        let queue =
            |_| Queue { batcher: Batcher::new(batch.clone()), is_busy: false, seeks_probe: false };
        let now = Instant::now();
        let monitor = Arc::new(Monitor::new(&route, options));
        DeliveryWorker {
            newer_records: NewerRecords::new(name, &options.faults, &monitor.tracker),
            monitor,
            upstream: Arc::clone(upstream),
            acknowledger: route.reader.acknowledger(),
            letters: LetterQueue::new(letters),
            schedule: Schedule::default(),
            queues: (0..if in_order { concurrency.max(1) } else { 1 }).map(queue).collect(),
            in_order,
            attempts_max: *attempts_max,
            deliveries: 0,
            breaker: Breaker::default(),
            limiter: Limiter::new(concurrency),
            backoff: options.backoff.clone(),
            delivered: options.meters.delivered.with_label_values(&[name.as_str()]),
            dead: options.meters.dead.with_label_values(&[name.as_str()]),
            batch: batch.clone(),
            limits,
            reader: route.reader,
            attempts: JoinSet::new(),
            ended_at: now,
            read_at: now,
            tick_every: options.tick_every,
            tick_at: now,
            stopping,
        }
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        &self.monitor.name
    }

    /// What other threads see of the worker while it runs.
    pub fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    /// Delivers until it is stopped.
    pub async fn run(mut self) {
        let mut stopping = self.stopping.clone();
        let cut_at = loop {
            let now = Instant::now();
            self.take_limits();
            self.note_settings(now);
            let bytes_max = usize::try_from(self.batch.bytes_max.as_u64()).unwrap_or(usize::MAX);
            self.begin_attempts(now);
            self.letters.write(now);
            self.tick(now);
            let wake_at = self.wake_at(now);
            let reads = self.wants_events() && now >= self.read_at;
            tokio::select! {
                biased;
                stop = stopping.wait_for(Option::is_some) => {
                    // An error means that the forwarder was dropped, which counts as a stop.
                    break stop.ok().and_then(|at| *at).unwrap_or(now);
                }
                // An attempt is a task that neither panics nor is aborted before the end.
                Some(Ok(ended)) = self.attempts.join_next() => self.conclude(ended),
                Some(written) = self.letters.written(&self.backoff) => self.note_letters(written),
                entries = self.reader.read(self.batch.events_max, bytes_max), if reads => {
                    self.take_in(entries, bytes_max);
                }
                () = sleep_until(wake_at) => {}
            }
        };
        self.end(cut_at).await;
    }

    /// Takes over what a reload has changed, at the latest one tick after it. Where an order is
    /// kept, the number of queues stays, and with it the number of batches in flight: a portal
    /// whose events moved to another queue could have two batches under way.
    fn take_limits(&mut self) {
        if !self.in_order {
            self.limiter.set_max(self.upstream.concurrency_max());
        }
        // An error means that the forwarder was dropped, and with it the stop begins.
        if !self.limits.has_changed().unwrap_or(false) {
            return;
        }
        let RouteLimits { batch, attempts_max } = self.limits.borrow_and_update().clone();
        self.queues.iter_mut().for_each(|queue| queue.batcher.set_config(batch.clone()));
        (self.batch, self.attempts_max) = (batch, attempts_max);
    }

    /// Ends the waits of an upstream whose destination or credentials have changed, at the latest
    /// one tick after the change.
    fn note_settings(&mut self, now: Instant) {
        if self.breaker.renew(self.upstream.settings_version(), now) {
            self.limiter.renew();
            self.schedule.end_waits(now);
        }
    }

    /// Lets the attempts under way end until `cut_at`. What waits stays in the spool.
    async fn end(mut self, cut_at: Instant) {
        self.finish(cut_at).await;
        if !self.attempts.is_empty() {
            self.upstream.cut_off();
            self.finish(Instant::now() + Duration::from_millis(CUT_OFF_MS_MAX)).await;
        }
        self.attempts.abort_all();
        let closed = timeout(Duration::from_millis(CLOSE_MS_MAX), self.upstream.close()).await;
        if closed.is_err() {
            log::warn!("upstream {}: did not close in time", self.monitor.name);
        }
        self.monitor.stopped();
    }

    async fn finish(&mut self, until: Instant) {
        while !self.attempts.is_empty() || self.letters.is_busy() {
            let retry_at = self.letters.retry_at().unwrap_or(until).min(until);
            tokio::select! {
                biased;
                // An attempt is a task that neither panics nor is aborted before the end.
                Some(Ok(ended)) = self.attempts.join_next() => self.conclude(ended),
                Some(written) = self.letters.written(&self.backoff) => self.note_letters(written),
                () = sleep_until(retry_at) => {
                    if Instant::now() >= until {
                        return;
                    }
                    self.letters.write(Instant::now());
                }
            }
        }
    }

    /// Begins as many attempts as limiter and breaker admit.
    fn begin_attempts(&mut self, now: Instant) {
        loop {
            self.close_batches(now);
            let as_probe = match self.breaker.admission(now) {
                Admission::Now => false,
                Admission::Probe => true,
                Admission::At(_) | Admission::AfterProbe => return,
            };
            if !self.limiter.has_room() {
                return;
            }
            let next = match as_probe || self.limiter.has_room_for_failed() {
                true => self.schedule.take(now, as_probe),
                false => self.schedule.take_fresh(now),
            };
            let Some(work) = next else { return };
            let Some(part) = work.parts.front() else { continue };
            let (upstream, batch) = (Arc::clone(&self.upstream), part.batch.clone());
            let (pass, permit) = (self.breaker.begin(), self.limiter.take(work.is_fresh()));
            let deliveries = self.deliveries;
            self.attempts.spawn(async move {
                // A task of its own: an upstream that panics fails this attempt and not the worker.
                let mut sending = JoinSet::new();
                sending.spawn(async move { upstream.send(&batch).await });
                let outcome = match sending.join_next().await {
                    Some(Ok(outcome)) => outcome,
                    _ => Outcome::Retry(Failure::new("the upstream panicked")),
                };
                Attempt { work, outcome, pass, permit, deliveries }
            });
        }
    }

    /// Moves closed batches into the schedule, however many wait there after failures: a new batch
    /// is the best probe. At most one that has not failed is there at a time, or one of each queue
    /// where an order is kept.
    fn close_batches(&mut self, now: Instant) {
        for (at, queue) in self.queues.iter_mut().enumerate() {
            let is_taken = match self.in_order {
                true => queue.is_busy,
                false => self.schedule.has_fresh(),
            };
            if is_taken {
                continue;
            }
            let Some(closed) = queue.batcher.take_closed(now) else { continue };
            queue.is_busy = true;
            let batch = InFlightBatch::new(closed, &self.monitor.tracker);
            let first = queue.batcher.first().map(|arrival| &arrival.record);
            self.monitor.tracker.set_open(at, first);
            self.schedule.push(Work { queue: at, parts: VecDeque::from([batch]) }, now);
        }
    }

    /// Whether a queue can use events, and there is room for them.
    fn wants_events(&self) -> bool {
        self.has_room()
            && self.queues.iter().any(|queue| !queue.batcher.is_full() || queue.seeks_probe)
    }

    /// Whether fewer than [`HELD_BYTES_MAX`] bytes wait in memory.
    fn has_room(&self) -> bool {
        let behind: usize = self.queues.iter().map(|queue| queue.batcher.behind_bytes()).sum();
        behind + self.schedule.bytes() + self.letters.bytes() < HELD_BYTES_MAX
    }

    /// Gives each queue the events of its portals.
    fn take_in(&mut self, mut entries: Vec<Entry>, bytes_max: usize) {
        let now = Instant::now();
        let has_newer = self.newer_records.set_aside(&mut entries, self.monitor.clock.unix_ms());
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
        if entries.len() < self.batch.events_max / 2 && bytes < bytes_max / 2 {
            self.read_at = now + READ_PAUSE.min(Duration::from_millis(self.batch.linger_ms) / 2);
        }
        for Entry { record_id: id, payload } in entries {
            let (at, record) = match self.queues.len() {
                0 | 1 => (0, payload),
                // A record is a slice of a block that the spool read. One queue uses up whole
                // blocks; with several, each would keep a part of every block in memory.
                n => (queue_of(&payload, n), in_flight_batch::detached(&payload)),
            };
            let batcher = &mut self.queues[at].batcher;
            if batcher.first().is_none() {
                self.monitor.tracker.set_open(at, Some(&record));
            }
            batcher.push(Arrival { id, record }, now);
        }
        if has_newer || self.breaker.is_open(now) {
            // The end of an attempt sets the state, but none will end soon.
            self.note_state(now);
        }
    }

    fn note_letters(&mut self, written: Written) {
        match written {
            Written::Done(batch) => {
                self.acknowledger.acknowledge(&batch.ids, Ack::Dead);
                self.dead.inc_by(batch.len() as u64);
            }
            Written::Failed(error) => self.monitor.health.failed_here(&error),
        }
        self.note_state(Instant::now());
    }

    /// The next moment at which something is due.
    fn wake_at(&self, now: Instant) -> Instant {
        let mut wake_at = self.tick_at;
        let mut by = |at: Option<Instant>| wake_at = at.map_or(wake_at, |at| at.min(wake_at));
        by(self.letters.retry_at());
        by(Some(self.read_at).filter(|at| *at > now && self.wants_events()));
        let admission = self.breaker.admission(now);
        let takes_failed = admission == Admission::Probe || self.limiter.has_room_for_failed();
        match admission {
            Admission::Now | Admission::Probe if self.limiter.has_room() => {
                by(match takes_failed {
                    true => self.schedule.next_due(),
                    false => self.schedule.next_fresh_due(),
                });
                let free = self.queues.iter().filter(|queue| !self.in_order || !queue.is_busy);
                by(free.filter_map(|queue| queue.batcher.closes_at()).min());
            }
            Admission::At(at) => by(Some(at)),
            // The end of an attempt wakes the worker.
            _ => {}
        }
        wake_at
    }

    fn tick(&mut self, now: Instant) {
        if now < self.tick_at {
            return;
        }
        self.tick_at = now + self.tick_every;
        self.monitor.ticked();
        if self.attempts.is_empty() {
            self.ended_at = now;
        } else if self.hangs(now) {
            let seconds = (now - self.ended_at).as_secs();
            let why = format!("no attempt has ended for {seconds} seconds");
            self.monitor.health.hangs(self.ended_at, why);
        }
        if let Some(taken) = self.letters.slow_write(now) {
            let why = format!("a write of dead letters has taken {} seconds", taken.as_secs());
            self.monitor.health.failed_here(&why);
        }
        self.note_state(now);
        self.monitor.set_lag();
        self.monitor.note_faults(self.bound());
    }

    /// Whether attempts are under way of which none has ended for [`STUCK_SECONDS`].
    fn hangs(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.ended_at) >= Duration::from_secs(STUCK_SECONDS)
    }

    /// What keeps the worker from reading events although its upstream may take them.
    pub(super) fn bound(&self) -> Option<Bound> {
        if self.acknowledger.is_at_bound() {
            return Some(Bound::Runs);
        }
        // The rest may be batches that are on their way for the first time.
        let is_full_of_failed = self.schedule.failed_bytes() > HELD_BYTES_MAX / 2;
        (is_full_of_failed && !self.has_room()).then_some(Bound::Bytes)
    }

    /// Sets the state, which says what events wait for.
    pub(super) fn note_state(&mut self, now: Instant) {
        let readable = !self.reader.is_failing();
        let waits_for_predecessor = self.reader.waits_for_predecessor();
        self.monitor.set_readable(readable && !waits_for_predecessor);
        let health = &self.monitor.health;
        let troubles = self.monitor.tracker.troubles();
        let is_down =
            health.failures() >= FAILURES_MAX || self.breaker.is_open(now) || self.hangs(now);
        health.set(match () {
            () if self.letters.is_failing(now) => State::DeadLettersFailing,
            () if troubles.misconfigured > 0 => State::Misconfigured,
            () if is_down && self.monitor.tracker.oldest_ms().is_some() => State::Down,
            () if troubles.failing > 0 => State::Retrying,
            () if !readable => State::SpoolUnreadable,
            () if waits_for_predecessor => State::PredecessorLives,
            () if self.newer_records.wait() => State::NewerRecords,
            () if self.acknowledger.is_held_back() => State::HeldBack,
            () => State::Ok,
        });
    }
}

/// The portal of a record. One that cannot be read counts as portal 0.
pub(super) fn portal_of(record: &[u8]) -> u64 {
    RawRecord::read(record).map_or(0, |record| record.portal)
}

/// The queue of a record's portal: always the same one. The multiplier (2^64 / golden ratio)
/// spreads neighbouring portal numbers.
fn queue_of(record: &[u8], queues: usize) -> usize {
    let spread = portal_of(record).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (spread % queues as u64) as usize
}
