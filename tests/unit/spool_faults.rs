//! Folders that vanish, segments that cannot be read, disks that stall, and more lanes than files
//! may be open: what becomes of the events, and what the spool says meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::spool_sim::SimFs;
use crate::spool_sim::rig::{append, append_all, close, config, drain, of, open, read};
use pixelgate::internals::clock::{Clock, SystemClock};
use pixelgate::internals::spool::{Ack, Config, Durability, Env, Overloaded, Reader, Spool};
use pixelgate::internals::telemetry::faults::{FaultKind, Faults};

/// The system's clock, which a test can put forward.
#[derive(Clone, Default)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, SeqCst);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        SystemClock.unix_ms() + 1_000 * self.0.load(SeqCst)
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic() + Duration::from_secs(self.0.load(SeqCst))
    }
}

struct Rig {
    clock: TestClock,
    faults: Faults,
    spool: Spool,
}

impl Rig {
    fn open(fs: &SimFs, config: &Config) -> Rig {
        Rig::open_with(fs, config, Env::system())
    }

    fn open_with(fs: &SimFs, config: &Config, system: Env) -> Rig {
        let (clock, faults) = (TestClock::default(), Faults::unregistered());
        let env = Env {
            fs: Arc::new(fs.process()),
            clock: Arc::new(clock.clone()),
            faults: faults.clone(),
            ..system
        };
        let spool = Spool::open(config, &["up".to_owned()], env).expect("opens");
        Rig { clock, faults, spool }
    }

    fn reader(&self) -> Reader {
        self.spool.reader("up").expect("configured")
    }

    /// Expects faults of these kinds, with these parts of paths, and no others.
    fn assert_faults(&self, expect: &[(FaultKind, &str)]) {
        let list = self.faults.list();
        let fits = list.len() == expect.len()
            && expect.iter().all(|(what, path)| {
                list.iter().any(|fault| fault.what == *what && fault.text.contains(path))
            });
        assert!(fits, "{list:?}, not {expect:?}");
    }
}

/// Waits until `done` holds, which another thread brings about.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The lane of a process that ended, with 30 events in several segments, and their files.
fn ended_lane(fs: &SimFs) -> Vec<PathBuf> {
    let spool = open(&fs.process(), &config(), &["up"]);
    for number in 0..30 {
        append_all(&spool, &[&format!("{number:02} {}", "x".repeat(500))]);
    }
    close(&spool);
    let mut segments = fs.files();
    segments.retain(|file| file.extension() == Some("seg".as_ref()));
    assert!(segments.len() >= 4, "{segments:?}");
    segments
}

/// The numbers of the events that are read now, all acknowledged.
fn deliver(reader: &mut Reader) -> Vec<u32> {
    let (texts, record_ids) = read(reader);
    reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    texts.iter().map(|text| text[..2].parse().expect("as written")).collect()
}

#[test]
fn a_folder_that_is_away_loses_nothing_and_refuses_until_it_is_back() {
    let fs = SimFs::new(1);
    ended_lane(&fs);
    let rig = Rig::open(&fs, &config());
    let mut reader = rig.reader();
    append_all(&rig.spool, &["before"]);
    fs.move_away(Path::new("/spool"), Path::new("/away"));
    rig.spool.checkpoint();
    assert_eq!(append(&rig.spool, "refused"), Err(Overloaded));
    assert!(rig.spool.status().failing.is_some());
    assert_eq!(deliver(&mut reader), [0; 0]);
    rig.spool.checkpoint();
    let what = |fault: &pixelgate::internals::telemetry::faults::Fault| fault.what;
    let kinds: Vec<_> = rig.faults.list().iter().map(what).collect();
    assert!(kinds.contains(&FaultKind::SpoolFolder) && kinds.contains(&FaultKind::SpoolSegment));
    assert_eq!((of(&rig.spool, "up").lost, of(&rig.spool, "up").pending), (0, 31));

    fs.move_away(Path::new("/away"), Path::new("/spool"));
    wait_until("events are accepted again", || append(&rig.spool, "after").is_ok());
    assert_eq!(read(&mut reader).0.len(), 32);
    rig.spool.checkpoint();
    rig.assert_faults(&[]);
    assert_eq!(of(&rig.spool, "up").lost, 0);
}

#[test]
fn another_spool_in_its_place_is_left_alone() {
    let fs = SimFs::new(1);
    ended_lane(&fs);
    let rig = Rig::open(&fs, &config());
    append_all(&rig.spool, &["own"]);
    assert_eq!(drain(&rig.spool, "up").len(), 31);
    fs.move_away(Path::new("/spool"), Path::new("/away"));
    // Lanes and segments with the same numbers.
    ended_lane(&fs);
    let before = fs.files();
    (0..4).for_each(|_| rig.spool.checkpoint());
    let is_there = |file: &&PathBuf| file.starts_with("/spool");
    let (before, now): (Vec<_>, _) = (before.iter().filter(is_there).collect(), fs.files());
    assert_eq!(before, now.iter().filter(is_there).collect::<Vec<_>>());
    assert_eq!(drain(&open(&fs, &config(), &["up"]), "up").len(), 30);

    fs.move_away(Path::new("/spool"), Path::new("/other"));
    fs.move_away(Path::new("/away"), Path::new("/spool"));
    wait_until("events are accepted again", || append(&rig.spool, "after").is_ok());
    (0..4).for_each(|_| rig.spool.checkpoint());
    assert_eq!(of(&rig.spool, "up").accepted, 32, "no lane is counted twice");
}

#[test]
fn a_group_is_refused_when_its_folder_has_just_been_replaced() {
    for durability in [Durability::Power, Durability::Interval] {
        let fs = SimFs::new(1);
        let rig = Rig::open(&fs, &Config { durability, ..config() });
        append_all(&rig.spool, &["before"]);
        fs.move_away(Path::new("/spool"), Path::new("/away"));
        // No second has passed, so the commit itself has looked for the folder.
        assert_eq!(append(&rig.spool, "refused"), Err(Overloaded));
        fs.move_away(Path::new("/away"), Path::new("/spool"));
        wait_until("events are accepted again", || append(&rig.spool, "after").is_ok());
        assert_eq!(drain(&rig.spool, "up"), ["before", "after"]);
    }
}

#[test]
fn a_missing_segment_is_waited_for_and_read_when_it_is_back() {
    for missing in 0..3 {
        let fs = SimFs::new(1);
        let file = ended_lane(&fs)[missing].clone();
        fs.move_away(&file, Path::new("/away"));
        let rig = Rig::open(&fs, &config());
        let mut reader = rig.reader();
        let mut events = deliver(&mut reader);
        assert!(events.len() < 30, "{events:?}");
        assert_eq!(deliver(&mut reader), [0; 0]);
        let number = file.file_name().expect("a file").to_str().expect("ASCII").to_owned();
        rig.assert_faults(&[(FaultKind::SpoolSegment, &number)]);
        let up = of(&rig.spool, "up");
        assert_eq!((up.accepted, up.lost), (30, 0), "segment {missing}");

        fs.move_away(Path::new("/away"), &file);
        events.extend(deliver(&mut reader));
        assert_eq!(events, (0..30).collect::<Vec<_>>());
        rig.assert_faults(&[]);
        assert_eq!((of(&rig.spool, "up").lost, of(&rig.spool, "up").pending), (0, 0));
    }
}

#[test]
fn an_empty_file_in_the_place_of_a_missing_segment_gives_its_events_up() {
    for missing in 0..3 {
        let fs = SimFs::new(1);
        let file = ended_lane(&fs)[missing].clone();
        fs.move_away(&file, Path::new("/away"));
        let rig = Rig::open(&fs, &config());
        let mut reader = rig.reader();
        let mut read = deliver(&mut reader);
        fs.create(&file);
        read.extend(deliver(&mut reader));
        let up = of(&rig.spool, "up");
        assert_eq!((up.lost + read.len() as u64, up.pending), (30, 0));
        assert!(up.lost > 0);
        rig.assert_faults(&[]);
    }
}

#[test]
fn unreadable_bytes_are_waited_for_and_then_read_around() {
    let fs = SimFs::new(1);
    let file = ended_lane(&fs)[1].clone();
    fs.make_unreadable(&file, 1000..1001);
    let rig = Rig::open(&fs, &config());
    let mut reader = rig.reader();
    let mut events = deliver(&mut reader);
    rig.assert_faults(&[(FaultKind::SpoolSegment, "0000000002.seg")]);
    rig.clock.advance(599);
    events.extend(deliver(&mut reader));
    assert_eq!(of(&rig.spool, "up").lost, 0);
    rig.clock.advance(1);
    // The first read notices that the time is over; the second one reads on behind the gap.
    events.extend(deliver(&mut reader));
    events.extend(deliver(&mut reader));
    let up = of(&rig.spool, "up");
    assert_eq!((up.pending, up.lost + events.len() as u64), (0, 30));
    assert!((1..10).contains(&up.lost), "a sector's events: {}", up.lost);
    assert_eq!(events.last(), Some(&29), "the segments behind it are delivered");
    rig.assert_faults(&[]);
}

#[test]
fn an_unreadable_segment_does_not_keep_other_lanes() {
    let fs = SimFs::new(1);
    let file = ended_lane(&fs)[0].clone();
    fs.make_unreadable(&file, 0..5000);
    let rig = Rig::open(&fs, &config());
    append_all(&rig.spool, &["99 of the own lane"]);
    assert_eq!(deliver(&mut rig.reader()), [99]);
}

#[test]
fn a_lane_whose_header_cannot_be_read_is_a_fault_and_taken_over_later() {
    let fs = SimFs::new(1);
    let file = ended_lane(&fs)[1].clone();
    fs.make_unreadable(&file, 0..1);
    let rig = Rig::open(&fs, &config());
    rig.assert_faults(&[(FaultKind::SpoolLane, "lane-00000001")]);
    rig.spool.checkpoint();
    rig.assert_faults(&[(FaultKind::SpoolLane, "lane-00000001")]);
    let mut reader = rig.reader();
    fs.heal();
    rig.spool.checkpoint();
    rig.assert_faults(&[]);
    assert_eq!(deliver(&mut reader).len(), 30);
    assert_eq!(of(&rig.spool, "up").accepted, 30);
}

#[test]
fn a_lane_whose_header_stays_unreadable_is_taken_over_without_it() {
    let fs = SimFs::new(1);
    let file = ended_lane(&fs)[1].clone();
    fs.make_unreadable(&file, 0..1);
    let rig = Rig::open(&fs, &config());
    let mut reader = rig.reader();
    rig.clock.advance(600);
    rig.spool.checkpoint();
    let mut events = deliver(&mut reader);
    // Its readers wait for the sector as well.
    rig.clock.advance(600);
    events.extend(deliver(&mut reader));
    events.extend(deliver(&mut reader));
    let up = of(&rig.spool, "up");
    assert_eq!((up.accepted, up.pending, up.lost + events.len() as u64), (30, 0, 30));
    rig.assert_faults(&[]);
}

#[test]
fn a_stalled_disk_refuses_within_the_deadline_and_recovers() {
    for durability in [Durability::Power, Durability::Interval] {
        let fs = SimFs::new(1);
        let rig = Rig::open(&fs, &Config { durability, commit_seconds_max: 1, ..config() });
        append_all(&rig.spool, &["a"]);
        fs.freeze();
        assert_eq!(append(&rig.spool, "refused"), Err(Overloaded));
        assert_eq!(append(&rig.spool, "refused at once"), Err(Overloaded));
        assert!(rig.spool.status().failing.expect("refusing").contains("commit_seconds_max"));
        fs.thaw();
        wait_until("events are accepted again", || append(&rig.spool, "b").is_ok());
        wait_until("the spool is well", || rig.spool.status().failing.is_none());
        assert_eq!(drain(&rig.spool, "up"), ["a", "b"]);
        assert_eq!(of(&rig.spool, "up").accepted, 2);
    }
}

#[test]
fn an_interval_whose_sync_stalls_is_refused_although_writes_go_on() {
    let fs = SimFs::new(1);
    let durability = Durability::Interval;
    let config = Config { durability, sync_ms: 1, commit_seconds_max: 1, ..config() };
    let rig = Rig::open(&fs, &config);
    fs.stall_syncs(true);
    append_all(&rig.spool, &["a"]);
    wait_until("events are refused", || append(&rig.spool, "b").is_err());
    fs.stall_syncs(false);
    wait_until("events are accepted again", || append(&rig.spool, "c").is_ok());
}

#[test]
fn in_memory_what_was_answered_survives_a_stall() {
    let fs = SimFs::new(1);
    let durability = Durability::Memory;
    let rig = Rig::open(&fs, &Config { durability, commit_seconds_max: 1, ..config() });
    fs.freeze();
    wait_until("events are refused", || append(&rig.spool, "a").is_err());
    fs.thaw();
    wait_until("events are accepted again", || append(&rig.spool, "b").is_ok());
    close(&rig.spool);
    let texts = drain(&open(&fs, &config(), &["up"]), "up");
    assert_eq!(texts.last().map(String::as_str), Some("b"));
    assert!(texts.len() > 1, "{texts:?}");
    assert_eq!(texts.len() as u64, of(&rig.spool, "up").accepted);
}

#[test]
fn the_cursor_of_one_lane_does_not_keep_the_others() {
    let fs = SimFs::new(1);
    ended_lane(&fs);
    let rig = Rig::open(&fs, &config());
    append_all(&rig.spool, &["99 own"]);
    let mut reader = rig.reader();
    let (texts, record_ids) = read(&mut reader);
    assert_eq!(texts.len(), 31);
    // Acknowledges all events except for one of the first lane, so that this lane stays.
    reader.acknowledger().acknowledge(&record_ids[1..], Ack::Delivered);
    fs.make_unwritable(Path::new("/spool/lane-00000001/cursor"));
    rig.spool.checkpoint();
    rig.assert_faults(&[(FaultKind::SpoolCursor, "lane-00000001")]);
    rig.spool.checkpoint();
    fs.lose_power();
    fs.heal();
    let rig = Rig::open(&fs, &config());
    assert!(!deliver(&mut rig.reader()).contains(&99), "the own cursor was written");
}

/// Makes lanes of killed processes, each with one event for these upstreams.
fn killed_lanes(fs: &SimFs, lanes: u64, upstreams: &[&str]) {
    for number in 0..lanes {
        let process = fs.process();
        let spool = open(&process, &config(), upstreams);
        append_all(&spool, &[&format!("{:02}", number % 100)]);
        fs.kill(&process);
    }
}

#[test]
fn a_removed_upstream_is_named_also_where_the_limit_on_files_holds_back_its_events() {
    let fs = SimFs::new(1);
    killed_lanes(&fs, 100, &["up"]);
    killed_lanes(&fs, 50, &["up", "gone"]);
    let few = Env { lane_files_max: 64, ..Env::system() };
    let rig = Rig::open_with(&fs, &config(), few);
    rig.assert_faults(&[(FaultKind::UpstreamRemoved, "50 events wait for upstream gone")]);
    close(&rig.spool);
}

#[test]
fn any_number_of_lanes_is_counted_and_delivered_with_few_files_open() {
    const LANES: u64 = 200;
    let fs = SimFs::new(1);
    killed_lanes(&fs, LANES, &["up"]);
    let few = Env { lane_files_max: 64, ..Env::system() };
    let rig = Rig::open_with(&fs, &config(), few);
    let up = of(&rig.spool, "up");
    assert_eq!((up.accepted, up.pending), (LANES, LANES));
    assert!(fs.open_files() < 100, "{} files are open", fs.open_files());
    let mut reader = rig.reader();
    let mut events = 0;
    let mut turns = 0;
    while events < LANES {
        events += deliver(&mut reader).len() as u64;
        (0..2).for_each(|_| rig.spool.checkpoint());
        assert_eq!(of(&rig.spool, "up").accepted, LANES);
        assert!(fs.open_files() < 100, "{} files are open", fs.open_files());
        turns += 1;
        assert!(turns < 100, "{events} events");
    }
    (0..4).for_each(|_| rig.spool.checkpoint());
    let up = of(&rig.spool, "up");
    assert_eq!((up.accepted, up.delivered, rig.spool.status().bytes), (LANES, LANES, 0));
    rig.assert_faults(&[]);
}
