//! Client connections: many at once, slow, idle, pipelined, and with requests in fragments.

use crate::harness::{Edge, Setup};
use crate::http::Connection;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const EVENT: &str = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";

/// As many connections as this process may open, at most 10,000: each is one file here and one
/// in the edge, which raises its limit by itself.
fn many() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Other tests of this process have files open, too.
    let files = limit.current.unwrap_or(u64::MAX).saturating_sub(1000);
    usize::try_from(files).unwrap_or(usize::MAX).min(10_000)
}

#[test]
fn ten_thousand_kept_connections_are_answered_at_once_and_again() {
    let edge = Setup::default().spool("durability = \"interval\"").start();
    let count = many();
    let mut connections: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(edge.address).unwrap()).collect();
    for _ in 0..2 {
        for connection in &mut connections {
            connection.write_all(EVENT.as_bytes()).unwrap();
        }
        for connection in &mut connections {
            connection.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
            let mut response = [0; 4096];
            let length = connection.read(&mut response).unwrap();
            assert!(response[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    }
    let row = edge.wait_delivered("file");
    assert_eq!(row["accepted"].as_u64(), Some(2 * count as u64));
    if count < 10_000 {
        println!("only {count} connections: the limit of open files is too low for more");
    }
}

#[test]
fn pipelined_events_are_answered_in_order() {
    let edge = Edge::start();
    let mut connection = edge.connect();
    let queries = ["_a=62515&_n=a", "_a=1&_n=a", "_n=a", "_a=62515&_n=b"];
    let mut all = String::new();
    for query in queries {
        all += &format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    connection.send(all.as_bytes());
    let verdicts: Vec<String> =
        queries.iter().map(|_| connection.read("GET").verdict().to_owned()).collect();
    assert_eq!(verdicts, ["accepted", "portal_not_allowed", "missing_portal", "accepted"]);
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=c", "").status, 200);
}

#[test]
fn a_request_torn_at_every_byte_is_one_request() {
    let edge = Setup::default().spool("linger_ms = 0").start();
    let mut connection = edge.connect();
    for cut in 1..EVENT.len() {
        connection.send(&EVENT.as_bytes()[..cut]);
        connection.send(&EVENT.as_bytes()[cut..]);
        assert_eq!(connection.read("GET").verdict(), "accepted", "torn at {cut}");
    }
    let row = edge.wait_delivered("file");
    assert_eq!(row["accepted"].as_u64(), Some(EVENT.len() as u64 - 1));
}

#[test]
fn a_client_that_drips_its_header_is_cut_off() {
    let edge = Setup::default().edge("header_timeout_seconds = 1").start();
    let mut connection = edge.connect();
    let mut bytes = EVENT.bytes().cycle();
    let mut sent = 0;
    // A byte now and then, until the edge ends the connection.
    while connection.try_send(&[bytes.next().unwrap()]).is_ok() && sent < 40 {
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(connection.read("GET").status, 408);
    assert!(connection.is_closed());
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let edge = Setup::default().edge("keepalive_seconds = 1").start();
    let mut connection = edge.connect();
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    assert!(connection.is_closed(), "the edge ends it; the read waits for that");
}

#[test]
fn a_header_is_as_large_as_it_may_be_and_no_larger() {
    let edge = Edge::start();
    let filler = |length: usize| format!("X-Filler: {}\r\n", "x".repeat(length));
    let mut connection = edge.connect();
    let response = connection.get("/v1/event/?_a=62515&_n=a", &filler(60 << 10));
    assert_eq!(response.status, 200);
    let mut connection = edge.connect();
    let head = format!("GET /v1/event/ HTTP/1.1\r\nHost: a\r\n{}", filler(80 << 10));
    let _ = connection.try_send(head.as_bytes());
    assert_eq!(connection.read("GET").status, 431);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_their_permits_are_released() {
    let edge = Setup::default().edge("connections_max = 3").start();
    let mut held: Vec<Connection> = (0..3).map(|_| edge.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    assert!(edge.connect().is_closed(), "a fourth");
    held.pop();
    crate::harness::wait_for("a place", || {
        let mut connection = edge.connect();
        let _ = connection.try_send(EVENT.as_bytes());
        connection.read_one("GET").is_ok_and(|response| response.status == 200)
    });
}

#[test]
fn a_client_that_asked_for_close_and_stays_holds_no_permit() {
    let edge = Setup::default().edge("connections_max = 1").start();
    let closing = EVENT.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    // All of them stay open on their own side, within the second for which the edge drains a
    // connection that it closes. The permit of one is given back shortly after its answer.
    let mut staying = Vec::new();
    let mut answered = 0;
    let end = Instant::now() + Duration::from_millis(900);
    while answered < 2 && Instant::now() < end {
        let mut connection = edge.connect();
        let _ = connection.try_send(closing.as_bytes());
        let response = connection.read_one("GET");
        answered += u32::from(response.is_ok_and(|response| response.status == 200));
        staying.push(connection);
    }
    assert_eq!(answered, 2);
}

#[test]
fn connections_of_one_address_are_limited_apart() {
    let edge = Setup::default().edge("connections_per_address_max = 2").start();
    let mut held: Vec<Connection> = (0..2).map(|_| edge.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    assert!(edge.connect().is_closed(), "a third");
}

#[test]
fn a_unix_socket_takes_events_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.sock");
    let edge = Setup::default().listen(&format!("unix:{}", path.display())).start();
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(EVENT.as_bytes()).unwrap();
    let mut response = [0; 4096];
    let length = stream.read(&mut response).unwrap();
    assert!(response[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert_eq!(edge.wait_delivered("file")["accepted"], 1);
}
