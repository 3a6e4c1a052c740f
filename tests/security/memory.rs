//! Memory that an idle connection costs, and one that does not read its response.

use crate::EVENT;
use crate::frames::{Client, get};
use crate::harness::{Edge, PATIENCE, Setup, wait_for};
use crate::nginx::Nginx;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

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

/// Most memory of a response over HTTP/1 that its client does not read, in KiB, in any build. So
/// many run at once here that they are read in small pieces.
const UNREAD_KIB_MAX: f64 = 80.0;
/// Most memory of such a response over HTTP/2, in KiB.
const UNREAD_STREAM_KIB_MAX: f64 = 80.0;
/// Most memory of an upload that its origin does not read, in KiB. The copy for a second attempt
/// is included.
const UPLOAD_KIB_MAX: f64 = 360.0;
/// Most memory in huge pages, in KiB: a process may take some before it can decline them.
const HUGE_KIB_MAX: u64 = 12 << 10;
/// Uploads that are open at once: as many connections as an origin's listener keeps unaccepted.
const UPLOADS: usize = 100;
/// Unread responses, enough that the process's own memory use does not matter.
const UNREAD: usize = 300;

/// Resident memory once it has stopped growing, in KiB.
fn settled_kib(edge: &Edge) -> u64 {
    let (mut last, mut same) = (0, 0);
    wait_for("the memory to settle", || {
        let now = edge.resident_kib();
        same = if now > last { 0 } else { same + 1 };
        last = last.max(now);
        same > 100
    });
    last
}

/// An edge before an nginx with a large file, that has served a few responses, and its memory.
fn start_with_file() -> (Nginx, Edge, u64) {
    let nginx = Nginx::start();
    std::fs::write(nginx.files().join("large"), vec![7; 8_000_000]).unwrap();
    let edge = Setup::default().origin(nginx.address).start();
    for _ in 0..10 {
        assert_eq!(edge.get("/files/large").body.len(), 8_000_000);
    }
    let before = settled_kib(&edge);
    (nginx, edge, before)
}

fn assert_little(edge: &Edge, before: u64, count: usize, kib_max: f64) {
    let each = settled_kib(edge).saturating_sub(before) as f64 / count as f64;
    println!("{each:.1} KiB for each of {count} exchanges");
    assert!(each <= kib_max, "{each:.1} KiB");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

/// A huge page holds 2 MiB as long as one allocation in it lives.
#[test]
fn the_memory_of_an_edge_is_in_small_pages() {
    let (_nginx, edge, _) = start_with_file();
    let held = open(&edge, 1000);
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", edge.pid())).unwrap();
    let huge = maps.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    let huge: u64 = huge.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{huge} KiB in huge pages");
    assert!(huge <= HUGE_KIB_MAX, "{huge} KiB");
    drop(held);
}

#[test]
fn a_download_that_is_not_read_costs_little() {
    let (_nginx, edge, before) = start_with_file();
    let unread: Vec<TcpStream> = (0..UNREAD)
        .map(|_| {
            let mut stream = TcpStream::connect(edge.address).unwrap();
            stream.write_all(b"GET /files/large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            stream
        })
        .collect();
    assert_little(&edge, before, UNREAD, UNREAD_KIB_MAX);
    drop(unread);
}

#[test]
fn a_stream_that_is_not_read_costs_little() {
    let (_nginx, edge, before) = start_with_file();
    let unread: Vec<Client> = (0..UNREAD / 100)
        .map(|_| {
            let mut client = Client::open(edge.address, b"");
            (0..100_u32).for_each(|n| client.send(&get(2 * n + 1, "/files/large")));
            client
        })
        .collect();
    assert_little(&edge, before, UNREAD, UNREAD_STREAM_KIB_MAX);
    drop(unread);
}

#[test]
fn an_upload_that_is_not_taken_costs_little() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let edge = Setup::default().origin(origin.local_addr().unwrap()).start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    let before = settled_kib(&edge);
    let mut uploads: Vec<TcpStream> = (0..UPLOADS)
        .map(|_| {
            let mut stream = TcpStream::connect(edge.address).unwrap();
            let head = "PUT /page HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let mut rounds_without_progress = 0;
    wait_for("all buffers to be full", || {
        let mut is_full = true;
        for stream in &mut uploads {
            while stream.write(&[7; 1 << 16]).is_ok() {
                is_full = false;
            }
        }
        rounds_without_progress = if is_full { rounds_without_progress + 1 } else { 0 };
        rounds_without_progress > 20
    });
    assert_little(&edge, before, UPLOADS, UPLOAD_KIB_MAX);
}
