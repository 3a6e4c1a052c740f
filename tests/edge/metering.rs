//! SPEC 8 on the running binary: the totals of each portal are exact over kill -9, restarts and
//! upgrades, on `/status?portal=` and among the metrics.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command, wait_for};
use crate::http::{Connection, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const LIST: &str = "portals = [62515, 56043]\n[[portal]]\nid = 7\nevents = [\"a\"]\n";
const PORTALS: [u64; 3] = [62515, 56043, 7];

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap()
}

/// `/status?portal=`.
pub fn totals(edge: &Edge, portal: u64) -> Value {
    let page = edge.admin(&format!("/status?portal={portal}"));
    assert_eq!(page.status, 200);
    json_of(&page)
}

/// Accepted, rejected and delivered.
fn counts(edge: &Edge, portal: u64) -> [u64; 3] {
    let totals = totals(edge, portal);
    assert_eq!(totals["portal"], portal);
    ["accepted", "rejected", "delivered"].map(|key| totals[key].as_u64().unwrap())
}

/// The distinct events of a portal that a backend has got.
fn arrived(backend: &Backend, portal: u64) -> BTreeSet<String> {
    let of_portal = |event: &Value| event["portal"] == portal;
    let id = |event: Value| event["external_id"].as_str().unwrap().to_owned();
    backend.events().into_iter().filter(of_portal).map(id).collect()
}

/// Sends events of each portal in turn until the connection breaks; gives the ids that were
/// answered 200, by portal.
fn send(address: SocketAddr, next: &AtomicU64, answered: &AtomicU64) -> Vec<(u64, u64)> {
    let Ok(stream) = TcpStream::connect(address) else { return Vec::new() };
    let mut connection = Connection::of(stream);
    let mut sent = Vec::new();
    loop {
        let id = next.fetch_add(1, Relaxed);
        let portal = PORTALS[id as usize % PORTALS.len()];
        let head = format!("GET /v1/event/?_a={portal}&_n=a&id={id} HTTP/1.1\r\nHost: a\r\n\r\n");
        if connection.try_send(head.as_bytes()).is_err() {
            return sent;
        }
        match connection.read_one("GET") {
            Ok(response) if response.status == 200 => {
                sent.push((portal, id));
                answered.fetch_add(1, Relaxed);
            }
            Ok(response) => panic!("answered {}", response.status),
            Err(_) => return sent,
        }
    }
}

/// Sends on four connections until `moment` events are answered, and then ends them by `end`.
fn send_until<E>(
    edge: Edge,
    next: &Arc<AtomicU64>,
    moment: u64,
    end: impl FnOnce(Edge) -> E,
) -> (E, Vec<(u64, u64)>) {
    let (address, count) = (edge.address, Arc::new(AtomicU64::new(0)));
    let sender = || {
        let (next, count) = (Arc::clone(next), Arc::clone(&count));
        std::thread::spawn(move || send(address, &next, &count))
    };
    let senders: Vec<_> = (0..4).map(|_| sender()).collect();
    wait_for("answers", || count.load(Relaxed) >= moment);
    let ended = end(edge);
    (ended, senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect())
}

#[test]
fn accepted_and_delivered_are_exact_over_kills_under_load() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default()
        .portals(LIST)
        .spool("segment_bytes = \"64KiB\"")
        .upstreams(&http_upstream(&backend, ""))
        .write(dir.path());
    let next = Arc::new(AtomicU64::new(0));
    let mut answered = Vec::new();
    for round in 0..8_u64 {
        let edge = Edge::start_in(Arc::clone(&dir));
        let moment = 1 + round * 97 % 400;
        let (_, of_round) = send_until(edge, &next, moment, Edge::kill);
        answered.extend(of_round);
    }
    let edge = Edge::start_in(dir);
    let row = edge.wait_delivered(&upstream_name(&edge));
    let mut sum = 0;
    for portal in PORTALS {
        let arrived = arrived(&backend, portal);
        let ids = answered.iter().filter(|(of, _)| *of == portal).map(|(_, id)| id.to_string());
        let lost: Vec<_> = ids.filter(|id| !arrived.contains(id)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        let events = arrived.len() as u64;
        assert_eq!(counts(&edge, portal), [events, 0, events], "portal {portal}");
        sum += events;
    }
    assert_eq!(row["accepted"], sum);
    let started = totals(&edge, 7)["since"].clone();
    assert!(started.is_string(), "{started}");
    assert_eq!(edge.status()["faults"], json!([]));
}

fn upstream_name(edge: &Edge) -> String {
    edge.status()["upstreams"][0]["name"].as_str().unwrap().to_owned()
}

#[test]
fn all_totals_are_exact_over_graceful_restarts() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().portals(LIST).write(dir.path());
    let mut since = Value::Null;
    for round in 1..=3 {
        let edge = Edge::start_in(Arc::clone(&dir));
        for _ in 0..5 {
            assert_eq!(edge.event("_a=62515&_n=a").status, 200);
        }
        assert_eq!(edge.event("_a=7&_n=b").verdict(), "event_not_allowed");
        assert_eq!(edge.event("_a=7&_n=").verdict(), "missing_event");
        assert_eq!(edge.event("_a=8&_n=a").verdict(), "portal_not_allowed");
        edge.wait_delivered("file");
        assert_eq!(counts(&edge, 62515), [5 * round, 0, 5 * round]);
        assert_eq!(counts(&edge, 7), [0, 2 * round, 0]);
        assert_eq!(counts(&edge, 8), [0; 3], "clients cannot fill the table");
        let other = edge.status()["totals"]["other"].clone();
        assert_eq!(other, json!({ "accepted": 0, "rejected": round, "delivered": 0 }));
        let now = totals(&edge, 7)["since"].clone();
        assert!(round == 1 || now == since, "{now} is not {since}");
        since = now;
        edge.stop();
    }
}

#[test]
fn an_upgrade_counts_on() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Take));
    let setup = Setup::default().portals(LIST).edge("shutdown_grace_seconds = 60");
    let old = setup.upstreams(&http_upstream(&backend, "")).start();
    let next = Arc::new(AtomicU64::new(0));
    let (mut new, answered) = send_until(old, &next, 50, |mut old| {
        let new = old.upgrade();
        old.signal(Signal::QUIT);
        assert_eq!(old.wait().code(), Some(0), "{}", old.log());
        new
    });
    for id in 1_000_000..1_000_010 {
        assert_eq!(new.event(&format!("_a=7&_n=a&id={id}")).status, 200);
    }
    let accepted = |edge: &Edge| PORTALS.map(|portal| counts(edge, portal)[0]).iter().sum::<u64>();
    wait_for("the old one's totals", || accepted(&new) as usize >= answered.len() + 10);
    for graceful in [true, false] {
        new.wait_delivered(&upstream_name(&new));
        for portal in PORTALS {
            let events = arrived(&backend, portal).len() as u64;
            assert_eq!(counts(&new, portal), [events, 0, events], "portal {portal}");
        }
        let dir = if graceful { new.stop() } else { new.kill() };
        new = Edge::start_in(dir);
    }
}

#[test]
fn a_portal_is_asked_for_by_its_id() {
    let token = "sixteen bytes ok";
    let edge = Setup::default().portals(LIST).sections(&format!("token = \"{token}\"")).start();
    let ask = |page: &str| edge.admin_with(page, &format!("Authorization: Bearer {token}\r\n"));
    assert_eq!(edge.admin("/status?portal=7").status, 401);
    let unseen = json_of(&ask("/status?portal=5"));
    let zeros = json!({
        "portal": 5, "accepted": 0, "rejected": 0, "delivered": 0, "since": unseen["since"],
        "quota": null,
        "upstreams": [{ "name": "file", "delivered": 0, "dead": 0 }],
    });
    assert_eq!(unseen, zeros);
    for wrong in ["", "0", "x", "-1", "1.5", "1000000000000000", "7&portal=7"] {
        let page = ask(&format!("/status?portal={wrong}"));
        assert_eq!(page.status, 400, "{wrong}");
        assert_eq!(page.header("content-type"), Some("application/problem+json"), "{wrong}");
        let problem = json_of(&page);
        assert_eq!((&problem["status"], problem["detail"].is_string()), (&json!(400), true));
    }
    assert!(json_of(&ask("/status?other=1"))["upstreams"].is_array(), "the whole status");
}

/// The lines of the metric, without its name.
fn series(edge: &Edge) -> Vec<String> {
    let text = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("pixelgate_portal_events_total"));
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn the_busiest_portals_have_series_of_their_own() {
    let edge = Setup::default().portals(LIST).sections("[metrics]\nportals_max = 2").start();
    for (portal, events) in [(62515, 3), (56043, 2), (7, 1)] {
        for _ in 0..events {
            assert_eq!(edge.event(&format!("_a={portal}&_n=a")).status, 200);
        }
    }
    assert_eq!(edge.event("_a=56043&_n=").verdict(), "missing_event");
    edge.wait_delivered("file");
    let expect = [
        "{outcome=\"accepted\",portal=\"56043\"} 2",
        "{outcome=\"accepted\",portal=\"62515\"} 3",
        "{outcome=\"accepted\",portal=\"other\"} 1",
        "{outcome=\"delivered\",portal=\"56043\"} 2",
        "{outcome=\"delivered\",portal=\"62515\"} 3",
        "{outcome=\"delivered\",portal=\"other\"} 1",
        "{outcome=\"rejected\",portal=\"56043\"} 1",
        "{outcome=\"rejected\",portal=\"62515\"} 0",
        "{outcome=\"rejected\",portal=\"other\"} 0",
    ];
    // The ranking is renewed once a second.
    wait_for("the series", || series(&edge) == expect);

    let file = edge.dir().join("edge.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("portals_max = 2", "portals_max = 0")).unwrap();
    edge.signal(Signal::HUP);
    wait_for("no series", || series(&edge).is_empty());
}

/// The folders of the lanes.
fn lanes(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("spool")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("lane-")).collect()
}

fn spool(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command(&dir.join("edge.toml"), &["spool"]);
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_file_that_is_damaged_or_gone_makes_the_totals_begin_anew_and_says_so() {
    let break_file: [fn(&Path); 2] = [
        |file| {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[8..60].fill(0xFF);
            std::fs::write(file, bytes).unwrap();
        },
        |file| std::fs::remove_file(file).unwrap(),
    ];
    for break_file in break_file {
        let edge = Setup::default().portals(LIST).start();
        for _ in 0..5 {
            assert_eq!(edge.event("_a=7&_n=a").status, 200);
        }
        edge.wait_delivered("file");
        let before = totals(&edge, 7)["since"].as_str().unwrap().to_owned();
        let dir = edge.stop();
        let (code, told) = spool(dir.path(), &["stat"]);
        assert_eq!(code, Some(0));
        let sums = "portals: 1 with totals, 5 accepted, 0 rejected, 5 delivered";
        assert!(told.contains(sums), "{told}");
        assert_eq!(spool(dir.path(), &["verify"]).0, Some(0));
        lanes(dir.path()).iter().for_each(|lane| break_file(&lane.join("portals")));
        let (code, told) = spool(dir.path(), &["verify"]);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("counts by portal"), "{told}");

        let edge = Edge::start_in(dir);
        let fault = edge.status()["faults"][0].clone();
        assert_eq!(fault["what"], "portal_totals", "{fault}");
        assert!(edge.log().contains("the totals per portal begin anew"), "{}", edge.log());
        let row = totals(&edge, 7);
        assert!(row["since"].as_str().unwrap() > before.as_str(), "{row}");
        assert!(row["accepted"].as_u64().unwrap() <= 5, "{row}");
        assert_eq!(row["accepted"], row["delivered"], "{row}");
        assert_eq!(edge.event("_a=7&_n=a").status, 200);
        let accepted = json!(row["accepted"].as_u64().unwrap() + 1);
        assert_eq!(totals(&edge, 7)["accepted"], accepted);
        // The next start ends the fault; `since` stays.
        let edge = Edge::start_in(edge.stop());
        assert_eq!(edge.status()["faults"], json!([]));
        let now = totals(&edge, 7);
        assert_eq!((&now["since"], &now["accepted"]), (&row["since"], &accepted));
    }
}

#[test]
fn totals_outlive_an_upstream_that_is_forgotten() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let setup = Setup::default().portals(LIST);
    let edge = setup.clone().upstreams(&http_upstream(&backend, "")).start();
    for _ in 0..5 {
        assert_eq!(edge.event("_a=7&_n=a").status, 200);
    }
    // Kills at once, while the file of the counts may lack the last events.
    let dir = edge.kill();
    setup.write(dir.path());
    let (code, told) = spool(dir.path(), &["forget", "collector"]);
    assert!(code == Some(0) && told.contains("5 pending events"), "{told}");
    for _ in 0..2 {
        let edge = Edge::start_in(Arc::clone(&dir));
        assert_eq!(counts(&edge, 7)[0], 5, "{}", totals(&edge, 7));
        assert_eq!(edge.upstream("file")["pending"], 0);
        edge.stop();
    }
}
