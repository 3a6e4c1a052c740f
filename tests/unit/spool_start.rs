//! A start on a disk that takes nothing: for each way in which a disk refuses, the spool opens,
//! refuses events, delivers what it can read, and goes on by itself when the disk works again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::spool_sim::rig::{append, append_all, config, of, read};
use crate::spool_sim::{Fault, Op, SimFs};
use pixelgate::internals::spool::{Ack, Config, Durability, Env, OpenError, Overloaded, Spool};
use pixelgate::internals::telemetry::faults::{FaultKind, Faults};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

/// Events of a process that ended.
const EVENTS: usize = 30;

/// How a disk refuses.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    /// Nothing can grow.
    Full,
    /// Each call of this kind fails.
    Every(Op, i32),
}

impl Refusal {
    /// All ways in which a disk may refuse, and whether its events can be read and trimmed
    /// meanwhile.
    const ALL: [(Refusal, bool); 12] = [
        (Refusal::Full, true),
        // As when no inode is left, or a quota is reached.
        (Refusal::Every(Op::Make, ENOSPC), true),
        (Refusal::Every(Op::Make, EDQUOT), true),
        (Refusal::Every(Op::Make, EIO), true),
        (Refusal::Every(Op::Make, EROFS), true),
        (Refusal::Every(Op::Write, EIO), false),
        (Refusal::Every(Op::Write, EFBIG), false),
        (Refusal::Every(Op::Sync, EIO), false),
        (Refusal::Every(Op::Names, EROFS), false),
        (Refusal::Every(Op::Open, EROFS), false),
        (Refusal::Every(Op::Open, EMFILE), false),
        (Refusal::Every(Op::Open, ENFILE), false),
    ];

    fn begin(self, fs: &SimFs) {
        match self {
            Refusal::Full => fs.set_full(true),
            Refusal::Every(op, errno) => {
                fs.fault(Fault { op, after: 0, times: u32::MAX, errno, part: 0 });
            }
        }
    }
}

fn try_open(fs: &SimFs, config: &Config, needs_disk: bool) -> Result<(Spool, Faults), OpenError> {
    let faults = Faults::unregistered();
    let system = Env::system();
    let env = Env { fs: Arc::new(fs.process()), faults: faults.clone(), needs_disk, ..system };
    Spool::open(config, &["up".to_owned()], env).map(|spool| (spool, faults))
}

/// A disk with the events of a process that was killed right after its last answer.
fn disk_with_events() -> SimFs {
    let fs = SimFs::new(1);
    kill_after_events(&fs);
    // The first start cuts what the killed process had reserved.
    let (spool, _) = try_open(&fs, &config(), true).expect("opens");
    spool.close(Duration::from_secs(60)).expect("closes");
    fs
}

/// Kills a process right after the answer to its last event.
fn kill_after_events(fs: &SimFs) {
    let process = fs.process();
    let env = Env { fs: Arc::new(process.clone()), ..Env::system() };
    let spool = Spool::open(&config(), &["up".to_owned()], env).expect("opens");
    for number in 0..EVENTS {
        append_all(&spool, &[&format!("{number:02} {}", "x".repeat(500))]);
    }
    fs.kill(&process);
}

fn segments(fs: &SimFs) -> usize {
    fs.files().iter().filter(|file| file.extension() == Some("seg".as_ref())).count()
}

fn lanes(fs: &SimFs) -> usize {
    let files = fs.files();
    files.iter().filter(|file| file.file_name() == Some("lane".as_ref())).count()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check(refusal: Refusal, is_readable: bool, durability: Durability) {
    let config = Config { durability, ..config() };
    let fs = disk_with_events();
    let lanes_before = lanes(&fs);
    refusal.begin(&fs);
    let (spool, faults) = try_open(&fs, &config, false).expect("a start is not stopped");
    assert_eq!(append(&spool, "refused"), Err(Overloaded), "{refusal:?}");
    let failing = spool.status().failing.expect("refusing");
    assert!(failing.starts_with("no lane can be made in /spool: "), "{refusal:?}: {failing}");
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!(lanes(&fs), lanes_before, "{refusal:?}: each attempt removes what it made");
    let list = faults.list();
    assert!(list.iter().any(|fault| fault.what == FaultKind::SpoolStart), "{refusal:?}: {list:?}");
    let mut reader = spool.reader("up").expect("configured");
    let mut deliver = || {
        let (texts, record_ids) = read(&mut reader);
        reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
        texts.len()
    };
    let mut delivered = 0;
    if is_readable {
        assert_eq!(of(&spool, "up").pending, EVENTS as u64, "{refusal:?}: all are counted");
        delivered += deliver();
        assert_eq!(delivered, EVENTS, "{refusal:?}");
        (0..3).for_each(|_| spool.checkpoint());
        assert_eq!(segments(&fs), 0, "{refusal:?}: what is delivered makes room");
        assert_eq!(append(&spool, "refused"), Err(Overloaded), "{refusal:?}");
    }

    fs.heal();
    wait_until("events to be accepted", || append(&spool, "99 own").is_ok());
    assert_eq!(spool.status().failing, None, "{refusal:?}");
    for _ in 0..4 {
        spool.checkpoint();
        delivered += deliver();
    }
    (0..4).for_each(|_| spool.checkpoint());
    let up = of(&spool, "up");
    assert_eq!((delivered, up.delivered), (EVENTS + 1, EVENTS as u64 + 1), "{refusal:?}: {up:?}");
    assert_eq!((up.accepted, up.lost, up.pending), (EVENTS as u64 + 1, 0, 0), "{refusal:?}");
    assert!(faults.list().is_empty(), "{refusal:?}: {:?}", faults.list());
    assert_eq!(lanes(&fs), 1, "{refusal:?}: {:?}", fs.files());
}

#[test]
fn a_start_is_stopped_by_no_disk_and_recovers_by_itself() {
    for (refusal, is_readable) in Refusal::ALL {
        check(refusal, is_readable, Durability::Power);
    }
}

#[test]
fn a_lane_of_a_moment_is_trimmed_on_a_full_disk() {
    let fs = SimFs::new(1);
    kill_after_events(&fs);
    Refusal::Full.begin(&fs);
    let (spool, _) = try_open(&fs, &config(), false).expect("a start is not stopped");
    let mut reader = spool.reader("up").expect("configured");
    let (texts, record_ids) = read(&mut reader);
    assert_eq!(texts.len(), EVENTS);
    reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!(segments(&fs), 0, "its cursor needs no room: {:?}", fs.files());
}

#[test]
fn the_other_durabilities_begin_on_such_a_disk_as_well() {
    for durability in [Durability::Interval, Durability::Memory] {
        check(Refusal::Full, true, durability);
        check(Refusal::Every(Op::Make, ENOSPC), true, durability);
        check(Refusal::Every(Op::Open, EMFILE), false, durability);
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_made_when_the_disk_allows_it() {
    let fs = SimFs::new(1);
    Refusal::Every(Op::Make, ENOSPC).begin(&fs);
    let (spool, faults) = try_open(&fs, &config(), false).expect("a start is not stopped");
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!(append(&spool, "refused"), Err(Overloaded));
    assert!(fs.files().is_empty(), "{:?}", fs.files());
    fs.heal();
    wait_until("events to be accepted", || append(&spool, "a").is_ok());
    assert!(faults.list().is_empty(), "{:?}", faults.list());
}

#[test]
fn a_spool_that_never_had_a_lane_closes_at_once() {
    let fs = disk_with_events();
    Refusal::Every(Op::Make, ENOSPC).begin(&fs);
    let (spool, _) = try_open(&fs, &config(), false).expect("a start is not stopped");
    spool.close(Duration::from_secs(60)).expect("closes");
    fs.heal();
    let (spool, _) = try_open(&fs, &config(), true).expect("opens");
    assert_eq!(of(&spool, "up").pending, EVENTS as u64);
}

#[test]
fn a_process_that_needs_the_disk_does_not_open_without_it_and_changes_nothing() {
    for (refusal, _) in Refusal::ALL {
        let fs = disk_with_events();
        refusal.begin(&fs);
        let opened = try_open(&fs, &config(), true).map(drop);
        assert!(matches!(opened, Err(OpenError::Io { .. })), "{refusal:?}: {opened:?}");
        fs.heal();
        let (spool, _) = try_open(&fs, &config(), true).expect("opens");
        assert_eq!(of(&spool, "up").pending, EVENTS as u64, "{refusal:?}");
        append_all(&spool, &["goes on"]);
    }
}

#[test]
fn a_mistake_in_the_path_is_an_error_at_once() {
    for (op, errno) in [(Op::Make, ENOTDIR), (Op::Make, EACCES), (Op::Open, EPERM)] {
        let fs = disk_with_events();
        Refusal::Every(op, errno).begin(&fs);
        let opened = try_open(&fs, &config(), false).map(drop);
        assert!(matches!(opened, Err(OpenError::Io { .. })), "{op:?} {errno}: {opened:?}");
    }
}
