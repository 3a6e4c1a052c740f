//! SPEC 6: what was answered 200 is delivered, whatever ends the process.

use crate::backend::Backend;
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup};
use crate::http::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

/// Something that only the event of this id carries.
fn check(id: u64) -> u64 {
    id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16
}

fn survive(durability: &str) {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default()
        .spool(&format!("durability = \"{durability}\"\nsegment_bytes = \"64KiB\""))
        .upstreams(&http_upstream(&backend, ""))
        .write(dir.path());
    let next = Arc::new(AtomicU64::new(0));
    let mut answered = BTreeSet::new();
    for round in 0..kills() {
        let edge = Edge::start_in(Arc::clone(&dir));
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
    }
    let edge = Edge::start_in(Arc::clone(&dir));
    edge.wait_delivered("collector");

    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    for event in backend.events() {
        let sent: u64 = event["external_id"].as_str().unwrap().parse().unwrap();
        assert!(sent < next.load(Relaxed), "nobody sent {sent}");
        assert_eq!(event["properties"]["check"], check(sent).to_string(), "{sent} is changed");
        let id = event["id"].as_str().unwrap().to_owned();
        let known = ids.entry(id).or_insert(sent);
        assert_eq!(*known, sent, "two events share an id");
    }
    let delivered: BTreeSet<u64> = ids.values().copied().collect();
    assert_eq!(delivered.len(), ids.len(), "one event has two ids");
    let lost: Vec<_> = answered.difference(&delivered).collect();
    assert!(lost.is_empty(), "{} of {} answered events are lost", lost.len(), answered.len());
    assert!(answered.len() as u64 >= kills());
    println!("{durability}: {} kills, {} events answered, none lost", kills(), answered.len());
}

#[test]
fn every_answered_event_survives_kill_9_under_power() {
    survive("power");
}

#[test]
fn every_answered_event_survives_kill_9_under_interval() {
    survive("interval");
}
