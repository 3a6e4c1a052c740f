//! The `legacy` upstream: events replayed one by one, and what becomes of money when an answer
//! gets lost.

use std::collections::BTreeSet;

use std::sync::Arc;

use crate::backend::{Act, Backend, Request};
use crate::delivery::Rig;
use bytes::Bytes;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::{Context, Event, Revenue, Rules, encode_record, parse};
use pixelgate::internals::upstream::{self, Batch, Outcome, Part, Upstream};

fn upstream(backend: &Backend, rest: &str) -> String {
    let url = backend.url("/v1/event/");
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'old'\nkind = 'legacy'\nurl = '{url}'\n{rest}\n"
    )
}

/// The `n` of a sample event, from the request that it came as.
fn n_of(request: &Request) -> usize {
    let (_, query) = request.target.split_once("&n=").expect(&request.target);
    query.parse().expect(query)
}

fn ns(requests: &[Request]) -> BTreeSet<usize> {
    requests.iter().map(n_of).collect()
}

fn has_revenue(request: &Request) -> bool {
    request.target.contains("&_m=")
}

#[tokio::test]
async fn each_event_arrives_once_as_the_request_that_it_was() {
    let backend = Backend::playing([]).await;
    let mut rig = Rig::start(&upstream(&backend, ""));
    rig.accept(200);
    rig.settled("old").await;
    let taken = backend.taken();
    assert_eq!((taken.len(), ns(&taken).len()), (200, 200));
    let rules = Rules::default();
    for request in &taken {
        let query = request.target.strip_prefix("/v1/event/?").unwrap();
        let judged = parse(query.as_bytes(), &rules).unwrap();
        assert!(judged.event == crate::delivery::sample(n_of(request)), "{query}");
        let context: Context<'_> = crate::delivery::context();
        assert_eq!(request.method, "GET");
        assert_eq!(request.header("user-agent"), context.user_agent.as_deref().unwrap());
        assert_eq!(request.header("referer"), context.referer.as_deref().unwrap());
        assert_eq!(request.header("x-forwarded-for"), "203.0.113.7");
    }
    assert!(
        backend.connections() <= 16,
        "too many connections are open: {}",
        backend.connections()
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_backend_that_says_it_did_not_count_gets_everything_again() {
    for status in [500, 503, 429, 404, 302] {
        let mut n = 0;
        let backend = Backend::start(move |_| {
            n += 1;
            if n % 40 == 3 { Act::Refuse(status) } else { Act::Take }
        })
        .await;
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(100);
        rig.settled("old").await;
        let taken = backend.taken();
        assert_eq!((taken.len(), ns(&taken).len()), (100, 100), "{status}");
        assert_eq!(rig.counts("old").dead, 0);
        rig.stop().await;
    }
}

#[tokio::test]
async fn revenue_that_may_have_counted_is_never_sent_twice_by_default() {
    let lost = [Act::ResetAfterBody, Act::HalfHead, Act::TakeWith(502), Act::TakeWith(504)];
    for act in lost {
        let mut n = 0;
        let backend = Backend::start(move |_| {
            n += 1;
            if n % 25 == 0 { act.clone() } else { Act::Take }
        })
        .await;
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(100);
        rig.settled("old").await;
        let taken = backend.taken();
        assert_eq!(ns(&taken).len(), 100);
        let money: Vec<_> = taken.iter().filter(|r| has_revenue(r)).map(n_of).collect();
        let distinct: BTreeSet<_> = money.iter().collect();
        assert_eq!(distinct.len(), money.len(), "counted twice");
        for letter in rig.dead("old") {
            assert_eq!(letter.reason, Reason::Undeliverable);
            assert!(letter.detail.contains("may have counted"), "{}", letter.detail);
            assert!(letter.event.unwrap().get().contains("\"revenue\""));
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn revenue_that_may_have_counted_becomes_one_dead_letter_an_event() {
    let backend = Backend::playing([Act::ResetAfterBody]).await;
    let mut rig = Rig::start(&upstream(&backend, "concurrency_max = 1"));
    let mut event: Event<'static> = crate::delivery::sample(1);
    event.revenue = Revenue::parse("99.9");
    rig.accept_event(&event);
    rig.settled("old").await;
    let counts = rig.counts("old");
    assert_eq!((counts.dead, counts.delivered, backend.seen().len()), (1, 0, 1));
    rig.stop().await;
}

#[tokio::test]
async fn on_unknown_retry_sends_revenue_again() {
    let backend = Backend::playing(vec![Act::ResetAfterBody; 2]).await;
    let mut rig = Rig::start(&upstream(&backend, "on_unknown = 'retry'"));
    rig.accept(20);
    rig.settled("old").await;
    let taken = backend.taken();
    assert_eq!(ns(&taken).len(), 20);
    assert!(taken.len() > 20);
    assert_eq!(rig.counts("old").dead, 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_connection_kills_no_event() {
    let backend = Backend::playing([]).await;
    let config = upstream(&backend, "");
    drop(backend);
    let mut rig = Rig::start(&config);
    rig.accept(20);
    rig.until("old", |s| s.state.as_str() == "down").await;
    let counts = rig.counts("old");
    assert_eq!((counts.dead, counts.delivered), (0, 0));
    rig.stop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_dies_alone_and_is_asked_about_once() {
    let backend = Backend::start(|request| match n_of(request) {
        7 => Act::Refuse(400),
        21 => Act::Refuse(422),
        33 => Act::Refuse(414),
        34 => Act::Refuse(413),
        _ => Act::Take,
    })
    .await;
    let mut rig = Rig::start(&upstream(&backend, ""));
    rig.accept(100);
    rig.settled("old").await;
    assert_eq!(backend.seen().len(), 100);
    assert_eq!(rig.counts("old").dead, 4);
    let mut reasons: Vec<_> =
        rig.dead("old").iter().map(|l| (l.status.unwrap(), l.reason)).collect();
    reasons.sort_by_key(|(status, _)| *status);
    let expect = [
        (400, Reason::Rejected),
        (413, Reason::TooLarge),
        (414, Reason::TooLarge),
        (422, Reason::Rejected),
    ];
    assert_eq!(reasons, expect);
    rig.stop().await;
}

#[tokio::test]
async fn a_backend_in_trouble_is_not_flooded() {
    let backend = Backend::start(|_| Act::Refuse(503)).await;
    let mut rig = Rig::start(&upstream(&backend, "concurrency_max = 4"));
    rig.accept(500);
    rig.until("old", |s| s.state.as_str() == "down").await;
    // Five failed batches opened the breaker; none of them sent all its fifty events.
    assert!(backend.seen().len() < 5 * 8, "{}", backend.seen().len());
    rig.stop().await;
}

/// The upstream alone, without a worker that retries.
fn alone(backend: &Backend) -> Arc<dyn Upstream> {
    let url = backend.url("/v1/event/");
    let config = format!("name = 'old'\nkind = 'legacy'\nurl = '{url}'\nconcurrency_max = 8");
    toml::from_str::<upstream::Config>(&config).unwrap().validate().unwrap().build().unwrap()
}

/// A batch of these sample events.
fn batch(ns: std::ops::Range<usize>) -> Batch {
    let record = |n| {
        let mut record = Vec::new();
        let (event, context) = (crate::delivery::sample(n), crate::delivery::context());
        encode_record(
            &mut record,
            &[n as u8; 16],
            crate::delivery::RECEIVED_AT_MS,
            &event,
            &context,
        );
        Bytes::from(record)
    };
    Batch::new(ns.map(record).collect())
}

#[tokio::test]
async fn after_trouble_one_event_goes_first_and_only_where_that_goes_well_the_others() {
    let backend = Backend::start(|_| Act::Refuse(503)).await;
    let upstream = alone(&backend);
    upstream.send(&batch(0..50)).await;
    for _ in 0..3 {
        let before = backend.seen().len();
        upstream.send(&batch(0..50)).await;
        assert_eq!(backend.seen().len() - before, 1);
    }
    backend.script(|_| Act::Take);
    assert_eq!(upstream.send(&batch(0..50)).await, Outcome::Delivered);
    // The upstream has worked again, so several events are sent at once: its next failure meets
    // them.
    backend.script(|_| Act::Refuse(503));
    let before = backend.seen().len();
    upstream.send(&batch(0..50)).await;
    assert!(backend.seen().len() - before > 1);
}

/// Even if every event of the batch has its final outcome, the outcome reports the backend's
/// trouble, so that delivery knows of it before it sends the next batch.
#[tokio::test]
async fn trouble_is_reported_even_where_no_event_is_left_to_be_sent() {
    let backend = Backend::playing([Act::ResetAfterBody]).await;
    // Event 5 has revenue, so it is not sent again.
    let Outcome::Mixed(parts) = alone(&backend).send(&batch(5..6)).await else {
        panic!("the failure is not reported")
    };
    let is = |part: &Part, places: &[usize], label: &str| {
        part.places == places && part.outcome.label() == label
    };
    assert!(is(&parts[0], &[0], "dead") && is(&parts[1], &[], "retry"), "{parts:?}");
}

#[tokio::test]
async fn a_request_that_a_stop_cuts_off_is_unknown() {
    for (on_unknown, dead) in [("dead", 1), ("retry", 0)] {
        let backend = Backend::start(|_| Act::Hang).await;
        let config = upstream(&backend, &format!("on_unknown = '{on_unknown}'"));
        let mut rig = Rig::start(&config);
        let with_revenue = crate::delivery::sample(0);
        let without = Event { revenue: None, ..crate::delivery::sample(1) };
        assert!(with_revenue.revenue.is_some());
        rig.accept_event(&with_revenue);
        rig.accept_event(&without);
        rig.until("old", |_| backend.seen().len() >= 2).await;
        let dir = rig.stop().await;

        // What was cut off and has no revenue, or may be repeated, comes again.
        backend.script(|_| Act::Take);
        let rig = Rig::start_in(dir, &config, Vec::new());
        rig.until_counts("old", |counts| counts.pending == 0).await;
        assert_eq!(rig.counts("old").dead, dead, "{on_unknown}");
        let letters = rig.dead("old");
        assert!(letters.iter().all(|letter| letter.detail.starts_with("cut off by a stop")));
        assert_eq!(backend.taken().len() as u64, 2 - dead);
        rig.stop().await;
    }
}
