//! Damage, one kind at a time: each costs what it touches and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use pixelgate::internals::spool::recovery::inspect::{dump, stat, verify};
use pixelgate::internals::spool::{Ack, Config, Env, Routing, Spool, Status};

const EVENTS: u64 = 200;

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        linger_ms: 0,
        segment_bytes: ByteSize::kib(4),
        free_bytes_min: ByteSize(0),
        // The disk of a machine that runs tests may be slow.
        commit_seconds_max: 60,
        ..Config::default()
    }
}

fn open(dir: &Path) -> Spool {
    Spool::open(&config(dir), &["up".to_owned()], Env::system()).expect("opens")
}

fn payload(event: u64) -> Vec<u8> {
    format!("event {event:06} {}", "x".repeat((event % 50) as usize)).into_bytes()
}

fn append(spool: &Spool, events: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for event in events {
        let commit = spool.append(|out| out.extend_from_slice(&payload(event)));
        runtime.block_on(commit.expect("there is room")).expect("committed");
    }
}

/// Reads what is there, acknowledges it, and gives the numbers.
fn drain(spool: &Spool) -> Vec<u64> {
    let mut reader = spool.reader("up").expect("configured");
    let mut events = Vec::new();
    loop {
        let entries = reader.try_read(50, 1 << 20);
        if entries.is_empty() {
            return events;
        }
        for entry in entries {
            let text = std::str::from_utf8(&entry.payload).expect("as written");
            let event = text[6..12].parse().expect("as written");
            assert_eq!(entry.payload, payload(event));
            events.push(event);
            reader.acknowledger().acknowledge(&[entry.record_id], Ack::Delivered);
        }
    }
}

/// A spool of a process that ended, with [`EVENTS`] events in several segments.
fn spool_of_200() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let spool = open(dir.path());
    append(&spool, 0..EVENTS);
    spool.close(Duration::from_secs(60)).expect("closes");
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("lane-00000001"))
        .expect("a lane")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "seg"))
        .collect();
    files.sort();
    files
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("there");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

/// Does the damage; expects all events but these, so many bytes or more in the quarantine, and
/// `verify` to find it.
fn check(damage: impl FnOnce(&Path), missing: &[u64], quarantined_least: u64) -> Status {
    let dir = spool_of_200();
    damage(dir.path());
    let report = verify(dir.path(), &mut |_, _| {}).expect("readable");
    assert!(!report.ok, "verify sees it");
    let spool = open(dir.path());
    let expect: Vec<u64> = (0..EVENTS).filter(|event| !missing.contains(event)).collect();
    assert_eq!(drain(&spool), expect);
    let status = spool.status();
    let up = &status.upstreams[0];
    assert_eq!(up.pending, 0);
    assert_eq!(up.accepted, up.delivered + up.lost);
    assert!(status.quarantined_bytes >= quarantined_least, "{status:?}");
    append(&spool, EVENTS..EVENTS + 1);
    status
}

/// Where an event's record begins.
fn find(path: &Path, event: u64) -> Option<usize> {
    let bytes = std::fs::read(path).expect("there");
    let needle = format!("event {event:06}").into_bytes();
    Some(bytes.windows(needle.len()).position(|window| window == needle)? - 16)
}

fn damage_event(dir: &Path, event: u64, at: usize) {
    let file = segments(dir).into_iter().find(|path| find(path, event).is_some());
    let file = file.expect("it was written");
    let offset = find(&file, event).expect("it is there");
    edit(&file, |bytes| bytes[offset + at] ^= 0x10);
}

#[test]
fn an_untouched_spool_verifies_and_is_delivered_whole() {
    let dir = spool_of_200();
    assert!(segments(dir.path()).len() >= 3, "several segments");
    let report = verify(dir.path(), &mut |_, _| {}).expect("readable");
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, EVENTS);
    let mut seen = 0;
    dump(dir.path(), |_, payload_bytes| {
        assert_eq!(payload_bytes[..], payload(seen)[..]);
        seen += 1;
        std::ops::ControlFlow::Continue(())
    })
    .expect("readable");
    assert_eq!(seen, EVENTS);
    let stat = stat(dir.path(), &Routing::none()).expect("readable");
    assert_eq!((stat.upstreams[0].accepted, stat.upstreams[0].pending), (EVENTS, EVENTS));
    assert!(!stat.lanes[0].living);
    assert_eq!(drain(&open(dir.path())), (0..EVENTS).collect::<Vec<_>>());
}

#[test]
fn a_running_spool_can_be_looked_at_and_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let spool = open(dir.path());
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| append(&spool, 0..EVENTS));
        while !appends.is_finished() {
            let report = verify(dir.path(), &mut |_, _| {}).expect("readable");
            assert!(report.ok, "{report:?}");
            assert!(stat(dir.path(), &Routing::none()).expect("readable").lanes[0].living);
        }
    });
    let report = verify(dir.path(), &mut |_, _| {}).expect("readable");
    assert!(report.ok && report.records == EVENTS, "{report:?}");
    assert_eq!(drain(&spool), (0..EVENTS).collect::<Vec<_>>());
}

#[test]
fn a_flipped_bit_in_each_field_of_a_record_costs_that_record() {
    for at in [0, 4, 5, 8, 15, 16, 24] {
        let status = check(|dir| damage_event(dir, 70, at), &[70], 20);
        assert_eq!(status.upstreams[0].lost, 1, "byte {at}");
    }
}

#[test]
fn a_flipped_bit_in_the_last_record_of_all_is_found() {
    for at in [0, 8, 16] {
        check(|dir| damage_event(dir, EVENTS - 1, at), &[EVENTS - 1], 20);
    }
}

#[test]
fn the_first_and_the_last_record_of_a_segment_cost_themselves_alone() {
    let first = |dir: &Path| (0..EVENTS).find(|event| find(&segments(dir)[1], *event).is_some());
    let dir = spool_of_200();
    let first = first(dir.path()).expect("a second segment");
    check(|dir| damage_event(dir, first, 20), &[first], 20);
    check(|dir| damage_event(dir, first - 1, 20), &[first - 1], 20);
}

#[test]
fn a_zeroed_sector_costs_the_records_it_touches() {
    let dir = spool_of_200();
    let bytes = std::fs::read(&segments(dir.path())[1]).expect("there");
    let touched: Vec<u64> = (0..EVENTS)
        .filter(|event| {
            let Some(from) = find(&segments(dir.path())[1], *event) else { return false };
            let to = from + 16 + payload(*event).len();
            from < 1536 && to > 1024
        })
        .collect();
    assert!(bytes.len() > 1536 && touched.len() > 3);
    let damage = |dir: &Path| edit(&segments(dir)[1], |bytes| bytes[1024..1536].fill(0));
    let status = check(damage, &touched, 512);
    assert_eq!(status.upstreams[0].lost, touched.len() as u64);
}

#[test]
fn a_torn_tail_costs_what_was_torn() {
    let torn = |dir: &Path| {
        let last = segments(dir).pop().expect("segments");
        edit(&last, |bytes| bytes.truncate(bytes.len() - 5));
    };
    check(torn, &[EVENTS - 1], 10);
}

#[test]
fn a_tail_of_zeros_costs_nothing() {
    let dir = spool_of_200();
    let last = segments(dir.path()).pop().expect("segments");
    edit(&last, |bytes| bytes.extend([0; 100_000]));
    assert!(verify(dir.path(), &mut |_, _| {}).expect("readable").ok);
    let spool = open(dir.path());
    assert_eq!(drain(&spool), (0..EVENTS).collect::<Vec<_>>());
    assert_eq!(spool.status().quarantined_bytes, 0);
}

#[test]
fn a_damaged_header_costs_nothing() {
    for number in [0, 2] {
        check(|dir| edit(&segments(dir)[number], |bytes| bytes[20] ^= 1), &[], 0);
    }
    check(|dir| edit(&segments(dir).pop().expect("segments"), |bytes| bytes[3] ^= 1), &[], 0);
}

#[test]
fn a_segment_of_somebody_else_is_put_aside() {
    let extra = |dir: &Path| {
        let from = segments(dir)[1].clone();
        std::fs::copy(&from, from.with_file_name("0000009999.seg")).expect("copied");
    };
    check(extra, &[], 4_000);
}

#[test]
fn a_damaged_identity_costs_nothing() {
    check(|dir| edit(&dir.join("lane-00000001/lane"), |bytes| bytes.fill(7)), &[], 0);
}

#[test]
fn a_lost_cursor_reads_again_from_the_oldest_record() {
    let dir = spool_of_200();
    let spool = open(dir.path());
    let mut reader = spool.reader("up").expect("configured");
    let entries = reader.try_read(10, 1 << 20);
    let record_ids: Vec<_> = entries.iter().map(|entry| entry.record_id).collect();
    reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    drop(reader);
    spool.close(Duration::from_secs(60)).expect("closes");
    drop(spool);
    let lane = dir.path().join("lane-00000001");
    std::fs::remove_file(lane.join("cursor")).expect("removed");
    let acks = std::fs::read_dir(&lane).expect("a folder").map(|entry| entry.expect("a file"));
    let is_acks = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("acks-");
    for file in acks.filter(|entry| is_acks(&entry.file_name())) {
        std::fs::remove_file(file.path()).expect("removed");
    }
    assert_eq!(drain(&open(dir.path())), (0..EVENTS).collect::<Vec<_>>());
}

#[test]
fn a_damaged_cursor_slot_falls_back_to_the_other() {
    for slot in [0, 32 << 10] {
        let dir = spool_of_200();
        let cursor = dir.path().join("lane-00000001/cursor");
        edit(&cursor, |bytes| {
            if let Some(byte) = bytes.get_mut(slot + 30) {
                *byte ^= 1;
            }
        });
        assert_eq!(drain(&open(dir.path())), (0..EVENTS).collect::<Vec<_>>());
    }
}

#[test]
fn rubbish_in_the_folder_is_left_alone() {
    let dir = spool_of_200();
    std::fs::write(dir.path().join("README"), "mine").expect("written");
    std::fs::write(dir.path().join("lane-00000001/notes.txt"), "mine").expect("written");
    std::fs::create_dir(dir.path().join("lane-x")).expect("made");
    let spool = open(dir.path());
    assert_eq!(drain(&spool), (0..EVENTS).collect::<Vec<_>>());
    assert!(dir.path().join("README").exists() && dir.path().join("lane-x").exists());
}

#[test]
fn a_whole_segment_of_noise_costs_its_records() {
    let dir = spool_of_200();
    let inside: Vec<u64> =
        (0..EVENTS).filter(|event| find(&segments(dir.path())[1], *event).is_some()).collect();
    let noise = |dir: &Path| {
        edit(&segments(dir)[1], |bytes| {
            let mut dice = 88_172_645_463_325_252u64;
            for byte in bytes {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                *byte = dice as u8;
            }
        });
    };
    check(noise, &inside, 4_000);
}
