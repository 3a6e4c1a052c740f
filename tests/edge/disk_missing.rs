//! SPEC 6 on the real binary: files of a lane that are removed by hand. What the other files prove
//! to have existed stays in the counts, waits, and is named; what is back is delivered.

use crate::backend::{Act, Backend};
use crate::delivery::RUNTIME;
use crate::disk::{Ledger, folder};
use crate::disk_faults::{send, shows_fault, wait_well};
use crate::harness::{Edge, command, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const EVENTS: u64 = 60;

/// The segments of the first lane, oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("spool/lane-00000001")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The folder of an edge that has ended, and that no upstream took any event from.
fn ended_edge(
    backend: &Backend,
    ledger: &Ledger,
    end: fn(Edge) -> Arc<tempfile::TempDir>,
) -> Arc<tempfile::TempDir> {
    backend.script(|_| Act::Refuse(503));
    let dir = folder(backend, "16KiB");
    let edge = Edge::start_in(dir);
    send(&edge, ledger, EVENTS);
    let dir = end(edge);
    assert!(segments(dir.path()).len() >= 3);
    dir
}

fn counts(row: &Value) -> [u64; 3] {
    ["accepted", "lost", "pending"].map(|key| row[key].as_u64().unwrap())
}

/// Expects a fault for each of these files, and a line of the log.
fn check_missing(edge: &Edge, files: &[&Path]) {
    for file in files {
        wait_for("the fault", || shows_fault(edge, "spool_segment", name(file)));
        edge.wait_log(&format!("{} fails, trying again: the file is missing", file.display()));
    }
}

fn verify(dir: &Path) -> String {
    let output = command(&dir.join("edge.toml"), &["spool", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stdout).unwrap()
}

/// Removes some of the segments of an ended process. All are accepted and wait, then come back.
fn check_back(remove: impl Fn(&[PathBuf]) -> Vec<PathBuf>) {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    let dir = ended_edge(&backend, &ledger, Edge::stop);
    let away = dir.path().join("away");
    std::fs::create_dir(&away).unwrap();
    let removed = remove(&segments(dir.path()));
    for file in &removed {
        std::fs::rename(file, away.join(name(file))).unwrap();
    }
    let last = removed.last().unwrap();
    let found = verify(dir.path());
    let expect = format!("{}:0: the segment is missing, and with it records", last.display());
    assert!(found.contains(&expect), "{found} names {}", last.display());

    let edge = Edge::start_in(Arc::clone(&dir));
    check_missing(&edge, &[last]);
    assert_eq!(counts(&edge.upstream("collector")), [EVENTS, 0, EVENTS]);
    backend.script(|_| Act::Take);
    let before = backend.events().len() as u64;
    assert!(before < EVENTS);
    for file in &removed {
        std::fs::rename(away.join(name(file)), file).unwrap();
    }
    let row = edge.wait_delivered("collector");
    assert_eq!(counts(&row), [EVENTS, 0, 0]);
    wait_well(&edge);
    ledger.check(&backend, true);
}

#[test]
fn segments_that_are_missing_are_named_and_delivered_when_they_are_back() {
    check_back(|segments| segments[segments.len() - 1..].to_vec());
    check_back(|segments| segments[1..2].to_vec());
    check_back(|segments| segments[..1].to_vec());
    check_back(<[PathBuf]>::to_vec);
}

#[test]
fn what_only_a_missing_last_segment_knows_is_delivered_and_counted_when_it_is_back() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    // A kill leaves a cursor that is up to a second old.
    let dir = ended_edge(&backend, &ledger, Edge::kill);
    let last = segments(dir.path()).pop().unwrap();
    let away = dir.path().join("away");
    std::fs::rename(&last, &away).unwrap();
    let edge = Edge::start_in(Arc::clone(&dir));
    backend.script(|_| Act::Take);
    send(&edge, &ledger, 1);
    std::fs::rename(&away, &last).unwrap();
    // The cursor may have been older than the segment; then nothing proved that it existed, and
    // the next start takes it up.
    let edge = match shows_fault(&edge, "spool_segment", name(&last)) {
        true => edge,
        false => Edge::start_in(edge.stop()),
    };
    wait_for("every event", || counts(&edge.wait_delivered("collector"))[0] == EVENTS + 1);
    ledger.check(&backend, true);
    wait_well(&edge);
    let totals = crate::metering::totals(&edge, 62515);
    assert_eq!([&totals["accepted"], &totals["delivered"]], [EVENTS + 1, EVENTS + 1]);
}

#[test]
fn segments_that_are_elsewhere_and_linked_are_delivered() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    let dir = ended_edge(&backend, &ledger, Edge::kill);
    for segment in segments(dir.path()) {
        // A short path: the length of a link is that of its text.
        let moved = dir.path().join(name(&segment));
        std::fs::rename(&segment, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &segment).unwrap();
    }
    let edge = Edge::start_in(Arc::clone(&dir));
    backend.script(|_| Act::Take);
    let row = edge.wait_delivered("collector");
    assert_eq!(counts(&row), [EVENTS, 0, 0]);
    ledger.check(&backend, true);
    assert_eq!(edge.status()["spool"]["quarantined_bytes"], 0);
}

#[test]
fn a_lane_whose_folder_is_renamed_waits_until_it_has_its_name_again() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    let dir = ended_edge(&backend, &ledger, Edge::kill);
    let (name, renamed) = ("spool/lane-00000001", "spool/lane-00000007");
    std::fs::rename(dir.path().join(name), dir.path().join(renamed)).unwrap();
    let edge = Edge::start_in(Arc::clone(&dir));
    backend.script(|_| Act::Take);
    wait_for("the fault", || shows_fault(&edge, "spool_lane", "lane-00000007"));
    edge.wait_log("the folder is that of lane 1");
    std::fs::rename(dir.path().join(renamed), dir.path().join(name)).unwrap();
    wait_for("every event", || counts(&edge.wait_delivered("collector"))[0] == EVENTS);
    ledger.check(&backend, true);
    wait_well(&edge);
}

#[test]
fn an_empty_file_gives_the_events_of_a_missing_segment_up() {
    for all in [false, true] {
        let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
        let dir = ended_edge(&backend, &ledger, Edge::stop);
        let mut removed = segments(dir.path());
        if !all {
            removed.drain(..removed.len() - 1);
        }
        removed.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        let edge = Edge::start_in(Arc::clone(&dir));
        let last = removed.last().unwrap();
        check_missing(&edge, &[last]);
        backend.script(|_| Act::Take);
        std::fs::write(last, "").unwrap();
        wait_for("the end of the wait", || edge.upstream("collector")["pending"] == 0);
        let row = edge.upstream("collector");
        let (lost, delivered) = (row["lost"].as_u64().unwrap(), row["delivered"].as_u64().unwrap());
        assert_eq!((row["accepted"].as_u64(), lost + delivered), (Some(EVENTS), EVENTS), "{row}");
        assert!(lost > 0 && (delivered == 0) == all, "{row}");
        edge.wait_log("lost to damage");
        wait_well(&edge);
        // What is lost stays so after a restart, and is not counted again.
        let edge = Edge::start_in(edge.stop());
        let now = edge.upstream("collector");
        assert_eq!((counts(&now), now["lost"].as_u64()), ([EVENTS, lost, 0], Some(lost)));
        wait_well(&edge);
    }
}

#[test]
fn a_removed_cursor_is_named_and_costs_no_event() {
    for also in [None, Some("0000000001.seg")] {
        let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
        let dir = ended_edge(&backend, &ledger, Edge::stop);
        let lane = dir.path().join("spool/lane-00000001");
        std::fs::remove_file(lane.join("cursor")).unwrap();
        if let Some(name) = also {
            std::fs::rename(lane.join(name), dir.path().join("away")).unwrap();
        }
        assert!(verify(dir.path()).contains("cursor:0: the cursor is missing"));
        let edge = Edge::start_in(Arc::clone(&dir));
        assert!(shows_fault(&edge, "spool_cursor", "lane-00000001/cursor"), "{}", edge.status());
        edge.wait_log("lane-00000001/cursor is missing or damaged");
        assert_eq!(counts(&edge.upstream("collector")), [EVENTS, 0, EVENTS]);
        if let Some(name) = also {
            check_missing(&edge, &[&lane.join(name)]);
            std::fs::rename(dir.path().join("away"), lane.join(name)).unwrap();
        }
        backend.script(|_| Act::Take);
        assert_eq!(counts(&edge.wait_delivered("collector")), [EVENTS, 0, 0]);
        ledger.check(&backend, true);
    }
}

#[test]
fn removed_counts_by_portal_are_named_and_cost_no_event() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    let dir = ended_edge(&backend, &ledger, Edge::stop);
    std::fs::remove_file(dir.path().join("spool/lane-00000001/portals")).unwrap();
    assert!(verify(dir.path()).contains("portals:0: the counts by portal are missing"));
    let edge = Edge::start_in(dir);
    assert!(shows_fault(&edge, "portal_totals", "lane-00000001"), "{}", edge.status());
    backend.script(|_| Act::Take);
    assert_eq!(counts(&edge.wait_delivered("collector")), [EVENTS, 0, 0]);
    assert_eq!(crate::metering::totals(&edge, 62515)["accepted"], EVENTS);
    ledger.check(&backend, true);
}

#[test]
fn a_segment_that_is_removed_under_a_running_edge_is_named_at_once_and_after_a_restart() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    backend.script(|_| Act::Refuse(503));
    let edge = Edge::start_in(folder(&backend, "16KiB"));
    send(&edge, &ledger, EVENTS);
    let last = segments(edge.dir()).pop().unwrap();
    let away = edge.dir().join("away");
    std::fs::rename(&last, &away).unwrap();
    // No event comes: maintenance finds it out, and a new segment is made.
    check_missing(&edge, &[&last]);
    ledger.wait_accepting(&edge);
    let count = ledger.count.load(Relaxed);
    assert_eq!(counts(&edge.upstream("collector")), [count, 0, count]);

    let edge = Edge::start_in(edge.stop());
    check_missing(&edge, &[&last]);
    assert_eq!(counts(&edge.upstream("collector")), [count, 0, count]);
    std::fs::rename(&away, &last).unwrap();
    backend.script(|_| Act::Take);
    assert_eq!(counts(&edge.wait_delivered("collector")), [count, 0, 0]);
    ledger.check(&backend, true);
    wait_well(&edge);
}

/// Waits until nothing was written to a lane's small files for three seconds of the edge's clock.
fn wait_unwritten(edge: &Edge, lane: &Path) {
    let written = || {
        let of = |name| std::fs::metadata(lane.join(name)).and_then(|file| file.modified()).ok();
        [of("cursor"), of("portals")]
    };
    let now = || edge.status()["now"].as_u64().unwrap();
    let mut last = (written(), now());
    wait_for("a lane without a change", || {
        if written() != last.0 {
            last = (written(), now());
        }
        now() >= last.1 + 3000
    });
}

#[test]
fn small_files_that_are_removed_under_a_running_edge_are_made_anew() {
    let (backend, ledger) = (RUNTIME.block_on(Backend::playing([])), Ledger::default());
    let edge = Edge::start_in(folder(&backend, "16KiB"));
    send(&edge, &ledger, EVENTS);
    edge.wait_delivered("collector");
    let lane = edge.dir().join("spool/lane-00000001");
    for comes_an_event in [true, false] {
        for name in ["cursor", "portals"] {
            if comes_an_event {
                std::fs::remove_file(lane.join(name)).unwrap();
                send(&edge, &ledger, 1);
            } else {
                wait_unwritten(&edge, &lane);
                std::fs::remove_file(lane.join(name)).unwrap();
            }
            wait_for("the file to be made anew", || lane.join(name).exists());
        }
        edge.wait_delivered("collector");
    }
    let count = ledger.count.load(Relaxed);
    let edge = Edge::start_in(edge.stop());
    wait_well(&edge);
    let row = edge.upstream("collector");
    assert_eq!((counts(&row), &row["delivered"]), ([count, 0, 0], &count.into()));
    assert_eq!(crate::metering::totals(&edge, 62515)["delivered"], count);
    ledger.check(&backend, true);
}
