//! The delivery worker of one route: reads the spool, sends batches, and acts on their outcomes.
//!
//! Every event ends as delivered or as a dead letter. A worker never gives up on an event: after a
//! failure that may pass it waits and tries again, for as long as the route runs.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::batches::{Arrival, Batcher};
use super::breaker::Breaker;
use super::dead_letters::{DeadLetters, Letter, Reason};
use super::feedback::Feedback;
use super::health::{Health, State};
use super::in_flight_batch::{self, InFlightBatch};
use super::lag::LagTracker;
use super::limiter::Limiter;
use super::newer_records::NewerRecords;
use super::options::{Options, Route};
use super::retries;
use super::status::Status;
use crate::clock::Clock;
use crate::event::{RawRecord, Record};
use crate::spool::{Ack, Acknowledger, Entry, Reader};
use crate::upstream::{BatchConfig, Failure, Outcome, Upstream};

const OUTCOMES: [&str; 7] =
    ["delivered", "retry", "too_large", "rejected", "fault", "dead", "mixed"];

/// How long a stop waits for the answers to attempts in flight, in milliseconds. An attempt that is
/// cut off is made again after the next start, so its events may arrive twice.
pub const STOP_ATTEMPT_MS_MAX: u64 = 1000;

/// Pause after a read that gave less than half a batch. Without it the worker would wake up for
/// each committed group, hundreds of times for one batch, which lingers for more events anyway. A
/// longer pause would let more events pile up, and delivering those at once would keep a core from
/// answering requests.
const READ_PAUSE: Duration = Duration::from_millis(4);

/// What a delivery worker works with.
pub struct WorkerDeps {
    name: String,
    upstream: Arc<dyn Upstream>,
    acknowledger: Acknowledger,
    dead_letters: DeadLetters,
    newer_records: NewerRecords,
    clock: Arc<dyn Clock>,
    delivered: IntCounter,
    dead: IntCounter,
    batches: IntCounterVec,
    stopping: watch::Receiver<bool>,
}

/// See the module.
pub struct DeliveryWorker {
    deps: WorkerDeps,
    breaker: Breaker,
    limiter: Limiter,
    health: Health,
    lag: Arc<LagTracker>,
}

/// The route is stopping: all unfinished events stay in the spool.
struct Stopped;

/// What remains to be done after an outcome.
#[derive(Default)]
struct FollowUp {
    /// Batches to attempt again, in order.
    batches: Vec<InFlightBatch>,
    /// The wait before the next attempt.
    wait: Option<Duration>,
    /// Whether a local failure asked for the wait. The breaker knows nothing of local failures, so
    /// its pause does not replace this wait.
    wait_is_local: bool,
}

impl WorkerDeps {
    pub fn new(route: &Route, options: &Options, stopping: watch::Receiver<bool>) -> WorkerDeps {
        let labels = [route.name.as_str()];
        let dead_dir: &PathBuf = &options.dead_dir;
        let meters = &options.meters;
        for outcome in OUTCOMES {
            // A scrape shows zeros before the first batch.
            meters.batches.with_label_values(&[labels[0], outcome]);
        }
        WorkerDeps {
            name: route.name.clone(),
            upstream: Arc::clone(&route.upstream),
            acknowledger: route.reader.acknowledger(),
            dead_letters: DeadLetters::new(dead_dir, &route.name, options.dead_bytes_max),
            newer_records: NewerRecords::new(&route.name, &options.faults),
            clock: Arc::clone(&options.clock),
            delivered: meters.delivered.with_label_values(&labels),
            dead: meters.dead.with_label_values(&labels),
            batches: meters.batches.clone(),
            stopping,
        }
    }
}

/// Runs a route until it is stopped.
pub async fn run(worker: Arc<DeliveryWorker>, reader: Reader, batch: BatchConfig) {
    let concurrency = worker.deps.upstream.concurrency_max().max(1);
    // `order = "portal"`: N queues with one batch each in flight. Otherwise one queue with N
    // batches.
    let (queues, in_flight_max) =
        if worker.deps.upstream.keeps_portal_order() { (concurrency, 1) } else { (1, concurrency) };
    let mut tasks = JoinSet::new();
    let mut inboxes = Vec::new();
    for _ in 0..queues {
        // One message: what is read ahead of the open batch.
        let (outbox, inbox) = mpsc::channel(1);
        let batcher = Batcher::new(batch.clone(), inbox);
        tasks.spawn(Arc::clone(&worker).run_queue(batcher, in_flight_max));
        inboxes.push(outbox);
    }
    // Reading and the queues end only because of the stop.
    let _ = worker.read_into_queues(reader, &batch, inboxes).await;
    while tasks.join_next().await.is_some() {}
    worker.deps.upstream.close().await;
    worker.health.stopped();
}

impl DeliveryWorker {
    pub fn new(deps: WorkerDeps) -> DeliveryWorker {
        let limiter = Limiter::new(deps.upstream.concurrency_max());
        let health = Health::new(&deps.name);
        DeliveryWorker { deps, breaker: Breaker::default(), limiter, health, lag: Arc::default() }
    }

    pub fn name(&self) -> &str {
        &self.deps.name
    }

    /// Age in seconds of the oldest event in flight; 0 when there is none.
    pub fn lag_seconds(&self) -> u64 {
        let now = self.deps.clock.unix_ms();
        self.lag.oldest_ms().map_or(0, |received_ms| now.saturating_sub(received_ms) / 1000)
    }

    pub fn status(&self) -> Status {
        let (state, last_error) = self.health.read();
        let count =
            |outcome| (outcome, self.deps.batches.with_label_values(&[self.name(), outcome]).get());
        Status {
            name: self.deps.name.clone(),
            kind: self.deps.upstream.kind(),
            state,
            trouble_seconds: self.health.trouble_seconds(),
            lag_seconds: self.lag_seconds(),
            last_error,
            outcomes: OUTCOMES.map(count).to_vec(),
        }
    }

    /// Reads the spool and sends each queue the events of its portals.
    async fn read_into_queues(
        &self,
        mut reader: Reader,
        batch: &BatchConfig,
        queues: Vec<mpsc::Sender<Vec<Arrival>>>,
    ) -> Result<(), Stopped> {
        let bytes_max = usize::try_from(batch.bytes_max.as_u64()).unwrap_or(usize::MAX);
        let pause = READ_PAUSE.min(Duration::from_millis(batch.linger_ms) / 2);
        loop {
            let read = reader.read(batch.events_max, bytes_max);
            let mut entries = self.unless_stopped(read).await?;
            self.deps.newer_records.set_aside(&mut entries);
            let bytes = entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            let few = entries.len() < batch.events_max / 2 && bytes < bytes_max / 2;
            let mut shares = vec![Vec::new(); queues.len()];
            for Entry { record_id: id, payload } in entries {
                let (queue, record) = match queues.len() {
                    0 | 1 => (0, payload),
                    // A record is a slice of a block that the spool read. One queue uses up whole
                    // blocks; with several, each would keep a part of every block in memory.
                    n => (queue_of(&payload, n), in_flight_batch::detached(&payload)),
                };
                shares[queue].push(Arrival { id, record });
            }
            for (queue, share) in queues.iter().zip(shares) {
                if !share.is_empty() {
                    // Fails when the queue has ended, which it does only because of the stop.
                    let sent = self.unless_stopped(queue.send(share)).await?;
                    sent.map_err(|_| Stopped)?;
                }
            }
            if few {
                self.unless_stopped(tokio::time::sleep(pause)).await?;
            }
        }
    }

    /// Delivers one queue's batches in order of arrival, up to `in_flight_max` of them at once.
    async fn run_queue(self: Arc<Self>, mut batcher: Batcher, in_flight_max: usize) {
        let slots = Arc::new(Semaphore::new(in_flight_max));
        let mut deliveries = JoinSet::new();
        while let Ok(Some(closed)) = self.unless_stopped(batcher.next()).await {
            // The first event is the oldest, since queues keep the order of arrival. A record that
            // cannot be read has no age.
            let first = closed.arrivals.first();
            let first = first.and_then(|arrival| RawRecord::read(&arrival.record).ok());
            let received_ms = first.map_or(u64::MAX, |record| record.received_at_ms);
            let batch = InFlightBatch::new(closed, received_ms, &self.lag);
            let slot = self.unless_stopped(Arc::clone(&slots).acquire_owned()).await;
            let Ok(Ok(slot)) = slot else { break };
            let worker = Arc::clone(&self);
            deliveries.spawn(async move {
                // An error means a stop: events that are not acknowledged stay in the spool.
                let _ = worker.deliver(batch).await;
                drop(slot);
            });
            while deliveries.try_join_next().is_some() {}
        }
        while deliveries.join_next().await.is_some() {}
    }

    /// Attempts a batch and its parts until each event is delivered or a dead letter.
    async fn deliver(&self, batch: InFlightBatch) -> Result<(), Stopped> {
        // What remains of a batch returns to the front of the queue, which keeps the order.
        let mut queue = VecDeque::from([batch]);
        while let Some(batch) = queue.pop_front() {
            let outcome = self.attempt(&batch).await?;
            let follow_up = self.conclude(batch, outcome).await?;
            for batch in follow_up.batches.into_iter().rev() {
                queue.push_front(batch);
            }
            if let Some(wait) = follow_up.wait
                && (follow_up.wait_is_local || self.breaker.is_closed())
            {
                self.unless_stopped(tokio::time::sleep(wait)).await?;
            }
        }
        Ok(())
    }

    /// Makes one attempt as soon as the limiter and the breaker admit it.
    async fn attempt(&self, in_flight: &InFlightBatch) -> Result<Outcome, Stopped> {
        let permit = self.unless_stopped(self.limiter.acquire()).await?;
        let pass = self.unless_stopped(self.breaker.admit()).await?;
        let upstream = Arc::clone(&self.deps.upstream);
        let batch = in_flight.batch.clone();
        // A task of its own: an upstream that panics fails this attempt and not the worker.
        let mut sending = JoinSet::new();
        sending.spawn(async move { upstream.send(&batch).await });
        let outcome = tokio::select! {
            joined = sending.join_next() => match joined {
                Some(Ok(outcome)) => outcome,
                _ => Outcome::Retry(Failure::new("the upstream panicked")),
            },
            () = self.stopped_long_enough() => return Err(Stopped),
        };
        let labels = [self.name(), outcome.label()];
        self.deps.batches.with_label_values(&labels).inc();
        match Feedback::of(&outcome) {
            Feedback::Success => {
                permit.grow();
                pass.succeed();
            }
            Feedback::Backpressure(after) => {
                permit.shrink();
                pass.fail(after);
            }
            Feedback::Failure => pass.fail(None),
            Feedback::Nothing => {}
        }
        Ok(outcome)
    }

    /// Acts on an outcome as SPEC 7 says.
    async fn conclude(&self, batch: InFlightBatch, outcome: Outcome) -> Result<FollowUp, Stopped> {
        let parts = match outcome {
            Outcome::Mixed(parts) => batch.split(parts),
            outcome => vec![(batch, outcome)],
        };
        let mut follow_up = FollowUp::default();
        for (batch, outcome) in parts {
            match outcome {
                Outcome::Delivered => self.delivered(&batch),
                Outcome::Retry(failure) => follow_up.retry(batch, &failure, self, State::Retrying),
                Outcome::Fault(failure) => {
                    follow_up.retry(batch, &failure, self, State::Misconfigured)
                }
                Outcome::Mixed(_) => {
                    follow_up.retry(batch, &Failure::new("mixed"), self, State::Retrying);
                }
                Outcome::TooLarge(_) | Outcome::Rejected(_) if batch.len() > 1 => {
                    follow_up.batches.extend(batch.halve());
                }
                Outcome::TooLarge(s) => self.dead_letter(&batch, Reason::TooLarge, &s).await?,
                Outcome::Rejected(s) => {
                    let readable = |r: &Bytes| Record::decode_sound(r).is_ok();
                    let readable = batch.batch.records().iter().all(readable);
                    let reason = if readable { Reason::Rejected } else { Reason::Unreadable };
                    self.dead_letter(&batch, reason, &s).await?;
                }
                Outcome::Dead(s) => self.dead_letter(&batch, Reason::Undeliverable, &s).await?,
            }
        }
        Ok(follow_up)
    }

    fn delivered(&self, batch: &InFlightBatch) {
        self.deps.acknowledger.acknowledge(&batch.ids, Ack::Delivered);
        self.deps.delivered.inc_by(batch.len() as u64);
        self.health.ok();
    }

    /// Writes dead letters, and repeats that until it succeeds.
    async fn dead_letter(
        &self,
        batch: &InFlightBatch,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), Stopped> {
        let now = self.deps.clock.unix_ms();
        let letter = |r: &Bytes| Letter::new(self.name(), now, reason, failure, r);
        let letters: Arc<[Letter]> = batch.batch.records().iter().map(letter).collect();
        let mut failures = 0;
        loop {
            let (file, letters) = (self.deps.dead_letters.clone(), Arc::clone(&letters));
            let written = tokio::task::spawn_blocking(move || file.append(&letters)).await;
            let error = match written {
                Ok(Ok(())) => break,
                Ok(Err(e)) => e.to_string(),
                // The runtime shuts down.
                Err(_) => return Err(Stopped),
            };
            self.health.failing(State::DeadLettersFailing, &error);
            failures += 1;
            self.unless_stopped(tokio::time::sleep(retries::wait(failures, None))).await?;
        }
        self.deps.acknowledger.acknowledge(&batch.ids, Ack::Dead);
        self.deps.dead.inc_by(batch.len() as u64);
        self.health.ok();
        Ok(())
    }

    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut stopping = self.deps.stopping.clone();
        tokio::select! {
            biased;
            // An error means that the forwarder was dropped, which counts as a stop.
            _ = stopping.wait_for(|stop| *stop) => Err(Stopped),
            value = future => Ok(value),
        }
    }

    /// Ends [`STOP_ATTEMPT_MS_MAX`] after the stop.
    async fn stopped_long_enough(&self) {
        let _ = self.deps.stopping.clone().wait_for(|stop| *stop).await;
        tokio::time::sleep(Duration::from_millis(STOP_ATTEMPT_MS_MAX)).await;
    }
}

impl FollowUp {
    /// Plans another attempt at `batch`, and reports the failure.
    fn retry(
        &mut self,
        mut batch: InFlightBatch,
        failure: &Failure,
        worker: &DeliveryWorker,
        state: State,
    ) {
        batch.failures = batch.failures.saturating_add(1);
        let wait = retries::wait(batch.failures, failure.after);
        self.wait = self.wait.max(Some(wait));
        self.wait_is_local |= failure.local;
        self.batches.push(batch);
        let down = state == State::Retrying && !worker.breaker.is_closed();
        worker.health.failing(if down { State::Down } else { state }, &failure.what);
    }
}

/// The queue of a record's portal: always the same one. The multiplier (2^64 / golden ratio)
/// spreads neighbouring portal numbers. A record that cannot be read counts as portal 0.
fn queue_of(record: &[u8], queues: usize) -> usize {
    let portal = RawRecord::read(record).map_or(0, |record| record.portal);
    let spread = portal.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (spread % queues as u64) as usize
}
