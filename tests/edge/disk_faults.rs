//! SPEC 6 on the real binary: folders that vanish, disks that freeze or refuse single calls, and
//! limits of the system.
//!
//! Some of these need root and loop devices, or `strace`. Where they are missing, a test prints
//! what is missing and passes without testing anything.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::disk::{Disk, Ledger, Load, REFUSES_SOON, folder, or_skip, run};
use crate::harness::{Edge, Setup, command, wait_for};
use pixelgate::internals::spool::{Config, Env, Spool};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Whether `/status` shows a fault of this kind with this part of a path.
pub fn shows_fault(edge: &Edge, what: &str, path: &str) -> bool {
    let status = edge.status();
    let faults = status["faults"].as_array().unwrap();
    let is_it =
        |fault: &Value| fault["what"] == what && fault["subject"].as_str().unwrap().contains(path);
    faults.iter().any(is_it)
}

/// Waits until there is no fault.
pub fn wait_well(edge: &Edge) {
    wait_for("all faults to end", || edge.status()["faults"].as_array().unwrap().is_empty());
}

/// Sends events one after another until so many were answered with 200.
pub fn send(edge: &Edge, ledger: &Ledger, events: u64) {
    let until = ledger.count.load(Relaxed) + events;
    let mut connection = edge.connect();
    wait_for("events to be accepted", || {
        if ledger.send(&mut connection).is_none() {
            connection = edge.connect();
        }
        ledger.count.load(Relaxed) >= until
    });
}

#[test]
fn a_spool_folder_that_is_moved_away_and_back_loses_nothing() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "64KiB");
    let (spool, away) = (dir.path().join("spool"), dir.path().join("away"));
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Arc::new(Ledger::default());
    send(&edge, &ledger, 300);

    std::fs::rename(&spool, &away).unwrap();
    ledger.wait_refusing(&edge);
    wait_for("the fault to be shown", || shows_fault(&edge, "spool_folder", "spool"));
    backend.script(|_| Act::Take);
    let metrics = edge.admin("/metrics");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("pixelgate_faults{what=\"spool_folder\"}"), "{metrics}");

    std::fs::rename(&away, &spool).unwrap();
    ledger.wait_accepting(&edge);
    send(&edge, &ledger, 100);
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["lost"], &row["accepted"]), (&0.into(), &ledger.count.load(Relaxed).into()));
    wait_well(&edge);
    ledger.check(&backend, true);
}

#[test]
fn a_removed_spool_folder_refuses_events_until_the_edge_is_restarted() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = folder(&backend, "64KiB");
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Arc::new(Ledger::default());
    send(&edge, &ledger, 10);
    edge.wait_delivered("collector");
    std::fs::remove_dir_all(dir.path().join("spool")).unwrap();
    ledger.wait_refusing(&edge);
    wait_for("the fault to be shown", || shows_fault(&edge, "spool_folder", "spool"));
    let ready = edge.admin("/readyz");
    assert!(String::from_utf8_lossy(&ready.body).contains("spool"), "{:?}", ready.body);
    edge.kill();

    let edge = Edge::start_in(dir);
    ledger.wait_accepting(&edge);
    edge.wait_delivered("collector");
    ledger.check(&backend, true);
}

#[test]
fn a_frozen_file_system_refuses_within_the_deadline_and_recovers() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().spool(REFUSES_SOON).upstreams(&http_upstream(&backend, "")).write(dir.path());
    let (image, spool) = (dir.path().join("image"), dir.path().join("spool"));
    let Some(disk) = or_skip(Disk::ext4(&image, &spool)) else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Arc::new(Ledger::default());
    send(&edge, &ledger, 100);
    let Some(frozen) = disk.freeze() else { return };
    // Ends only if each request that waits is answered.
    Load::start(edge.address, &ledger).end();
    ledger.wait_refusing(&edge);
    let ready = edge.admin("/readyz");
    assert!(String::from_utf8_lossy(&ready.body).contains("commit_seconds_max"));
    drop(frozen);
    ledger.wait_accepting(&edge);
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["lost"], &row["accepted"]), (&0.into(), &ledger.count.load(Relaxed).into()));
    ledger.check(&backend, true);
    drop(edge);
    disk.unmount();
}

#[test]
fn lanes_beyond_the_limit_of_open_files_are_counted_and_delivered() {
    const LANES: u64 = 150;
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "64KiB");
    let donor = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&donor, &ledger, 1);
    donor.kill();
    make_lanes(dir.path(), LANES - 1, &["collector"], stored_event(dir.path()));
    let edge = Edge::start_under(dir, "ulimit -n 257");
    let row = edge.upstream("collector");
    assert_eq!((&row["accepted"], &row["pending"]), (&LANES.into(), &LANES.into()), "{row}");
    backend.script(|_| Act::Take);
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["accepted"], &row["delivered"]), (&LANES.into(), &LANES.into()), "{row}");
    wait_well(&edge);
}

#[test]
fn upstreams_that_older_lanes_hold_back_are_a_fault_until_they_get_their_events() {
    const LANES: u64 = 50;
    const OLD_SECONDS: u64 = 86_400;
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let events = dir.path().join("events");
    let file = format!("[[upstream]]\nname = \"well\"\nkind = \"file\"\ndir = {events:?}\n");
    let both = format!("{}\n{file}", http_upstream(&backend, ""));
    Setup::default().spool("durability = \"power\"").upstreams(&both).write(dir.path());
    let donor = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&donor, &ledger, 1);
    donor.kill();
    let mut old = stored_event(dir.path());
    let then = jiff::Timestamp::now().as_millisecond().unsigned_abs() - 1000 * OLD_SECONDS;
    // The time of receipt, as `event/record/encode.rs` specifies.
    old[2..10].copy_from_slice(&then.to_le_bytes());
    make_lanes(dir.path(), LANES - 1, &["collector", "well"], old);
    let edge = Edge::start_under(dir, "ulimit -n 257");
    wait_for("the fault", || shows_fault(&edge, "spool_lane", "well"));
    assert!(!shows_fault(&edge, "spool_lane", "collector"), "it has work: {}", edge.status());
    let row = edge.upstream("well");
    let pending = row["pending"].as_u64().unwrap();
    assert!(0 < pending && pending < LANES, "{row}");
    wait_for("the state", || edge.upstream("well")["state"] == "held_back");
    // An event that is newer, and delivered, does not hide those that wait.
    send(&edge, &ledger, 1);
    wait_for("the new event", || edge.upstream("well")["pending"] == pending);
    let row = edge.upstream("well");
    assert_eq!(row["state"], "held_back", "{row}");
    assert!(row["lag_seconds"].as_u64().unwrap() >= OLD_SECONDS, "{row}");
    let metrics = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let lag = "pixelgate_delivery_lag_seconds{upstream=\"well\"} ";
    let lag = metrics.lines().find_map(|line| line.strip_prefix(lag)).unwrap();
    assert!(lag.parse::<u64>().unwrap() >= OLD_SECONDS, "{lag}");
    let text = format!("the limit of open files holds back {pending} events of upstream well");
    assert!(edge.status()["faults"].to_string().contains(&text), "{}", edge.status());
    backend.script(|_| Act::Take);
    for name in ["collector", "well"] {
        let row = edge.wait_delivered(name);
        let all = json!(LANES + 1);
        assert_eq!((&row["accepted"], &row["delivered"]), (&all, &all), "{row}");
    }
    wait_well(&edge);
    let row = edge.upstream("well");
    assert_eq!((&row["state"], &row["lag_seconds"]), (&json!("ok"), &json!(0)), "{row}");
}

/// Makes lanes of ended processes, each with this event.
fn make_lanes(dir: &Path, count: u64, upstreams: &[&str], record: Vec<u8>) {
    // The disk of a machine that runs tests may be slow.
    let config = Config { dir: dir.join("spool"), commit_seconds_max: 60, ..Config::default() };
    let upstreams: Vec<String> = upstreams.iter().map(|name| name.to_string()).collect();
    for _ in 0..count {
        let spool = Spool::open(&config, &upstreams, Env::system()).unwrap();
        let commit = spool.append(|out| out.extend_from_slice(&record)).unwrap();
        RUNTIME.block_on(commit).unwrap();
        spool.close(Duration::from_secs(60)).unwrap();
    }
}

/// The bytes of the one event in a spool.
pub fn stored_event(dir: &Path) -> Vec<u8> {
    let mut found = None;
    pixelgate::tools::inspect::dump(&dir.join("spool"), |_, record| {
        found = Some(record.to_vec());
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    found.unwrap()
}

#[test]
fn a_limit_on_the_size_of_files_ends_no_process() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "1MiB");
    // 100 KiB: a segment is made smaller than configured.
    let edge = Edge::start_under(Arc::clone(&dir), "ulimit -f 200");
    let ledger = Arc::new(Ledger::default());
    send(&edge, &ledger, 400);
    edge.kill();
    // 20 KiB: not even a cursor can be written. The edge starts, refuses events and says why.
    let edge = Edge::start_under(Arc::clone(&dir), "ulimit -f 40");
    ledger.wait_refusing(&edge);
    wait_for("the fault to be shown", || shows_fault(&edge, "spool_start", "spool"));
    edge.kill();
    backend.script(|_| Act::Take);
    let edge = Edge::start_in(dir);
    let row = edge.wait_delivered("collector");
    assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{row}");
    ledger.check(&backend, true);
}

#[test]
fn a_signal_right_after_the_listener_opened_stops_the_edge_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("edge.sock");
        let listen = format!("unix:{}", socket.display());
        let config = Setup::default().listen(&listen).write(dir.path());
        let mut child = command(&config, &["run"]).spawn().unwrap();
        wait_for("the listener to open", || socket.exists());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        if signal == Signal::HUP {
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
    }
}

/// One system call in so many of a kind fails once, on the real binary.
#[test]
fn single_calls_that_fail_cost_no_answered_event() {
    if run(Command::new("strace").args(["-o", "/dev/null", "true"])).is_err() {
        eprintln!("skipped, no strace here");
        return;
    }
    let all = std::env::var_os("PIXELGATE_CALLS").is_some();
    // Each number is that of the first call behind the start: a start may fail as a whole.
    let faults = [
        ("fdatasync", "EIO", 6),
        ("pwrite64", "ENOSPC", 8),
        ("pwrite64", "EINTR", 9),
        ("fallocate", "ENOSPC", 2),
        ("rename", "EIO", 2),
        ("unlink", "EIO", 1),
        ("fsync", "EIO", 6),
    ];
    for (call, error, first) in faults {
        for when in first..first + if all { 40 } else { 1 } {
            check_failing_call(call, error, when);
        }
    }
}

fn check_failing_call(call: &str, error: &str, when: u32) {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = folder(&backend, "16KiB");
    // The tracer is a grandchild (-D), so that signals reach the edge.
    let strace = format!(
        "exec strace -D -f -o /dev/null -e trace={call} \
         -e inject={call}:error={error}:when={when} \"$0\" run --config \"$1\""
    );
    let edge = Edge::start_under(Arc::clone(&dir), &strace);
    let ledger = Arc::new(Ledger::default());
    send(&edge, &ledger, 60);
    ledger.wait_accepting(&edge);
    wait_well(&edge);
    edge.kill();
    let edge = Edge::start_in(dir);
    let row = edge.wait_delivered("collector");
    let count = ledger.count.load(Relaxed);
    assert_eq!(
        (&row["lost"], &row["accepted"]),
        (&0.into(), &count.into()),
        "{call} {error} {when}"
    );
    ledger.check(&backend, true);
}

/// Starts an edge for which every read of one segment's file fails. `None` where there is no
/// strace.
fn start_with_unreadable(dir: &Arc<tempfile::TempDir>, segment: &str) -> Option<Edge> {
    if run(Command::new("strace").args(["-o", "/dev/null", "true"])).is_err() {
        eprintln!("skipped, no strace here");
        return None;
    }
    let path = dir.path().join("spool/lane-00000001").join(segment);
    let strace = format!(
        "exec strace -D -f -o /dev/null -P {} -e trace=pread64 -e inject=pread64:error=EIO \
         \"$0\" run --config \"$1\"",
        path.display()
    );
    Some(Edge::start_under(Arc::clone(dir), &strace))
}

/// The next process can read everything, and nothing is lost.
fn check_next_process(dir: Arc<tempfile::TempDir>, backend: &Backend, ledger: &Ledger) {
    let edge = Edge::start_in(dir);
    let row = edge.wait_delivered("collector");
    let count = ledger.count.load(Relaxed);
    assert_eq!((&row["lost"], &row["accepted"]), (&0.into(), &count.into()), "{row}");
    wait_well(&edge);
    ledger.check(backend, true);
}

#[test]
fn a_lane_that_cannot_be_read_at_a_start_is_shown_and_costs_no_event() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "16KiB");
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&edge, &ledger, 60);
    edge.kill();
    backend.script(|_| Act::Take);
    let Some(edge) = start_with_unreadable(&dir, "0000000002.seg") else { return };
    wait_for("the fault to be shown", || shows_fault(&edge, "spool_lane", "lane-00000001"));
    assert_eq!(edge.admin("/readyz").status, 200, "events are accepted all the same");
    // The events of the process's own lane do not wait for the lane that cannot be read.
    send(&edge, &ledger, 10);
    wait_for("new events to be delivered", || backend.events().len() >= 10);
    edge.kill();
    check_next_process(dir, &backend, &ledger);
}

#[test]
fn a_segment_that_cannot_be_read_is_shown_and_costs_no_event() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    // With `power` a reader that keeps up reads no file.
    Setup::default()
        .spool("durability = \"interval\"\nsegment_bytes = \"16KiB\"\nfree_bytes_min = \"0\"")
        .upstreams(&http_upstream(&backend, ""))
        .write(dir.path());
    let Some(edge) = start_with_unreadable(&dir, "0000000002.seg") else { return };
    let ledger = Ledger::default();
    send(&edge, &ledger, 60);
    wait_for("the fault to be shown", || shows_fault(&edge, "spool_segment", "0000000002.seg"));
    let row = edge.upstream("collector");
    assert_eq!((&row["lost"], &row["accepted"]), (&0.into(), &60.into()), "{row}");
    assert_ne!(row["pending"], 0, "{row}");
    edge.kill();
    check_next_process(dir, &backend, &ledger);
}
