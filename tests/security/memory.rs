//! Memory that an idle connection costs.

use crate::EVENT;
use crate::harness::{Edge, PATIENCE, Setup};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Most memory of one idle keep-alive connection, in KiB, in any build.
const IDLE_KIB_MAX: f64 = 4.0;
/// Enough connections that the process's own memory use does not matter.
const CONNECTIONS: usize = 6000;

/// Connections opened at once. More would measure the accept queue.
const AT_ONCE: usize = 50;

/// Opens `count` keep-alive connections that have each made one request.
fn open(edge: &Edge, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let new = (0..AT_ONCE).map(|_| TcpStream::connect(edge.address).unwrap());
        let mut new: Vec<TcpStream> = new.collect();
        for stream in &mut new {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(EVENT.as_bytes()).unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        }
        all.append(&mut new);
    }
    all
}

#[test]
fn an_idle_connection_costs_little() {
    // Long timeouts, so that a slow machine does not close idle connections.
    let edge = Setup::default()
        .edge("header_timeout_seconds = 600\nkeepalive_seconds = 600")
        .spool("durability = \"memory\"")
        .start();
    let first = open(&edge, 1000);
    let before = edge.resident_kib();
    let all = open(&edge, CONNECTIONS);
    let each = (edge.resident_kib() - before) as f64 / CONNECTIONS as f64;
    println!("{each:.2} KiB for each of {CONNECTIONS} idle connections");
    assert!(each <= IDLE_KIB_MAX, "{each:.2} KiB");
    drop((first, all));
}
