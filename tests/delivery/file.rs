//! The `file` upstream: whole lines in finished files, however the process ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::delivery::{Rig, STOP_WITHIN};
use pixelgate::internals::upstream::{Batch, Config, Outcome, Upstream, file};
use serde_json::Value;

fn config(dir: &Path, rest: &str) -> String {
    let dir = dir.display();
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'files'\nkind = 'file'\ndir = '{dir}'\n{rest}\n"
    )
}

/// The upstream alone, without a worker that retries.
fn built(dir: &tempfile::TempDir) -> Arc<dyn Upstream> {
    Config::new("files", file::Config::new(dir.path())).validate().unwrap().build().unwrap()
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.to_str().unwrap().ends_with(suffix));
    all.sort();
    all
}

/// The events of all finished files, in the order of the files' names.
fn events(dir: &Path) -> Vec<Value> {
    let mut all = Vec::new();
    for path in files(dir, ".ndjson") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with('\n'), "{} ends in half a line", path.display());
        all.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    all
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::delivery::HANGS_AFTER, wait)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_stop_finishes_the_open_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&config(dir.path(), ""));
    rig.accept(230);
    rig.settled("files").await;
    assert_eq!(files(dir.path(), ".ndjson").len(), 0);
    assert_eq!(files(dir.path(), ".ndjson.part").len(), 1);
    rig.forwarder.take().unwrap().stop(STOP_WITHIN).await;
    assert_eq!(files(dir.path(), ".ndjson.part").len(), 0);
    assert_eq!(rig.check("files", &events(dir.path())), 0);
}

#[tokio::test]
async fn an_open_file_is_finished_by_time_even_when_nothing_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&config(dir.path(), "rotate_seconds = 1"));
    rig.accept(3);
    rig.settled("files").await;
    until("rotated", || files(dir.path(), ".ndjson").len() == 1).await;
    rig.accept(3);
    rig.settled("files").await;
    until("rotated again", || files(dir.path(), ".ndjson").len() == 2).await;
    assert_eq!(rig.check("files", &events(dir.path())), 0);
    rig.stop().await;
}

#[tokio::test]
async fn no_finished_file_is_larger_than_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(&config(dir.path(), "rotate_bytes = '64KiB'"));
    rig.accept(2000);
    rig.settled("files").await;
    rig.forwarder.take().unwrap().stop(STOP_WITHIN).await;
    let all = files(dir.path(), ".ndjson");
    assert!(all.len() > 5);
    for path in &all {
        assert!(fs::metadata(path).unwrap().len() <= 64 << 10);
    }
    assert_eq!(rig.check("files", &events(dir.path())), 0);
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_cut_off_and_what_is_whole_is_kept() {
    let whole = "{\"id\":\"a\"}\n{\"id\":\"b\"}\n";
    for (left, expect) in [
        (format!("{whole}{{\"id\":\"c"), Some(whole)),
        (whole.to_owned(), Some(whole)),
        ("{\"id\":".to_owned(), None),
        (String::new(), None),
        // Longer than what is read at a time from the end.
        (format!("{whole}{}", "x".repeat(200_000)), Some(whole)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("20260101T000000.000Z-00000001.ndjson.part");
        fs::write(&part, &left).unwrap();
        let upstream = built(&dir);
        assert!(!part.exists());
        let finished = files(dir.path(), ".ndjson");
        let texts: Vec<_> = finished.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert_eq!(texts, expect.into_iter().collect::<Vec<_>>());
        upstream.close().await;
    }
}

#[tokio::test]
async fn several_processes_share_a_folder_and_leave_each_others_open_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let one = config(dir.path(), "rotate_bytes = '16KiB'");
    let mut rigs = [Rig::start(&one), Rig::start(&one), Rig::start(&one)];
    for _ in 0..10 {
        for rig in &mut rigs {
            rig.accept(40);
        }
        for rig in &rigs {
            rig.settled("files").await;
        }
    }
    let mut accepted = BTreeSet::new();
    for rig in rigs {
        accepted.extend(rig.accepted.keys().cloned());
        rig.stop().await;
    }
    let written = events(dir.path());
    let ids: BTreeSet<String> =
        written.iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(written.len(), accepted.len());
    assert_eq!(ids, accepted);
}

#[tokio::test]
async fn names_sort_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let rest = "rotate_bytes = '1KiB'\nbatch = { events_max = 1 }";
    let mut rig = Rig::start(&config(dir.path(), rest));
    for _ in 0..40 {
        rig.accept(1);
        rig.settled("files").await;
    }
    rig.forwarder.take().unwrap().stop(STOP_WITHIN).await;
    let events = events(dir.path());
    let order: Vec<usize> =
        events.iter().map(|e| e["properties"]["n"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(order, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_folder_that_goes_away_is_made_again_and_nothing_is_lost() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("events");
    let mut rig = Rig::start(&config(&dir, "rotate_seconds = 1"));
    rig.accept(10);
    rig.settled("files").await;
    until("rotated", || files(&dir, ".ndjson").len() == 1).await;
    let aside = outer.path().join("aside");
    fs::rename(&dir, &aside).unwrap();
    rig.accept(10);
    rig.settled("files").await;
    rig.forwarder.take().unwrap().stop(STOP_WITHIN).await;
    let mut all = events(&aside);
    all.extend(events(&dir));
    assert_eq!(rig.check("files", &all), 0);
}

/// Accepts events, does this to the folder and its open file, and accepts more: those must be under
/// their names when they count as delivered. Returns how many events are in the folder twice.
async fn check_disturbed(disturb: impl Fn(&Path, &Path)) -> usize {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("events");
    let mut rig = Rig::start(&config(&dir, ""));
    for round in 1..=3 {
        rig.accept(30);
        rig.settled("files").await;
        let there = written(&dir);
        let last = rig.accepted.keys().skip(30 * (round - 1)).filter(|id| !there.contains(*id));
        assert_eq!(last.count(), 0, "of the last 30 events");
        let open = files(&dir, ".ndjson.part");
        assert_eq!(open.len(), 1, "{open:?}");
        disturb(&dir, &open[0]);
    }
    rig.stop().await;
    let all = if dir.exists() { written(&dir) } else { Vec::new() };
    all.len() - all.iter().collect::<BTreeSet<_>>().len()
}

/// The ids of all events in finished and open files.
fn written(dir: &Path) -> Vec<String> {
    let mut ids = Vec::new();
    for path in files(dir, "").iter().filter(|path| path.to_str().unwrap().contains(".ndjson")) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            ids.push(event["id"].as_str().unwrap().to_owned());
        }
    }
    ids
}

#[tokio::test]
async fn an_event_counts_as_delivered_only_while_it_is_under_its_name() {
    assert_eq!(check_disturbed(|_, open| fs::remove_file(open).unwrap()).await, 0);
    assert_eq!(check_disturbed(|dir, _| fs::remove_dir_all(dir).unwrap()).await, 0);
    let replace = |dir: &Path, open: &Path| {
        let copy = dir.join("copy");
        fs::copy(open, &copy).unwrap();
        fs::rename(&copy, open).unwrap();
    };
    assert_eq!(check_disturbed(replace).await, 0);
    let move_aside = |dir: &Path, _: &Path| {
        let aside = dir.with_file_name(format!("aside-{}", uuid::Uuid::now_v7()));
        fs::rename(dir, aside).unwrap();
    };
    assert_eq!(check_disturbed(move_aside).await, 0);
    // What is written into a truncated file stays there, and comes again in another one.
    check_disturbed(|_, open| fs::write(open, "").unwrap()).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_retried_until_it_can() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("events");
    let mut rig = Rig::start(&config(&dir, ""));
    // A file in the folder's place: not even root can make files below it.
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "in the way").unwrap();
    rig.accept(10);
    rig.until("files", |s| s.last_error.is_some()).await;
    assert_eq!(rig.counts("files").delivered, 0);
    fs::remove_file(&dir).unwrap();
    rig.settled("files").await;
    rig.forwarder.take().unwrap().stop(STOP_WITHIN).await;
    assert_eq!(rig.check("files", &events(&dir)), 0);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_refused_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = built(&dir);
    let outcome = upstream.send(&Batch::new(vec!["nonsense".into()])).await;
    assert!(matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
    upstream.close().await;
    assert_eq!(files(dir.path(), ".ndjson").len() + files(dir.path(), ".part").len(), 0);
}

#[test]
fn a_foreign_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut foreign = fs::File::create(dir.path().join("notes.part")).unwrap();
    foreign.write_all(b"half a line").unwrap();
    drop(built(&dir));
    assert_eq!(fs::read_to_string(dir.path().join("notes.part")).unwrap(), "half a line");
}
