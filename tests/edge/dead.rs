//! SPEC 7: only events that a backend refuses for good become dead letters.

use crate::backend::{Act, Backend, Request};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command, kill, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Child;

/// `pixelgate dead list` or `replay` with an edge's configuration: exit code and output.
pub fn dead(edge: &Edge, what: &str) -> (Option<i32>, String) {
    let (code, out, _) = dead_with(edge, &[what]);
    (code, out)
}

/// `pixelgate dead` with these arguments: exit code, output and messages.
pub fn dead_with(edge: &Edge, arguments: &[&str]) -> (Option<i32>, String, String) {
    let all: Vec<&str> = std::iter::once("dead").chain(arguments.iter().copied()).collect();
    let output = command(&edge.dir().join("edge.toml"), &all).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The dead letters that `pixelgate dead list` prints.
pub fn letters(edge: &Edge) -> Vec<Value> {
    let (code, printed) = dead(edge, "list");
    assert_eq!(code, Some(0));
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_poison(event: &Value) -> bool {
    event["event"] == "poison"
}

fn ids<'a>(events: impl IntoIterator<Item = &'a Value>) -> BTreeSet<u64> {
    let id = |event: &Value| event["external_id"].as_str().unwrap().parse().unwrap();
    events.into_iter().map(id).collect()
}

/// Refuses every batch that holds poison, as a backend does that takes a batch or none of it.
fn refuse_poison(request: &Request) -> Act {
    if request.events().iter().any(is_poison) { Act::Refuse(400) } else { Act::Take }
}

#[test]
fn poison_events_die_alone_and_every_count_survives_the_process() {
    let judge = || Act::Judge(std::sync::Arc::new(refuse_poison));
    let backend = RUNTIME.block_on(Backend::start(move |_| judge()));
    let mut edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    let (poison, good): (BTreeSet<u64>, BTreeSet<u64>) = (0..100).partition(|n| n % 10 == 3);
    for n in 0..100 {
        let name = if poison.contains(&n) { "poison" } else { "good" };
        assert_eq!(edge.event(&format!("_a=62515&_n={name}&id={n}")).status, 200);
    }
    // A crash forgets acknowledgements of the last moments: the same events end the same way
    // again, and count once. A stop forgets nothing.
    for restart in [Some(Edge::kill as fn(Edge) -> _), Some(Edge::stop), None] {
        let row = edge.wait_delivered("collector");
        let counts = ["accepted", "delivered", "dead"].map(|count| row[count].clone());
        assert_eq!(counts, [json!(100), json!(90), json!(10)]);
        assert_eq!(ids(&backend.events()), good);
        let letters = letters(&edge);
        assert_eq!(ids(letters.iter().map(|letter| &letter["event"])), poison);
        for letter in &letters {
            assert_eq!((&letter["reason"], &letter["status"]), (&json!("rejected"), &json!(400)));
        }
        let Some(end) = restart else { break };
        edge = Edge::start_in(end(edge));
    }

    let before = backend.events().len();
    assert_eq!(dead(&edge, "replay").0, Some(0), "refused again is not failed");
    assert_eq!(ids(letters(&edge).iter().map(|letter| &letter["event"])), poison);
    backend.script(|_| Act::Take);
    assert_eq!(dead(&edge, "replay").0, Some(0));
    assert_eq!(letters(&edge), Vec::<Value>::new());
    assert_eq!(ids(&backend.events()[before..]), poison);
}

/// An edge with five dead letters of a legacy backend.
fn five_legacy_letters(backend: &Backend) -> Edge {
    let url = backend.url("/v1/event/");
    let upstream = format!(
        "[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n\
         timeout_seconds = 1\n[upstream.batch]\nlinger_ms = 20\n"
    );
    backend.script(|_| Act::Refuse(400));
    let edge = Setup::default().upstreams(&upstream).start();
    for n in 0..5 {
        assert_eq!(edge.event(&format!("_a=62515&_n=buy&id={n}")).status, 200);
    }
    assert_eq!(edge.wait_delivered("old")["dead"], 5);
    edge
}

/// Starts a replay whose third event gets no answer, and waits until that one is on its way.
fn replay_to_the_third(edge: &Edge, backend: &Backend) -> Child {
    let mut left = 2;
    backend.script(move |_| {
        left -= 1;
        if left >= 0 { Act::Take } else { Act::Hang }
    });
    let before = backend.seen().len();
    let replay = command(&edge.dir().join("edge.toml"), &["dead", "replay"]).spawn().unwrap();
    wait_for("the third event", || backend.seen().len() == before + 3);
    replay
}

/// The ids of the events that the legacy backend took, in order.
fn taken_ids(backend: &Backend) -> Vec<u64> {
    let id = |target: &str| target.rsplit_once("&id=").unwrap().1.parse().unwrap();
    let mut ids: Vec<u64> = backend.taken().iter().map(|request| id(&request.target)).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_replay_that_is_killed_sends_nothing_again_that_was_answered() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = five_legacy_letters(&backend);
    let mut replay = replay_to_the_third(&edge, &backend);
    replay.kill().unwrap();
    replay.wait().unwrap();
    assert_eq!(letters(&edge).len(), 3);
    backend.script(|_| Act::Take);
    let done = "old: 3 delivered, 0 refused again, 0 not delivered\n";
    assert_eq!(dead(&edge, "replay"), (Some(0), done.to_owned()));
    assert_eq!(taken_ids(&backend), [0, 1, 2, 3, 4]);
    assert_eq!(letters(&edge), Vec::<Value>::new());
}

#[test]
fn a_replay_ends_at_a_signal_and_says_what_is_left() {
    for signal in [Signal::INT, Signal::TERM] {
        let backend = RUNTIME.block_on(Backend::playing([]));
        let edge = five_legacy_letters(&backend);
        let replay = replay_to_the_third(&edge, &backend);
        kill(&replay, signal);
        let output = replay.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let done = "old: 2 delivered, 0 refused again, 3 not delivered\n";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), done);
        assert!(String::from_utf8(output.stderr).unwrap().contains("old: interrupted"));
        backend.script(|_| Act::Take);
        assert_eq!(dead(&edge, "replay").0, Some(0));
        assert_eq!(taken_ids(&backend), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn the_options_name_which_letters_are_listed_replayed_and_dropped() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(422)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    for (portal, event, id) in [(62515, "buy", 1), (62515, "look", 2), (56043, "buy", 3)] {
        assert_eq!(edge.event(&format!("_a={portal}&_n={event}&id={id}")).status, 200);
    }
    assert_eq!(edge.wait_delivered("collector")["dead"], 3);
    let listed = |options: &[&str]| {
        let (code, out, told) = dead_with(&edge, &[&["list"], options].concat());
        assert_eq!((code, told.as_str()), (Some(0), ""), "{options:?}");
        let letters: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        ids(letters.iter().map(|letter| &letter["event"])).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(listed(&["--portal", "62515"]), [1, 2]);
    assert_eq!(listed(&["--event", "buy"]), [1, 3]);
    assert_eq!(listed(&["--event", "buy", "--portal", "56043"]), [3]);
    assert_eq!(listed(&["--reason", "rejected", "--upstream", "collector"]), [1, 2, 3]);
    assert_eq!(listed(&["--reason", "too_large"]), [] as [u64; 0]);
    assert_eq!(listed(&["--since", "2020-01-01", "--until", "2200-01-01T00:00:00Z"]), [1, 2, 3]);
    assert_eq!(listed(&["--since", "2200-01-01"]), [] as [u64; 0]);
    for (options, expect) in [
        (["--upstream", "collecto"], "not configured"),
        (["--reason", "poison"], "too_large"),
        (["--since", "yesterday"], "2026-11-23T02:45:13Z"),
        (["--portal", "x"], "--portal"),
    ] {
        let (code, _, told) = dead_with(&edge, &[&["list"], &options[..]].concat());
        assert!(code == Some(2) && told.contains(expect), "{options:?}: {told}");
    }

    backend.script(|_| Act::Take);
    let (code, out, _) = dead_with(&edge, &["replay", "--event", "look"]);
    let done = "collector: 1 delivered, 0 refused again, 0 not delivered\n";
    assert_eq!((code, out.as_str()), (Some(0), done));
    assert_eq!(ids(&backend.events()), BTreeSet::from([2]));
    let (code, out, _) = dead_with(&edge, &["drop", "--portal", "62515"]);
    assert_eq!((code, out.as_str()), (Some(0), "collector: 1 dropped\n"));
    assert_eq!(listed(&[]), [3]);
}

#[test]
fn a_damaged_line_is_named_and_stays() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(422)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    edge.wait_delivered("collector");
    let path = edge.dir().join("spool/dead/collector.ndjson");
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"torn");
    std::fs::write(&path, text).unwrap();
    backend.script(|_| Act::Refuse(503));
    let (code, _, said) = dead_with(&edge, &["replay"]);
    assert_eq!(code, Some(1));
    for reason in ["answered 503", "1 line is not a dead letter"] {
        assert!(said.contains(reason), "{reason:?} is not in {said:?}");
    }
    backend.script(|_| Act::Take);
    for command in ["list", "replay", "list", "drop", "list"] {
        let (code, _, told) = dead_with(&edge, &[command]);
        let named = told.contains(&format!("{}:", path.display()));
        assert_eq!(
            (code, named),
            if command == "drop" { (Some(0), false) } else { (Some(1), true) }
        );
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("{\"torn"), "{command}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"torn");
}

#[test]
fn a_last_line_without_its_end_is_a_letter_like_the_others() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(422)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    for n in 0..3 {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
    }
    assert_eq!(edge.wait_delivered("collector")["dead"], 3);
    let path = edge.dir().join("spool/dead/collector.ndjson");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.trim_end()).unwrap();
    assert_eq!(letters(&edge).len(), 3);
    // The edge begins a new line for what it adds behind a torn one.
    assert_eq!(edge.event("_a=62515&_n=a&id=3").status, 200);
    assert_eq!(edge.wait_delivered("collector")["dead"], 4);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.trim_end()).unwrap();
    backend.script(|_| Act::Take);
    let done = "collector: 4 delivered, 0 refused again, 0 not delivered\n";
    assert_eq!(dead(&edge, "replay"), (Some(0), done.to_owned()));
    assert_eq!(ids(&backend.events()), BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(letters(&edge), Vec::<Value>::new());
}
