//! Segments that are written again, and disks that stall, fill up and fail: by example, where
//! `spool_model.rs` does it at random.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spool_sim::rig::{append, append_all, close, config, drain, of, open, read, wait};
use crate::spool_sim::{Fault, Op, SimFs};
use bytesize::ByteSize;
use pixelgate::internals::spool::Ack;
use pixelgate::internals::spool::{Config, Durability, Overloaded, RECORD_BYTES_MAX, Spool};

#[test]
fn trimmed_segments_are_written_again_and_their_old_records_stay_dead() {
    let fs = SimFs::new(1);
    let process = fs.process();
    let spool = open(&process, &config(), &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let mut number = 0;
    let mut cycle = |least: usize| {
        let mut seen = 0;
        while seen < least {
            append_all(&spool, &[&format!("event {number:04} {}", "x".repeat(200))]);
            number += 1;
            let (texts, record_ids) = read(&mut reader);
            seen += texts.len();
            reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
            spool.checkpoint();
        }
    };
    cycle(60);
    let is_recycled = |path: &Path| {
        path.extension() == Some("seg".as_ref())
            && fs.bytes_of(path).is_some_and(|bytes| bytes[12] == 1)
    };
    let mut rounds = 0;
    while !fs.files().iter().any(|path| is_recycled(path)) {
        cycle(1);
        rounds += 1;
        assert!(rounds < 100, "a trimmed segment is written again");
    }
    // The segment being written is the recycled one, full of old records behind its first.
    cycle(1);
    fs.kill(&process);
    let last = format!("event {:04} {}", number, "x".repeat(200));
    let spool = open(&fs, &config(), &["up"]);
    append_all(&spool, &[&last]);
    let texts = drain(&spool, "up");
    assert_eq!(texts.last(), Some(&last));
    assert!(texts.len() < 10, "only what the cursor had not passed: {texts:?}");
    assert_eq!((of(&spool, "up").lost, spool.status().quarantined_bytes), (0, 0));
}

/// The segments that are kept to be written again.
fn spares(fs: &SimFs) -> Vec<PathBuf> {
    let is_spare = |path: &PathBuf| path.extension() == Some("spare".as_ref());
    fs.files().into_iter().filter(is_spare).collect()
}

#[test]
fn a_few_trimmed_segments_are_kept_and_given_up_where_the_disk_is_low() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let text = "x".repeat(500);
    for _ in 0..100 {
        append_all(&spool, &[&text]);
    }
    while spool.status().upstreams[0].pending > 0 {
        let (_, record_ids) = read(&mut reader);
        reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    }
    // Twice: only what both slots of the cursor have passed is trimmed.
    spool.checkpoint();
    spool.checkpoint();
    assert_eq!(spares(&fs).len(), 3, "of a dozen");
    // As many segments as there are spares are made without a new file.
    for _ in 0..8 * 3 {
        append_all(&spool, &[&text]);
    }
    assert_eq!(spares(&fs).len(), 0);
    while spool.status().upstreams[0].pending > 0 {
        let (_, record_ids) = read(&mut reader);
        reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    }
    spool.checkpoint();
    spool.checkpoint();
    assert!(!spares(&fs).is_empty());
    fs.set_free_bytes(0);
    spool.checkpoint();
    assert_eq!(spares(&fs).len(), 0, "a low disk gets its room back");
    fs.set_free_bytes(u64::MAX);
    spool.checkpoint();
    append_all(&spool, &["goes on"]);
}

#[test]
fn spares_of_zeros_are_made_ahead_and_not_where_there_is_no_room() {
    let config =
        Config { segment_bytes: ByteSize::mib(2), bytes_max: ByteSize::mib(64), ..config() };
    let large = |fs: &SimFs| {
        let sizes = spares(fs).into_iter().filter_map(|path| fs.bytes_of(&path));
        sizes.filter(|bytes| bytes.len() == 2 << 20 && bytes.iter().all(|b| *b == 0)).count()
    };
    let fs = SimFs::new(1);
    let spool = open(&fs, &config, &["up"]);
    assert_eq!(large(&fs), 0, "a start does not wait for it");
    spool.checkpoint();
    assert_eq!(large(&fs), 1);
    // Used up twice while nothing is delivered; the third segment is a new file.
    let payload = vec![7; RECORD_BYTES_MAX];
    for expect in [1, 0, 0] {
        let segments =
            || fs.files().iter().filter(|f| f.extension() == Some("seg".as_ref())).count();
        let before = segments();
        while segments() == before {
            wait(spool.append(|out| out.extend_from_slice(&payload)).expect("room")).expect("safe");
        }
        spool.checkpoint();
        assert_eq!(large(&fs), expect);
    }
    close(&spool);

    let fs = SimFs::new(1);
    fs.set_free_bytes(config.free_bytes_min.as_u64() + (2 << 20) - 1);
    let spool = open(&fs, &config, &["up"]);
    spool.checkpoint();
    assert_eq!(large(&fs), 0, "free_bytes_min would not stay free");
    append_all(&spool, &["a"]);
}

#[test]
fn a_flows_first_segments_are_short() {
    let config =
        Config { segment_bytes: ByteSize::mib(4), bytes_max: ByteSize::mib(64), ..config() };
    let fs = SimFs::new(1);
    // No room for a spare.
    fs.set_free_bytes(config.free_bytes_min.as_u64() + (4 << 20) - 1);
    let spool = open(&fs, &config, &["up"]);
    let sizes = || {
        let mut segments = fs.files();
        segments.retain(|file| file.extension() == Some("seg".as_ref()));
        segments.sort();
        let mib = |file: PathBuf| fs.bytes_of(&file).map_or(0, |bytes| bytes.len() >> 20);
        segments.into_iter().map(mib).collect::<Vec<_>>()
    };
    let payload = vec![7; RECORD_BYTES_MAX];
    while sizes().len() < 5 {
        wait(spool.append(|out| out.extend_from_slice(&payload)).expect("room")).expect("safe");
    }
    assert_eq!(sizes(), [1, 2, 4, 4, 4]);
}

#[test]
fn a_successor_removes_what_a_dead_process_kept_to_write_again() {
    let fs = SimFs::new(1);
    let process = fs.process();
    let spool = open(&process, &config(), &["up"]);
    let text = "x".repeat(500);
    for _ in 0..50 {
        append_all(&spool, &[&text]);
    }
    drain(&spool, "up");
    spool.checkpoint();
    spool.checkpoint();
    append_all(&spool, &["left"]);
    assert!(!spares(&fs).is_empty());
    fs.kill(&process);
    let spool = open(&fs, &config(), &["up"]);
    assert_eq!(spares(&fs).len(), 0);
    assert_eq!(drain(&spool, "up"), ["left"]);
}

#[test]
fn a_disk_with_too_little_free_space_refuses_until_there_is_more() {
    let fs = SimFs::new(1);
    let config = Config { free_bytes_min: ByteSize::mib(256), ..config() };
    let spool = open(&fs, &config, &["up"]);
    append_all(&spool, &["a"]);
    fs.set_free_bytes((256 << 20) - 1);
    spool.checkpoint();
    assert_eq!(append(&spool, "b"), Err(Overloaded));
    assert!(spool.status().failing.expect("refusing").contains("free_bytes_min"));
    fs.set_free_bytes(256 << 20);
    spool.checkpoint();
    append_all(&spool, &["c"]);
    assert_eq!(drain(&spool, "up"), ["a", "c"]);
}

/// Appends until it is taken: the spool recovers by itself, without being asked.
fn append_until_taken(spool: &Spool, text: &str) {
    let mut tries = 0;
    while append(spool, text).is_err() {
        tries += 1;
        assert!(tries < 10_000, "it recovers by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn refused_and_recovered(fault: impl Fn(&SimFs), heal: impl Fn(&SimFs)) {
    for durability in [Durability::Power, Durability::Interval] {
        let fs = SimFs::new(1);
        let spool = open(&fs, &Config { durability, sync_ms: 60_000, ..config() }, &["up"]);
        append_all(&spool, &["a"]);
        fault(&fs);
        assert_eq!(append(&spool, "refused"), Err(Overloaded));
        assert_eq!(append(&spool, "refused at once"), Err(Overloaded));
        assert!(spool.status().failing.is_some());
        heal(&fs);
        append_until_taken(&spool, "b");
        assert_eq!(spool.status().failing, None);
        assert_eq!(drain(&spool, "up"), ["a", "b"]);
        let up = of(&spool, "up");
        assert_eq!((up.accepted, up.lost), (2, 0));
    }
}

#[test]
fn a_write_that_fails_refuses_and_recovers() {
    let fault = Fault { op: Op::Write, after: 0, times: u32::MAX, errno: 5, part: 100 };
    refused_and_recovered(|fs| fs.fault(fault), SimFs::heal);
}

#[test]
fn a_read_only_disk_refuses_and_recovers() {
    let erofs = 30;
    let fault = |op| Fault { op, after: 0, times: u32::MAX, errno: erofs, part: 0 };
    let all = |fs: &SimFs| [Op::Write, Op::Names].map(fault).into_iter().for_each(|f| fs.fault(f));
    refused_and_recovered(all, SimFs::heal);
}

#[test]
fn a_failed_sync_is_answered_from_a_new_segment() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    append_all(&spool, &["a"]);
    fs.fault(Fault { op: Op::Sync, after: 0, times: 1, errno: 5, part: 0 });
    append_all(&spool, &["b"]);
    // The first file's sectors are gone for good, and it was not synced again.
    fs.lose_power();
    let spool = open(&fs.process(), &config(), &["up"]);
    assert_eq!(drain(&spool, "up"), ["a", "b"]);
}

#[test]
fn a_refused_event_stays_refused_after_a_restart() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    append_all(&spool, &["a"]);
    // Written whole, then the sync fails, and so does the second attempt.
    fs.fault(Fault { op: Op::Sync, after: 0, times: 2, errno: 5, part: 255 });
    assert_eq!(append(&spool, "refused"), Err(Overloaded));
    append_until_taken(&spool, "b");
    close(&spool);
    assert_eq!(drain(&open(&fs, &config(), &["up"]), "up"), ["a", "b"]);
}

#[test]
fn interval_answers_while_a_sync_stalls() {
    let fs = SimFs::new(1);
    let config = Config {
        durability: Durability::Interval,
        sync_ms: 1,
        segment_bytes: ByteSize::mib(16),
        bytes_max: ByteSize::mib(64),
        ..config()
    };
    let spool = open(&fs, &config, &["up"]);
    append_all(&spool, &["a"]);
    fs.stall_syncs(true);
    for number in 0..900 {
        append_all(&spool, &[&number.to_string()]);
        if number % 100 == 0 {
            // So that a sync is due for certain.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fs.stall_syncs(false);
    close(&spool);
    assert_eq!(drain(&open(&fs, &config, &["up"]), "up").len(), 901);
}

#[test]
fn a_sync_that_fails_beside_the_committer_costs_nothing() {
    let fs = SimFs::new(1);
    let config = Config { durability: Durability::Interval, sync_ms: 1, ..config() };
    let spool = open(&fs, &config, &["up"]);
    // The sync of each interval, until the segment is given up; making the next one goes well.
    fs.fault(Fault { op: Op::Sync, after: 0, times: 1, errno: 5, part: 0 });
    append_all(&spool, &["a"]);
    segments_become(&fs, 2);
    append_all(&spool, &["b"]);
    // What was written again is what counts: the first segment's own sync is never tried again.
    close(&spool);
    fs.lose_power();
    assert_eq!(drain(&open(&fs.process(), &config, &["up"]), "up"), ["a", "b"]);
}

#[test]
fn a_sync_that_fails_while_company_is_awaited_is_noticed() {
    // Whether the sync had begun when the second event came is the system's choice.
    for seed in 1..=10 {
        let fs = SimFs::new(seed);
        let config =
            Config { durability: Durability::Interval, sync_ms: 1, linger_ms: 30, ..config() };
        let spool = open(&fs, &config, &["up"]);
        append_all(&spool, &["a"]);
        fs.stall_syncs(true);
        fs.fault(Fault { op: Op::Sync, after: 0, times: 1, errno: 5, part: 0 });
        // So that a sync is due for certain.
        std::thread::sleep(Duration::from_millis(2));
        append_all(&spool, &["b"]);
        fs.stall_syncs(false);
        // Nothing else comes that could wake the reader that gives the segment up.
        segments_become(&fs, 2);
        close(&spool);
        fs.lose_power();
        assert_eq!(drain(&open(&fs.process(), &config, &["up"]), "up"), ["a", "b"]);
    }
}

/// Waits for so many segments.
fn segments_become(fs: &SimFs, count: usize) {
    let segments = || fs.files().iter().filter(|f| f.extension() == Some("seg".as_ref())).count();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while segments() < count {
        assert!(std::time::Instant::now() < until, "the segment is not given up");
        std::thread::yield_now();
    }
}

#[test]
fn a_stop_waits_for_the_sync_that_alone_is_told_of_a_failure() {
    // Which of two syncs that wait comes first is the system's choice, so try it often.
    for seed in 1..=20 {
        let fs = SimFs::new(seed);
        let config = Config { durability: Durability::Interval, sync_ms: 1, ..config() };
        let spool = open(&fs, &config, &["up"]);
        append_all(&spool, &["a"]);
        fs.stall_syncs(true);
        fs.fault(Fault { op: Op::Sync, after: 0, times: 1, errno: 5, part: 0 });
        // One of these finds a sync due and begins it.
        for _ in 0..3 {
            append_all(&spool, &["b"]);
            std::thread::sleep(Duration::from_millis(1));
        }
        let closing = std::thread::spawn(move || close(&spool));
        std::thread::sleep(Duration::from_millis(1));
        fs.stall_syncs(false);
        closing.join().expect("closes");
        fs.lose_power();
        assert_eq!(drain(&open(&fs.process(), &config, &["up"]), "up"), ["a", "b", "b", "b"]);
    }
}

#[test]
fn a_stalled_disk_queues_then_sheds() {
    let fs = SimFs::new(1);
    let config = Config {
        bytes_max: ByteSize::gib(1),
        segment_bytes: ByteSize::mib(1),
        // A slow machine takes longer than the default to queue so much.
        commit_seconds_max: 60,
        ..config()
    };
    let spool = open(&fs, &config, &["up"]);
    append_all(&spool, &["a"]);
    fs.stall_syncs(true);
    let payload = vec![7; RECORD_BYTES_MAX];
    let mut waiting = Vec::new();
    while let Ok(commit) = spool.append(|out| out.extend_from_slice(&payload)) {
        waiting.push(commit);
    }
    let queued = waiting.len() * RECORD_BYTES_MAX;
    assert!((60 << 20..=64 << 20).contains(&queued), "{queued} bytes queued");
    fs.stall_syncs(false);
    for commit in waiting {
        assert_eq!(wait(commit), Ok(()), "what was queued is not shed");
    }
    append_all(&spool, &["b"]);
}

#[test]
fn a_read_that_fails_is_tried_again_and_loses_nothing() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    append_all(&spool, &["a", "b"]);
    fs.fault(Fault { op: Op::Read, after: 0, times: 3, errno: 5, part: 0 });
    let mut reader = spool.reader("up").expect("configured");
    let mut texts = Vec::new();
    for _ in 0..10 {
        texts.extend(read(&mut reader).0);
    }
    assert_eq!(texts, ["a", "b"]);
    assert_eq!(of(&spool, "up").lost, 0);
}

/// The files of segments.
fn segments(fs: &SimFs) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension() == Some("seg".as_ref())).collect()
}

#[test]
fn a_reader_that_keeps_up_reads_no_file() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up", "late"]);
    let mut reader = spool.reader("up").expect("configured");
    for number in 0..20 {
        let text = format!("{number} {}", "x".repeat(2000));
        append_all(&spool, &[&text]);
        segments(&fs).iter().for_each(|path| fs.make_unreadable(path, 0..u64::MAX));
        assert_eq!(read(&mut reader).0, [text]);
    }
    // The records that this one needs first are in the file of an earlier segment.
    let mut late = spool.reader("late").expect("configured");
    assert_eq!(read(&mut late).0, [""; 0]);
    fs.heal();
    assert_eq!(read(&mut late).0.len(), 20);
}

#[test]
fn a_file_system_without_direct_writes_keeps_the_same_promises() {
    for refuses in [false, true] {
        let fs = SimFs::new(1);
        if refuses {
            fs.refuse_direct();
        }
        let spool = open(&fs, &config(), &["up"]);
        let mut reader = spool.reader("up").expect("configured");
        let texts: Vec<String> = (0..30).map(|number| format!("{number:0>200}")).collect();
        for text in &texts {
            append_all(&spool, &[text]);
            assert_eq!(read(&mut reader).0, [text.as_str()]);
        }
        assert_eq!(spool.status().direct_writes, !refuses);
        fs.lose_power();
        assert_eq!(drain(&open(&fs.process(), &config(), &["up"]), "up"), texts);
    }
}
