//! The courier: one route's way of getting every event to a good end.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::batch::{Arrival, Batcher};
use super::breaker::Breaker;
use super::dead_letters::{DeadLetters, Letter, Reason};
use super::health::{Health, State};
use super::limiter::Limiter;
use super::parcel::{InFlightBatch, LagTracker};
use super::{Options, Route, STOP_ATTEMPT_MS_MAX, Status, backoff, parcel};
use crate::clock::Clock;
use crate::event::{RawRecord, Record};
use crate::spool::{Ack, Acknowledger, Entry, Reader};
use crate::upstream::{BatchConfig, Failure, Outcome, Upstream};

const OUTCOMES: [&str; 7] =
    ["delivered", "retry", "too_large", "rejected", "fault", "dead", "mixed"];

/// Pause after a read that gave less than half a batch: whoever read each group that was committed
/// would wake up hundreds of times for one batch, which lingers for company in any case. It is not
/// longer, since what has come meanwhile is delivered at one go, and keeps a core from answering.
const REST: Duration = Duration::from_millis(4);

/// What a courier is given.
pub struct WorkerDeps {
    name: String,
    upstream: Arc<dyn Upstream>,
    acknowledger: Acknowledger,
    dead_letters: DeadLetters,
    clock: Arc<dyn Clock>,
    delivered: IntCounter,
    dead: IntCounter,
    batches: IntCounterVec,
    stopping: watch::Receiver<bool>,
}

/// See the module.
pub struct DeliveryWorker {
    supplies: WorkerDeps,
    breaker: Breaker,
    limiter: Limiter,
    health: Health,
    ages: Arc<LagTracker>,
}

/// The route is stopping: leave everything to the spool.
struct Stopped;

/// What an outcome leaves to be done.
#[derive(Default)]
struct FollowUp {
    parcels: Vec<InFlightBatch>,
    wait: Option<Duration>,
    /// Whether the wait is the parcel's own: the breaker, which knows nothing of it, will not
    /// do the waiting.
    wait_is_own: bool,
}

impl WorkerDeps {
    pub fn new(route: &Route, options: &Options, stopping: watch::Receiver<bool>) -> WorkerDeps {
        let labels = [route.name.as_str()];
        let dead_dir: &PathBuf = &options.dead_dir;
        let meters = &options.meters;
        for outcome in OUTCOMES {
            // So that a scrape shows zeros before the first batch.
            meters.batches.with_label_values(&[labels[0], outcome]);
        }
        WorkerDeps {
            name: route.name.clone(),
            upstream: Arc::clone(&route.upstream),
            acknowledger: route.reader.acknowledger(),
            dead_letters: DeadLetters::new(dead_dir, &route.name, options.dead_bytes_max),
            clock: Arc::clone(&options.clock),
            delivered: meters.delivered.with_label_values(&labels),
            dead: meters.dead.with_label_values(&labels),
            batches: meters.batches.clone(),
            stopping,
        }
    }
}

/// Runs a route until it is stopped.
pub async fn run(courier: Arc<DeliveryWorker>, reader: Reader, batch: BatchConfig) {
    let concurrency = courier.supplies.upstream.concurrency_max().max(1);
    // A strand is worked off in order. With an order to keep there are as many as there may be
    // batches on their way, each with one; without, there is one strand for all of them.
    let (strands, each) = if courier.supplies.upstream.keeps_portal_order() {
        (concurrency, 1)
    } else {
        (1, concurrency)
    };
    let mut tasks = JoinSet::new();
    let mut inboxes = Vec::new();
    for _ in 0..strands {
        // One message: read-ahead beyond the batch that is being gathered.
        let (outbox, inbox) = mpsc::channel(1);
        let gatherer = Batcher::new(batch.clone(), inbox);
        tasks.spawn(Arc::clone(&courier).run_queue(gatherer, each));
        inboxes.push(outbox);
    }
    // Both only end because of the stop.
    let _ = courier.hand_out(reader, &batch, inboxes).await;
    while tasks.join_next().await.is_some() {}
    courier.supplies.upstream.close().await;
    courier.health.stopped();
}

impl DeliveryWorker {
    pub fn new(supplies: WorkerDeps) -> DeliveryWorker {
        let limiter = Limiter::new(supplies.upstream.concurrency_max());
        let health = Health::new(&supplies.name);
        DeliveryWorker {
            supplies,
            breaker: Breaker::default(),
            limiter,
            health,
            ages: Arc::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.supplies.name
    }

    pub fn lag_seconds(&self) -> u64 {
        let now = self.supplies.clock.unix_ms();
        self.ages.oldest_ms().map_or(0, |came| now.saturating_sub(came) / 1000)
    }

    pub fn status(&self) -> Status {
        let (state, last_error) = self.health.read();
        let count = |outcome| {
            (outcome, self.supplies.batches.with_label_values(&[self.name(), outcome]).get())
        };
        Status {
            name: self.supplies.name.clone(),
            kind: self.supplies.upstream.kind(),
            state,
            trouble_seconds: self.health.trouble_seconds(),
            lag_seconds: self.lag_seconds(),
            last_error,
            outcomes: OUTCOMES.map(count).to_vec(),
        }
    }

    /// Reads the spool and gives each strand its portals' events.
    async fn hand_out(
        &self,
        mut reader: Reader,
        batch: &BatchConfig,
        strands: Vec<mpsc::Sender<Vec<Arrival>>>,
    ) -> Result<(), Stopped> {
        let bytes_max = usize::try_from(batch.bytes_max.as_u64()).unwrap_or(usize::MAX);
        let rest = REST.min(Duration::from_millis(batch.linger_ms) / 2);
        loop {
            let entries = self.unless_stopped(reader.read(batch.events_max, bytes_max)).await?;
            let bytes = entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            let few = entries.len() < batch.events_max / 2 && bytes < bytes_max / 2;
            let mut shares = vec![Vec::new(); strands.len()];
            for Entry { record_id: seat, payload } in entries {
                let (queue, record) = match strands.len() {
                    0 | 1 => (0, payload),
                    // One strand uses up whole blocks of the spool; several would each keep a
                    // little of every block.
                    n => (strand_of(&payload, n), parcel::detached(&payload)),
                };
                shares[queue].push(Arrival { seat, record });
            }
            for (queue, share) in strands.iter().zip(shares) {
                if !share.is_empty() {
                    // It fails when the strand has ended, which it does because of the stop.
                    let sent = self.unless_stopped(queue.send(share)).await?;
                    sent.map_err(|_| Stopped)?;
                }
            }
            if few {
                self.unless_stopped(tokio::time::sleep(rest)).await?;
            }
        }
    }

    /// Works one strand off: batches in order of arrival, `each` of them at once.
    async fn run_queue(self: Arc<Self>, mut gatherer: Batcher, each: usize) {
        let slots = Arc::new(Semaphore::new(each));
        let mut settling = JoinSet::new();
        while let Ok(Some(gathered)) = self.unless_stopped(gatherer.next()).await {
            // The first is the oldest: strands keep the order in which events came. One that
            // cannot be read has no age.
            let first = gathered.arrivals.first();
            let first = first.and_then(|arrival| RawRecord::read(&arrival.record).ok());
            let came_ms = first.map_or(u64::MAX, |record| record.received_at_ms);
            let parcel = InFlightBatch::new(gathered, came_ms, &self.ages);
            let slot = self.unless_stopped(Arc::clone(&slots).acquire_owned()).await;
            let Ok(Ok(slot)) = slot else { break };
            let courier = Arc::clone(&self);
            settling.spawn(async move {
                // Ends early only because of the stop: what is left then, the spool has.
                let _ = courier.settle(parcel).await;
                drop(slot);
            });
            while settling.try_join_next().is_some() {}
        }
        while settling.join_next().await.is_some() {}
    }

    /// Sees a parcel through until each of its events is delivered or a dead letter.
    async fn settle(&self, parcel: InFlightBatch) -> Result<(), Stopped> {
        // Front to back, and what is left of a parcel goes back to the front: in order.
        let mut work = VecDeque::from([parcel]);
        while let Some(parcel) = work.pop_front() {
            let outcome = self.attempt(&parcel).await?;
            let todo = self.conclude(parcel, outcome).await?;
            for parcel in todo.parcels.into_iter().rev() {
                work.push_front(parcel);
            }
            if let Some(wait) = todo.wait
                && (todo.wait_is_own || self.breaker.is_closed())
            {
                self.unless_stopped(tokio::time::sleep(wait)).await?;
            }
        }
        Ok(())
    }

    /// Makes one attempt when there is room for it and the upstream may be bothered.
    async fn attempt(&self, parcel: &InFlightBatch) -> Result<Outcome, Stopped> {
        let permit = self.unless_stopped(self.limiter.acquire()).await?;
        let pass = self.unless_stopped(self.breaker.admit()).await?;
        let upstream = Arc::clone(&self.supplies.upstream);
        let batch = parcel.batch.clone();
        // In a task of its own, so that an upstream that panics fails an attempt and no more.
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
        self.supplies.batches.with_label_values(&labels).inc();
        match gist(&outcome) {
            Feedback::Took => {
                permit.grow();
                pass.succeed();
            }
            Feedback::Pressed(after) => {
                permit.shrink();
                pass.fail(after);
            }
            Feedback::Refused => pass.fail(None),
            Feedback::Silent => {}
        }
        Ok(outcome)
    }

    /// Does what SPEC 7 says about an outcome.
    async fn conclude(&self, parcel: InFlightBatch, outcome: Outcome) -> Result<FollowUp, Stopped> {
        let ends = match outcome {
            Outcome::Mixed(parts) => parcel.part(parts),
            outcome => vec![(parcel, outcome)],
        };
        let mut todo = FollowUp::default();
        for (parcel, outcome) in ends {
            match outcome {
                Outcome::Delivered => self.delivered(&parcel),
                Outcome::Retry(setback) => todo.again(parcel, &setback, self, State::Retrying),
                Outcome::Fault(setback) => todo.again(parcel, &setback, self, State::Misconfigured),
                Outcome::Mixed(_) => {
                    todo.again(parcel, &Failure::new("mixed"), self, State::Retrying);
                }
                Outcome::TooLarge(_) | Outcome::Rejected(_) if parcel.len() > 1 => {
                    todo.parcels.extend(parcel.halve());
                }
                Outcome::TooLarge(s) => self.dead_letter(&parcel, Reason::TooLarge, &s).await?,
                Outcome::Rejected(s) => {
                    let readable = |r: &Bytes| Record::decode_sound(r).is_ok();
                    let readable = parcel.batch.records().iter().all(readable);
                    let reason = if readable { Reason::Rejected } else { Reason::Unreadable };
                    self.dead_letter(&parcel, reason, &s).await?;
                }
                Outcome::Dead(s) => self.dead_letter(&parcel, Reason::Undeliverable, &s).await?,
            }
        }
        Ok(todo)
    }

    fn delivered(&self, parcel: &InFlightBatch) {
        self.supplies.acknowledger.acknowledge(&parcel.seats, Ack::Delivered);
        self.supplies.delivered.inc_by(parcel.len() as u64);
        self.health.ok();
    }

    /// Makes dead letters of events, however long that takes.
    async fn dead_letter(
        &self,
        parcel: &InFlightBatch,
        reason: Reason,
        setback: &Failure,
    ) -> Result<(), Stopped> {
        let now = self.supplies.clock.unix_ms();
        let letter = |r: &Bytes| Letter::new(self.name(), now, reason, setback, r);
        let letters: Arc<[Letter]> = parcel.batch.records().iter().map(letter).collect();
        let mut setbacks = 0;
        loop {
            let (file, letters) = (self.supplies.dead_letters.clone(), Arc::clone(&letters));
            let written = tokio::task::spawn_blocking(move || file.append(&letters)).await;
            let error = match written {
                Ok(Ok(())) => break,
                Ok(Err(e)) => e.to_string(),
                // The runtime shuts down under us.
                Err(_) => return Err(Stopped),
            };
            self.health.failing(State::DeadLettersFailing, &error);
            setbacks += 1;
            self.unless_stopped(tokio::time::sleep(backoff::wait(setbacks, None))).await?;
        }
        self.supplies.acknowledger.acknowledge(&parcel.seats, Ack::Dead);
        self.supplies.dead.inc_by(parcel.len() as u64);
        self.health.ok();
        Ok(())
    }

    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut stopping = self.supplies.stopping.clone();
        tokio::select! {
            biased;
            // An error means that the forwarder is gone, which is as good as a stop.
            _ = stopping.wait_for(|stop| *stop) => Err(Stopped),
            value = future => Ok(value),
        }
    }

    async fn stopped_long_enough(&self) {
        let _ = self.supplies.stopping.clone().wait_for(|stop| *stop).await;
        tokio::time::sleep(Duration::from_millis(STOP_ATTEMPT_MS_MAX)).await;
    }
}

impl FollowUp {
    fn again(
        &mut self,
        mut parcel: InFlightBatch,
        setback: &Failure,
        courier: &DeliveryWorker,
        state: State,
    ) {
        parcel.setbacks = parcel.setbacks.saturating_add(1);
        let wait = backoff::wait(parcel.setbacks, setback.after);
        self.wait = self.wait.max(Some(wait));
        self.wait_is_own |= setback.local;
        self.parcels.push(parcel);
        let down = state == State::Retrying && !courier.breaker.is_closed();
        courier.health.failing(if down { State::Down } else { state }, &setback.what);
    }
}

/// What an attempt says about the upstream itself.
enum Feedback {
    /// Nothing.
    Silent,
    /// It is there and deals with what it gets.
    Took,
    /// It is not there, or has too much to do.
    Pressed(Option<Duration>),
    /// It is there and wants nothing from us.
    Refused,
}

fn gist(outcome: &Outcome) -> Feedback {
    match outcome {
        Outcome::Retry(s) | Outcome::Fault(s) | Outcome::Dead(s) if s.local => Feedback::Silent,
        Outcome::Retry(setback) => Feedback::Pressed(setback.after),
        Outcome::Fault(_) => Feedback::Refused,
        Outcome::Delivered | Outcome::TooLarge(_) | Outcome::Rejected(_) | Outcome::Dead(_) => {
            Feedback::Took
        }
        Outcome::Mixed(parts) => {
            let mut worst = Feedback::Silent;
            for part in parts {
                match (&worst, gist_of_part(&part.outcome)) {
                    (Feedback::Pressed(a), Feedback::Pressed(b)) => {
                        worst = Feedback::Pressed(b.max(*a))
                    }
                    (_, pressed @ Feedback::Pressed(_)) => worst = pressed,
                    (Feedback::Silent | Feedback::Took, refused @ Feedback::Refused) => {
                        worst = refused
                    }
                    (Feedback::Silent, took @ Feedback::Took) => worst = took,
                    _ => {}
                }
            }
            worst
        }
    }
}

fn gist_of_part(outcome: &Outcome) -> Feedback {
    match outcome {
        Outcome::Mixed(_) => Feedback::Pressed(None),
        outcome => gist(outcome),
    }
}

/// The same strand for the same portal, always. The multiplier (2^64 / golden ratio) spreads
/// neighbouring numbers. A record that cannot be read has no order to keep.
fn strand_of(record: &[u8], strands: usize) -> usize {
    let portal = RawRecord::read(record).map_or(0, |record| record.portal);
    let spread = portal.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (spread % strands as u64) as usize
}
