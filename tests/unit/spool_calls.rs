//! Every call to the file system fails once.
//!
//! One fixed scenario goes through everything that a spool does: start, adopt, append, commit,
//! roll, deliver, trim, recycle, fold, stop, with two processes at once. It is run again and again,
//! and each time something goes wrong at another one of its calls: an error, a short read or
//! write, a stall, the end of the process, a loss of power. [`check`] says what must hold then.
//!
//! `PIXELGATE_CALLS=all` tries every call with every error; without it every call fails with `EIO`
//! and `ENOENT`, and every seventh in the other ways.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::spool_sim::SimFs;
use crate::spool_sim::calls::Trap;
use crate::spool_sim::rig::{METERING, append_all, config, wait};
use pixelgate::internals::spool::fs::Fs;
use pixelgate::internals::spool::{Ack, Config, Env, Reader, Spool, UpstreamStatus};
use pixelgate::internals::telemetry::faults::Faults;

/// More calls than the scenario makes.
const CALLS_MAX: u64 = 10_000;

const EINTR: i32 = 4;
const EIO: i32 = 5;
const EMFILE: i32 = 24;
const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;

/// The result of a run of the scenario.
#[derive(Debug, Default)]
struct Run {
    tried: BTreeSet<String>,
    answered: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Every event that was handed out and acknowledged, once for each time.
    delivered: Vec<String>,
    /// Acknowledgements may have been forgotten.
    forgot: bool,
}

struct Process {
    fs: SimFs,
    spool: Spool,
    reader: Reader,
    faults: Faults,
}

impl Process {
    /// Opens a spool. What goes wrong goes wrong once, so the second try must succeed.
    fn open(disk: &SimFs) -> Process {
        let mut first = None;
        for _ in 0..2 {
            let (fs, faults) = (disk.process(), Faults::unregistered());
            let env = Env {
                fs: Arc::new(fs.clone()),
                faults: faults.clone(),
                metering: METERING,
                ..Env::system()
            };
            match Spool::open(&scenario_config(), &["up".to_owned()], env) {
                Ok(spool) => {
                    let reader = spool.reader("up").expect("configured");
                    return Process { fs, spool, reader, faults };
                }
                Err(error) => first = Some(error),
            }
        }
        panic!("a start fails twice: {first:?}");
    }

    fn is_dead(&self) -> bool {
        self.fs
            .list(std::path::Path::new("/"))
            .is_err_and(|error| error.raw_os_error() == Some(EIO))
    }

    /// Appends events until each is taken.
    fn append(&self, run: &mut Run, names: &[&str]) {
        for name in names {
            for attempt in 0.. {
                assert!(attempt < 5_000, "the spool does not recover: {:?}", self.spool.status());
                let text = format!("{name}.{attempt} {}", "x".repeat(700));
                run.tried.insert(text.clone());
                let commit = self.spool.append(|out| out.extend_from_slice(text.as_bytes()));
                if commit.map(wait).is_ok_and(|outcome| outcome.is_ok()) {
                    run.answered.insert(text);
                    break;
                }
                run.refused.insert(text);
                if self.is_dead() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Reads and acknowledges what is there.
    fn deliver(&mut self, run: &mut Run) {
        // The second time, because a read may have failed.
        for _ in 0..2 {
            for entry in self.reader.try_read(1_000, 1 << 20) {
                let text = String::from_utf8(entry.payload.to_vec()).expect("as written");
                assert!(run.tried.contains(&text), "an invention: {text}");
                run.delivered.push(text);
                self.reader.acknowledger().acknowledge(&[entry.record_id], Ack::Delivered);
            }
        }
    }

    fn checkpoints(&self, count: usize) {
        (0..count).for_each(|_| self.spool.checkpoint());
    }

    fn close(self, run: &mut Run) {
        run.forgot |= self.spool.close(Duration::from_secs(60)).is_err();
    }

    fn counts(&self) -> UpstreamStatus {
        let up = self.spool.status().upstreams.remove(0);
        assert_eq!(up.accepted, up.delivered + up.dead + up.lost + up.pending, "{up:?}");
        up
    }
}

fn scenario_config() -> Config {
    Config { commit_seconds_max: 60, ..config() }
}

/// The state before the scenario: a lane of a dead process with events that wait, one that is
/// delivered, and a living process.
fn prepare(disk: &SimFs, run: &mut Run) -> Process {
    let dead = Process::open(disk);
    dead.append(run, &["dead1", "dead2", "dead3", "dead4", "dead5", "dead6"]);
    let mut done = Process::open(disk);
    disk.kill(&dead.fs);
    done.append(run, &["done1"]);
    done.deliver(run);
    done.checkpoints(2);
    disk.kill(&done.fs);
    let old = Process::open(disk);
    old.append(run, &["old1", "old2"]);
    old
}

/// The scenario. Returns the process that is left at its end.
fn play(disk: &SimFs, run: &mut Run, old: Process) -> Process {
    let mut new = Process::open(disk);
    new.append(run, &["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"]);
    new.checkpoints(1);
    new.deliver(run);
    // Delivered segments are trimmed and written again, delivered lanes folded and removed.
    new.checkpoints(4);
    new.append(run, &["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"]);
    let mut old = old;
    old.deliver(run);
    old.append(run, &["old3"]);
    old.close(run);
    new.checkpoints(1);
    new.deliver(run);
    new.checkpoints(4);
    new.append(run, &["c1"]);
    new
}

/// Runs the scenario with something going wrong at one call; `false` if it makes fewer calls.
fn check(at: u64, trap: Trap) -> bool {
    let disk = SimFs::new(at);
    let mut run = Run::default();
    let old = prepare(&disk, &mut run);
    disk.trap(at, trap);
    let ended = Arc::new(AtomicBool::new(false));
    let thawing = (trap == Trap::Stall).then(|| thaw_when_met(&disk, &ended));
    let crashes = matches!(trap, Trap::Kill | Trap::PowerLoss);
    let mut process = play(&disk, &mut run, old);
    disk.thaw();
    let met = disk.met();
    let context = |run: &Run| format!("{trap:?} at call {at}, {met:?}: {run:?}");
    if !(crashes && met.is_some()) {
        process.deliver(&mut run);
        process.checkpoints(3);
        let files = disk.files();
        let is_segment = |path: &&std::path::PathBuf| path.extension() == Some("seg".as_ref());
        let segments = files.iter().filter(is_segment).count();
        assert_eq!(segments, 1, "all but the open one are trimmed: {files:?} {}", context(&run));
        assert_eq!(process.spool.status().failing, None, "{}", context(&run));
        process.checkpoints(2);
        assert!(process.faults.list().is_empty(), "{:?} {}", process.faults.list(), context(&run));
    }
    let mut end = Run::default();
    process.close(&mut end);
    ended.store(true, SeqCst);
    thawing.into_iter().for_each(|thread| thread.join().expect("thaws"));
    check_end(
        &disk,
        run,
        end.forgot,
        crashes && met.is_some(),
        &format!("{trap:?} at {at}, {met:?}"),
    );
    met.is_some()
}

/// What a following process finds.
fn check_end(disk: &SimFs, mut run: Run, forgot: bool, crashed: bool, what: &str) {
    let mut last = Process::open(disk);
    for _ in 0..6 {
        last.checkpoints(1);
        last.deliver(&mut run);
    }
    last.checkpoints(4);
    let delivered: BTreeSet<String> = run.delivered.iter().cloned().collect();
    let lost: Vec<_> = run.answered.difference(&delivered).collect();
    assert!(lost.is_empty(), "{what}: answered and not delivered: {lost:?}");
    let up = last.counts();
    assert_eq!((up.lost, up.pending), (0, 0), "{what}: {up:?}");
    if !crashed {
        let revived: Vec<_> = run.refused.intersection(&delivered).collect();
        assert!(revived.is_empty(), "{what}: refused and delivered: {revived:?}");
        assert_eq!(up.accepted as usize, run.answered.len(), "{what}: {up:?}");
        if !run.forgot && !forgot {
            assert_eq!(delivered.len(), run.delivered.len(), "{what}: delivered twice");
        }
    }
    check_portals(&last, &delivered, &up, what);
    let possible = run.answered.len()..=run.tried.len();
    assert!(possible.contains(&(up.accepted as usize)), "{what}: {up:?}, {possible:?}");
    assert!(last.faults.list().is_empty(), "{what}: {:?}", last.faults.list());
    assert_eq!(last.spool.status().bytes, 0, "{what}");
    let lanes = last.fs.list(std::path::Path::new("/spool")).expect("readable");
    let lanes: Vec<_> =
        lanes.into_iter().filter(|e| e.name.to_string_lossy().starts_with("lane-")).collect();
    assert_eq!(lanes.len(), 1, "{what}: {lanes:?}");
    append_all(&last.spool, &["goes on"]);
}

/// Each event that is in the spool is in the totals of its portal, once.
fn check_portals(last: &Process, delivered: &BTreeSet<String>, up: &UpstreamStatus, what: &str) {
    let mut sums = (0, 0);
    for portal in 0..=u8::MAX {
        let of_portal = |text: &&String| text.as_bytes()[0] == portal;
        let events = delivered.iter().filter(of_portal).count() as u64;
        let totals = last.spool.portal(portal.into());
        let counts = (totals.accepted, totals.delivered);
        assert_eq!(counts, (events, events), "{what}: portal {portal}: {totals:?}");
        sums = (sums.0 + totals.accepted, sums.1 + totals.delivered);
    }
    assert_eq!(sums, (up.accepted, up.delivered), "{what}: {up:?}");
}

/// Lets stalled calls go on, some time after the first one stalls.
fn thaw_when_met(disk: &SimFs, ended: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (disk, ended) = (disk.clone(), Arc::clone(ended));
    std::thread::spawn(move || {
        while disk.met().is_none() && !ended.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(3));
        disk.thaw();
    })
}

fn check_each_call(trap: Trap, step: u64) {
    let step = if std::env::var_os("PIXELGATE_CALLS").is_some() { 1 } else { step };
    let tried = (1..CALLS_MAX).step_by(step as usize).take_while(|at| check(*at, trap)).count();
    assert!(tried as u64 > 100 / step, "only {tried} calls were met");
    println!("{trap:?}: {tried} calls");
}

#[test]
fn each_call_fails_once_with_an_input_or_output_error() {
    check_each_call(Trap::Errno(EIO), 1);
}

#[test]
fn each_call_fails_once_because_the_disk_is_full() {
    check_each_call(Trap::Errno(ENOSPC), 7);
}

#[test]
fn each_call_fails_once_because_a_file_is_not_there() {
    check_each_call(Trap::Errno(ENOENT), 1);
}

#[test]
fn each_call_fails_once_because_too_many_files_are_open() {
    check_each_call(Trap::Errno(EMFILE), 7);
}

#[test]
fn each_call_is_interrupted_once() {
    check_each_call(Trap::Errno(EINTR), 7);
}

#[test]
fn each_call_is_short_once() {
    check_each_call(Trap::Short, 7);
}

#[test]
fn each_call_stalls_once() {
    check_each_call(Trap::Stall, 7);
}

#[test]
fn a_process_may_end_at_each_call() {
    check_each_call(Trap::Kill, 1);
}

#[test]
fn the_power_may_go_at_each_call() {
    check_each_call(Trap::PowerLoss, 1);
}
