//! The memory that the totals of a million portals take.

use std::path::Path;

use pixelgate::internals::spool::{
    Ack, Config, Durability, Env, Metered, Metering, PORTALS_MAX, Spool,
};

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

/// The resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
#[ignore = "measures the process's memory, so no other test may run: docs/admin.md"]
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
