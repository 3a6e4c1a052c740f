//! Several processes on one spool, upstreams that come and go, bounds, and disks that fail: by
//! example, where `spool_model.rs` does it at random.

mod spool_sim;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use pixelgate::spool::fs::Fs;
use pixelgate::spool::{
    Commit, Config, Durability, Env, Fate, OpenError, Overloaded, RECORD_BYTES_MAX,
    RUN_AHEAD_EVENTS_MAX, Reader, Seat, Spool, UPSTREAMS_MAX, UpstreamStatus,
};
use spool_sim::{Fault, Op, SimFs};

fn config() -> Config {
    Config {
        dir: "/spool".into(),
        linger_ms: 0,
        segment_bytes: ByteSize::kib(4),
        bytes_max: ByteSize::mib(1),
        ..Config::default()
    }
}

fn open(fs: &SimFs, config: &Config, upstreams: &[&str]) -> Spool {
    let names: Vec<String> = upstreams.iter().map(|name| (*name).to_owned()).collect();
    let env = Env { fs: Arc::new(fs.clone()), ..Env::system() };
    Spool::open(config, &names, env).expect("opens")
}

fn wait(commit: Commit) -> Result<(), Overloaded> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(commit)
}

fn append(spool: &Spool, text: &str) -> Result<(), Overloaded> {
    wait(spool.append(|out| out.extend_from_slice(text.as_bytes()))?)
}

fn append_all(spool: &Spool, texts: &[&str]) {
    texts.iter().for_each(|text| append(spool, text).expect("there is room"));
}

/// What is readable now.
fn read(reader: &mut Reader) -> (Vec<String>, Vec<Seat>) {
    let entries = reader.try_read(1_000, 1 << 20);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("as written");
    entries.iter().map(|entry| (text(&entry.payload), entry.seat)).unzip()
}

fn drain(spool: &Spool, upstream: &str) -> Vec<String> {
    let mut reader = spool.reader(upstream).expect("configured");
    let (texts, seats) = read(&mut reader);
    reader.acknowledger().acknowledge(&seats, Fate::Delivered);
    texts
}

fn of(spool: &Spool, name: &str) -> UpstreamStatus {
    let status = spool.status();
    status.upstreams.into_iter().find(|upstream| upstream.name == name).expect("configured")
}

fn close(spool: &Spool) {
    spool.close(Duration::from_secs(60)).expect("closes");
}

fn lanes(fs: &SimFs) -> Vec<String> {
    let entries = fs.list(Path::new("/spool")).expect("readable");
    let names = entries.into_iter().map(|entry| entry.name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("lane-")).collect()
}

#[test]
fn a_new_process_beside_a_draining_one_takes_over_when_it_ends() {
    let fs = SimFs::new(1);
    let old = open(&fs, &config(), &["up"]);
    append_all(&old, &["a", "b"]);
    let new = open(&fs, &config(), &["up"]);
    append_all(&new, &["c"]);
    let mut reader = new.reader("up").expect("configured");
    assert_eq!(read(&mut reader).0, ["c"], "the old one's are its own while it lives");
    append_all(&old, &["d"]);
    let mut olds = old.reader("up").expect("configured");
    let (texts, seats) = read(&mut olds);
    assert_eq!(texts, ["a", "b", "d"]);
    olds.acknowledger().acknowledge(&seats[..1], Fate::Dead);
    close(&old);
    new.checkpoint();
    assert_eq!(read(&mut reader).0, ["b", "d"], "its cursor is honoured");
    assert_eq!(of(&new, "up").accepted, 4);
    assert_eq!(of(&new, "up").dead, 1);
}

#[test]
fn a_dead_lane_is_adopted_by_one_process() {
    let fs = SimFs::new(1);
    let dead = fs.process();
    let spool = open(&dead, &config(), &["up"]);
    append_all(&spool, &["a"]);
    fs.kill(&dead);
    let processes = [open(&fs, &config(), &["up"]), open(&fs, &config(), &["up"])];
    processes.iter().for_each(Spool::checkpoint);
    let read: Vec<_> = processes.iter().map(|spool| drain(spool, "up")).collect();
    assert_eq!(read, [vec!["a".to_owned()], vec![]]);
}

#[test]
fn a_delivered_lane_goes_and_its_totals_stay() {
    let fs = SimFs::new(1);
    for round in 1..=5 {
        let spool = open(&fs, &config(), &["up"]);
        append_all(&spool, &["a", "b"]);
        assert_eq!(drain(&spool, "up").len(), 2);
        (0..3).for_each(|_| spool.checkpoint());
        let up = of(&spool, "up");
        assert_eq!((up.accepted, up.delivered, up.pending), (round * 2, round * 2, 0));
        assert_eq!(lanes(&fs).len(), 1);
        close(&spool);
    }
}

#[test]
fn a_renamed_upstream_gets_what_was_pending_and_a_new_one_no_more_than_that() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["old"]);
    append_all(&spool, &["a", "b", "c"]);
    let mut reader = spool.reader("old").expect("configured");
    let (_, seats) = read(&mut reader);
    reader.acknowledger().acknowledge(&seats[..2], Fate::Delivered);
    close(&spool);
    let spool = open(&fs, &config(), &["new"]);
    assert_eq!(drain(&spool, "new"), ["c"]);
    assert_eq!(of(&spool, "new").accepted, 1);
    assert_eq!(of(&spool, "new").pending, 0);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!(lanes(&fs).len(), 1, "the removed one holds nothing back");
}

#[test]
fn an_upstream_that_lags_holds_back_the_disk_and_nobody_else() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["fast", "slow"]);
    for event in 0..200 {
        append_all(&spool, &[&format!("{event} {}", "x".repeat(200))]);
    }
    assert_eq!(drain(&spool, "fast").len(), 200);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!((of(&spool, "fast").pending, of(&spool, "slow").pending), (0, 200));
    assert_eq!(drain(&spool, "slow").len(), 200);
    (0..3).for_each(|_| spool.checkpoint());
    let segments = fs.files().iter().filter(|p| p.extension() == Some("seg".as_ref())).count();
    assert_eq!(segments, 1, "all but the open one are trimmed");
    assert_eq!(spool.status().bytes, 0);
}

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
            let (texts, seats) = read(&mut reader);
            seen += texts.len();
            reader.acknowledger().acknowledge(&seats, Fate::Delivered);
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
fn spares(fs: &SimFs) -> Vec<std::path::PathBuf> {
    let is_spare = |path: &std::path::PathBuf| path.extension() == Some("spare".as_ref());
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
        let (_, seats) = read(&mut reader);
        reader.acknowledger().acknowledge(&seats, Fate::Delivered);
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
        let (_, seats) = read(&mut reader);
        reader.acknowledger().acknowledge(&seats, Fate::Delivered);
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
fn the_bound_refuses_at_once_and_opens_with_the_first_acknowledgement() {
    let fs = SimFs::new(1);
    let config = Config { bytes_max: ByteSize::kib(16), ..config() };
    let spool = open(&fs, &config, &["up"]);
    let text = "x".repeat(100);
    let mut events = 0;
    while append(&spool, &text).is_ok() {
        events += 1;
    }
    assert!((16 << 10) / 116 - events <= 6, "{events} fill the bound, but for headers");
    assert!(spool.status().failing.is_none_or(|why| why.contains("bytes_max")));
    assert_eq!(append(&spool, &text), Err(Overloaded));
    let mut reader = spool.reader("up").expect("configured");
    let (_, seats) = read(&mut reader);
    assert_eq!(seats.len() as u64, events);
    reader.acknowledger().acknowledge(&seats[..10], Fate::Delivered);
    assert_eq!(append(&spool, &text), Ok(()));
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
    let segments = || fs.files().iter().filter(|f| f.extension() == Some("seg".as_ref())).count();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while segments() < 2 {
        assert!(std::time::Instant::now() < until, "the segment is not given up");
        std::thread::yield_now();
    }
    append_all(&spool, &["b"]);
    // What was written again is what counts: the first segment's own sync is never tried again.
    close(&spool);
    fs.lose_power();
    assert_eq!(drain(&open(&fs.process(), &config, &["up"]), "up"), ["a", "b"]);
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
    let config =
        Config { bytes_max: ByteSize::gib(1), segment_bytes: ByteSize::mib(1), ..config() };
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
fn what_is_read_and_not_acknowledged_is_bounded() {
    let fs = SimFs::new(1);
    let config =
        Config { bytes_max: ByteSize::mib(64), durability: Durability::Memory, ..config() };
    let spool = open(&fs, &config, &["up"]);
    for _ in 0..RUN_AHEAD_EVENTS_MAX + 10 {
        drop(spool.append(|out| out.push(1)).expect("there is room"));
    }
    close(&spool);
    let spool = open(&fs, &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let mut seats = Vec::new();
    loop {
        let (_, more) = read(&mut reader);
        if more.is_empty() {
            break;
        }
        seats.extend(more);
    }
    assert_eq!(seats.len(), RUN_AHEAD_EVENTS_MAX);
    reader.acknowledger().acknowledge(&seats[1..], Fate::Delivered);
    assert!(read(&mut reader).0.is_empty(), "the first one still holds the window");
    reader.acknowledger().acknowledge(&seats[..1], Fate::Delivered);
    assert_eq!(read(&mut reader).0.len(), 10);
}

#[test]
fn reading_waits_for_events_and_for_acknowledgements() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("a runtime");
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let task = runtime.spawn(async move { reader.read(10, 1_000).await.len() });
    append_all(&spool, &["a"]);
    assert_eq!(runtime.block_on(task).expect("ends"), 1);
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

#[test]
fn batches_keep_to_their_bounds() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    append_all(&spool, &["aaaa", "bbbb", "cccc", "dddddddddddd", "e"]);
    let mut reader = spool.reader("up").expect("configured");
    let mut sizes = |events_max, bytes_max| {
        let entries = reader.try_read(events_max, bytes_max);
        entries.iter().map(|entry| entry.payload.len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(1, 100), [4]);
    assert_eq!(sizes(9, 11), [4, 4]);
    assert_eq!(sizes(9, 5), [12], "a large one goes alone");
    assert_eq!(sizes(9, 5), [1]);
}

#[test]
fn the_largest_record_is_kept_and_one_more_byte_is_refused() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    let largest = vec![7; RECORD_BYTES_MAX];
    wait(spool.append(|out| out.extend_from_slice(&largest)).expect("taken")).expect("committed");
    assert!(spool.append(|out| out.resize(RECORD_BYTES_MAX + 1, 7)).is_err());
    assert!(spool.append(|_| {}).is_err(), "nothing is no event");
    let mut reader = spool.reader("up").expect("configured");
    assert_eq!(reader.try_read(9, 9)[0].payload, largest);
}

#[test]
fn closing_twice_is_closing_once_and_nothing_is_taken_after() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &Config { durability: Durability::Memory, ..config() }, &["up"]);
    append_all(&spool, &["a"]);
    close(&spool);
    close(&spool);
    assert_eq!(append(&spool, "b"), Err(Overloaded));
    assert_eq!(drain(&open(&fs, &config(), &["up"]), "up"), ["a"]);
}

#[test]
fn a_reader_is_given_once() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up"]);
    assert!(spool.reader("down").is_none());
    assert!(spool.reader("up").is_some());
    assert!(spool.reader("up").is_none());
}

#[test]
fn names_of_upstreams_are_checked() {
    let fs = SimFs::new(1);
    let check = |names: Vec<String>, expect: bool| {
        let env = Env { fs: Arc::new(fs.process()), ..Env::system() };
        let opened = Spool::open(&config(), &names, env);
        assert_eq!(opened.is_ok(), expect);
        assert!(expect || matches!(opened, Err(OpenError::Upstreams(_))));
    };
    let numbered = |count: usize| (0..count).map(|at| format!("u{at}")).collect::<Vec<_>>();
    check(numbered(UPSTREAMS_MAX), true);
    check(numbered(UPSTREAMS_MAX + 1), false);
    check(vec!["a".into(), "a".into()], false);
    check(vec![String::new()], false);
    check(vec!["x".repeat(129)], false);
}
