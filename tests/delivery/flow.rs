//! What forwarding does with outcomes, whoever they come from: upstreams of a test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::delivery::Rig;
use async_trait::async_trait;
use pixelgate::internals::delivery::STOP_ATTEMPT_MS_MAX;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::Record;
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Part, Upstream};
use prometheus::IntCounterVec;
use serde_json::Value;
use tokio::sync::Notify;

const BATCHES: &str = "batch = { events_max = 20, linger_ms = 5 }";
/// For who needs to know what is in a batch: it waits until it is full.
const FULL_BATCHES: &str = "batch = { events_max = 20, linger_ms = 600000 }";

type Judge = Box<dyn Fn(usize, &Batch) -> Outcome + Send + Sync>;

/// Does as it is told, and remembers what it took and how many batches it had at once.
struct Obedient {
    judge: Judge,
    attempts: AtomicUsize,
    here: AtomicUsize,
    here_max: AtomicUsize,
    concurrency_max: usize,
    took: Mutex<Vec<Value>>,
}

impl Obedient {
    fn new(judge: impl Fn(usize, &Batch) -> Outcome + Send + Sync + 'static) -> Arc<Obedient> {
        Arc::new(Obedient {
            judge: Box::new(judge),
            attempts: AtomicUsize::new(0),
            here: AtomicUsize::new(0),
            here_max: AtomicUsize::new(0),
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
impl Upstream for Obedient {
    fn kind(&self) -> &'static str {
        "obedient"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let here = self.here.fetch_add(1, Ordering::SeqCst) + 1;
        self.here_max.fetch_max(here, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.here.fetch_sub(1, Ordering::SeqCst);
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

fn setback() -> Failure {
    Failure::new("as told")
}

async fn run(upstream: &Arc<Obedient>, count: usize) -> Rig {
    run_with(upstream, count, BATCHES).await
}

async fn run_with(upstream: &Arc<Obedient>, count: usize, config: &str) -> Rig {
    let own: Arc<dyn Upstream> = Arc::clone(upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], config);
    rig.accept(count).await;
    rig.settled("own").await;
    rig
}

#[tokio::test]
async fn never_more_batches_are_on_their_way_than_allowed() {
    let upstream = Obedient::new(|_, _| Outcome::Delivered);
    let rig = run(&upstream, 5000).await;
    let here_max = upstream.here_max.load(Ordering::SeqCst);
    assert_eq!(here_max, 4, "it grows to what is allowed and not beyond");
    assert_eq!(rig.check("own", &upstream.took()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn an_upstream_that_panics_fails_an_attempt_and_no_more() {
    let upstream = Obedient::new(|n, _| {
        assert!(n % 5 != 0, "as told");
        Outcome::Delivered
    });
    let rig = run(&upstream, 300).await;
    assert_eq!(rig.check("own", &upstream.took()), 0);
    assert_eq!(rig.status("own").last_error.as_deref(), Some("the upstream panicked"));
    rig.stop().await;
}

#[tokio::test]
async fn events_of_one_batch_may_end_differently() {
    let upstream = Obedient::new(|attempt, batch| {
        let mut ends: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, record) in batch.records().iter().enumerate() {
            let n = Record::decode(record).unwrap().portal as usize;
            ends.entry(if batch.records().len() == 1 { 0 } else { n % 4 }).or_default().push(place);
        }
        let outcome = |n| match n {
            0 => Outcome::Delivered,
            1 if attempt == 0 => Outcome::Retry(setback()),
            1 => Outcome::Delivered,
            2 => Outcome::Dead(setback()),
            _ => Outcome::Rejected(setback()),
        };
        let part = |(n, places)| Part { places, outcome: outcome(n) };
        Outcome::Mixed(ends.into_iter().map(part).collect())
    });
    let rig = run_with(&upstream, 20, FULL_BATCHES).await;
    assert_eq!(rig.check("own", &upstream.took()), 0);
    let dead = rig.dead("own");
    assert_eq!(dead.len(), 5);
    assert!(dead.iter().all(|l| l.reason == Reason::Undeliverable && l.detail == "as told"));
    rig.stop().await;
}

#[tokio::test]
async fn nonsense_in_parts_loses_nothing() {
    let upstream = Obedient::new(|n, batch| {
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
async fn a_batch_that_fails_by_itself_does_not_stop_the_others() {
    // What a backend does that chokes on one event: always 500 where it is in.
    let poisonous =
        |batch: &Batch| batch.records().iter().any(|r| Record::decode(r).unwrap().portal == 42);
    let upstream = Obedient::new(move |_, batch| {
        if poisonous(batch) { Outcome::Retry(setback()) } else { Outcome::Delivered }
    });
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(900).await;
    let rest = async {
        while rig.counts("own").delivered < 880 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rest).await.expect("the others get through");
    assert_eq!(rig.counts("own").dead, 0);
    rig.stop().await;
}

#[tokio::test]
async fn what_happens_is_counted() {
    let upstream = Obedient::new(|n, _| match n {
        0 => Outcome::Retry(setback()),
        1 => Outcome::Fault(setback()),
        2 => Outcome::TooLarge(setback()),
        _ => Outcome::Delivered,
    });
    let rig = run(&upstream, 10).await;
    let outcomes: BTreeMap<_, _> = rig.status("own").outcomes.into_iter().collect();
    assert_eq!((outcomes["retry"], outcomes["fault"], outcomes["too_large"]), (1, 1, 1));
    assert!(outcomes["delivered"] >= 2);
    let counted = |counter: &IntCounterVec| counter.with_label_values(&["own"]).get();
    assert_eq!((counted(&rig.meters.delivered), counted(&rig.meters.dead)), (10, 0));
    let status = rig.status("own");
    assert_eq!((status.kind, status.state.as_str(), status.lag_seconds), ("obedient", "ok", 0));
    rig.stop().await;
}

#[tokio::test]
async fn the_lag_is_the_age_of_the_oldest_event_that_waits() {
    let upstream = Obedient::new(|_, _| Outcome::Retry(setback()));
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(10).await;
    rig.until("own", |s| s.state.as_str() == "retrying" || s.state.as_str() == "down").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs().saturating_sub(crate::delivery::RECEIVED_AT_MS / 1000);
    let lag_seconds = rig.status("own").lag_seconds;
    assert!(lag_seconds.abs_diff(age) <= 60, "{lag_seconds} is not {age}");
    let gauge = rig.meters.lag_seconds.with_label_values(&["own"]).get();
    assert_eq!(u64::try_from(gauge).unwrap(), lag_seconds);
    rig.stop().await;
}

/// Says when it has a batch, and answers when it is told to.
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
async fn delivered_when_answered_after(wait_ms: u64) -> u64 {
    let late = Arc::new(Late::default());
    let own: Arc<dyn Upstream> = Arc::clone(&late) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(1).await;
    late.begun.notified().await;
    let forwarder = rig.forwarder.take().unwrap();
    let answer = async {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        late.answer.notify_one();
    };
    tokio::join!(forwarder.stop(), answer);
    let counts = rig.counts("own");
    assert_eq!(counts.delivered + counts.pending, 1);
    rig.spool.close(Duration::from_secs(10)).unwrap();
    counts.delivered
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_a_little_for_the_answer_to_what_was_sent() {
    assert_eq!(delivered_when_answered_after(STOP_ATTEMPT_MS_MAX / 2).await, 1);
    assert_eq!(delivered_when_answered_after(STOP_ATTEMPT_MS_MAX * 2).await, 0);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_next_attempt() {
    let later = Failure { after: Some(Duration::from_secs(3000)), ..setback() };
    let upstream = Obedient::new(move |_, _| Outcome::Fault(later.clone()));
    let own: Arc<dyn Upstream> = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let mut rig = Rig::start_with(vec![("own", own)], BATCHES);
    rig.accept(10).await;
    rig.until("own", |s| s.state.as_str() == "misconfigured").await;
    let stop = tokio::time::timeout(Duration::from_secs(60), rig.stop());
    stop.await.expect("it does not wait for an hour");
}
