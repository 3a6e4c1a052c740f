//! The `http` upstream against a backend that fails in every way there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::{Act, Backend, Request};
use crate::delivery::{Rig, sample};
use pixelgate::internals::event::{self, Event};
use pixelgate::internals::upstream::{Batch, Config, Outcome};

fn upstream(backend: &Backend, rest: &str) -> String {
    let url = backend.url("/in");
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'collector'\nkind = 'http'\nurl = '{url}'\n{rest}\n"
    )
}

/// Accepts 300 events while the backend plays `acts`: all of them arrive. Gives the duplicates.
async fn check_all_arrive(acts: Vec<Act>, rest: &str) -> usize {
    let backend = Backend::playing(acts).await;
    let mut rig = Rig::start(&upstream(&backend, rest));
    rig.accept(300);
    rig.settled("collector").await;
    let duplicates = rig.check("collector", &backend.events());
    assert_eq!(rig.counts("collector").dead, 0);
    rig.stop().await;
    duplicates
}

#[tokio::test]
async fn batches_arrive_in_each_format_and_compression() {
    for format in ["json", "ndjson", "cloudevents"] {
        for compression in ["gzip", "zstd", "none"] {
            let rest = format!("format = '{format}'\ncompression = '{compression}'");
            assert_eq!(check_all_arrive(vec![], &rest).await, 0);
        }
    }
}

/// A reload may change how a batch is encoded whose first attempt failed.
#[tokio::test]
async fn a_batch_that_waits_is_sent_as_the_headers_say_after_a_reload() {
    let backend = Backend::playing([]).await;
    let mut record = Vec::new();
    event::encode_record(&mut record, &[7; 16], 1, &sample(3), &event::Context::default());
    let batch = Batch::new(vec![record.into()]);
    let mut keys = Vec::new();
    for format in ["json", "ndjson", "cloudevents"] {
        for compression in ["gzip", "zstd", "none"] {
            let url = backend.url("/in");
            let config: Config = toml::from_str(&format!(
                "name = 'c'\nkind = 'http'\nurl = '{url}'\nformat = '{format}'\n\
                 compression = '{compression}'"
            ))
            .unwrap();
            let upstream = config.validate().unwrap().build().unwrap();
            for _attempt in 0..2 {
                assert_eq!(upstream.send(&batch).await, Outcome::Delivered);
            }
            let [.., first, again] = &backend.taken()[..] else { panic!("two requests") };
            // Reading the events fails where the headers do not fit the body.
            assert_eq!(first.events()[0]["properties"]["n"], "3", "{format} {compression}");
            assert_eq!(first.body, again.body);
            let key = first.header("idempotency-key").to_owned();
            assert_eq!(key, again.header("idempotency-key"));
            assert!(!keys.contains(&key), "other bytes come under another key");
            keys.push(key);
        }
    }
    assert_eq!(keys[0], batch.id().to_string());
}

#[tokio::test]
async fn an_attempt_that_was_not_taken_costs_no_duplicates() {
    for status in [500, 502, 503, 429, 408, 425, 599] {
        assert_eq!(check_all_arrive(vec![Act::Refuse(status); 2], "").await, 0);
    }
    let reset = vec![Act::ResetBeforeBody; 3];
    assert_eq!(check_all_arrive(reset, "").await, 0);
}

#[tokio::test]
async fn an_answer_that_got_lost_costs_duplicates_but_no_event() {
    for act in [Act::ResetAfterBody, Act::HalfHead, Act::TakeWith(500)] {
        let duplicates = check_all_arrive(vec![act; 2], "").await;
        assert!(duplicates > 0);
    }
}

#[tokio::test]
async fn the_status_decides_whatever_becomes_of_the_body() {
    assert_eq!(check_all_arrive(vec![Act::HalfBody; 3], "").await, 0);
    assert_eq!(check_all_arrive(vec![Act::EndlessBody; 3], "").await, 0);
    for status in [201, 202, 204, 299] {
        assert_eq!(check_all_arrive(vec![Act::TakeWith(status); 3], "").await, 0);
    }
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_given_up_on_and_tried_again() {
    let acts = vec![Act::Hang, Act::Slow(Duration::from_millis(300)), Act::Hang];
    assert_eq!(check_all_arrive(acts, "timeout_seconds = 5").await, 0);
}

#[tokio::test]
async fn every_attempt_at_a_batch_carries_the_same_key_and_the_same_bytes() {
    let acts = vec![Act::Refuse(503), Act::ResetAfterBody, Act::Refuse(429), Act::TakeWith(500)];
    let backend = Backend::playing(acts).await;
    let mut rig = Rig::start(&upstream(&backend, "compression = 'zstd'"));
    rig.accept(10);
    rig.settled("collector").await;
    let seen = backend.seen();
    assert_eq!(seen.len(), 5);
    for request in &seen {
        assert_eq!(request.header("idempotency-key"), seen[0].header("idempotency-key"));
        assert_eq!(request.body, seen[0].body);
    }
    rig.accept(10);
    rig.settled("collector").await;
    let later = backend.seen();
    let key = later.last().unwrap().header("idempotency-key");
    assert_ne!(key, seen[0].header("idempotency-key"));
    rig.stop().await;
}

#[tokio::test]
async fn a_request_says_what_it_is() {
    let backend = Backend::playing([]).await;
    let rest = "headers = { Authorization = 'Bearer abc', X-Env = '${CARGO_PKG_NAME}' }";
    let mut rig = Rig::start(&upstream(&backend, rest));
    rig.accept(7);
    rig.settled("collector").await;
    let seen = backend.seen();
    let count: usize =
        seen.iter().map(|r| r.header("x-batch-events").parse::<usize>().unwrap()).sum();
    assert_eq!(count, 7);
    let request = &seen[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/in"));
    let version = concat!("pixelgate/", env!("CARGO_PKG_VERSION"));
    let expect = [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("user-agent", version),
        ("authorization", "Bearer abc"),
        ("x-env", "pixelgate"),
    ];
    for (name, value) in expect {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert!(uuid::Uuid::parse_str(request.header("idempotency-key")).is_ok());
    rig.stop().await;
}

#[tokio::test]
async fn a_secret_signs_each_attempt_after_standard_webhooks() {
    let key = [42; 32];
    let secret = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(key)
    };
    let backend = Backend::playing([Act::Refuse(503)]).await;
    let mut rig = Rig::start(&upstream(&backend, &format!("secret = 'whsec_{secret}'")));
    rig.accept(3);
    rig.settled("collector").await;
    for request in backend.seen() {
        let id = request.header("webhook-id");
        assert_eq!(id, request.header("idempotency-key"));
        let seconds = request.header("webhook-timestamp");
        let mut signed = format!("{id}.{seconds}.").into_bytes();
        signed.extend_from_slice(&request.body);
        let expect =
            ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), &signed);
        use base64::Engine as _;
        let expect = base64::engine::general_purpose::STANDARD.encode(expect);
        assert_eq!(request.header("webhook-signature"), format!("v1,{expect}"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(seconds.parse().unwrap()) < 60);
    }
    rig.stop().await;
}

#[tokio::test]
async fn poison_events_are_found_and_everything_else_is_delivered() {
    for status in [400, 422] {
        let backend = Backend::start(move |_| Act::Take).await;
        backend.script(poisoned(status));
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(300);
        rig.settled("collector").await;
        assert_eq!(rig.check("collector", &backend.events()), 0);
        let counts = rig.counts("collector");
        assert_eq!((counts.delivered, counts.dead), (297, 3));
        for letter in rig.dead("collector") {
            assert_eq!(
                letter.reason,
                pixelgate::internals::delivery::dead_letters::Reason::Rejected
            );
            assert_eq!(letter.status, Some(status));
            assert_eq!(letter.upstream, "collector");
            assert!(is_poison(&serde_json::from_str(letter.event.unwrap().get()).unwrap()));
        }
        rig.stop().await;
    }
}

fn is_poison(event: &serde_json::Value) -> bool {
    matches!(event["properties"]["n"].as_str(), Some("0" | "77" | "299"))
}

fn poisoned(status: u16) -> impl FnMut(&Request) -> Act {
    // The script is asked before the body is read, so the verdict is made from the body later.
    move |_| {
        Act::Judge(std::sync::Arc::new(move |request: &Request| {
            if request.events().iter().any(is_poison) { Act::Refuse(status) } else { Act::Take }
        }))
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_split_and_an_event_that_is_too_large_dies_alone() {
    let backend = Backend::start(|_| {
        Act::Judge(std::sync::Arc::new(|request: &Request| {
            let events = request.events();
            let fat = events.iter().any(|e| e["properties"]["n"] == "13");
            if fat || events.len() > 3 { Act::Refuse(413) } else { Act::Take }
        }))
    })
    .await;
    let mut rig = Rig::start(&upstream(&backend, ""));
    rig.accept(60);
    rig.settled("collector").await;
    assert_eq!(rig.check("collector", &backend.events()), 0);
    let dead = rig.dead("collector");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, pixelgate::internals::delivery::dead_letters::Reason::TooLarge);
    // Each part has a key of its own, and no key stands for two different bodies.
    let mut bodies = BTreeMap::new();
    for request in backend.seen() {
        let key = request.header("idempotency-key").to_owned();
        assert_eq!(bodies.entry(key).or_insert_with(|| request.body.clone()), &request.body);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_wrong_configuration_is_shown_and_nothing_dies_of_it() {
    for status in [301, 401, 403, 404, 405, 415] {
        let backend = Backend::start(move |_| Act::Refuse(status)).await;
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(20);
        rig.until("collector", |s| s.state.as_str() == "misconfigured").await;
        let error = rig.status("collector").last_error.unwrap();
        assert_eq!(error, format!("answered {status}"));
        assert_eq!(rig.counts("collector").pending, 20);
        backend.script(|_| Act::Take);
        rig.settled("collector").await;
        assert_eq!(rig.check("collector", &backend.events()), 0);
        assert_eq!(rig.status("collector").state.as_str(), "ok");
        rig.stop().await;
    }
}

#[tokio::test]
async fn the_pause_that_is_asked_for_is_kept() {
    let seconds = || "1".to_owned();
    let date = || {
        let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
        date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    for value in [seconds as fn() -> String, date] {
        // Started before the date is made, so that a slow start does not shorten the pause.
        let start = std::time::Instant::now();
        let after = vec![("Retry-After", value())];
        let backend = Backend::playing([Act::RefuseWith(503, after)]).await;
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(120);
        rig.settled("collector").await;
        assert!(start.elapsed() >= Duration::from_millis(950), "{:?}", start.elapsed());
        // One request was refused, and no other was sent before the pause was over.
        assert_eq!(rig.check("collector", &backend.events()), 0);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_pause_is_kept_whatever_the_status_of_the_answer() {
    for status in [301, 401, 403, 404, 413, 500] {
        let start = std::time::Instant::now();
        let after = vec![("Retry-After", "1".to_owned())];
        let backend = Backend::playing([Act::RefuseWith(status, after)]).await;
        let mut rig = Rig::start(&upstream(&backend, ""));
        rig.accept(2);
        rig.settled("collector").await;
        assert!(start.elapsed() >= Duration::from_millis(950), "{status}: {:?}", start.elapsed());
        assert_eq!(rig.check("collector", &backend.events()), 0, "{status}");
        assert_eq!(rig.counts("collector").dead, 0, "{status}");
        let why = rig.status("collector").last_error.unwrap();
        let expect = format!("answered {status}; no attempt before 20");
        assert!(why.starts_with(&expect), "{why}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn an_event_that_is_too_large_for_now_is_no_dead_letter() {
    let after = vec![("Retry-After", "1".to_owned())];
    let refuse = || Act::RefuseWith(413, after.clone());
    let backend = Backend::playing([refuse(), refuse()]).await;
    let mut rig = Rig::start(&upstream(&backend, ""));
    rig.accept(1);
    rig.settled("collector").await;
    assert_eq!(rig.check("collector", &backend.events()), 0);
    assert_eq!((rig.counts("collector").delivered, rig.counts("collector").dead), (1, 0));
    rig.stop().await;
}

#[tokio::test]
async fn each_portals_events_keep_their_order_through_failures() {
    let mut n = 0_u32;
    let backend = Backend::start(move |_| {
        n += 1;
        match n % 29 {
            1 => Act::Refuse(503),
            13 => Act::ResetBeforeBody,
            5 | 20 => Act::Slow(Duration::from_millis(20)),
            // Too large, unless it is but one event.
            8 | 25 => Act::Judge(Arc::new(|request: &Request| {
                if request.events().len() > 1 { Act::Refuse(413) } else { Act::Take }
            })),
            _ => Act::Take,
        }
    })
    .await;
    let mut rig = Rig::start(&upstream(&backend, "order = 'portal'\nbatch = { events_max = 7 }"));
    // Few portals, so that one batch holds several events of each.
    for n in 0..1500 {
        let portal = 1 + (n % 5) as u64;
        rig.accept_event(&Event { portal, ..crate::delivery::sample(n) });
    }
    rig.settled("collector").await;
    let events = backend.events();
    assert_eq!(rig.check("collector", &events), 0);
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    for event in &events {
        let n: usize = event["properties"]["n"].as_str().unwrap().parse().unwrap();
        let before = last.insert(event["portal"].as_u64().unwrap(), n);
        assert!(before.is_none_or(|b| b < n), "{before:?} before {n}");
    }
    assert_eq!(last.len(), 5);
    rig.stop().await;
}

#[tokio::test]
async fn a_dead_upstream_changes_nothing_for_its_neighbour() {
    let (dead, alive) = (Backend::start(|_| Act::Hang).await, Backend::playing([]).await);
    let config = format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'a'\nkind = 'http'\nurl = '{}'\n\
         [[upstream]]\nname = 'b'\nkind = 'http'\nurl = '{}'\n",
        dead.url("/"),
        alive.url("/"),
    );
    let mut rig = Rig::start(&config);
    rig.accept(2000);
    rig.settled("b").await;
    assert_eq!(rig.check("b", &alive.events()), 0);
    assert_eq!(rig.counts("a").pending, 2000);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_retries_ends_at_once_and_loses_nothing() {
    let backend =
        Backend::start(|_| Act::RefuseWith(503, vec![("Retry-After", "3000".into())])).await;
    let config = upstream(&backend, "");
    let mut rig = Rig::start(&config);
    rig.accept(500);
    rig.until("collector", |s| s.state.as_str() == "down").await;
    let accepted = rig.accepted.clone();
    let stopping = std::time::Instant::now();
    let dir = rig.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(60), "it waited for the pause to end");
    backend.script(|_| Act::Take);
    let mut rig = Rig::start_in(dir, &config, Vec::new());
    rig.accepted = accepted;
    rig.settled("collector").await;
    assert_eq!(rig.check("collector", &backend.events()), 0);
    assert_eq!(rig.counts("collector").accepted, 500);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_while_an_answer_is_awaited_may_repeat_a_batch_but_loses_none() {
    let backend = Backend::start(|_| Act::Slow(Duration::from_secs(3))).await;
    let config = upstream(&backend, "");
    let mut rig = Rig::start(&config);
    rig.accept(100);
    backend.until("a batch is on its way", |b| b.connections() > 0).await;
    let accepted = rig.accepted.clone();
    let dir = rig.stop().await;
    backend.script(|_| Act::Take);
    let mut rig = Rig::start_in(dir, &config, Vec::new());
    rig.accepted = accepted;
    rig.settled("collector").await;
    rig.check("collector", &backend.events());
    rig.stop().await;
}

#[tokio::test]
async fn connections_are_kept() {
    let backend = Backend::playing([]).await;
    let mut rig = Rig::start(&upstream(&backend, "concurrency_max = 2"));
    for _ in 0..20 {
        rig.accept(50);
        rig.settled("collector").await;
    }
    assert!(backend.connections() <= 2, "{}", backend.connections());
    let keys: BTreeSet<_> =
        backend.seen().iter().map(|r| r.header("idempotency-key").to_owned()).collect();
    assert!(keys.len() >= 20);
    rig.stop().await;
}
