//! What delivery does after each outcome, with upstreams that the tests define themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::delivery::{Rig, STOP_WITHIN};
use async_trait::async_trait;
use pixelgate::internals::delivery::CUT_OFF_MS_MAX;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::Record;
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Part, Upstream};
use prometheus::IntCounterVec;
use serde_json::Value;
use tokio::sync::Notify;

const BATCHES: &str = "batch = { events_max = 20, linger_ms = 5 }";
/// A batch waits until it is full, so that a test knows which events are in it.
const FULL_BATCHES: &str = "batch = { events_max = 20, linger_ms = 600000 }";

type Judge = Box<dyn Fn(usize, &Batch) -> Outcome + Send + Sync>;

/// Ends each attempt as `judge` says. Keeps the events that it accepted, and how many batches were
/// in flight at once.
struct Scripted {
    judge: Judge,
    attempts: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    concurrency_max: usize,
    took: Mutex<Vec<Value>>,
}

impl Scripted {
    fn new(judge: impl Fn(usize, &Batch) -> Outcome + Send + Sync + 'static) -> Arc<Scripted> {
        Arc::new(Scripted {
            judge: Box::new(judge),
            attempts: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            concurrency_max: 4,
            took: Mutex::default(),
        })
    }

    fn took(&self) -> Vec<Value> {
        self.took.lock().unwrap().clone()
    }

    fn take(&self, batch: &Batch, place: usize) {
        let mut json = Vec::new();
        Record::decode(&batch.records()[place]).unwrap().write_json(&mut json, false);
        self.took.lock().unwrap().push(serde_json::from_slice(&json).unwrap());
    }
}

#[async_trait]
impl Upstream for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.in_flight_max.fetch_max(in_flight, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let outcome = (self.judge)(self.attempts.fetch_add(1, Ordering::SeqCst), batch);
        let all: Vec<usize> = (0..batch.records().len()).collect();
        let parts = match &outcome {
            Outcome::Mixed(parts) => parts.clone(),
            other => vec![Part { places: all, outcome: other.clone() }],
        };
        let mut taken = BTreeSet::new();
        for part in parts.iter().filter(|p| p.outcome == Outcome::Delivered) {
            for &place in &part.places {
                if place < batch.records().len() && taken.insert(place) {
                    self.take(batch, place);
                }
            }
        }
        outcome
    }

    fn concurrency_max(&self) -> usize {
        self.concurrency_max
    }
}

fn failure() -> Failure {
    Failure::new("as scripted")
}

async fn run(upstream: &Arc<Scripted>, count: usize) -> Rig {
    run_with(upstream, count, BATCHES).await
}

async fn run_with(upstream: &Arc<Scripted>, count: usize, config: &str) -> Rig {
    let own: Arc<dyn Upstream> = Arc::clone(upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], config);
    rig.accept(count);
    rig.settled("own").await;
    rig
}

#[tokio::test]
async fn the_batches_in_flight_never_exceed_the_bound() {
    let upstream = Scripted::new(|_, _| Outcome::Delivered);
    let rig = run(&upstream, 5000).await;
    let in_flight_max = upstream.in_flight_max.load(Ordering::SeqCst);
    assert_eq!(in_flight_max, 4, "the limit grows up to the bound");
    assert_eq!(rig.check("own", &upstream.took()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn an_upstream_that_panics_fails_one_attempt_and_not_the_worker() {
    let upstream = Scripted::new(|n, _| {
        assert!(n % 5 != 0, "as scripted");
        Outcome::Delivered
    });
    let rig = run(&upstream, 300).await;
    assert_eq!(rig.check("own", &upstream.took()), 0);
    assert_eq!(rig.status("own").last_error.as_deref(), Some("the upstream panicked"));
    rig.stop().await;
}

#[tokio::test]
async fn events_of_one_batch_may_end_differently() {
    let upstream = Scripted::new(|attempt, batch| {
        let mut ends: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, record) in batch.records().iter().enumerate() {
            let n = Record::decode(record).unwrap().portal as usize;
            ends.entry(if batch.records().len() == 1 { 0 } else { n % 4 }).or_default().push(place);
        }
        let outcome = |n| match n {
            0 => Outcome::Delivered,
            1 if attempt == 0 => Outcome::Retry(failure()),
            1 => Outcome::Delivered,
            2 => Outcome::Dead(failure()),
            _ => Outcome::Rejected(failure()),
        };
        let part = |(n, places)| Part { places, outcome: outcome(n) };
        Outcome::Mixed(ends.into_iter().map(part).collect())
    });
    let rig = run_with(&upstream, 20, FULL_BATCHES).await;
    assert_eq!(rig.check("own", &upstream.took()), 0);
    let dead = rig.dead("own");
    assert_eq!(dead.len(), 5);
    assert!(dead.iter().all(|l| l.reason == Reason::Undeliverable && l.detail == "as scripted"));
    rig.stop().await;
}

#[tokio::test]
async fn nonsense_in_parts_loses_nothing() {
    let upstream = Scripted::new(|n, batch| {
        if n % 2 == 1 {
            return Outcome::Delivered;
        }
        let part = |places, outcome| Part { places, outcome };
        Outcome::Mixed(vec![
            part(vec![0, 0, 99, usize::MAX], Outcome::Delivered),
            part((1..batch.records().len() / 2).collect(), Outcome::Mixed(vec![])),
        ])
    });
    let rig = run(&upstream, 100).await;
    assert_eq!(rig.check("own", &upstream.took()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_batch_that_always_fails_does_not_delay_the_others() {
    // A backend that answers 500 to every batch with one certain event.
    let poisonous =
        |batch: &Batch| batch.records().iter().any(|r| Record::decode(r).unwrap().portal == 42);
    let upstream = Scripted::new(move |_, batch| {
        if poisonous(batch) { Outcome::Retry(failure()) } else { Outcome::Delivered }
    });
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(900);
    let rest = async {
        while rig.counts("own").delivered < 880 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(crate::delivery::HANGS_AFTER, rest).await.expect("the others get through");
    assert_eq!(rig.counts("own").dead, 0);
    rig.stop().await;
}

#[tokio::test]
async fn attempts_and_events_are_counted() {
    let upstream = Scripted::new(|n, _| match n {
        0 => Outcome::Retry(failure()),
        1 => Outcome::Fault(failure()),
        2 => Outcome::TooLarge(failure()),
        _ => Outcome::Delivered,
    });
    let rig = run(&upstream, 10).await;
    let outcomes: BTreeMap<_, _> = rig.status("own").outcomes.into_iter().collect();
    assert_eq!((outcomes["retry"], outcomes["fault"], outcomes["too_large"]), (1, 1, 1));
    assert!(outcomes["delivered"] >= 2);
    let counted = |counter: &IntCounterVec| counter.with_label_values(&["own"]).get();
    assert_eq!((counted(&rig.meters.delivered), counted(&rig.meters.dead)), (10, 0));
    let status = rig.status("own");
    assert_eq!((status.kind, status.state.as_str(), status.lag_seconds), ("scripted", "ok", 0));
    rig.stop().await;
}

#[tokio::test]
async fn the_lag_is_the_age_of_the_oldest_event_that_waits() {
    let upstream = Scripted::new(|_, _| Outcome::Retry(failure()));
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(10);
    rig.until("own", |s| s.state.as_str() == "retrying" || s.state.as_str() == "down").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs().saturating_sub(crate::delivery::RECEIVED_AT_MS / 1000);
    let lag_seconds = rig.status("own").lag_seconds;
    assert!(lag_seconds.abs_diff(age) <= 60, "{lag_seconds} is not {age}");
    let gauge = rig.meters.lag_seconds.with_label_values(&["own"]).get();
    assert_eq!(u64::try_from(gauge).unwrap(), lag_seconds);
    rig.stop().await;
}

/// Notifies `begun` when a batch arrives, and answers after `answer` is notified.
#[derive(Default)]
struct Late {
    begun: Notify,
    answer: Notify,
}

#[async_trait]
impl Upstream for Late {
    fn kind(&self) -> &'static str {
        "late"
    }

    async fn send(&self, _: &Batch) -> Outcome {
        self.begun.notify_one();
        self.answer.notified().await;
        Outcome::Delivered
    }
}

/// An answer comes this long after the stop: how many events count as delivered?
async fn delivered_when_answered_after(wait: Duration) -> u64 {
    let late = Arc::new(Late::default());
    let own: Arc<dyn Upstream> = Arc::clone(&late) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(1);
    late.begun.notified().await;
    let forwarder = rig.forwarder.take().unwrap();
    let answer = async {
        tokio::time::sleep(wait).await;
        late.answer.notify_one();
    };
    tokio::join!(forwarder.stop(STOP_WITHIN), answer);
    let counts = rig.counts("own");
    assert_eq!(counts.delivered + counts.pending, 1);
    rig.spool.close(Duration::from_secs(10)).unwrap();
    counts.delivered
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_a_bounded_time_for_the_answer_to_an_attempt() {
    assert_eq!(delivered_when_answered_after(STOP_WITHIN / 2).await, 1);
    let cut_off = Duration::from_millis(CUT_OFF_MS_MAX);
    assert_eq!(delivered_when_answered_after(STOP_WITHIN + 2 * cut_off).await, 0);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_next_attempt() {
    let later = Failure { after: Some(Duration::from_secs(3000)), ..failure() };
    let upstream = Scripted::new(move |_, _| Outcome::Fault(later.clone()));
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(10);
    rig.until("own", |s| s.state.as_str() == "misconfigured").await;
    let stop = tokio::time::timeout(crate::delivery::HANGS_AFTER, rig.stop());
    stop.await.expect("the stop does not wait for the next attempt");
}
