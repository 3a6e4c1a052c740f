//! Several processes on one spool, upstreams that come and go, readers and bounds: by example,
//! where `spool_model.rs` does it at random.

use std::path::Path;
use std::sync::Arc;

use crate::spool_sim::SimFs;
use crate::spool_sim::rig::{append, append_all, close, config, drain, of, open, read, wait};
use bytesize::ByteSize;
use pixelgate::internals::spool::fs::Fs;
use pixelgate::internals::spool::{
    Ack, Config, Durability, Env, OpenError, Overloaded, RECORD_BYTES_MAX, RUNS_MAX, Reader,
    RecordId, Spool, UPSTREAMS_MAX,
};
use pixelgate::internals::telemetry::faults::Faults;

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
    let (texts, record_ids) = read(&mut olds);
    assert_eq!(texts, ["a", "b", "d"]);
    olds.acknowledger().acknowledge(&record_ids[..1], Ack::Dead);
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
    let (_, record_ids) = read(&mut reader);
    reader.acknowledger().acknowledge(&record_ids[..2], Ack::Delivered);
    close(&spool);
    let spool = open(&fs, &config(), &["new"]);
    assert_eq!(drain(&spool, "new"), ["c"]);
    assert_eq!(of(&spool, "new").accepted, 1);
    assert_eq!(of(&spool, "new").pending, 0);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!(lanes(&fs).len(), 2, "what waits for the removed one is kept (SPEC 7)");
}

#[test]
fn a_removed_upstream_finds_what_waited_for_it_and_nothing_newer() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up", "other"]);
    append_all(&spool, &["a", "b"]);
    assert_eq!(drain(&spool, "other").len(), 2);
    close(&spool);
    for round in 0..3 {
        let spool = open(&fs, &config(), &["other"]);
        append_all(&spool, &[&format!("new {round}")]);
        assert_eq!(drain(&spool, "other").len(), 1);
        (0..3).for_each(|_| spool.checkpoint());
        assert_eq!(lanes(&fs).len(), 2, "the lane with the events that wait, and its own");
        assert_ne!(spool.status().bytes, 0, "they count against the bound");
        close(&spool);
    }
    let spool = open(&fs, &config(), &["up", "other"]);
    assert_eq!(drain(&spool, "up"), ["a", "b"]);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!((lanes(&fs).len(), spool.status().bytes), (1, 0));
}

#[test]
fn a_removed_upstream_finds_its_totals_again() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["up", "other"]);
    append_all(&spool, &["a", "b"]);
    ["up", "other"].iter().for_each(|name| assert_eq!(drain(&spool, name).len(), 2));
    close(&spool);
    for _ in 0..3 {
        let spool = open(&fs, &config(), &["other"]);
        append_all(&spool, &["new"]);
        assert_eq!(drain(&spool, "other").len(), 1);
        (0..3).for_each(|_| spool.checkpoint());
        assert_eq!(lanes(&fs).len(), 1, "the lane with its position is gone");
        close(&spool);
    }
    for events in 2..5 {
        let spool = open(&fs, &config(), &["up", "other"]);
        let up = of(&spool, "up");
        assert_eq!((up.accepted, up.delivered, up.pending), (events, events, 0));
        append_all(&spool, &["new"]);
        ["up", "other"].iter().for_each(|name| assert_eq!(drain(&spool, name).len(), 1));
        (0..3).for_each(|_| spool.checkpoint());
        close(&spool);
    }
}

#[test]
fn a_lane_with_more_positions_than_a_cursor_holds_waits_untouched() {
    let fs = SimFs::new(1);
    let names = |prefix: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}")).collect()
    };
    let open_with = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        open(&fs, &config(), &names)
    };
    let spool = open_with(&names("old", 64));
    append_all(&spool, &["a"]);
    close(&spool);
    // 120 positions fit into a cursor.
    let spool = open_with(&names("new", 57));
    assert_eq!(drain(&spool, "new0"), [] as [&str; 0]);
    close(&spool);
    let spool = open_with(&names("new", 56));
    assert_eq!(drain(&spool, "new0"), ["a"]);
    close(&spool);
    let spool = open_with(&names("old", 64));
    assert_eq!(drain(&spool, "old63"), ["a"]);
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
fn what_waits_for_an_upstream_that_was_added_just_before_a_kill_is_named() {
    for files_max in [usize::MAX, 1] {
        let fs = SimFs::new(1);
        for _ in 0..3 {
            let spool = open(&fs, &config(), &["up"]);
            append_all(&spool, &["a"]);
            close(&spool);
        }
        let killed = fs.process();
        let env = Env { fs: Arc::new(killed.clone()), lane_files_max: files_max, ..Env::system() };
        let names = ["up", "added"].map(str::to_owned);
        let spool = Spool::open(&config(), &names, env).expect("opens");
        assert_eq!(of(&spool, "added").pending, 3);
        fs.kill(&killed);
        drop(spool);
        let faults = Faults::unregistered();
        let env = Env { fs: Arc::new(fs.clone()), faults: faults.clone(), ..Env::system() };
        let spool = Spool::open(&config(), &["up".to_owned()], env).expect("opens");
        let found: Vec<_> = faults.list().into_iter().map(|fault| fault.text).collect();
        assert_eq!(found, ["3 events wait for upstream added, which is not configured"]);
        assert_eq!(of(&spool, "up").pending, 3);
    }
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
    // A record has a header of 16 bytes. The headers of the segments are no part of the bound.
    assert_eq!((events, spool.status().bytes), ((16 << 10) / 116, (16 << 10) / 116 * 116));
    assert!(spool.status().failing.is_none_or(|why| why.contains("bytes_max")));
    assert_eq!(append(&spool, &text), Err(Overloaded));
    let mut reader = spool.reader("up").expect("configured");
    let (_, record_ids) = read(&mut reader);
    assert_eq!(record_ids.len() as u64, events);
    reader.acknowledger().acknowledge(&record_ids[..10], Ack::Delivered);
    assert_eq!(append(&spool, &text), Ok(()));
}

/// A closed lane of `events` small events, opened again to be delivered.
fn with_events(fs: &SimFs, events: usize) -> Spool {
    let config = Config {
        bytes_max: ByteSize::mib(64),
        segment_bytes: ByteSize::mib(8),
        durability: Durability::Memory,
        ..config()
    };
    let spool = open(fs, &config, &["up"]);
    for _ in 0..events {
        drop(spool.append(|out| out.push(1)).expect("there is room"));
    }
    close(&spool);
    open(&fs.process(), &config, &["up"])
}

/// Reads all events that are readable now.
fn read_all(reader: &mut Reader) -> Vec<RecordId> {
    let read = std::iter::from_fn(|| Some(read(reader).1).filter(|ids| !ids.is_empty()));
    read.flatten().collect()
}

#[test]
fn delivery_runs_ahead_of_a_stuck_event_and_a_kill_repeats_only_that_one() {
    let fs = SimFs::new(1);
    drop(with_events(&fs, 200_000));
    let process = fs.process();
    let config = Config { bytes_max: ByteSize::mib(64), ..config() };
    let spool = open(&process, &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let record_ids = read_all(&mut reader);
    assert_eq!(record_ids.len(), 200_000);
    record_ids[1..].chunks(500).for_each(|batch| {
        reader.acknowledger().acknowledge(batch, Ack::Delivered);
    });
    assert_eq!(of(&spool, "up").pending, 1);
    fs.kill(&process);

    let process = fs.process();
    let spool = open(&process, &config, &["up"]);
    assert_eq!((of(&spool, "up").delivered, of(&spool, "up").pending), (199_999, 1));
    let mut reader = spool.reader("up").expect("configured");
    assert_eq!(read_all(&mut reader), record_ids[..1]);
    // The cursor holds the same after its next sync.
    spool.checkpoint();
    fs.lose_power();
    let spool = open(&fs.process(), &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    assert_eq!(read_all(&mut reader), record_ids[..1]);
    reader.acknowledger().acknowledge(&record_ids[..1], Ack::Dead);
    assert_eq!((of(&spool, "up").delivered, of(&spool, "up").dead), (199_999, 1));
}

#[test]
fn runs_that_the_cursor_has_no_room_for_survive_a_power_loss() {
    let fs = SimFs::new(1);
    let spool = with_events(&fs, 60_000);
    let mut reader = spool.reader("up").expect("configured");
    let record_ids = read_all(&mut reader);
    let even = |ids: &[RecordId]| ids.iter().copied().skip(1).step_by(2).collect::<Vec<_>>();
    let acknowledger = reader.acknowledger();
    acknowledger.acknowledge(&even(&record_ids), Ack::Delivered);
    spool.checkpoint();
    drop((reader, acknowledger));
    fs.lose_power();
    let config = Config { bytes_max: ByteSize::mib(64), ..config() };
    let spool = open(&fs.process(), &config, &["up"]);
    assert_eq!((of(&spool, "up").delivered, of(&spool, "up").pending), (30_000, 30_000));
    let mut reader = spool.reader("up").expect("configured");
    assert!(read_all(&mut reader).iter().all(|id| !even(&record_ids[..100]).contains(id)));
}

#[test]
fn at_the_bound_of_runs_reading_waits_and_one_acknowledgement_lets_it_go_on() {
    let fs = SimFs::new(1);
    drop(with_events(&fs, 2 * RUNS_MAX + 2_000));
    let config = Config { bytes_max: ByteSize::mib(64), ..config() };
    let spool = open(&fs.process(), &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let mut record_ids = Vec::new();
    while record_ids.len() <= 2 * RUNS_MAX {
        record_ids.extend(read(&mut reader).1);
    }
    let odd = (0..RUNS_MAX).map(|n| record_ids[2 * n + 1]).collect::<Vec<_>>();
    reader.acknowledger().acknowledge(&odd, Ack::Delivered);
    let acknowledger = reader.acknowledger();
    assert!(acknowledger.is_at_bound());
    assert!(read(&mut reader).1.is_empty());
    append_all(&spool, &["a"]);
    assert_eq!(read(&mut reader).0, ["a"], "the bound is that of one lane");
    reader.keep_order();
    append_all(&spool, &["b"]);
    assert!(read(&mut reader).1.is_empty(), "the events of an older lane come first");
    acknowledger.acknowledge(&record_ids[2..3], Ack::Delivered);
    assert!(!acknowledger.is_at_bound());
    record_ids.extend(read_all(&mut reader));
    assert_eq!(record_ids.len(), 2 * RUNS_MAX + 2_000 + 1);
    assert!(record_ids.is_sorted());
}

#[test]
fn a_damaged_segment_of_any_size_does_not_stop_a_reader_that_waits() {
    let fs = SimFs::new(1);
    drop(with_events(&fs, 150_000));
    // 80,000 events in a row of each segment of that size.
    let bad = 1_000..1_000 + 80_000 * 17;
    for file in fs.files().iter().filter(|path| path.extension() == Some("seg".as_ref())) {
        fs.damage(file, |bytes| {
            if bytes.len() > bad.end + 10 * 17 {
                bytes[bad.clone()].fill(0xff);
            }
        });
    }
    let config = Config { bytes_max: ByteSize::mib(64), ..config() };
    let spool = open(&fs.process(), &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    // The first event is out and unacknowledged while the reader meets the damage.
    let first = reader.try_read(1, 1 << 20);
    assert_eq!(first.len(), 1);
    let rest = read_all(&mut reader).len() as u64;
    let counts = of(&spool, "up");
    assert!(counts.lost >= 80_000, "{counts:?}");
    assert_eq!(counts.accepted, 1 + rest + counts.lost);
    assert_eq!(counts.pending, 1 + rest);
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
fn in_memory_the_kernel_has_little_to_write_at_any_time() {
    const RECORDS: usize = 160;
    const LEFT_MAX: usize = 16;
    let fs = SimFs::new(1);
    let dir = config().dir;
    let config = Config { dir, durability: Durability::Memory, ..Config::default() };
    let spool = open(&fs, &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let record = vec![7; 128 << 10];
    for _ in 0..RECORDS {
        wait(spool.append(|out| out.extend_from_slice(&record)).expect("taken")).expect("at once");
        // What can be read is written. The sync, if one is due, comes before the next write.
        while reader.try_read(1, record.len()).is_empty() {
            std::thread::yield_now();
        }
    }
    fs.lose_power();
    let spool = open(&fs.process(), &config, &["up"]);
    let mut reader = spool.reader("up").expect("configured");
    let found = reader.try_read(RECORDS, usize::MAX).len();
    assert!(found >= RECORDS - 1 - LEFT_MAX, "{found} of {RECORDS}");
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
