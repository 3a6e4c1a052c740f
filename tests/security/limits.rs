//! Each limit of the HTTP server, at its boundary: what just fits is served; what exceeds it gets
//! the right status or a close, and is counted.

use crate::harness::{Edge, Setup, wait_for};
use crate::http::Connection;
use crate::origin::Origin;
use crate::{EVENT, refused, wait_refused};
use std::io::{Read, Write};
use std::net::TcpStream;

/// A request for `target` whose header is this many bytes long.
fn sized(target: &str, bytes: usize) -> String {
    let start = format!("GET {target} HTTP/1.1\r\nHost: a\r\nX: ");
    let filler = "x".repeat(bytes - start.len() - 4);
    format!("{start}{filler}\r\n\r\n")
}

/// A request for `target` with this many header lines.
fn lined(target: &str, lines: usize) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(lines - 1))
}

fn status(edge: &Edge, request: &str) -> u16 {
    let mut connection = edge.connect();
    let _ = connection.try_send(request.as_bytes());
    let response = connection.read("GET");
    if response.status >= 400 {
        assert!(connection.is_closed(), "{}", response.status);
    }
    response.status
}

#[test]
fn a_header_is_limited_in_bytes_and_lines() {
    let origin = Origin::start();
    let limits = "header_bytes_max = \"1KiB\"\nheader_lines_max = 8";
    let edge = Setup::default().origin(origin.address).edge(limits).start();
    for target in ["/v1/event/?_a=62515&_n=a", "/page"] {
        assert_eq!(status(&edge, &sized(target, 1024)), 200, "{target}");
        assert_eq!(status(&edge, &sized(target, 1025)), 431, "{target}");
        assert_eq!(status(&edge, &lined(target, 8)), 200, "{target}");
        assert_eq!(status(&edge, &lined(target, 9)), 431, "{target}");
    }
    assert_eq!(refused(&edge, "header_bytes"), 2);
    assert_eq!(refused(&edge, "header_lines"), 2);
    // A header without end is refused as soon as it is too large.
    let endless = sized("/page", 2000);
    assert_eq!(status(&edge, endless.trim_end()), 431);
}

#[test]
fn a_header_has_a_deadline() {
    let edge = Setup::default().edge("header_timeout_seconds = 1").start();
    let mut slow = edge.connect();
    slow.send(b"GET /v1/event/ HTTP/1.1\r\nHost:");
    assert_eq!(slow.read("GET").status, 408);
    assert!(slow.is_closed());
    let mut silent = edge.connect();
    assert!(silent.is_closed(), "a connection that asks for nothing");
    wait_refused(&edge, "header_time", 2);
}

#[test]
fn an_idle_connection_ends_and_is_counted_apart() {
    let edge = Setup::default().edge("keepalive_seconds = 1").start();
    let mut connection = edge.connect();
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    assert!(connection.is_closed());
    wait_refused(&edge, "idle_time", 1);
    assert_eq!(refused(&edge, "header_time"), 0);
}

#[test]
fn requests_per_connection_are_limited() {
    let origin = Origin::start();
    let limit = "requests_per_connection_max = 3";
    let edge = Setup::default().origin(origin.address).edge(limit).start();
    let event = "/v1/event/?_a=62515&_n=a";
    for (count, order) in [[event; 3], ["/page"; 3], [event, "/page", event]].iter().enumerate() {
        let mut connection = edge.connect();
        let said: Vec<_> = order
            .iter()
            .map(|target| {
                let response = connection.get(target, "");
                assert_eq!(response.status, 200, "{order:?}");
                response.header("connection").unwrap_or("none").to_owned()
            })
            .collect();
        assert_eq!(said, ["keep-alive", "keep-alive", "close"], "{order:?}");
        assert!(connection.is_closed());
        wait_refused(&edge, "requests", count as u64 + 1);
    }
}

#[test]
fn a_flood_of_connections_harms_no_open_connection() {
    let edge = Setup::default().edge("connections_max = 20").start();
    let mut held: Vec<Connection> = (0..19).map(|_| edge.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    // The flood gets the twentieth connection; all further ones are closed.
    let flood: Vec<TcpStream> =
        (0..500).map(|_| TcpStream::connect(edge.address).unwrap()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    wait_refused(&edge, "connections", 499);
    assert_eq!(edge.log().matches("at the limit connections").count(), 1, "{}", edge.log());
    drop(flood);
    wait_for("a place", || {
        let mut connection = edge.connect();
        let _ = connection.try_send(EVENT.as_bytes());
        connection.read_one("GET").is_ok_and(|response| response.status == 200)
    });
}

#[test]
fn a_flood_past_the_systems_limit_of_files_takes_none_that_an_event_needs() {
    // The edge raises its soft limit by itself, up to this hard one.
    let edge = Setup::default().start_under("ulimit -Sn 300; ulimit -Hn 300");
    let mut first = edge.connect();
    assert_eq!(first.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    let flood: Vec<TcpStream> =
        (0..600).map(|_| TcpStream::connect(edge.address).unwrap()).collect();
    wait_for("the flood to be refused", || refused(&edge, "connections") >= 500);
    for _ in 0..100 {
        assert_eq!(first.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    assert!(!edge.log().contains("Accept() failed"), "{}", edge.log());
    drop(flood);
}

#[test]
fn connections_per_address_are_limited_except_for_trusted_proxies() {
    let edge = Setup::default().edge("connections_per_address_max = 2").start();
    let mut held: Vec<Connection> = (0..2).map(|_| edge.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    assert!(edge.connect().is_closed(), "a third");
    wait_refused(&edge, "connections_per_address", 1);

    let trusting = "connections_per_address_max = 2\ntrusted_proxies = [\"127.0.0.1\"]";
    let edge = Setup::default().edge(trusting).start();
    let mut held: Vec<Connection> = (0..5).map(|_| edge.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
}

#[test]
fn a_client_that_does_not_read_its_responses_is_disconnected() {
    let edge = Setup::default()
        .edge("write_timeout_seconds = 1")
        .spool("linger_ms = 0\ndurability = \"memory\"")
        .start();
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let many = EVENT.repeat(1000);
    // The client sends requests as long as the edge reads them, and reads nothing.
    wait_for("the edge to leave", || {
        match stream.write(many.as_bytes()) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
        refused(&edge, "write_time") == 1
    });
    wait_refused(&edge, "write_time", 1);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn a_client_that_does_not_read_an_origins_response_is_disconnected() {
    let nginx = crate::nginx::Nginx::start();
    std::fs::write(nginx.files().join("large"), vec![7; 20_000_000]).unwrap();
    let edge = Setup::default().origin(nginx.address).edge("write_timeout_seconds = 1").start();
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.write_all(b"GET /files/large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_refused(&edge, "write_time", 1);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 20_000_000, "it was not cut off");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}
