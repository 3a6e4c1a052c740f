//! How long a start takes on a large spool: from the process's beginning to its first listener.
//!
//! Prints figures and asserts only that all is counted:
//! `cargo test --release --test edge start_times -- --ignored --nocapture`, or any build in
//! `PIXELGATE_TEST_BINARY`.

use crate::backend::{Act, Backend};
use crate::delivery::RUNTIME;
use crate::disk::{Ledger, folder};
use crate::disk_faults::{send, stored_event};
use crate::harness::Edge;
use pixelgate::internals::spool::{Config, Durability, Env, Spool};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts of each spool.
const STARTS: usize = 5;

/// A process that appends so many events to a spool and ends.
fn append(spool: &Path, record: &[u8], events: u64) {
    let durability = Durability::Memory;
    let config = Config { dir: spool.to_owned(), durability, ..Config::default() };
    let spool = Spool::open(&config, &["collector".to_owned()], Env::system()).unwrap();
    let mut taken = 0;
    while taken < events {
        // An append is refused while too much waits for the disk.
        match spool.append(|out| out.extend_from_slice(record)) {
            Ok(_) => taken += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    spool.close(Duration::from_secs(60)).unwrap();
}

fn measure(what: &str, fill: impl Fn(&Path, &[u8]) -> u64) {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "64MiB");
    let donor = Edge::start_in(Arc::clone(&dir));
    send(&donor, &Ledger::default(), 1);
    donor.stop();
    let record = stored_event(dir.path());
    let events = 1 + fill(&dir.path().join("spool"), &record);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        let edge = Edge::start_in(Arc::clone(&dir));
        times.push(began.elapsed());
        let row = edge.upstream("collector");
        assert_eq!((&row["accepted"], &row["lost"]), (&events.into(), &0.into()), "{row}");
        edge.stop();
    }
    times.sort_unstable();
    println!(
        "{what}, {events} events: {:?} to listening, the middle of {times:?}",
        times[STARTS / 2]
    );
}

#[test]
#[ignore = "it measures, and writes 2 GiB"]
fn a_start_with_two_gib_in_one_lane() {
    measure("2 GiB", |spool, record| {
        let events = (2 << 30) / record.len() as u64;
        append(spool, record, events);
        events
    });
}

#[test]
#[ignore = "it measures"]
fn a_start_with_a_thousand_lanes() {
    measure("1,000 lanes", |spool, record| {
        // Each lane is made in a folder of its own, so that no process adopts those made before.
        let others = spool.with_file_name("others");
        for number in 1_000..2_000 {
            std::fs::create_dir_all(others.join(format!("lane-{:08}", number - 1))).unwrap();
            append(&others, record, 1);
            let lane = format!("lane-{number:08}");
            std::fs::rename(others.join(&lane), spool.join(&lane)).unwrap();
            std::fs::remove_dir_all(&others).unwrap();
        }
        1_000
    });
}
