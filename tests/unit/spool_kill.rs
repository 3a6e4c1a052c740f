//! A real process on a real disk, killed with SIGKILL at random moments, again and again, on one
//! and the same spool: everything that it learnt is safe arrives, nothing else does, and the counts
//! add up.
//!
//! The test starts itself as the process to be killed. `PIXELGATE_TEST_KILLS` says how often (10).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytesize::ByteSize;
use pixelgate::internals::spool::{Ack, Config, Durability, Env, Spool};

const FOLDER: &str = "PIXELGATE_TEST_SPOOL_FOLDER";
const MODE: &str = "PIXELGATE_TEST_SPOOL_MODE";
const FIRST: &str = "PIXELGATE_TEST_SPOOL_FIRST";

fn config(dir: &Path, durability: Durability) -> Config {
    Config {
        dir: dir.to_owned(),
        durability,
        linger_ms: 1,
        segment_bytes: ByteSize::kib(64),
        free_bytes_min: ByteSize(0),
        // The disk of a machine that runs tests may be slow.
        commit_seconds_max: 60,
        ..Config::default()
    }
}

fn open(dir: &Path, durability: Durability) -> Spool {
    let names = ["near".to_owned(), "far".to_owned()];
    Spool::open(&config(dir, durability), &names, Env::system()).expect("opens")
}

fn payload(event: u64) -> String {
    format!("{event} {}", "x".repeat((event * 31 % 700) as usize))
}

fn number(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).expect("as written");
    let event = text.split(' ').next().expect("as written").parse().expect("as written");
    assert_eq!(text, self::payload(event), "an invention");
    event
}

/// Only does something in the process that this test starts: appends until it is killed, says on
/// its output what is safe and what it has acknowledged.
#[test]
fn child() {
    let (Some(dir), Ok(mode), Ok(first)) =
        (std::env::var_os(FOLDER), std::env::var(MODE), std::env::var(FIRST))
    else {
        return;
    };
    let durability = if mode == "power" { Durability::Power } else { Durability::Interval };
    let spool = open(&PathBuf::from(dir), durability);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let mut reader = spool.reader("near").expect("configured");
    let mut next: u64 = first.parse().expect("a number");
    runtime.expect("a runtime").block_on(async {
        loop {
            let commits: Vec<_> = (next..next + 50)
                .map(|event| {
                    let append =
                        spool.append(|out| out.extend_from_slice(payload(event).as_bytes()));
                    (event, append)
                })
                .collect();
            next += 50;
            let mut lines = String::new();
            for (event, commit) in commits {
                let safe = match commit {
                    Ok(commit) => commit.await.is_ok(),
                    Err(_) => false,
                };
                lines += &format!("{} {event}\n", if safe { "safe" } else { "tried" });
            }
            let entries = reader.try_read(40, 1 << 20);
            for entry in &entries {
                lines += &format!("near {}\n", number(&entry.payload));
            }
            // Printed before the acknowledgement: a kill in between may lose the line, and no
            // delivery.
            let mut out = std::io::stdout().lock();
            out.write_all(lines.as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
            let record_ids: Vec<_> = entries.iter().map(|entry| entry.record_id).collect();
            reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
        }
    });
}

struct Heard {
    safe: BTreeSet<u64>,
    near: BTreeSet<u64>,
    highest: u64,
}

/// Starts the child, lets it work, kills it, and adds what it said.
fn live_and_die(dir: &Path, mode: &str, millis: u64, heard: &mut Heard) {
    let mut child = Command::new(std::env::current_exe().expect("itself"))
        .args(["--exact", "spool_kill::child", "--nocapture", "--test-threads", "1"])
        .env(FOLDER, dir)
        .env(MODE, mode)
        .env(FIRST, (heard.highest + 1_000_000).to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (send, lines) = std::sync::mpsc::channel();
    let listener = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut note = |line: String| {
        let Some((what, Ok(event))) =
            line.split_once(' ').map(|(what, event)| (what, event.parse::<u64>()))
        else {
            return;
        };
        heard.highest = heard.highest.max(event);
        match what {
            "safe" => _ = heard.safe.insert(event),
            "near" => _ = heard.near.insert(event),
            _ => {}
        }
    };
    // The time counts from the child's first line, so that it is killed at work and not at its
    // start.
    lines.iter().by_ref().find(|line| line.starts_with("safe")).into_iter().for_each(&mut note);
    std::thread::sleep(Duration::from_millis(millis));
    child.kill().expect("killed");
    child.wait().expect("ended");
    lines.iter().for_each(&mut note);
    listener.join().expect("ends");
}

fn drain(spool: &Spool, upstream: &str) -> BTreeSet<u64> {
    let mut reader = spool.reader(upstream).expect("configured");
    let mut events = BTreeSet::new();
    loop {
        let entries = reader.try_read(500, 1 << 20);
        if entries.is_empty() {
            return events;
        }
        for entry in &entries {
            assert!(events.insert(number(&entry.payload)), "twice in one life");
        }
        let record_ids: Vec<_> = entries.iter().map(|entry| entry.record_id).collect();
        reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    }
}

fn check(mode: &str, durability: Durability) {
    let kills = std::env::var("PIXELGATE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    let dir = tempfile::tempdir().expect("a folder");
    let mut heard = Heard { safe: BTreeSet::new(), near: BTreeSet::new(), highest: 0 };
    for kill in 0..kills.unwrap_or(10) {
        live_and_die(dir.path(), mode, kill * 7919 % 90, &mut heard);
    }
    assert!(heard.safe.len() > 100, "it was at work");
    let spool = open(dir.path(), durability);
    let far = drain(&spool, "far");
    let near: BTreeSet<u64> = drain(&spool, "near").union(&heard.near).copied().collect();
    for (upstream, delivered) in [("far", &far), ("near", &near)] {
        let missing: Vec<_> = heard.safe.difference(delivered).take(5).collect();
        assert!(missing.is_empty(), "{upstream}: {missing:?} were safe and are gone");
    }
    let status = spool.status();
    for upstream in &status.upstreams {
        assert_eq!(upstream.accepted, upstream.delivered + upstream.lost, "{upstream:?}");
        assert_eq!((upstream.pending, upstream.lost), (0, 0), "{upstream:?}");
    }
    assert_eq!(status.upstreams[1].accepted, far.len() as u64);
}

#[test]
fn power_survives_sigkill() {
    check("power", Durability::Power);
}

#[test]
fn interval_survives_sigkill() {
    check("interval", Durability::Interval);
}
