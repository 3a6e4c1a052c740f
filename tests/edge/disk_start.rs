//! SPEC 6 on the real binary: a start on a disk that takes nothing. The edge refuses events and
//! says why, proxies, delivers what waits, and recovers by itself.
//!
//! Needs root and `mount`, and one test `strace`. Where they are missing, a test prints what is
//! missing and passes without testing anything.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::disk::{Disk, Ledger, REFUSES_SOON, folder, or_skip, run};
use crate::disk_faults::{send, shows_fault, wait_well};
use crate::harness::{Edge, Setup, command, kill, wait_for};
use crate::wire::Origin;
use rustix::process::Signal;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What a disk has run out of.
#[derive(Debug, Clone, Copy)]
pub enum Out {
    OfBytes,
    OfInodes,
}

/// A disk in memory of 4 MiB and 100 inodes.
fn small_disk(at: &Path) -> Result<Disk, String> {
    Disk::mount(&["-t", "tmpfs", "-o", "size=4m,nr_inodes=100", "tmpfs"], at)
}

/// Uses up all that a disk has. Returns what to remove to give it back.
pub fn fill(disk: &Path, out: Out) -> PathBuf {
    let ballast = disk.join("ballast");
    std::fs::create_dir(&ballast).unwrap();
    let mut bytes = std::fs::File::create(ballast.join("bytes")).unwrap();
    let full = (0..100_000).find_map(|number: u32| {
        let taken = match out {
            Out::OfBytes => bytes.write_all(&[1; 4096]),
            Out::OfInodes => std::fs::File::create(ballast.join(number.to_string())).map(drop),
        };
        taken.err()
    });
    assert_eq!(full.expect("the disk is full").kind(), ErrorKind::StorageFull);
    ballast
}

/// Checks that the edge runs, refuses events and says why, everywhere where an operator looks.
fn check_refusing(edge: &Edge, ledger: &Ledger, why: &str) {
    ledger.wait_refusing(edge);
    wait_for("the fault to be shown", || shows_fault(edge, "spool_start", "spool"));
    let ready = edge.admin("/readyz");
    let ready = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.contains("no lane can be made in") && ready.contains(why), "{ready}");
    let status = edge.status();
    assert_eq!(status["headline"]["level"], "trouble", "{status}");
    let headline = status["headline"]["text"].as_str().unwrap();
    assert!(headline.starts_with("Events are refused: no lane can be made in"), "{headline}");
    let log = edge.log();
    assert!(log.contains("spool: failing, events are refused: no lane can be made"), "{log}");
    let metrics = edge.admin("/metrics");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("pixelgate_faults{what=\"spool_start\"} 1"), "{metrics}");
    assert_eq!(edge.admin("/livez").status, 200);
}

/// Whether `strace` can be used. Says so if it cannot.
fn has_strace() -> bool {
    or_skip(run(Command::new("strace").args(["-o", "/dev/null", "true"]))).is_some()
}

#[test]
fn an_edge_starts_on_a_full_disk_and_what_it_delivers_makes_room() {
    for out in [Out::OfBytes, Out::OfInodes] {
        let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
        let dir = folder(&backend, "64KiB");
        let spool = dir.path().join("spool");
        let Some(_disk) = or_skip(small_disk(&spool)) else { return };
        let origin = Origin::start();
        origin.answer("/page", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let config = dir.path().join("edge.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let proxied = format!("[edge]\norigin = \"http://{}\"\n", origin.address);
        std::fs::write(&config, text.replacen("[edge]\n", &proxied, 1)).unwrap();

        let edge = Edge::start_in(Arc::clone(&dir));
        let ledger = Ledger::default();
        send(&edge, &ledger, 300);
        edge.kill();
        // The next process gives back what the killed one had reserved, so that `fill` takes it.
        Edge::start_in(Arc::clone(&dir)).stop();
        fill(&spool, out);

        let edge = Edge::start_in(Arc::clone(&dir));
        check_refusing(&edge, &ledger, "No space left on device");
        assert_eq!(edge.get("/page").body, b"ok");
        let row = edge.upstream("collector");
        assert_eq!(row["pending"], ledger.count.load(Relaxed), "all are counted: {row}");

        backend.script(|_| Act::Take);
        ledger.wait_accepting(&edge);
        let row = edge.wait_delivered("collector");
        assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{out:?}: {row}");
        wait_well(&edge);
        ledger.check(&backend, true);
        edge.stop();
        let lanes = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().file_name());
        let lanes = lanes.filter(|name| name.to_string_lossy().starts_with("lane-")).count();
        assert!(lanes <= 2, "each attempt removes what it made: {lanes} lanes");
    }
}

#[test]
fn an_edge_starts_where_no_file_of_its_own_can_be_made() {
    for out in [Out::OfBytes, Out::OfInodes] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let Some(disk) = or_skip(small_disk(dir.path())) else { return };
        let origin = Origin::start();
        let list =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n62515\n";
        origin.answer("/portals.txt", list.as_bytes());
        let (state, log) = (dir.path().join("state/below"), dir.path().join("access.log"));
        let access = format!("[access_log]\npath = \"{}\"\nflush_seconds = 1", log.display());
        let spool = "segment_bytes = \"64KiB\"\nfree_bytes_min = \"0\"";
        Setup::default().origin(origin.address).sections(&access).spool(spool).write(dir.path());
        let ballast = fill(dir.path(), out);

        let url = format!("http://{}/portals.txt", origin.address);
        let set = [
            ("PIXELGATE__PORTALS__SOURCE", url.as_str()),
            ("PIXELGATE__EDGE__STATE_DIR", state.to_str().unwrap()),
        ];
        let edge = Edge::start_with(Arc::clone(&dir), &set);
        let ledger = Ledger::default();
        check_refusing(&edge, &ledger, "No space left on device");
        wait_for("the portal list", || edge.event("_a=56043&_n=a").status == 403);
        assert_eq!(edge.get("/other").status, 204, "it is proxied");
        wait_for("the access log's fault", || shows_fault(&edge, "access_log", "access.log"));
        // A socket needs an inode and no bytes.
        let no_socket = || shows_fault(&edge, "state_dir", "upgrade.sock");
        wait_for("the fault of upgrades", || no_socket() == matches!(out, Out::OfInodes));
        wait_for("the fault of values", || shows_fault(&edge, "state_dir", "values in force"));

        std::fs::remove_dir_all(&ballast).unwrap();
        ledger.wait_accepting(&edge);
        let row = edge.wait_delivered("file");
        assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{out:?}: {row}");
        wait_well(&edge);
        wait_for("the access log", || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0));
        wait_for("the values in force", || state.join("configuration.json").exists());
        wait_for("an upgrade to be possible", || state.join("upgrade.sock").exists());
        assert_eq!(Edge::events_in_files(dir.path()).len() as u64, ledger.count.load(Relaxed));
        edge.stop();
        disk.unmount();
    }
}

/// What `pixelgate check` prints, and its exit code.
fn check(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let arguments = [&["check"], arguments].concat();
    let output = command(&dir.join("edge.toml"), &arguments).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

#[test]
fn check_names_a_disk_that_takes_nothing_and_finds_no_mistake() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let Some(disk) = or_skip(small_disk(dir.path())) else { return };
    Setup::default().spool("segment_bytes = \"64KiB\"\nfree_bytes_min = \"0\"").write(dir.path());
    let edge = Edge::start_in(Arc::clone(&dir));
    let is = |found: (Option<i32>, String), code: i32, expect: &str| {
        assert_eq!(found.0, Some(code), "{}", found.1);
        assert!(found.1.contains(expect), "{}", found.1);
    };
    is(check(dir.path(), &["--diff"]), 0, "no key has changed");
    edge.stop();
    disk.remount("ro");
    is(check(dir.path(), &[]), 0, "Read-only file system (os error 30); the edge starts and");
    is(check(dir.path(), &["--diff"]), 0, "may be older than those in force");
    disk.remount("rw");
    std::fs::remove_file(dir.path().join("configuration.json")).unwrap();
    let ballast = fill(dir.path(), Out::OfInodes);
    is(check(dir.path(), &[]), 0, "No space left on device (os error 28); the edge starts and");
    is(check(dir.path(), &["--diff"]), 1, "its disk does not take the file");
    std::fs::remove_dir_all(ballast).unwrap();
    disk.unmount();
}

#[test]
fn an_edge_starts_on_a_read_only_disk_and_goes_on_when_it_can_be_written() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "64KiB");
    let Some(disk) = or_skip(small_disk(&dir.path().join("spool"))) else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&edge, &ledger, 100);
    edge.kill();
    disk.remount("ro");
    let edge = Edge::start_in(Arc::clone(&dir));
    check_refusing(&edge, &ledger, "Read-only file system");
    // A lane that cannot be read adds no events to the counts: a fault names it.
    assert!(shows_fault(&edge, "spool_lane", "lane-00000001"), "{}", edge.status());
    edge.stop();
    let edge = Edge::start_in(Arc::clone(&dir));
    ledger.wait_refusing(&edge);
    disk.remount("rw");
    ledger.wait_accepting(&edge);
    backend.script(|_| Act::Take);
    let row = edge.wait_delivered("collector");
    assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{row}");
    wait_well(&edge);
    ledger.check(&backend, true);
}

#[test]
fn an_upgrade_on_a_full_disk_leaves_the_old_edge_as_it_is() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = folder(&backend, "256KiB");
    let spool = dir.path().join("spool");
    let Some(_disk) = or_skip(small_disk(&spool)) else { return };
    let mut old = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    ledger.wait_accepting(&old);
    let ballast = fill(&spool, Out::OfBytes);
    let config = dir.path().join("edge.toml");
    let output = command(&config, &["run", "--upgrade"]).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("cannot be used") && printed.contains("No space left"), "{printed}");
    old.wait_log("upgrade: the new process has ended");
    ledger.wait_accepting(&old);

    std::fs::remove_dir_all(&ballast).unwrap();
    upgrade_whole(&mut old, &ledger, &backend);
}

/// Upgrades, and waits until the new edge accepts and every event has arrived.
fn upgrade_whole(old: &mut Edge, ledger: &Ledger, backend: &Backend) -> Edge {
    let mut new = old.upgrade();
    old.signal(Signal::QUIT);
    old.wait();
    new.address = old.address;
    ledger.wait_accepting(&new);
    // The lane of the old edge counts once the new one has adopted it.
    let count = || ledger.count.load(Relaxed);
    wait_for("every event to arrive", || backend.events().len() as u64 >= count());
    ledger.check(backend, true);
    new
}

#[test]
fn no_error_of_a_disk_stops_a_start() {
    if !has_strace() {
        return;
    }
    for (call, error) in [("mkdir", "EDQUOT"), ("fdatasync", "EIO"), ("pwrite64", "ENOSPC")] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Setup::default().write(dir.path());
        let strace = format!(
            "exec strace -D -f -o /dev/null -e trace={call} -e inject={call}:error={error} \
             \"$0\" run --config \"$1\""
        );
        let edge = Edge::start_under(Arc::clone(&dir), &strace);
        check_refusing(&edge, &Ledger::default(), "os error");
        edge.stop();
    }
}

#[test]
fn a_start_does_not_wait_for_a_frozen_disk() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().spool(REFUSES_SOON).upstreams(&http_upstream(&backend, "")).write(dir.path());
    let (image, spool) = (dir.path().join("image"), dir.path().join("spool"));
    let Some(disk) = or_skip(Disk::ext4(&image, &spool)) else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&edge, &ledger, 100);
    edge.kill();
    let Some(frozen) = disk.freeze() else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    check_refusing(&edge, &ledger, "has not answered for spool.commit_seconds_max");
    drop(frozen);
    ledger.wait_accepting(&edge);
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["lost"], &row["accepted"]), (&0.into(), &ledger.count.load(Relaxed).into()));
    wait_well(&edge);
    ledger.check(&backend, true);
    edge.stop();
    disk.unmount();
}

#[test]
fn a_start_waits_for_no_disk_of_its_state_either() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    Setup::default().spool(REFUSES_SOON).write(dir.path());
    // As in the samples, the spool lies in the state folder.
    let config = dir.path().join("edge.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let state = format!("state_dir = {:?}", dir.path());
    let own = text.replacen(&state, &format!("state_dir = {data:?}"), 1);
    assert_ne!(own, text, "the configuration names the state folder");
    let spool = format!("{:?}", dir.path().join("spool"));
    std::fs::write(&config, own.replacen(&spool, &format!("{:?}", data.join("spool")), 1)).unwrap();
    let Some(disk) = or_skip(Disk::ext4(&dir.path().join("image"), &data)) else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&edge, &ledger, 10);
    edge.stop();
    let Some(frozen) = disk.freeze() else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    check_refusing(&edge, &ledger, "has not answered for spool.commit_seconds_max");
    drop(frozen);
    ledger.wait_accepting(&edge);
    edge.wait_log("an upgrade is possible from now on");
    wait_well(&edge);
    edge.stop();
    disk.unmount();
}

#[test]
fn a_disk_that_stalls_at_the_first_segment_refuses_events() {
    if !has_strace() {
        return;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().spool("commit_seconds_max = 1").write(dir.path());
    let strace = "exec strace -D -f -o /dev/null -e trace=fallocate \
                  -e inject=fallocate:delay_enter=8000000:when=1 \"$0\" run --config \"$1\"";
    let edge = Edge::start_under(Arc::clone(&dir), strace);
    let ledger = Ledger::default();
    ledger.wait_refusing(&edge);
    let ready = edge.admin("/readyz");
    assert!(String::from_utf8_lossy(&ready.body).contains("commit_seconds_max"));
    ledger.wait_accepting(&edge);
    wait_well(&edge);
    edge.stop();
}

#[test]
fn a_stop_that_a_stalled_disk_cuts_has_exit_code_1() {
    if !has_strace() {
        return;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let grace = "shutdown_grace_seconds = 1";
    Setup::default().spool("commit_seconds_max = 1").edge(grace).write(dir.path());
    let strace = "exec strace -D -f -o /dev/null -e trace=fallocate \
                  -e inject=fallocate:delay_enter=30000000:when=1 \"$0\" run --config \"$1\"";
    let mut edge = Edge::start_under(Arc::clone(&dir), strace);
    edge.signal(Signal::TERM);
    assert_eq!(edge.wait().code(), Some(1), "{}", edge.log());
}

#[test]
fn an_upgrade_on_a_stalled_disk_leaves_the_old_edge_as_it_is() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().spool(REFUSES_SOON).upstreams(&http_upstream(&backend, "")).write(dir.path());
    let (image, spool) = (dir.path().join("image"), dir.path().join("spool"));
    let Some(disk) = or_skip(Disk::ext4(&image, &spool)) else { return };
    let mut old = Edge::start_in(Arc::clone(&dir));
    let ledger = Ledger::default();
    send(&old, &ledger, 10);
    let Some(frozen) = disk.freeze() else { return };
    let config = dir.path().join("edge.toml");
    let mut successor = command(&config, &["run", "--upgrade"]).spawn().unwrap();
    let stderr = BufReader::new(successor.stderr.take().unwrap());
    let mut lines = stderr.lines().map_while(Result::ok);
    let told = lines.find(|line| line.starts_with("pixelgate:")).unwrap();
    for expected in [
        "the running edge goes on",
        "run the upgrade again",
        &format!("the spool {} cannot be used", spool.display()),
        "the disk has not answered for spool.commit_seconds_max",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in {told:?}");
    }
    old.wait_log("upgrade: the new process has ended");
    // The kernel holds the process until its thread comes back from the disk.
    drop(frozen);
    assert_eq!(successor.wait().unwrap().code(), Some(2));
    ledger.wait_accepting(&old);

    let new = upgrade_whole(&mut old, &ledger, &backend);
    drop((old, new));
    disk.unmount();
}

#[test]
fn a_start_waits_for_no_disk_of_its_access_log() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let logs = dir.path().join("logs");
    let log = logs.join("access.log");
    let section = format!("[access_log]\npath = \"{}\"\nflush_seconds = 1", log.display());
    Setup::default().sections(&section).write(dir.path());
    let Some(disk) = or_skip(Disk::ext4(&dir.path().join("image"), &logs)) else { return };
    let Some(frozen) = disk.freeze() else { return };
    let edge = Edge::start_in(Arc::clone(&dir));
    wait_for("the fault to be shown", || shows_fault(&edge, "access_log", "access.log"));
    edge.wait_log("cannot be opened: the disk has not answered for 5 s");
    send(&edge, &Ledger::default(), 10);
    drop(frozen);
    wait_for("the access log", || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0));
    wait_well(&edge);
    edge.stop();
    disk.unmount();
}

#[test]
fn a_signal_ends_the_wait_for_a_locked_folder_at_once() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("edge.sock");
        let listen = format!("unix:{}", socket.display());
        let config = Setup::default().listen(&listen).write(dir.path());
        let spool = dir.path().join("spool");
        std::fs::create_dir_all(&spool).unwrap();
        let lock = std::fs::File::create(spool.join("lock")).unwrap();
        lock.lock().unwrap();
        let mut child = command(&config, &["run"]).spawn().unwrap();
        // The socket is opened before the spool.
        wait_for("the listener to open", || socket.exists());
        kill(&child, signal);
        // Waited for in vain, the lock would end it with exit code 2.
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal:?}");
    }
}

#[test]
fn a_folder_that_another_process_keeps_locked_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    Setup::default().write(dir.path());
    let spool = dir.path().join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    let lock = std::fs::File::create(spool.join("lock")).unwrap();
    lock.lock().unwrap();
    let output = command(&dir.path().join("edge.toml"), &["run"]).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    let expected = format!("another process keeps the spool {} locked", spool.display());
    assert!(printed.contains(&expected), "{printed}");
}
