//! Dead letters: on disk before they count, bounded, readable, and replayed under their ids.

use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};

use crate::backend::{Act, Backend, Request};
use crate::delivery::{RECEIVED_AT_MS, Rig, context, sample};
use pixelgate::internals::delivery::dead_letters;
use pixelgate::internals::delivery::dead_letters::{
    DeadError, DeadLetters, Filter, Letter, Reason, Summary,
};
use pixelgate::internals::event::encode_record;
use pixelgate::internals::upstream::{BatchConfig, Config, Failure, Upstream};
use tokio::sync::watch;

fn upstream(backend: &Backend) -> String {
    let url = backend.url("/in");
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'collector'\nkind = 'http'\nurl = '{url}'\n"
    )
}

fn built(backend: &Backend) -> Arc<dyn Upstream> {
    let text = format!("name = 'collector'\nkind = 'http'\nurl = '{}'", backend.url("/in"));
    toml::from_str::<Config>(&text).unwrap().validate().unwrap().build().unwrap()
}

/// Refuses each batch that holds one of these events.
fn refusing(ns: &'static [&'static str]) -> impl FnMut(&Request) -> Act {
    move |_| {
        Act::Judge(Arc::new(move |request: &Request| {
            let poison =
                |e: &serde_json::Value| ns.contains(&e["properties"]["n"].as_str().unwrap());
            if request.events().iter().any(poison) { Act::Refuse(422) } else { Act::Take }
        }))
    }
}

/// A rig with 100 events of which the five first are dead letters.
async fn rig_with_five_dead(backend: &Backend) -> Rig {
    backend.script(refusing(&["0", "1", "2", "3", "4"]));
    let mut rig = Rig::start(&upstream(backend));
    rig.accept(100);
    rig.settled("collector").await;
    assert_eq!(rig.counts("collector").dead, 5);
    rig.check("collector", &backend.events());
    rig
}

#[tokio::test]
async fn replay_delivers_them_under_the_same_ids_and_empties_the_file() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    backend.script(|_| Act::Take);
    let upstream = built(&backend);
    let mut progress = Vec::new();
    let dir = rig.dead_dir();
    let batch = BatchConfig { events_max: 2, ..BatchConfig::default() };
    let (_stop, stopping) = watch::channel(false);
    let filter = Filter::default();
    let show = |p: &dead_letters::Progress| progress.push(p.delivered);
    let end = dead_letters::replay(&dir, "collector", &*upstream, &batch, &filter, stopping, show);
    let end = end.await.unwrap();
    assert_eq!((end.delivered, end.refused, end.undelivered, end.damaged), (5, 0, 0, 0));
    assert_eq!(progress, [2, 4, 5]);
    assert!(!dir.join("collector.ndjson").exists());
    assert_eq!(rig.dead("collector").len(), 0);
    // Each accepted event was delivered once, unchanged.
    assert_eq!(rig.check("collector", &backend.events()), 0);
    let again = rig.replay("collector", &*upstream, &batch).await;
    assert_eq!(again, dead_letters::Progress::default());
    rig.stop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_again_is_a_dead_letter_again() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    backend.script(refusing(&["3"]));
    let upstream = built(&backend);
    let batch = BatchConfig::default();
    let end = rig.replay("collector", &*upstream, &batch).await;
    assert_eq!((end.delivered, end.refused), (4, 1));
    assert_eq!(rig.dead("collector").len(), 1);
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_replay_to_a_failing_upstream_leaves_all_letters_as_they_are() {
    for status in [401, 503] {
        let backend = Backend::playing([]).await;
        let rig = rig_with_five_dead(&backend).await;
        let before = fs::read(rig.dead_dir().join("collector.ndjson")).unwrap();
        backend.script(move |_| Act::Refuse(status));
        let seen = backend.seen().len();
        let upstream = built(&backend);
        let end = rig.replay("collector", &*upstream, &BatchConfig::default()).await;
        assert_eq!((end.delivered, end.undelivered), (0, 5));
        assert_eq!(end.gave_up, Some(format!("answered {status}")));
        // A failure that may pass is retried, and then each of the five may be to blame for it.
        let parts = 8;
        let attempts = if status == 503 { dead_letters::ATTEMPTS_MAX as usize + parts } else { 1 };
        assert_eq!(backend.seen().len() - seen, attempts);
        assert_eq!(fs::read(rig.dead_dir().join("collector.ndjson")).unwrap(), before);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_replay_of_the_previous_version_that_ended_early_is_continued() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let dir = rig.dead_dir();
    let letters = dir.join("collector.ndjson");
    let text = fs::read_to_string(&letters).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // Version 0.1.0 renamed the file, and this is what its replay leaves when it ends early: three
    // letters under that name, and since then two more letters and half of a third.
    fs::write(dir.join("collector.replaying.ndjson"), lines[..3].concat()).unwrap();
    fs::write(&letters, format!("{}{{\"half\":", lines[3..].concat())).unwrap();
    backend.script(|_| Act::Take);
    let upstream = built(&backend);
    let batch = BatchConfig::default();
    let end = rig.replay("collector", &*upstream, &batch).await;
    assert_eq!((end.delivered, end.damaged), (5, 1));
    assert_eq!(fs::read_to_string(&letters).unwrap(), "{\"half\":");
    assert!(!dir.join("collector.replaying.ndjson").exists());
    fs::remove_file(&letters).unwrap();
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_letter_that_was_changed_by_hand_fails_no_batch() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let mut letters = rig.dead("collector");
    let good = letters[0].record().unwrap();
    let json = good.windows(8).position(|bytes| bytes == b"{\"portal").unwrap();
    // Not UTF-8, not JSON, and no record at all.
    for (letter, (place, byte)) in letters.iter_mut().zip([(json + 3, 0xFF), (json, b'['), (0, 0)])
    {
        let mut record = good.to_vec();
        record[place] = byte;
        *letter = Letter::new("collector", 1, Reason::Rejected, &Failure::new("x"), &record);
    }
    let dir = rig.dead_dir();
    fs::remove_file(dir.join("collector.ndjson")).unwrap();
    DeadLetters::new(&dir, "collector", 1 << 20).append(&letters).unwrap();
    backend.script(|_| Act::Take);
    let (upstream, batch) = (built(&backend), BatchConfig::default());
    let seen = backend.seen().len();
    let end = rig.replay("collector", &*upstream, &batch).await;
    assert_eq!((end.delivered, end.refused, end.undelivered, end.damaged), (2, 3, 0, 0));
    assert_eq!(backend.seen().len() - seen, 1, "the others were sent together");
    assert_eq!(rig.dead("collector").len(), 3);
    rig.stop().await;
}

fn letter(n: usize) -> Letter {
    let failure = Failure::answered(400);
    Letter::new("u", n as u64, Reason::Rejected, &failure, format!("record {n}").as_bytes())
}

#[test]
fn the_file_is_bounded_and_refuses_letters_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let line = serde_json::to_vec(&letter(0)).unwrap().len() as u64 + 1;
    let letters = DeadLetters::new(dir.path(), "u", 3 * line);
    letters.append(&[letter(0), letter(1)]).unwrap();
    let refused = letters.append(&[letter(2), letter(3)]).unwrap_err();
    assert!(matches!(refused, DeadError::Full { bytes_max } if bytes_max == 3 * line));
    letters.append(&[letter(2)]).unwrap();
    assert!(matches!(letters.append(&[letter(3)]), Err(DeadError::Full { .. })));
    let mut seen = Vec::new();
    list(dir.path(), &Filter::default(), |l| seen.push(l.record().unwrap()));
    assert_eq!(seen, ["record 0", "record 1", "record 2"]);
}

fn list(dir: &Path, filter: &Filter, show: impl FnMut(&Letter)) -> Summary {
    dead_letters::list(dir, "u", filter, show).unwrap()
}

#[test]
fn a_torn_line_stays_where_it_is_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let letters = DeadLetters::new(dir.path(), "u", 1 << 20);
    letters.append(&[letter(0)]).unwrap();
    let path = dir.path().join("u.ndjson");
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"not json\n{\"time\":\"2026");
    fs::write(&path, text).unwrap();
    letters.append(&[letter(1)]).unwrap();
    let mut seen = Vec::new();
    let summary = list(dir.path(), &Filter::default(), |l| seen.push(l.record().unwrap()));
    assert_eq!(seen, ["record 0", "record 1"]);
    assert_eq!((summary.letters, summary.damaged), (2, 2));
    let places: Vec<_> = summary.places.iter().map(ToString::to_string).collect();
    assert_eq!(places, [2, 3].map(|line| format!("{}:{line}", path.display())));
    assert_eq!(dead_letters::remove(dir.path(), "u", &Filter::default()).unwrap(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), "not json\n{\"time\":\"2026\n");
}

#[test]
fn the_file_keeps_its_owner_and_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    DeadLetters::new(dir.path(), "u", 1 << 20).append(&[letter(0), letter(1)]).unwrap();
    let path = dir.path().join("u.ndjson");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    // Only root can give a file away.
    if fs::metadata(&path).unwrap().uid() == 0 {
        chown(&path, Some(12_345), Some(54_321)).unwrap();
    }
    let before = fs::metadata(&path).unwrap();
    let first = Filter { until_ms: Some(1), ..Filter::default() };
    assert_eq!(dead_letters::remove(dir.path(), "u", &first).unwrap(), 1);
    let after = fs::metadata(&path).unwrap();
    assert!(after.len() < before.len());
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode())
    );
}

#[test]
fn a_missing_file_is_an_empty_list() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(list(dir.path(), &Filter::default(), |_| ()), Summary::default());
    assert_eq!(dead_letters::upstreams(&dir.path().join("none")).unwrap(), Vec::<String>::new());
}

#[test]
fn each_condition_of_a_filter_holds_for_what_is_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let of = |n: u64, portal, event: &str, reason| {
        let mut bytes = Vec::new();
        let event = pixelgate::internals::event::Event {
            portal,
            name: event.to_owned().into(),
            ..sample(0)
        };
        encode_record(&mut bytes, &[n as u8; 16], RECEIVED_AT_MS, &event, &context());
        Letter::new("u", n * 1000, reason, &Failure::new("test"), &bytes)
    };
    let letters = [
        of(1, 7, "buy", Reason::Rejected),
        of(2, 7, "buyer", Reason::TooLarge),
        of(3, 8, "buy", Reason::Undeliverable),
        Letter::new("u", 4000, Reason::Unreadable, &Failure::new("test"), b"no record"),
    ];
    let files = DeadLetters::new(dir.path(), "u", 1 << 20);
    let check = |filter: Filter, expect: &[u64]| {
        files.append(&letters).unwrap();
        let second = |l: &Letter| l.time.as_bytes()["1970-01-01T00:00:0".len()] - b'0';
        let seconds = |filter: &Filter| {
            let mut seconds = Vec::new();
            list(dir.path(), filter, |l| seconds.push(u64::from(second(l))));
            seconds
        };
        assert_eq!(seconds(&filter), expect, "{filter:?}");
        let removed = dead_letters::remove(dir.path(), "u", &filter).unwrap();
        assert_eq!(removed, expect.len() as u64, "{filter:?}");
        let rest: Vec<u64> = (1..=4).filter(|n| !expect.contains(n)).collect();
        assert_eq!(seconds(&Filter::default()), rest, "{filter:?}");
        dead_letters::remove(dir.path(), "u", &Filter::default()).unwrap();
        assert!(!dir.path().join("u.ndjson").exists());
    };
    let none = Filter::default;
    check(none(), &[1, 2, 3, 4]);
    check(Filter { portal: Some(7), ..none() }, &[1, 2]);
    check(Filter { event: Some("buy".to_owned()), ..none() }, &[1, 3]);
    check(Filter { reason: Some(Reason::Unreadable), ..none() }, &[4]);
    check(Filter { since_ms: Some(2000), ..none() }, &[2, 3, 4]);
    check(Filter { until_ms: Some(2000), ..none() }, &[1]);
    check(Filter { since_ms: Some(2000), until_ms: Some(3001), ..none() }, &[2, 3]);
    check(Filter { portal: Some(7), event: Some("buy".to_owned()), ..none() }, &[1]);
    check(Filter { portal: Some(9), ..none() }, &[]);
}

#[tokio::test]
async fn a_last_line_without_its_end_is_a_letter_like_the_others() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let path = rig.dead_dir().join("collector.ndjson");
    let mut text = fs::read(&path).unwrap();
    assert_eq!(text.pop(), Some(b'\n'));
    fs::write(&path, text).unwrap();
    backend.script(|_| Act::Take);
    let end = rig.replay("collector", &*built(&backend), &BatchConfig::default()).await;
    assert_eq!((end.delivered, end.damaged), (5, 0));
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_replay_that_is_cut_off_anywhere_repeats_nothing_that_was_acknowledged() {
    for answered in 0..=3 {
        let backend = Backend::playing([]).await;
        let rig = rig_with_five_dead(&backend).await;
        let (dir, upstream) = (rig.dead_dir(), built(&backend));
        let batch = BatchConfig { events_max: 1, ..BatchConfig::default() };
        let mut left = answered;
        backend.script(move |_| {
            left -= 1;
            if left >= 0 { Act::Take } else { Act::Hang }
        });
        let before = backend.seen().len();
        let (_stop, stopping) = watch::channel(false);
        let filter = Filter::default();
        let replay =
            dead_letters::replay(&dir, "collector", &*upstream, &batch, &filter, stopping, |_| ());
        let reached = backend.until("the one that hangs", |backend| {
            backend.seen().len() - before > answered as usize
        });
        // The future is dropped where a killed process would end.
        tokio::select! {
            _ = replay => panic!("the backend never answers"),
            () = reached => {}
        }
        assert_eq!(rig.dead("collector").len(), 5 - answered as usize);
        backend.script(|_| Act::Take);
        let end = rig.replay("collector", &*upstream, &batch).await;
        assert_eq!(end.delivered, 5 - answered as u64);
        assert_eq!(rig.check("collector", &backend.events()), 0, "none was taken twice");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_stop_lets_the_attempt_under_way_end_and_leaves_the_rest() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let (dir, upstream) = (rig.dead_dir(), built(&backend));
    let batch = BatchConfig { events_max: 2, ..BatchConfig::default() };
    let (stop, stopping) = watch::channel(false);
    backend.script(move |_| {
        stop.send_replace(true);
        Act::Take
    });
    let filter = Filter::default();
    let end =
        dead_letters::replay(&dir, "collector", &*upstream, &batch, &filter, stopping, |_| ());
    let end = end.await.unwrap();
    assert_eq!((end.delivered, end.undelivered), (2, 3));
    assert_eq!(end.gave_up.as_deref(), Some("interrupted"));
    assert_eq!(rig.dead("collector").len(), 3);
    backend.script(|_| Act::Take);
    assert_eq!(rig.replay("collector", &*upstream, &batch).await.delivered, 3);
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_the_next_attempt() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let (stop, stopping) = watch::channel(false);
    let hour = vec![("retry-after", "3600".to_owned())];
    backend.script(move |_| {
        stop.send_replace(true);
        Act::RefuseWith(503, hour.clone())
    });
    let (dir, upstream, filter) = (rig.dead_dir(), built(&backend), Filter::default());
    let batch = BatchConfig::default();
    let end =
        dead_letters::replay(&dir, "collector", &*upstream, &batch, &filter, stopping, |_| ());
    assert_eq!(end.await.unwrap().undelivered, 5);
    rig.stop().await;
}

#[tokio::test]
async fn letters_that_come_while_others_are_replayed_or_removed_stay() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let (dir, upstream, batch) = (rig.dead_dir(), built(&backend), BatchConfig::default());
    let edge = DeadLetters::new(&dir, "collector", 1 << 20);
    let new = rig.dead("collector")[0].clone();
    backend.script(move |_| {
        edge.append(std::slice::from_ref(&new)).unwrap();
        Act::Take
    });
    assert_eq!(rig.replay("collector", &*upstream, &batch).await.delivered, 5);
    assert_eq!(rig.dead("collector").len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn one_at_a_time_replays_or_removes_the_letters_of_an_upstream() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let (dir, upstream, filter) = (rig.dead_dir(), built(&backend), Filter::default());
    let (_stop, stopping) = watch::channel(false);
    let batch = BatchConfig::default();
    let replay =
        dead_letters::replay(&dir, "collector", &*upstream, &batch, &filter, stopping, |_| ());
    let mut replay = Box::pin(replay);
    assert!(replay.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let busy = dead_letters::remove(&dir, "collector", &filter);
    assert!(matches!(busy, Err(DeadError::Busy)), "{busy:?}");
    drop(replay);
    assert_eq!(dead_letters::remove(&dir, "collector", &filter).unwrap(), 5);
    rig.stop().await;
}

#[tokio::test]
async fn a_letter_of_a_newer_version_waits_for_it() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let dir = rig.dead_dir();
    let newer = Letter::new("collector", 1, Reason::Rejected, &Failure::new("x"), b"\xffnewer");
    DeadLetters::new(&dir, "collector", 1 << 20).append(&[newer]).unwrap();
    backend.script(|_| Act::Take);
    let end = rig.replay("collector", &*built(&backend), &BatchConfig::default()).await;
    assert_eq!((end.delivered, end.refused, end.undelivered), (5, 0, 1));
    assert_eq!(end.gave_up.as_deref(), Some("a newer version wrote the record"));
    assert_eq!(rig.dead("collector")[0].reason, Reason::Rejected);
    rig.stop().await;
}

async fn wait_fault(rig: &Rig, is_raised: bool) {
    let is_named = || rig.faults.list().iter().any(|fault| fault.what.as_str() == "dead_letters");
    rig.until("collector", |_| is_named() == is_raised).await;
}

/// While `block` lasts, letters cannot be written: their events wait, and others are delivered.
async fn check_blocked<T>(block: impl Fn(&Path) -> T, unblock: impl Fn(&Path, T)) {
    let backend = Backend::start(refusing(&["5"])).await;
    let mut rig = Rig::start(&upstream(&backend));
    let blocked = block(&rig.dead_dir());
    rig.accept(100);
    rig.until("collector", |s| s.state.as_str() == "dead_letters_failing").await;
    wait_fault(&rig, true).await;
    assert_eq!(rig.counts("collector").dead, 0);
    unblock(&rig.dead_dir(), blocked);
    rig.settled("collector").await;
    wait_fault(&rig, false).await;
    assert_eq!(rig.counts("collector").dead, 1);
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn while_letters_cannot_be_written_their_events_wait_and_others_are_delivered() {
    // A file stands where the folder should be.
    let in_the_way = |dir: &Path| fs::write(dir, "in the way").unwrap();
    check_blocked(in_the_way, |dir, ()| fs::remove_file(dir).unwrap()).await;
}

#[tokio::test]
async fn a_lock_that_another_process_holds_is_not_waited_for_without_end() {
    let hold = |dir: &Path| {
        fs::create_dir(dir).unwrap();
        let lock = fs::File::create(dir.join("collector.lock")).unwrap();
        lock.lock().unwrap();
        lock
    };
    check_blocked(hold, |_, lock| drop(lock)).await;
}

#[tokio::test]
async fn a_record_of_a_newer_version_waits_for_it_and_holds_back_no_other() {
    let backend = Backend::playing([]).await;
    let mut rig = Rig::start(&upstream(&backend));
    rig.accept(10);
    let newer = |out: &mut Vec<u8>| out.extend_from_slice(b"\xffof a newer version");
    rig.spool.append(newer).unwrap().await.unwrap();
    rig.accept(10);
    rig.settled("collector").await;
    let counts = rig.counts("collector");
    assert_eq!((counts.delivered, counts.dead, counts.pending), (20, 0, 1));
    assert_eq!(rig.dead("collector").len(), 0);
    rig.stop().await;
}
