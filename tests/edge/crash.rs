//! SPEC 6: each event answered with 200 is delivered, however the process ends.

use crate::backend::Backend;
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup};
use crate::http::Connection;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tempfile::TempDir;

/// Connections that send events at once.
const SENDERS: u64 = 8;

/// How often the process is killed in each mode: `PIXELGATE_TEST_KILLS`, else 25.
fn kills() -> u64 {
    let set = std::env::var("PIXELGATE_TEST_KILLS").ok();
    set.map_or(25, |kills| kills.parse().expect("PIXELGATE_TEST_KILLS is a number"))
}

/// Sends events one after another until the connection breaks; gives the ids answered 200.
fn send_events(address: SocketAddr, next: &AtomicU64, answered: &AtomicU64) -> Vec<u64> {
    let Ok(stream) = TcpStream::connect(address) else { return Vec::new() };
    let mut writer = stream.try_clone().unwrap();
    let mut connection = Connection::of(stream);
    let mut kept = Vec::new();
    loop {
        let id = next.fetch_add(1, Relaxed);
        let head = format!(
            "GET /v1/event/?_a=62515&_n=crash&id={id}&check={} HTTP/1.1\r\nHost: a\r\n\r\n",
            check(id)
        );
        if writer.write_all(head.as_bytes()).is_err() {
            return kept;
        }
        match connection.read_one("GET") {
            Ok(response) if response.status == 200 => {
                kept.push(id);
                answered.fetch_add(1, Relaxed);
            }
            Ok(response) => panic!("answered {}", response.status),
            Err(_) => return kept,
        }
    }
}

/// A number that only the event of this id carries.
fn check(id: u64) -> u64 {
    id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16
}

/// What was sent to edges that were killed.
struct Sent {
    /// Every id below this was sent.
    end: u64,
    /// Those that were answered 200.
    answered: BTreeSet<u64>,
}

/// Starts an edge in `dir`, sends events and kills it, again and again. `look` is called on the
/// folder after each kill.
fn kill_again_and_again(dir: &Arc<TempDir>, look: impl Fn(&Path)) -> Sent {
    let next = Arc::new(AtomicU64::new(0));
    let mut answered = BTreeSet::new();
    for round in 0..kills() {
        let edge = Edge::start_in(Arc::clone(dir));
        let address = edge.address;
        let count = Arc::new(AtomicU64::new(0));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (next, count) = (Arc::clone(&next), Arc::clone(&count));
                std::thread::spawn(move || send_events(address, &next, &count))
            })
            .collect();
        // A different moment in each round: between the first answer and some hundreds later.
        let moment = 1 + check(round) % 400;
        crate::harness::wait_for("answers", || count.load(Relaxed) >= moment);
        edge.kill();
        for sender in senders {
            answered.extend(sender.join().unwrap());
        }
        look(dir.path());
    }
    assert!(answered.len() as u64 >= kills());
    Sent { end: next.load(Relaxed), answered }
}

impl Sent {
    /// Compares the events that arrived with those that were sent: each one answered with 200 has
    /// arrived, none was changed, and none was never sent. Duplicates have the id of the first.
    fn check(&self, events: &[Value]) {
        let mut ids: BTreeMap<&str, u64> = BTreeMap::new();
        for event in events {
            let sent: u64 = event["external_id"].as_str().unwrap().parse().unwrap();
            assert!(sent < self.end, "event {sent} was not sent");
            assert_eq!(event["properties"]["check"], check(sent).to_string(), "{sent} is changed");
            let known = ids.entry(event["id"].as_str().unwrap()).or_insert(sent);
            assert_eq!(*known, sent, "two events share an id");
        }
        let delivered: BTreeSet<u64> = ids.values().copied().collect();
        assert_eq!(delivered.len(), ids.len(), "one event has two ids");
        let lost = self.answered.difference(&delivered).count();
        assert_eq!(lost, 0, "of {} answered events are lost", self.answered.len());
        println!("{} kills, {} events answered, none lost", kills(), self.answered.len());
    }
}

fn survive(durability: &str) {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default()
        .spool(&format!("durability = \"{durability}\"\nsegment_bytes = \"64KiB\""))
        .upstreams(&http_upstream(&backend, ""))
        .write(dir.path());
    let sent = kill_again_and_again(&dir, |_| {});
    let edge = Edge::start_in(Arc::clone(&dir));
    edge.wait_delivered("collector");
    sent.check(&backend.events());
}

#[test]
fn every_answered_event_survives_kill_9_under_power() {
    survive("power");
}

#[test]
fn every_answered_event_survives_kill_9_under_interval() {
    survive("interval");
}

/// Texts of the files of a file upstream whose names end in `suffix`.
fn files(dir: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.join("events")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let ours = paths.filter(|path| path.to_str().unwrap().ends_with(suffix));
    ours.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

fn check_whole_lines(files: &[String]) {
    for text in files {
        assert!(text.ends_with('\n'), "a file ends within a line");
        let mut lines = text.lines().map(serde_json::from_str::<Value>);
        assert!(lines.all(|line| line.is_ok_and(|event| event.is_object())));
    }
}

#[test]
fn every_answered_event_is_in_a_file_of_whole_lines_after_kill_9() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    // Small files and batches, so that a kill meets every step of writing and finishing one.
    let at = dir.path().display();
    Setup::default()
        .spool("segment_bytes = \"64KiB\"")
        .upstreams(&format!(
            "[[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n\
             rotate_bytes = \"8KiB\"\n[upstream.batch]\nevents_max = 10\nlinger_ms = 1\n"
        ))
        .write(dir.path());
    let sent = kill_again_and_again(&dir, |dir| check_whole_lines(&files(dir, ".ndjson")));

    let edge = Edge::start_in(dir);
    edge.wait_delivered("file");
    // A last kill leaves files that are still open: events in them count as delivered, too.
    let dir = edge.kill();
    let (finished, open) = (files(dir.path(), ".ndjson"), files(dir.path(), ".ndjson.part"));
    check_whole_lines(&finished);
    check_whole_lines(&open);
    assert!(finished.len() > 10 && open.len() <= 1, "{} and {}", finished.len(), open.len());
    sent.check(&Edge::events_in_files(dir.path()));
}
