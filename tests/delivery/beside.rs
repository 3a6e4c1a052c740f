//! SPEC 7: what fails, hangs or waits holds back nothing else, and the status says what it is.
//!
//! On tokio's paused time: hours of retries pass in milliseconds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::delivery::{Rig, STOP_WITHIN, sample};
use crate::timed::{Timed, number};
use async_trait::async_trait;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::{Event, Record};
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Upstream};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn answered(status: u16) -> Failure {
    Failure::answered(status)
}

/// Whether a batch holds the event that the upstream never takes: the one of portal 2.
fn is_poison(batch: &Batch) -> bool {
    batch.records().iter().any(|record| Record::decode(record).unwrap().portal == 2)
}

/// Asserts that the state is not `ok` while an event waits and nothing is under way.
fn check_state(rig: &Rig, upstream: &Timed) {
    let (status, counts) = (rig.status("own"), rig.counts("own"));
    if counts.pending > 0 && status.lag_seconds > 0 && upstream.in_flight.load(SeqCst) == 0 {
        // An event of an open batch is under way to its first attempt.
        assert!(status.state.as_str() != "ok" || counts.pending <= 20, "{status:?} {counts:?}");
    }
}

async fn wait_delivered(rig: &Rig, delivered: u64) {
    let wait = async {
        while rig.counts("own").delivered < delivered {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(600 * SECOND, wait).await;
    waited.unwrap_or_else(|_| panic!("{:?} {:?}", rig.counts("own"), rig.status("own")));
}

#[tokio::test(start_paused = true)]
async fn one_event_that_always_fails_stops_no_other_in_slow_traffic() {
    for failure in [Outcome::Retry(answered(500)), Outcome::Fault(answered(404))] {
        let upstream = Timed::new(move |_, batch| {
            let outcome = if is_poison(batch) { failure.clone() } else { Outcome::Delivered };
            (10 * Duration::from_millis(1), outcome)
        });
        let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
        for n in 0..100 {
            rig.accept(1);
            sleep(4 * SECOND).await;
            check_state(&rig, &upstream);
            let late = (n as u64).saturating_sub(rig.counts("own").delivered);
            assert!(late <= 3, "{n}: {:?}", rig.counts("own"));
        }
        wait_delivered(&rig, 99).await;
        assert_eq!((rig.counts("own").pending, rig.counts("own").dead), (1, 0));
        assert_ne!(rig.status("own").state.as_str(), "ok");
        rig.stop().await;
    }
}

/// Without `attempts_max` it waits without end, and nothing else does.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_never_a_dead_letter_holds_back_none_of_its_batch() {
    for in_order in [false, true] {
        let upstream = Timed::with_order(in_order, |_, batch| {
            let failed = Outcome::Retry(answered(500));
            (SECOND / 100, if is_poison(batch) { failed } else { Outcome::Delivered })
        });
        let mut rig = upstream.rig("attempts_max = 0\nbatch = { events_max = 20, linger_ms = 5 }");
        rig.accept(20);
        wait_delivered(&rig, 19).await;
        sleep(3600 * SECOND).await;
        assert_eq!((rig.counts("own").pending, rig.counts("own").dead), (1, 0));
        rig.stop().await;
    }
}

/// Holds without `attempts_max` only: with it such events become dead letters.
#[tokio::test(start_paused = true)]
async fn so_many_failed_events_that_no_more_are_read_are_a_fault() {
    let is_repaired = Arc::new(AtomicBool::new(false));
    let takes_all = Arc::clone(&is_repaired);
    let upstream = Timed::new(move |_, batch| {
        let is_taken = takes_all.load(SeqCst) || !is_poison(batch);
        let failed = Outcome::Retry(answered(500));
        (SECOND / 100, if is_taken { Outcome::Delivered } else { failed })
    });
    let mut rig = upstream.rig("batch = { events_max = 1, linger_ms = 5 }");
    let fault = |rig: &Rig| {
        let mut faults = rig.faults.list().into_iter();
        faults.find(|fault| fault.what.as_str() == "run_ahead_bound")
    };
    let mut events = 0_u64;
    while fault(&rig).is_none() {
        assert!(events < 1_000, "{:?}", rig.status("own"));
        for portal in [1, 2] {
            let mut event = sample(events as usize);
            event.portal = portal;
            event.properties.push(("z".into(), "x".repeat(200_000).into()));
            rig.accept_event(&event);
            events += 1;
        }
        sleep(SECOND).await;
    }
    let text = fault(&rig).unwrap().text;
    assert!(text.contains("own: 64 MiB of them have failed"), "{text}");
    assert_ne!(rig.status("own").state.as_str(), "ok");
    is_repaired.store(true, SeqCst);
    wait_delivered(&rig, events).await;
    rig.until("own", |status| status.state.as_str() == "ok").await;
    assert!(fault(&rig).is_none());
    rig.stop().await;
}

/// With two attempts the batch is halved before it has failed three times.
#[tokio::test(start_paused = true)]
async fn poison_is_shown_however_few_its_attempts_are() {
    let upstream = Timed::new(|_, batch| {
        let failed = Outcome::Retry(answered(500));
        (SECOND / 100, if is_poison(batch) { failed } else { Outcome::Delivered })
    });
    let mut rig = upstream.rig("attempts_max = 2\nbatch = { events_max = 20, linger_ms = 5 }");
    let mut has_been_shown = false;
    for _ in 0..300 {
        rig.accept(10);
        sleep(SECOND / 50).await;
        has_been_shown |= rig.faults.list().iter().any(|fault| fault.what.as_str() == "poison");
    }
    rig.settled("own").await;
    assert_eq!(rig.dead("own").len(), 3);
    assert!(has_been_shown);
    sleep(2 * SECOND).await;
    assert_eq!(rig.faults.list(), []);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn poison_is_shown_while_its_attempts_fail_on_this_side() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let upstream = Timed::new(move |_, batch| {
        let outcome = match is_poison(batch).then(|| counted.fetch_add(1, SeqCst)) {
            None => Outcome::Delivered,
            Some(0..8) => Outcome::Retry(answered(500)),
            Some(_) => Outcome::Retry(answered(500).of_these_events()),
        };
        (SECOND / 100, outcome)
    });
    let mut rig = upstream.rig("batch = { events_max = 1, linger_ms = 5 }");
    let began = Instant::now();
    while attempts.load(SeqCst) < 10 {
        assert!(began.elapsed() < 3600 * SECOND, "{:?}", rig.status("own"));
        rig.accept(1);
        sleep(2 * SECOND).await;
    }
    assert!(rig.faults.list().iter().any(|fault| fault.what.as_str() == "poison"));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_failed_alone_while_others_were_delivered_is_a_dead_letter() {
    let upstream = Timed::new(|_, batch| {
        let failed = Outcome::Retry(answered(500));
        (SECOND / 100, if is_poison(batch) { failed } else { Outcome::Delivered })
    });
    // Four attempts take 1.75 s, and other events are delivered each second.
    let mut rig =
        upstream.rig("waits = 1.0\nattempts_max = 4\nbatch = { events_max = 20, linger_ms = 5 }");
    let mut has_been_shown = false;
    for _ in 0..300 {
        rig.accept(10);
        sleep(SECOND).await;
        has_been_shown |= rig.faults.list().iter().any(|fault| fault.what.as_str() == "poison");
    }
    rig.settled("own").await;
    let dead = rig.dead("own");
    // Portals repeat after a thousand events: three of three thousand are poison.
    assert_eq!(dead.len(), 3);
    assert!(dead.iter().all(|letter| letter.reason == Reason::Undeliverable));
    let is_said = dead[0].detail.starts_with("answered 500; 4 attempts failed");
    assert!(is_said, "{:?}", dead[0]);
    assert!(has_been_shown);
    sleep(2 * SECOND).await;
    assert_eq!(rig.faults.list(), []);
    assert_eq!(rig.status("own").state.as_str(), "ok");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_nothing_is_probed_one_by_one_and_loses_nothing() {
    let works = Arc::new(AtomicBool::new(false));
    let judge = Arc::clone(&works);
    let upstream = Timed::new(move |_, _| match judge.load(SeqCst) {
        true => (SECOND / 100, Outcome::Delivered),
        false => (SECOND / 100, Outcome::Retry(answered(503))),
    });
    let mut rig = upstream.rig("attempts_max = 2\nbatch = { events_max = 20, linger_ms = 5 }");
    rig.accept(400);
    sleep(600 * SECOND).await;
    upstream.in_flight_max.store(0, SeqCst);
    let before = upstream.begun.lock().unwrap().len();
    sleep(3600 * SECOND).await;
    let probes = upstream.begun.lock().unwrap().len() - before;
    assert_eq!(upstream.in_flight_max.load(SeqCst), 1);
    assert!((20..=400).contains(&probes), "{probes} probes in an hour");
    assert_eq!((rig.counts("own").delivered, rig.counts("own").dead), (0, 0));
    assert_eq!(rig.status("own").state.as_str(), "down");
    assert!(rig.faults.list().iter().any(|fault| fault.what.as_str() == "upstream_stuck"));
    works.store(true, SeqCst);
    wait_delivered(&rig, 400).await;
    sleep(2 * SECOND).await;
    assert_eq!(rig.faults.list(), []);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_halved_and_its_event_waits_for_a_new_configuration() {
    let upstream = Timed::new(|_, batch| {
        let failed = Outcome::Fault(answered(404));
        (SECOND / 100, if is_poison(batch) { failed } else { Outcome::Delivered })
    });
    let mut rig = upstream.rig("attempts_max = 2\nbatch = { events_max = 20, linger_ms = 5 }");
    rig.accept(10);
    for _ in 0..20 {
        rig.accept(10);
        sleep(30 * SECOND).await;
    }
    wait_delivered(&rig, 209).await;
    assert_eq!((rig.counts("own").pending, rig.counts("own").dead), (1, 0));
    assert_eq!(rig.status("own").state.as_str(), "misconfigured");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_is_asked_for_is_kept_whatever_else_is_under_way() {
    // The twentieth attempt is asked to wait while those beside it take longer and succeed.
    let upstream = Timed::new(|attempt, _| match attempt {
        20 => {
            let after = Some(30 * SECOND);
            (SECOND / 10, Outcome::Retry(Failure { after, ..answered(429) }))
        }
        _ => (SECOND, Outcome::Delivered),
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    rig.accept(2000);
    rig.settled("own").await;
    let begun = upstream.begun.lock().unwrap().clone();
    assert_eq!(upstream.in_flight_max.load(SeqCst), 4);
    let asked = begun[20] + SECOND / 10;
    let early = begun.iter().filter(|at| **at > asked && **at < asked + 30 * SECOND).count();
    assert_eq!(early, 0, "attempts before the pause was over");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_keeps_an_order_stops_no_other_queue() {
    let upstream = Timed::with_order(true, |_, batch| {
        let failed = Outcome::Retry(answered(500));
        (SECOND / 100, if is_poison(batch) { failed } else { Outcome::Delivered })
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    rig.accept(5000);
    // One of four queues waits for its poison; the portals of the others all get through.
    wait_delivered(&rig, 3500).await;
    rig.stop().await;
}

/// Takes, in each portal's order, what is not poison, and notes what it has taken.
fn in_order_without(
    is_poison: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> (Arc<Timed>, Arc<Mutex<Vec<usize>>>) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&taken);
    let upstream = Timed::with_order(true, move |_, batch| {
        let numbers: Vec<usize> = batch.records().iter().map(|record| number(record)).collect();
        if numbers.iter().any(|n| is_poison(*n)) {
            return (SECOND / 100, Outcome::Retry(answered(500)));
        }
        notes.lock().unwrap().extend(numbers);
        (SECOND / 100, Outcome::Delivered)
    });
    (upstream, taken)
}

#[tokio::test(start_paused = true)]
async fn poison_at_the_front_of_every_queue_that_keeps_an_order_ends() {
    // The first events of all four queues are among these.
    const POISON: usize = 20;
    let (upstream, taken) = in_order_without(|n| n < POISON);
    let mut rig = upstream.rig("attempts_max = 3\nbatch = { events_max = 20, linger_ms = 5 }");
    rig.accept(2500);
    let settled = async {
        while rig.counts("own").pending > 0 {
            sleep(SECOND).await;
        }
    };
    let settled = tokio::time::timeout(3 * 3600 * SECOND, settled).await;
    settled.unwrap_or_else(|_| panic!("{:?} {:?}", rig.counts("own"), rig.status("own")));
    assert_eq!((rig.counts("own").delivered, rig.counts("own").dead), (2480, 20));
    assert!(rig.dead("own").iter().all(|letter| letter.reason == Reason::Undeliverable));
    // Portals repeat after a thousand events.
    let taken = taken.lock().unwrap().clone();
    let place = |n: usize| taken.iter().position(|taken| *taken == n).unwrap();
    assert!((POISON..1500).all(|n| place(n) < place(n + 1000)), "a portal's order is not kept");
    rig.stop().await;
}

/// The first events of twelve portals are poison, several in each queue; five send good ones.
#[tokio::test(start_paused = true)]
async fn poison_of_many_portals_stops_no_portal_beside_them() {
    const POISON: u64 = 12;
    for attempts_max in [2, 6] {
        let (upstream, taken) = in_order_without(|n| n < POISON as usize);
        let config = format!("attempts_max = {attempts_max}\nbatch = {{ linger_ms = 50 }}");
        let mut rig = upstream.rig(&config);
        let mut portals: Vec<u64> = (0..6 * POISON).map(|n| 1 + n % POISON).collect();
        portals.extend((0..150).map(|n| 1 + POISON + n % 5));
        for (n, portal) in portals.iter().enumerate() {
            let event = crate::delivery::sample(n);
            rig.accept_event(&Event { portal: *portal, ..event });
            sleep(SECOND / 5).await;
        }
        sleep(120 * SECOND).await;
        let counts = rig.counts("own");
        assert!(counts.delivered > 0, "{counts:?}");
        wait_delivered(&rig, portals.len() as u64 - POISON).await;
        rig.settled("own").await;
        assert_eq!(rig.counts("own").dead, POISON);
        let taken = taken.lock().unwrap().clone();
        for portal in 1..=POISON + 5 {
            let of_portal = taken.iter().filter(|n| portals[**n] == portal);
            assert!(of_portal.is_sorted(), "the order of portal {portal} is not kept");
        }
        rig.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_portal_that_waits_for_its_poison_lets_others_pass_however_much_it_sends() {
    let (upstream, taken) = in_order_without(|n| n == 0);
    let mut rig = upstream.rig("attempts_max = 3\nbatch = { events_max = 20, linger_ms = 5 }");
    // Nothing is delivered before the first event of portal 7 is stuck, and then portals of its own
    // queue alone.
    let queue_of = |portal: u64| (portal.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % 4;
    let others = (8..).filter(|portal| queue_of(*portal) == queue_of(7)).take(10);
    for (at, portal) in [7; 400].into_iter().chain(others).enumerate() {
        if at == 400 {
            sleep(3600 * SECOND).await;
        }
        let event = crate::delivery::sample(rig.accepted_count());
        rig.accept_event(&Event { portal, ..event });
    }
    wait_delivered(&rig, 409).await;
    assert_eq!(rig.dead("own").len(), 1);
    let taken = taken.lock().unwrap().clone();
    assert!(taken.iter().filter(|n| **n < 400).is_sorted(), "the portal's order is not kept");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_event_where_an_order_is_kept() {
    let works = Arc::new(AtomicBool::new(false));
    let judge = Arc::clone(&works);
    let upstream = Timed::with_order(true, move |_, _| match judge.load(SeqCst) {
        true => (SECOND / 100, Outcome::Delivered),
        false => (SECOND / 100, Outcome::Retry(answered(503))),
    });
    let mut rig = upstream.rig("attempts_max = 2\nbatch = { events_max = 20, linger_ms = 5 }");
    rig.accept(400);
    sleep(3600 * SECOND).await;
    upstream.in_flight_max.store(0, SeqCst);
    let before = upstream.begun.lock().unwrap().len();
    sleep(5 * 3600 * SECOND).await;
    let probes = upstream.begun.lock().unwrap().len() - before;
    assert_eq!(upstream.in_flight_max.load(SeqCst), 1);
    assert!((400..=900).contains(&probes), "{probes} probes in five hours");
    works.store(true, SeqCst);
    wait_delivered(&rig, 400).await;
    assert_eq!(rig.counts("own").dead, 0);
    rig.stop().await;
}

/// Takes batches of any content and counts their events.
#[derive(Default)]
struct Counting {
    sizes: Mutex<Vec<usize>>,
}

#[async_trait]
impl Upstream for Counting {
    fn kind(&self) -> &'static str {
        "counting"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        self.sizes.lock().unwrap().push(batch.records().len());
        Outcome::Delivered
    }
}

#[tokio::test]
async fn limits_that_are_large_together_still_make_requests() {
    let upstream = Arc::new(Counting::default());
    let own = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let config = "batch = { events_max = 100000, linger_ms = 600000, bytes_max = \"64MiB\" }";
    let rig = Rig::start_with(vec![("own", own)], config);
    for _ in 0..150_000 {
        drop(rig.spool.append(|out| out.push(1)).unwrap());
    }
    rig.until_counts("own", |counts| counts.delivered == 100_000).await;
    assert_eq!(*upstream.sizes.lock().unwrap(), [100_000]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_lag_counts_an_event_that_is_in_no_batch_yet() {
    let upstream = Timed::new(|_, _| (SECOND, Outcome::Delivered));
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 600000 }");
    rig.accept(1);
    sleep(2 * SECOND).await;
    assert!(upstream.begun.lock().unwrap().is_empty());
    assert!(rig.status("own").lag_seconds > 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_lock_that_is_held_delays_its_dead_letter_and_no_delivery_and_no_stop() {
    let upstream = Timed::new(|_, batch| {
        let refused = Outcome::Rejected(answered(400));
        (Duration::ZERO, if is_poison(batch) { refused } else { Outcome::Delivered })
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    std::fs::create_dir_all(rig.dead_dir()).unwrap();
    let lock = std::fs::File::create(rig.dead_dir().join("own.lock")).unwrap();
    lock.lock().unwrap();
    rig.accept(900);
    wait_delivered(&rig, 899).await;
    rig.until("own", |status| {
        let why = status.last_error.as_deref().unwrap_or_default();
        status.state.as_str() == "dead_letters_failing" && !why.contains("400")
    })
    .await;
    let is_fault = || rig.faults.list().iter().any(|f| f.what.as_str() == "dead_letters");
    rig.until("own", |_| is_fault()).await;
    let dir = tokio::time::timeout(60 * SECOND, rig.stop()).await.expect("the stop ends");
    drop(lock);

    // Its event was not acknowledged: it is refused again after the next start.
    let own = Arc::clone(&upstream) as Arc<dyn Upstream>;
    let rig = Rig::start_in(dir, "batch = { linger_ms = 5 }", vec![("own", own)]);
    rig.until_counts("own", |counts| counts.dead == 1 && counts.pending == 0).await;
    rig.stop().await;
    assert!(STOP_WITHIN >= SECOND);
}

/// Nearly every full batch holds such an event, so that the upstream seems to take nothing.
#[tokio::test(start_paused = true)]
async fn many_events_that_always_fail_do_not_make_the_upstream_look_down_for_long() {
    for every in [100, 10] {
        let upstream = Timed::new(move |_, batch| {
            let portals = batch.records().iter().map(|r| Record::decode(r).unwrap().portal);
            let failed = Outcome::Retry(answered(500));
            let is_taken = portals.into_iter().all(|portal| portal % every != 1);
            (SECOND / 100, if is_taken { Outcome::Delivered } else { failed })
        });
        let mut rig = upstream.rig("attempts_max = 12\nbatch = { linger_ms = 1000 }");
        let began = Instant::now();
        rig.accept(5_000);
        let good = 5_000 - 5_000 / every;
        while rig.counts("own").delivered < good {
            assert!(began.elapsed() < 7_200 * SECOND, "{every}: {:?}", rig.counts("own"));
            sleep(10 * SECOND).await;
        }
        rig.stop().await;
    }
}
