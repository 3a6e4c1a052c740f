//! `spool.linger_ms`: a group lingers only while a connection outside it could report an event.

use crate::harness::{Edge, Setup};
use crate::http::Connection;
use std::time::{Duration, Instant};

const LINGER: Duration = Duration::from_millis(1000);
const EVENT: &[u8] = b"GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";
/// Attempts: on a busy machine single attempts may be slow.
const TRIES: usize = 10;

fn start() -> Edge {
    Setup::default().spool("linger_ms = 1000\ndurability = \"power\"").start()
}

/// The time until an event was answered.
fn wait_of(connection: &mut Connection) -> Duration {
    let began = Instant::now();
    connection.send(EVENT);
    assert_eq!(connection.read("GET").status, 200);
    began.elapsed()
}

/// A connection that the edge counts, because it has answered on it.
fn known(edge: &Edge) -> Connection {
    let mut connection = edge.connect();
    assert_eq!(connection.get("/v1/event/?_a=1&_n=a", "").status, 403);
    connection
}

#[test]
fn no_event_lingers_when_all_connections_are_in_its_group() {
    let edge = start();
    // A client of the admin pages reports no event.
    let mut watcher = Connection::open(edge.admin);
    assert_eq!(watcher.get("/livez", &format!("Host: {}\r\n", edge.admin)).status, 200);
    let mut alone = edge.connect();
    assert!((0..TRIES).any(|_| wait_of(&mut alone) < LINGER), "the only client waited each time");
    let mut both = [alone, edge.connect()];
    let together = |both: &mut [Connection; 2]| {
        let began = Instant::now();
        both.iter_mut().for_each(|one| one.send(EVENT));
        both.iter_mut().for_each(|one| assert_eq!(one.read("GET").status, 200));
        began.elapsed()
    };
    assert!((0..TRIES).any(|_| together(&mut both) < LINGER), "two clients waited each time");
}

#[test]
fn an_event_lingers_while_another_connection_is_idle() {
    let edge = start();
    let mut one = known(&edge);
    let silent = known(&edge);
    assert!(wait_of(&mut one) >= LINGER, "another client could have asked");
    drop(silent);
    assert!((0..TRIES).any(|_| wait_of(&mut one) < LINGER), "it has left");
}
