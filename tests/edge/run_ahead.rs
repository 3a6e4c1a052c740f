//! SPEC 7: how far delivery runs ahead of an event that is stuck is bounded by disk alone.
//!
//! `cargo test --test edge run_ahead -- --ignored --nocapture` delivers ten million events behind
//! one that is stuck, and prints the edge's memory. `PIXELGATE_TEST_BINARY` names an optimized
//! build.

use crate::delivery::{check_state_is_true, filled};
use crate::harness::{Edge, Setup};
use bytesize::ByteSize;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const EVENTS: u64 = 10_000_000;
/// Memory that ten times as many events may take in addition, far less than a byte for each.
const GROWTH_KIB_MAX: u64 = 8 << 10;

/// Answers 500 to each batch with the first event, and 200 to every other one.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut body = Vec::new();
    loop {
        let mut bytes = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(length) = lower.strip_prefix("content-length:") {
                bytes = length.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        body.resize(bytes, 0);
        reader.read_exact(&mut body)?;
        let is_stuck = memchr::memmem::find(&body, b"\"external_id\":\"0\"").is_some();
        let status = if is_stuck { "500 No" } else { "200 OK" };
        write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

#[test]
#[ignore = "takes minutes and 2 GB of disk: a command of its own"]
fn ten_million_events_behind_one_that_is_stuck_take_no_memory() {
    let upstream = format!(
        "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"http://{}/\"\n\
         compression = \"none\"\nattempts_max = 0\n",
        backend()
    );
    let setup = Setup::default().upstreams(&upstream).spool("bytes_max = \"8GiB\"");
    let edge = Edge::start_in(filled(setup, "collector", ByteSize::mib(64), EVENTS));
    let mut resident = Vec::new();
    for million in 1..=EVENTS / 1_000_000 {
        // A batch of 500 with the first event waits.
        let expect = million * 1_000_000 - 500;
        let delivered = || edge.upstream("collector")["delivered"].as_u64().unwrap();
        let mut before = (delivered(), std::time::Instant::now());
        while delivered() < expect {
            std::thread::sleep(Duration::from_millis(20));
            if delivered() > before.0 {
                before = (delivered(), std::time::Instant::now());
            }
            let stands = before.1.elapsed();
            assert!(stands < Duration::from_secs(60), "stands at {}: {}", before.0, edge.log());
        }
        check_state_is_true(&edge, "collector");
        resident.push(edge.resident_kib());
        println!("{million:>3} million events delivered: {} KiB", edge.resident_kib());
    }
    let row = edge.upstream("collector");
    assert_eq!((&row["pending"], &row["state"]), (&json!(500), &json!("retrying")));
    let grown = resident[resident.len() - 1].saturating_sub(resident[0]);
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB more after ten million than after one");
}
