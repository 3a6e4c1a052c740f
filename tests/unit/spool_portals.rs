//! The totals of portals: what a full disk and a kill cost, and the memory of a million portals.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::spool_sim::SimFs;
use crate::spool_sim::rig::{ROUTING, append_all, config, drain, of, read};
use pixelgate::custom::Clock;
use pixelgate::internals::spool::{
    Ack, Config, Durability, Env, Metered, Metering, PORTALS_MAX, Spool,
};
use pixelgate::internals::telemetry::faults::{FaultKind, Faults};

/// Events between two deliveries, so that little else than the totals takes memory.
const STEP: u64 = 10_000;

fn open(dir: &Path) -> Spool {
    let read = |record: &[u8]| {
        let portal = u64::from_le_bytes(record.try_into().ok()?);
        Some(Metered { portal, day: 20_000 })
    };
    let config =
        Config { dir: dir.to_owned(), durability: Durability::Memory, ..Config::default() };
    let env = Env { metering: Metering { read }, ..Env::system() };
    Spool::open(&config, &["up".to_owned()], env).expect("opens")
}

/// A spool of texts that begin with the number of their portal.
fn open_on(process: &SimFs, faults: &Faults) -> Spool {
    let (fs, faults) = (Arc::new(process.clone()), faults.clone());
    let read = |record: &[u8]| {
        let portal = std::str::from_utf8(record).ok()?.split(' ').next()?.parse().ok()?;
        Some(Metered { portal, day: 20_000 })
    };
    let metering = Metering { read };
    let env = Env { fs, faults, routing: ROUTING, metering, ..Env::system() };
    Spool::open(&config(), &["up".to_owned()], env).expect("opens")
}

#[test]
fn what_a_full_disk_and_a_kill_cost_of_the_totals_is_said_and_no_event_is_affected() {
    const EVENTS: u64 = 6_000;
    // Numbers far apart, so that each takes many bytes.
    let portal = |number: u64| number * 100_000_007;
    let fs = SimFs::new(1);
    let process = fs.process();
    let faults = Faults::unregistered();
    let spool = open_on(&process, &faults);
    let mut reader = spool.reader("up").expect("configured");
    let mut deliver = |portals: std::ops::Range<u64>| {
        for number in portals {
            append_all(&spool, &[&format!("{} {:040}", portal(number), 0)]);
        }
        while spool.status().upstreams[0].pending > 0 {
            let (_, ids) = read(&mut reader);
            reader.acknowledger().acknowledge(&ids, Ack::Delivered);
        }
    };
    deliver(1..3);
    (0..3).for_each(|_| spool.checkpoint());
    // So many new portals that the file has no room for their counts.
    deliver(3..1 + EVENTS);
    let is_segment = |path: &Path| path.extension() == Some("seg".as_ref());
    let segments = || fs.files().iter().filter(|path| is_segment(path)).count();
    let before = segments();
    fs.set_full(true);
    fs.set_free_bytes(0);
    // Twice: only what both slots of the cursor have passed is trimmed.
    spool.checkpoint();
    spool.checkpoint();
    assert!(segments() < before, "{before} segments, then {}", segments());
    fs.kill(&process);
    fs.heal();

    let faults = Faults::unregistered();
    let spool = open_on(&fs.process(), &faults);
    let up = of(&spool, "up");
    assert_eq!((up.accepted, up.delivered), (EVENTS, EVENTS), "{up:?}");
    assert_eq!((up.lost, up.pending), (0, 0), "{up:?}");
    let counts = |portals: std::ops::Range<u64>| -> u64 {
        portals.map(|number| spool.portal(portal(number)).accepted).sum()
    };
    assert_eq!(counts(1..3), 2, "what was counted before");
    let behind = counts(3..1 + EVENTS);
    assert!(behind < EVENTS - 2, "the removed segments were not counted: {behind}");
    let [fault] = &faults.list()[..] else { panic!("one fault") };
    assert_eq!(fault.what, FaultKind::PortalTotals, "{fault:?}");
    assert!(fault.text.contains("events were removed that its file"), "{fault:?}");
}

#[test]
fn damaged_records_that_an_upstream_had_count_for_it_without_their_portal() {
    let fs = SimFs::new(1);
    let process = fs.process();
    let spool = open_on(&process, &Faults::unregistered());
    let mut reader = spool.reader("up").expect("configured");
    append_all(&spool, &["1 a", "2 b", "2 c", "3 d"]);
    let (texts, ids) = read(&mut reader);
    assert_eq!(texts.len(), 4);
    spool.checkpoint();
    reader.acknowledger().acknowledge(&ids[..2], Ack::Delivered);
    reader.acknowledger().acknowledge(&ids[2..3], Ack::Dead);
    fs.kill(&process);
    let is_segment = |path: &PathBuf| path.extension() == Some("seg".as_ref());
    let segment = fs.files().into_iter().find(is_segment).expect("of four events");
    fs.damage(&segment, |bytes| bytes[64..].fill(0xA5));

    let spool = open_on(&fs.process(), &Faults::unregistered());
    drain(&spool, "up");
    let up = of(&spool, "up");
    assert_eq!((up.delivered, up.dead, up.lost, up.pending), (2, 1, 1, 0), "{up:?}");
    let (_, all) = spool.busiest_portals(0);
    assert_eq!((all.accepted, all.delivered), (4, 2), "{all:?}");
}

/// A clock that stands at a day, counted from 1970-01-01.
struct StandingAt(AtomicU64);

impl Clock for StandingAt {
    fn unix_ms(&self) -> u64 {
        self.0.load(Relaxed) * 86_400_000
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn a_clock_that_was_a_day_ahead_costs_no_count_of_the_right_day() {
    let fs = SimFs::new(1);
    let clock = Arc::new(StandingAt(AtomicU64::new(0)));
    let open = |process: &SimFs| {
        // Texts that begin with the portal and the day.
        let read = |record: &[u8]| {
            let mut words = std::str::from_utf8(record).ok()?.split(' ').map(str::parse);
            let (portal, day) = (words.next()?.ok()?, words.next()?.ok()?);
            Some(Metered { portal, day: u32::try_from(day).ok()? })
        };
        let (fs, clock) = (Arc::new(process.clone()), clock.clone());
        let env = Env { fs, clock, routing: ROUTING, metering: Metering { read }, ..Env::system() };
        Spool::open(&config(), &["up".to_owned()], env).expect("opens")
    };
    let append_on = |spool: &Spool, day: u64| {
        clock.0.store(day, Relaxed);
        append_all(spool, &[&format!("7 {day}")]);
        (0..3).for_each(|_| spool.checkpoint());
    };
    // So many portals that the file has no room for their counts, and a summary replaces it.
    let others: Vec<String> =
        (1..8_000).map(|number| format!("{} 20000", number * 100_000_007_u64)).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let mut accepted = 0;
    for _ in 0..4 {
        let process = fs.process();
        let spool = open(&process);
        assert_eq!(spool.day_counts().accepted(7, 20_000), accepted);
        assert_eq!(spool.day_counts().accepted(7, 20_001), accepted / 2);
        [20_000, 20_001, 20_000].into_iter().for_each(|day| append_on(&spool, day));
        accepted += 2;
        append_all(&spool, &others);
        (0..3).for_each(|_| spool.checkpoint());
        drain(&spool, "up");
        (0..3).for_each(|_| spool.checkpoint());
        fs.kill(&process);
    }
    // A clock that is not set yet at the start.
    clock.0.store(0, Relaxed);
    let spool = open(&fs.process());
    clock.0.store(20_001, Relaxed);
    assert_eq!(spool.day_counts().accepted(7, 20_001), accepted / 2);
}

/// The resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
#[ignore = "measures the process's memory, so no other test may run, and glibc must give back what \
            is freed: docs/admin.md"]
fn a_million_portals_take_less_than_64_mib() {
    let dir = tempfile::tempdir().expect("a folder");
    let spool = open(dir.path());
    let mut reader = spool.reader("up").expect("configured");
    let mut send = |portals: std::ops::Range<u64>| {
        let mut waiting = portals.end - portals.start;
        for portal in portals {
            let commit = spool.append(|out| out.extend_from_slice(&portal.to_le_bytes()));
            drop(commit.expect("room"));
        }
        while waiting > 0 {
            let entries = reader.try_read(STEP as usize, 1 << 20);
            waiting -= entries.len() as u64;
            let ids: Vec<_> = entries.iter().map(|entry| entry.record_id).collect();
            reader.acknowledger().acknowledge(&ids, Ack::Delivered);
        }
        spool.checkpoint();
    };
    let million = PORTALS_MAX as u64;
    send(million + 1..million + 1 + STEP);
    let before = resident_kib();
    for from in (1..million - STEP).step_by(STEP as usize) {
        send(from..from + STEP);
    }
    spool.checkpoint();
    let grown = (resident_kib() - before) >> 10;
    println!("{grown} MiB for {million} portals");
    assert!(grown < 64, "{grown} MiB");
    assert_eq!(spool.portal(77).delivered, 1);
    drop(reader);
    drop(spool);
    let spool = open(dir.path());
    assert_eq!((spool.portal(77).accepted, spool.portal(77).delivered), (1, 1));
}

#[test]
fn the_totals_of_a_living_process_are_followed_and_not_read_again_and_again() {
    const PORTALS: u64 = 3_000;
    let fs = SimFs::new(1);
    let old = open_on(&fs.process(), &Faults::unregistered());
    let accept = |portal: u64| append_all(&old, &[&format!("{portal} x")]);
    let mut reader = old.reader("up").expect("configured");
    (1..=PORTALS).for_each(accept);
    old.checkpoint();
    let new = open_on(&fs.process(), &Faults::unregistered());
    let bytes = |name| {
        let path = Path::new("/spool/lane-00000001").join(name);
        fs.bytes_of(&path).expect("there").len() as u64
    };
    let first = bytes("portals");
    // Beside the file, the cursor is read.
    let check_read = |before| {
        let read = fs.bytes_read() - before - bytes("cursor");
        assert!(read < first / 4, "{read} of {first} bytes are read");
    };
    let check = |portal: u64| {
        let expect = old.portal(portal);
        assert_eq!((new.portal(portal), expect.accepted > 0), (expect, true));
        assert_eq!(new.busiest_portals(0).1, old.busiest_portals(0).1);
    };
    check(PORTALS);
    // The file gets entries, and is replaced when it has no room left.
    for round in 0..40 {
        (1..=PORTALS).step_by(10).for_each(|portal| accept(portal + round % 10));
        let (_, ids) = read(&mut reader);
        reader.acknowledger().acknowledge(&ids, Ack::Delivered);
        old.checkpoint();
        let before = fs.bytes_read();
        new.checkpoint();
        if round == 0 {
            check_read(before);
        }
        check(1 + round % 10);
    }
    let before = fs.bytes_read();
    new.checkpoint();
    check_read(before);
    assert_ne!(bytes("portals"), first, "the file was replaced");
}
