//! SPEC 7: what waits for an upstream is kept when it is removed from the configuration, until
//! `pixelgate spool forget`. And what a newer version wrote is kept for it.

use crate::backend::{Act, Backend};
use crate::dead::{dead_with, letters};
use crate::delivery::{RUNTIME, check_state_is_true, http_upstream};
use crate::harness::{Edge, Setup, command};
use pixelgate::internals::spool::{self, Env, Spool};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Writes the configuration with the file upstream, and with the collector or without it.
fn configure(dir: &Path, backend: Option<&Backend>) {
    let at = dir.display();
    let file = format!("[[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n");
    let collector = backend.map_or(String::new(), |backend| http_upstream(backend, ""));
    Setup::default().upstreams(&file).upstreams(&collector).write(dir);
}

fn send(edge: &Edge, ids: std::ops::Range<u64>) {
    for id in ids {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={id}")).status, 200);
    }
}

/// The faults of this kind that `/status` names.
fn faults(edge: &Edge, what: &str) -> Vec<Value> {
    let all = edge.status()["faults"].as_array().unwrap().clone();
    all.into_iter().filter(|fault| fault["what"] == what).collect()
}

fn spool(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = std::iter::once("spool").chain(arguments.iter().copied()).collect();
    let output = command(&dir.join("edge.toml"), &all).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// An edge that was started without the collector, for which two dead letters and 30 events wait.
fn edge_without_collector(backend: &Backend) -> Edge {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    configure(dir.path(), Some(backend));
    let edge = Edge::start_in(dir);
    backend.script(|_| Act::Refuse(422));
    send(&edge, 0..2);
    assert_eq!(edge.wait_delivered("collector")["dead"], 2);
    backend.script(|_| Act::Refuse(503));
    send(&edge, 2..32);
    edge.wait_delivered("file");
    assert_eq!(edge.upstream("collector")["pending"], 30);
    let dir = edge.stop();
    configure(dir.path(), None);
    Edge::start_in(dir)
}

fn ids(backend: &Backend) -> Vec<u64> {
    let id = |event: &Value| event["external_id"].as_str().unwrap().parse().unwrap();
    let mut ids: Vec<u64> = backend.events().iter().map(id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn an_upstream_that_is_missing_for_some_starts_finds_what_waited_for_it() {
    for end in [Edge::stop as fn(Edge) -> _, Edge::kill] {
        let backend = RUNTIME.block_on(Backend::playing([]));
        let mut edge = edge_without_collector(&backend);
        for round in 0..3 {
            check_state_is_true(&edge, "file");
            edge.wait_log("30 events wait for upstream collector, which is not configured");
            let faults = faults(&edge, "upstream_removed");
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert_eq!(faults[0]["subject"], "collector");
            assert!(faults[0]["text"].as_str().unwrap().starts_with("30 events"), "{faults:?}");
            assert!(faults[0]["advice"].as_str().unwrap().contains("spool forget collector"));
            assert_eq!(edge.admin("/readyz").status, 200);
            // The edge accepts new events, and keeps the pending ones.
            send(&edge, 100 + 10 * round..110 + 10 * round);
            edge.wait_delivered("file");
            assert_ne!(edge.status()["spool"]["bytes"], 0);
            let (code, out) = spool(edge.dir(), &["stat"]);
            assert!(code == Some(0) && out.contains("upstream collector: "), "{out}");
            edge = Edge::start_in(end(edge));
        }
        assert_eq!(letters(&edge).len(), 2);
        let (code, _, told) = dead_with(&edge, &["replay"]);
        assert_eq!(code, Some(1));
        assert!(told.contains("collector: 2 dead letters cannot be sent"), "{told}");
        assert_eq!(letters(&edge).len(), 2);

        let dir = end(edge);
        configure(dir.path(), Some(&backend));
        backend.script(|_| Act::Take);
        let edge = Edge::start_in(dir);
        edge.wait_delivered("collector");
        assert_eq!(faults(&edge, "upstream_removed"), [] as [Value; 0]);
        assert_eq!(dead_with(&edge, &["replay"]).0, Some(0));
        let ids = ids(&backend);
        assert_eq!(ids.iter().filter(|id| **id < 32).count(), 32, "{ids:?}");
        assert_eq!(ids[..32], (0..32).collect::<Vec<_>>());
    }
}

#[test]
fn what_waits_for_a_removed_upstream_is_forgotten_by_its_exact_name() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = edge_without_collector(&backend);
    let (code, told) = spool(edge.dir(), &["forget", "collector"]);
    assert!(code == Some(1) && told.contains("an edge uses this spool"), "{told}");
    let dir = edge.stop();
    let forget = |name: &str| spool(dir.path(), &["forget", name]);
    for name in ["collecto", "Collector", "", "../dead/collector"] {
        let (code, told) = forget(name);
        assert!(code == Some(1) && told.contains("no upstream of exactly this name"), "{told}");
    }
    let (code, told) = forget("file");
    assert!(code == Some(2) && told.contains("file is configured"), "{told}");
    let done = "collector: 30 pending events and 2 dead letters were removed\n";
    assert_eq!(forget("collector"), (Some(0), done.to_owned()));
    let nothing = "pixelgate: collector: there is nothing to forget, the spool knows no upstream \
                   of exactly this name";
    assert_eq!(forget("collector"), (Some(1), format!("{nothing}\n")), "it is forgotten");
    // A line that no edge wrote is no letter. It stays, and is not passed over in silence.
    std::fs::write(dir.path().join("spool/dead/collector.ndjson"), "{}\n").unwrap();
    let other = format!(
        "{nothing}; 1 line in {} that no edge wrote: remove the file by hand\n",
        dir.path().join("spool/dead").display()
    );
    assert_eq!(forget("collector"), (Some(1), other));
    std::fs::remove_file(dir.path().join("spool/dead/collector.ndjson")).unwrap();

    // The file upstream has all its events. The collector, configured again, gets only new ones.
    let edge = Edge::start_in(dir);
    assert_eq!(faults(&edge, "upstream_removed"), [] as [Value; 0]);
    let row = edge.wait_delivered("file");
    assert_eq!(row["accepted"], 32);
    let dir = edge.stop();
    configure(dir.path(), Some(&backend));
    backend.script(|_| Act::Take);
    let edge = Edge::start_in(dir);
    send(&edge, 50..51);
    edge.wait_delivered("collector");
    assert_eq!(ids(&backend), [50]);
    assert_eq!(letters(&edge), Vec::<Value>::new());
}

#[test]
fn the_dead_letters_of_a_removed_upstream_can_be_dropped() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = edge_without_collector(&backend);
    let (code, out, _) = dead_with(&edge, &["drop", "--upstream", "collector"]);
    assert_eq!((code, out.as_str()), (Some(0), "collector: 2 dropped\n"));
    assert_eq!(letters(&edge), Vec::<Value>::new());
}

#[test]
fn a_record_of_a_newer_version_waits_for_it_and_is_named() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let backend = RUNTIME.block_on(Backend::playing([]));
    Setup::default().upstreams(&http_upstream(&backend, "")).write(dir.path());
    let config = spool::Config { dir: dir.path().join("spool"), ..spool::Config::default() };
    let newer = Spool::open(&config, &["collector".to_owned()], Env::system()).unwrap();
    for _ in 0..3 {
        // The time of receipt, in 2001, stands at the same place in the records of every version.
        let received_at = 1_000_000_000_000_u64.to_le_bytes();
        let record = [b"\x7f\0", &received_at[..], b"a later layout"].concat();
        let commit = newer.append(|out| out.extend_from_slice(&record)).unwrap();
        RUNTIME.block_on(commit).unwrap();
    }
    newer.close(Duration::from_secs(10)).unwrap();

    let mut edge = Edge::start_in(dir);
    for accepted in 4..6 {
        send(&edge, accepted..accepted + 1);
        let row = || edge.upstream("collector");
        crate::harness::wait_for("the event", || row()["delivered"] == accepted - 3);
        let counts = ["accepted", "dead", "lost", "pending"].map(|key| row()[key].clone());
        assert_eq!(counts, [json!(accepted), json!(0), json!(0), json!(3)]);
        check_state_is_true(&edge, "collector");
        assert_eq!(row()["state"], "newer_records");
        assert!(row()["lag_seconds"].as_u64().unwrap() > 20 * 365 * 86_400, "{}", row());
        let faults = faults(&edge, "newer_records");
        assert_eq!(faults.len(), 1);
        assert!(faults[0]["text"].as_str().unwrap().starts_with("3 events"), "{faults:?}");
        edge = Edge::start_in(edge.stop());
    }
}
