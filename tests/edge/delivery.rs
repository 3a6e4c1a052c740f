//! SPEC 7, end to end: accepted events arrive at a receiver in their wire form.

use crate::backend::{Act, Backend};
use crate::harness::{Edge, Setup, wait_for};
use bytesize::ByteSize;
use pixelgate::internals::event::{Context, Event, encode_record};
use pixelgate::internals::spool::{Config, Durability, Env, Spool};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;

/// The runtime that backends run on; one for all tests.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// An upstream table for a backend.
pub fn http_upstream(backend: &Backend, more: &str) -> String {
    let url = backend.url("/take");
    format!(
        "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"{url}\"\n{more}\n\
         [upstream.batch]\nlinger_ms = 20\n"
    )
}

#[test]
fn an_event_arrives_in_its_wire_form() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    let query = "&_n=000000001625&_a=0062515&email=Person%2BX@B%C3%BCcher.example\
                 &_m=%2B20.50&id=ext-77&favorite_color=orange&favorite_color=blue&Note=a+b\
                 &empty=&t=99&hapikey=secret";
    let lines = "User-Agent: Tester/1\r\nReferer: https://shop.test/thanks\r\nSec-GPC: 1\r\n\
                 DNT: 1\r\nSec-Purpose: prefetch;prerender\r\nCookie: secret=1\r\n";
    let response = edge.connect().get(&format!("/v1/event/?{query}"), lines);
    assert_eq!(response.verdict(), "accepted");
    edge.wait_delivered("collector");

    let requests = backend.taken();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("content-encoding"), "gzip");
    assert_eq!(request.header("x-batch-events"), "1");
    assert!(uuid::Uuid::parse_str(request.header("idempotency-key")).is_ok());
    let body = String::from_utf8(request.plain()).unwrap();
    assert!(!body.contains("secret"), "{body}");

    let mut event = backend.events().remove(0);
    let id = uuid::Uuid::parse_str(event["id"].take().as_str().unwrap()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    let received_at = event["received_at"].take();
    let received_at = received_at.as_str().unwrap();
    assert_eq!(received_at.len(), "2026-11-23T02:45:13.123Z".len(), "{received_at}");
    assert!(received_at.ends_with('Z'));
    let expect = json!({
        "id": null, "received_at": null,
        "portal": 62515, "event": "000000001625", "email": "person+x@bücher.example",
        "external_id": "ext-77", "revenue": 20.5,
        "properties": { "favorite_color": "orange;blue", "note": "a b" },
        "context": {
            "ip": "127.0.0.1", "user_agent": "Tester/1", "referer": "https://shop.test",
            "gpc": true, "dnt": true, "prefetch": true
        }
    });
    assert_eq!(event, expect);
    let keys = [
        "\"id\"",
        "\"received_at\"",
        "\"portal\"",
        "\"event\"",
        "\"email\"",
        "\"external_id\"",
        "\"revenue\"",
        "\"properties\"",
        "\"context\"",
    ];
    let places: Vec<_> = keys.iter().map(|key| body.find(key).unwrap()).collect();
    assert!(places.is_sorted(), "the keys stand in the contract's order: {body}");
}

#[test]
fn an_event_with_nothing_but_its_name_has_properties_and_context_all_the_same() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default()
        .upstreams(&http_upstream(&backend, "format = \"ndjson\"\ncompression = \"zstd\""))
        .sections("[privacy]\nip = \"none\"")
        .start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    edge.wait_delivered("collector");
    assert_eq!(backend.taken()[0].header("content-type"), "application/x-ndjson");
    assert_eq!(backend.taken()[0].header("content-encoding"), "zstd");
    let event = backend.events().remove(0);
    let names: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    assert_eq!(event["properties"], json!({}));
    assert_eq!(event["context"], json!({}));
}

#[test]
fn an_opted_out_visitor_stays_anonymous() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default()
        .upstreams(&http_upstream(&backend, ""))
        .sections("[privacy]\ngpc = \"anonymize\"")
        .start();
    let target = "/v1/event/?_a=62515&_n=a&email=a@b.example&id=7&_m=5&color=red";
    assert_eq!(
        edge.connect().get(target, "Sec-GPC: 1\r\nReferer: https://a.test/\r\n").status,
        200
    );
    edge.wait_delivered("collector");
    let mut event = backend.events().remove(0);
    for varying in ["id", "received_at"] {
        event.as_object_mut().unwrap().remove(varying);
    }
    let expect = json!({
        "portal": 62515, "event": "a", "revenue": 5, "properties": {}, "context": { "gpc": true }
    });
    assert_eq!(event, expect);
}

#[test]
fn a_backend_that_fails_gets_the_same_batch_again_under_the_same_key() {
    let acts = [Act::Refuse(503), Act::ResetAfterBody, Act::Refuse(429)];
    let backend = RUNTIME.block_on(Backend::playing(acts));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["delivered"], &row["dead"]), (&json!(1), &json!(0)));
    let seen = backend.seen();
    assert_eq!(seen.len(), 4);
    for again in &seen[1..] {
        assert_eq!(again.header("idempotency-key"), seen[0].header("idempotency-key"));
        assert_eq!(again.body, seen[0].body);
    }
}

#[test]
fn a_dead_upstream_delays_no_other_and_gets_everything_later() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(500)));
    let file = "[[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"DIR/events\"\n";
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let file = file.replace("DIR", &dir.path().display().to_string());
    Setup::default().upstreams(&file).upstreams(&http_upstream(&backend, "")).write(dir.path());
    let edge = Edge::start_in(dir);
    for n in 0..50 {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
    }
    edge.wait_delivered("file");
    let row = edge.upstream("collector");
    assert_eq!((&row["pending"], &row["delivered"]), (&json!(50), &json!(0)));

    // The same holds after a restart, and then the upstream comes back.
    let edge = Edge::start_in(edge.stop());
    assert_eq!(edge.upstream("file")["pending"], 0);
    assert_eq!(edge.upstream("collector")["pending"], 50);
    backend.script(|_| Act::Take);
    edge.wait_delivered("collector");
    let mut ids: Vec<Value> = backend.events().iter().map(|e| e["external_id"].clone()).collect();
    ids.sort_by_key(|id| id.as_str().unwrap().parse::<u32>().unwrap());
    ids.dedup();
    assert_eq!(ids.len(), 50);
}

#[test]
fn files_are_finished_while_the_edge_runs_and_when_it_stops() {
    let edge = Setup::default().start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    edge.wait_delivered("file");
    let dir = edge.stop();
    let finished = || {
        let entries = std::fs::read_dir(dir.path().join("events")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".ndjson")).count()
    };
    wait_for("a finished file", || finished() == 1);
    assert_eq!(Edge::events_in_files(dir.path()).len(), 1);
}

/// Sends this many events on one connection.
fn send(edge: &Edge, count: usize) {
    let mut connection = edge.connect();
    for n in 0..count {
        assert_eq!(connection.get(&format!("/v1/event/?_a=62515&_n=a&id={n}"), "").status, 200);
    }
}

#[test]
fn a_kill_repeats_only_what_was_on_its_way() {
    const KILLS: usize = 5;
    const BATCH: usize = 10;
    let backend = RUNTIME.block_on(Backend::playing([]));
    let url = backend.url("/take");
    let mut edge = Setup::default()
        .upstreams(&format!(
            "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"{url}\"\n\
             concurrency_max = 1\n[upstream.batch]\nevents_max = {BATCH}\nlinger_ms = 5\n"
        ))
        .start();
    for kill in 1..=KILLS {
        send(&edge, 200);
        // Within the second in which the cursor is not synced yet.
        wait_for("deliveries", || backend.events().len() >= kill * 200 - 50);
        edge = Edge::start_in(edge.kill());
    }
    let row = edge.wait_delivered("collector");
    assert_eq!(row["delivered"], json!(KILLS * 200));
    let repeated = backend.events().len() - KILLS * 200;
    assert!(repeated <= KILLS * BATCH, "{repeated} events came again");
}

#[test]
fn one_event_that_fails_stops_no_other_and_a_kill_repeats_none_of_those() {
    let backend = RUNTIME.block_on(Backend::start(|_| {
        Act::Judge(Arc::new(|request| {
            let is_poison = |event: &Value| event["event"] == "poison";
            if request.events().iter().any(is_poison) { Act::Refuse(500) } else { Act::Take }
        }))
    }));
    let upstream = http_upstream(&backend, "attempts_max = 0");
    let edge = Setup::default().upstreams(&upstream).start();
    assert_eq!(edge.event("_a=62515&_n=poison").status, 200);
    wait_for("the poison to fail", || !backend.seen().is_empty());
    send(&edge, 300);
    wait_for("the others to arrive", || edge.upstream("collector")["delivered"] == 300);
    check_state_is_true(&edge, "collector");
    assert_eq!(edge.upstream("collector")["state"], "retrying");
    wait_for("the fault", || edge.status()["faults"][0]["what"] == "poison");

    let edge = Edge::start_in(edge.kill());
    wait_for("another attempt", || edge.upstream("collector")["state"] == "retrying");
    let row = edge.upstream("collector");
    assert_eq!((&row["delivered"], &row["pending"]), (&json!(300), &json!(1)));
    assert_eq!(backend.events().len(), 300, "nothing delivered came again");
}

#[test]
fn one_id_names_an_event_in_its_answer_in_status_and_at_the_backend() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default()
        .sections("[response]\nevent_id = true")
        .upstreams(&http_upstream(&backend, ""))
        .start();
    // Samples are taken once the sampler has run.
    wait_for("a sample", || {
        assert_eq!(edge.event("_a=62515&_n=warm").status, 200);
        !edge.status()["recent"].as_array().unwrap().is_empty()
    });
    let recent = edge.status()["recent"][0].clone();
    edge.wait_delivered("collector");
    let events = backend.events();
    assert!(recent["id"].is_string(), "{recent}");
    assert!(events.iter().any(|event| event["id"] == recent["id"]), "{recent}");

    let answered = edge.event("_a=62515&_n=last");
    edge.wait_delivered("collector");
    let last = backend.events().pop().unwrap();
    assert_eq!(answered.header("x-event-id"), last["id"].as_str());
    assert_eq!(edge.event("_a=62515&_n=buy&_m=x").verdict(), "invalid_revenue");
    wait_for("the rejection in status", || {
        let status = edge.status();
        let rejected =
            status["recent"].as_array().unwrap().iter().find(|of| of["reason"].is_string());
        rejected.is_some_and(|of| of["id"] == Value::Null)
    });
}

/// Waits until an upstream's state is not `ok`, or nothing waits for long (SPEC 7): `ok` never
/// stands beside an event that waits for nothing.
pub fn check_state_is_true(edge: &Edge, name: &str) {
    wait_for("a state that is true", || {
        let row = edge.upstream(name);
        let waits = row["pending"] != 0 && row["lag_seconds"].as_u64().unwrap() > 5;
        row["state"] != "ok" || !waits
    });
}

/// An edge's folder whose spool holds so many events for its upstream, and the spool's segments.
pub fn filled(
    setup: Setup,
    upstream: &str,
    segment_bytes: ByteSize,
    events: u64,
) -> Arc<tempfile::TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    setup.write(dir.path());
    let config = Config {
        dir: dir.path().join("spool"),
        durability: Durability::Memory,
        segment_bytes,
        ..Config::default()
    };
    let spool = Spool::open(&config, &[upstream.to_owned()], Env::system()).unwrap();
    for n in 0..events {
        let event = Event {
            portal: 62515,
            name: "a".into(),
            email: None,
            revenue: None,
            external_id: Some(n.to_string().into()),
            properties: Default::default(),
        };
        let id = uuid::Uuid::now_v7();
        let received_at = 1_750_000_000_000;
        let record = |out: &mut Vec<u8>| {
            encode_record(out, id.as_bytes(), received_at, &event, &Context::default());
        };
        drop(spool.append(record).unwrap());
    }
    spool.close(Duration::from_secs(60)).unwrap();
    dir
}

#[test]
fn limits_that_are_large_together_still_make_requests() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let url = backend.url("/take");
    let upstream = format!(
        "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"{url}\"\n\
         [upstream.batch]\nevents_max = 100000\nlinger_ms = 600000\nbytes_max = \"64MiB\"\n"
    );
    let setup = Setup::default().upstreams(&upstream);
    let edge = Edge::start_in(filled(setup, "collector", ByteSize::mib(64), 150_000));
    wait_for("a full batch", || edge.upstream("collector")["delivered"] == 100_000);
    // Events that wait until their batch is full or due are no reason for another state than `ok`.
    assert_eq!(edge.upstream("collector")["pending"], 50_000);
}

#[test]
fn a_damaged_stretch_of_the_spool_costs_itself_alone() {
    const EVENTS: u64 = 150_000;
    let backend = RUNTIME.block_on(Backend::playing([]));
    let setup = Setup::default().upstreams(&http_upstream(&backend, ""));
    let dir = filled(setup, "collector", ByteSize::mib(4), EVENTS);
    let lanes = std::fs::read_dir(dir.path().join("spool")).unwrap();
    let lanes = lanes.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let second = lanes.map(|lane| lane.join("0000000002.seg")).find(|path| path.exists()).unwrap();
    let mut bytes = std::fs::read(&second).unwrap();
    // The last record and the header of the segment stay as they are.
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() - 4096;
    bytes[4096..end].fill(0xA5);
    std::fs::write(&second, &bytes).unwrap();

    let edge = Edge::start_in(dir);
    wait_for("all that is left", || edge.upstream("collector")["pending"] == 0);
    let row = edge.upstream("collector");
    let [delivered, lost] = ["delivered", "lost"].map(|key| row[key].as_u64().unwrap());
    assert!(lost > 10_000 && delivered + lost == EVENTS, "{row}");
    assert_eq!(backend.events().len() as u64, delivered);
    assert_eq!((&row["state"], &row["lag_seconds"]), (&json!("ok"), &json!(0)));
}

/// The date at least this far away, in one of HTTP's three forms (RFC 9110, 5.6.7).
fn date_after(wait: Duration, form: &str) -> (SystemTime, String) {
    // A date has no fractions of a second.
    let seconds = (SystemTime::now() + wait).duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.as_secs() + 1);
    let text = jiff::Timestamp::try_from(date).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
    (date, text.strftime(form).to_string())
}

#[test]
fn a_pause_is_kept_in_whichever_form_it_is_asked_for() {
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    for form in forms {
        // The earliest time at which the next request may come, and whether one came before it.
        let due = Arc::new(Mutex::new(None));
        let early = Arc::new(Mutex::new(0));
        let (pause, count) = (Arc::clone(&due), Arc::clone(&early));
        let backend = RUNTIME.block_on(Backend::start(move |_| {
            let mut due = pause.lock().unwrap();
            match *due {
                None => {
                    let (date, text) = date_after(Duration::from_secs(4), form);
                    *due = Some(date);
                    return Act::RefuseWith(429, vec![("Retry-After", text)]);
                }
                Some(date) => *count.lock().unwrap() += u32::from(SystemTime::now() < date),
            }
            Act::Take
        }));
        let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
        for n in 0..5 {
            assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
            wait_for("an attempt", || !backend.seen().is_empty());
        }
        check_state_is_true(&edge, "collector");
        edge.wait_delivered("collector");
        assert_eq!(*early.lock().unwrap(), 0, "attempts before the date in the form {form:?}");
    }
}

/// The lines of the file upstream's files, and how often each event stands there.
fn written(dir: &Path) -> std::collections::BTreeMap<String, u32> {
    let mut written = std::collections::BTreeMap::new();
    for event in Edge::events_in_files(dir) {
        *written.entry(event["external_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    written
}

#[test]
fn an_event_is_delivered_once_it_is_in_a_file_that_is_there() {
    type Disturb = fn(&Path);
    let remove_files: Disturb = |events| {
        for entry in std::fs::read_dir(events).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    let remove_folder: Disturb = |events| std::fs::remove_dir_all(events).unwrap();
    let replace_file: Disturb = |events| {
        let part = std::fs::read_dir(events).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(&part).unwrap();
        std::fs::write(&part, "").unwrap();
    };
    for disturb in [remove_files, remove_folder, replace_file] {
        let edge = Setup::default().start();
        assert_eq!(edge.event("_a=62515&_n=a&id=before").status, 200);
        edge.wait_delivered("file");
        disturb(&edge.dir().join("events"));
        for n in 0..9 {
            assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
        }
        check_state_is_true(&edge, "file");
        assert_eq!(edge.wait_delivered("file")["delivered"], 10);
        let there = written(edge.dir());
        for n in 0..9 {
            assert_eq!(there.get(&n.to_string()), Some(&1), "{there:?}");
        }
    }
}

/// The name servers of two upstreams never answer. Needs the right to mount, without which it only
/// says so.
#[test]
fn name_servers_that_are_silent_delay_no_other_upstream() {
    let may_mount = std::process::Command::new("unshare").args(["-m", "true"]).status();
    if !may_mount.is_ok_and(|status| status.success()) {
        return println!("skipped: needs `unshare -m`");
    }
    let silent = std::net::UdpSocket::bind("127.0.0.61:53");
    let Ok(silent) = silent else { return println!("skipped: port 53 cannot be bound") };
    let backend = RUNTIME.block_on(Backend::playing([]));
    let lost = |name: &str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"http://{name}.example/\"\n\
             timeout_seconds = 1\n[upstream.batch]\nlinger_ms = 5\n"
        )
    };
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = Setup::default().upstreams(&lost("one")).upstreams(&lost("two"));
    setup.upstreams(&http_upstream(&backend, "")).write(dir.path());
    let names = dir.path().join("resolv.conf");
    std::fs::write(&names, "nameserver 127.0.0.61\noptions timeout:30 attempts:5\n").unwrap();
    let mount = format!("mount --bind {} /etc/resolv.conf", names.display());
    let run = "exec \"$0\" run --config \"$1\"";
    let apart = format!("exec unshare -m sh -c '{mount} && {run}' \"$0\" \"$1\"");
    let edge = Edge::start_under(dir, &apart);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    // Each attempt leaves a look-up behind, of two questions, when its second is over.
    let (mut question, mut questions) = ([0; 512], 0);
    silent.set_nonblocking(true).unwrap();
    wait_for("four look-ups", || {
        questions += u32::from(silent.recv(&mut question).is_ok());
        questions >= 8
    });
    for n in 1..20 {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
        wait_for("the event", || edge.upstream("collector")["delivered"] == n + 1);
    }
    ["one", "two"].iter().for_each(|name| check_state_is_true(&edge, name));
    assert_eq!(edge.upstream("one")["delivered"], 0);
    edge.stop();
}
