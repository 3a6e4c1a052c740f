//! `order = "portal"` over an upgrade: the events of the old process come before those of the new
//! one, whichever of them delivers (SPEC 7).

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, wait_for};
use crate::http::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::ops::Range;

/// A backend that takes nothing, and an edge that has tried to deliver the events 0 to 4 to it, and
/// tries again after these seconds. The connection keeps the edge alive when it stops.
fn with_backlog(order: &str, retry_after: u64) -> (Backend, Edge, Connection) {
    let refuse = move |_: &_| Act::RefuseWith(503, vec![("Retry-After", retry_after.to_string())]);
    let backend = RUNTIME.block_on(Backend::start(refuse));
    let old = Setup::default()
        .edge("shutdown_grace_seconds = 3600")
        .upstreams(&http_upstream(&backend, &format!("order = \"{order}\"")))
        .start();
    let mut open = old.connect();
    assert_eq!(open.get("/page", "").status, 404);
    accept(&old, 0..5);
    wait_for("the first attempt", || !backend.seen().is_empty());
    (backend, old, open)
}

fn accept(edge: &Edge, ids: Range<u64>) {
    for id in ids {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={id}")).status, 200);
    }
}

/// Makes the old process of an upgrade stop, and waits until only the new one accepts.
fn stop_accepting(old: &Edge) {
    old.signal(Signal::QUIT);
    old.wait_log("stopping");
    wait_for("the listeners to be closed", || !listens(old));
}

/// Whether a process has a TCP socket that listens.
fn listens(edge: &Edge) -> bool {
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", edge.pid())).unwrap();
    let of = |line: &str| {
        let mut words = line.split_whitespace().skip(3);
        let is_listening = words.next() == Some("0A");
        is_listening.then(|| format!("socket:[{}]", words.nth(5).unwrap()))
    };
    let listening: Vec<String> = sockets.lines().filter_map(of).collect();
    let files = std::fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    links.into_iter().any(|link| listening.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

/// The numbers of the events that the backend has taken, in their order.
fn taken(backend: &Backend) -> Vec<u64> {
    let events = backend.events();
    events.iter().map(|event| event["external_id"].as_str().unwrap().parse().unwrap()).collect()
}

fn takes(backend: &Backend) {
    backend.script(|_| Act::Take);
}

fn check_order(backend: &Backend, edge: &Edge, events: u64) {
    wait_for("all events", || taken(backend).len() as u64 == events);
    assert_eq!(taken(backend), (0..events).collect::<Vec<u64>>(), "{}", edge.log());
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["accepted"], &row["delivered"]), (&events.into(), &events.into()), "{row}");
}

/// Waits until the new process shows that its events wait for the old one.
fn wait_until_shown(new: &Edge) {
    let mut status = Value::Null;
    wait_for("the wait to be shown", || {
        status = new.status();
        status["upstreams"][0]["state"] == "predecessor_lives"
            && status["upstreams"][0]["lag_seconds"] != 0
            && status["headline"]["level"] == "notice"
    });
    assert_eq!(status["pid"], new.pid(), "{status}");
    let text = status["headline"]["text"].as_str().unwrap();
    assert!(text.contains("collector wait until the older process"), "{status}");
    assert_eq!((&status["ready"], &status["faults"]), (&json!(true), &json!([])), "{status}");
}

#[test]
fn what_an_old_process_leaves_comes_before_the_events_of_the_new_one() {
    let (backend, mut old, open) = with_backlog("portal", 3600);
    let new = old.upgrade();
    stop_accepting(&old);
    takes(&backend);
    accept(&new, 5..10);
    wait_until_shown(&new);
    assert_eq!(taken(&backend), [0; 0]);
    drop(open);
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    check_order(&backend, &new, 10);
    wait_for("the wait to end", || new.upstream("collector")["state"] == "ok");
}

#[test]
fn what_an_old_process_delivers_itself_comes_before_the_events_of_the_new_one() {
    let (backend, mut old, open) = with_backlog("portal", 1);
    let new = old.upgrade();
    stop_accepting(&old);
    accept(&new, 5..10);
    wait_until_shown(&new);
    takes(&backend);
    wait_for("the events of the old one", || taken(&backend).len() >= 5);
    assert_eq!(taken(&backend), [0, 1, 2, 3, 4]);
    drop(open);
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    check_order(&backend, &new, 10);
}

#[test]
fn what_a_killed_old_process_leaves_comes_before_the_events_of_the_new_one() {
    let (backend, old, _open) = with_backlog("portal", 3600);
    let new = old.upgrade();
    takes(&backend);
    old.kill();
    accept(&new, 5..10);
    check_order(&backend, &new, 10);
}

#[test]
fn the_events_of_a_new_process_that_is_killed_keep_their_place() {
    let (backend, mut old, open) = with_backlog("portal", 3600);
    let new = old.upgrade();
    stop_accepting(&old);
    takes(&backend);
    accept(&new, 5..10);
    let next = Edge::start_in(new.kill());
    accept(&next, 10..15);
    wait_until_shown(&next);
    assert_eq!(taken(&backend), [0; 0]);
    drop(open);
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    check_order(&backend, &next, 15);
}

#[test]
fn without_an_order_the_events_of_a_new_process_do_not_wait() {
    let (backend, mut old, open) = with_backlog("none", 3600);
    let new = old.upgrade();
    stop_accepting(&old);
    takes(&backend);
    accept(&new, 5..10);
    wait_for("the events of the new one", || taken(&backend).len() == 5);
    drop(open);
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    wait_for("all events", || taken(&backend).len() == 10);
    assert_eq!(taken(&backend)[..5], [5, 6, 7, 8, 9]);
}
