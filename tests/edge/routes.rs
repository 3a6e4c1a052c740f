//! SPEC 5 and 7 on the running binary: a portal's events go to the upstreams of its rules, also
//! those that were accepted before the rules changed and before the process was killed.

use crate::admin::post_explain;
use crate::backend::{Act, Backend};
use crate::delivery::RUNTIME;
use crate::harness::{Edge, Setup, command, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const LIST: &str = "portals = [62515]\n\
    [[portal]]\nid = 7\nupstreams = [\"eu\"]\n\
    [[portal]]\nid = 8\nupstreams = []\n\
    [defaults]\nupstreams = [\"us\"]\n";

fn upstream(name: &str, backend: &Backend) -> String {
    format!(
        "[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{}\"\n\
         [upstream.batch]\nlinger_ms = 5\n",
        backend.url("/events")
    )
}

fn setup(eu: &Backend, us: &Backend, list: &str) -> Setup {
    Setup::default().portals(list).upstreams(&upstream("eu", eu)).upstreams(&upstream("us", us))
}

/// A backend that answers 503 until it is opened.
fn closed() -> (Backend, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let act = move |_: &_| if gate.load(SeqCst) { Act::Take } else { Act::Refuse(503) };
    (RUNTIME.block_on(Backend::start(act)), open)
}

fn ids(backend: &Backend) -> BTreeSet<String> {
    backend.events().iter().map(|e| e["external_id"].as_str().unwrap().to_owned()).collect()
}

fn counts(edge: &Edge, name: &str) -> [u64; 2] {
    let row = edge.upstream(name);
    let count = |key: &str| row[key].as_u64().unwrap();
    let ended = count("delivered") + count("dead") + count("lost");
    assert_eq!(count("accepted"), ended + count("pending"), "{row}");
    [count("accepted"), count("pending")]
}

#[test]
fn each_upstream_gets_and_counts_its_own_events_over_kills_and_changes() {
    let ((eu, eu_open), (us, us_open)) = (closed(), closed());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    setup(&eu, &us, LIST).write(dir.path());
    let (mut to_eu, mut to_us) = (BTreeSet::new(), BTreeSet::new());
    let mut sent = 0;
    let list = dir.path().join("portals.toml");
    for round in 0..4 {
        let edge = Edge::start_in(Arc::clone(&dir));
        // What waits keeps the route that it was accepted with.
        let (own, other) = if round % 2 == 0 { ("eu", "us") } else { ("us", "eu") };
        let (before, after) = (
            format!("id = 7\nupstreams = [\"{other}\"]"),
            format!("id = 7\nupstreams = [\"{own}\"]"),
        );
        let text = std::fs::read_to_string(&list).unwrap().replace(&before, &after);
        std::fs::write(&list, text).unwrap();
        let explained = || String::from_utf8(post_explain(&edge, "_a=7&_n=a").body).unwrap();
        wait_for("the new rules", || explained().contains(&format!("goes to {own} only")));
        for n in 0..30 {
            let portal = [62515, 7, 8][n % 3];
            let id = format!("e{sent}");
            sent += 1;
            assert_eq!(edge.event(&format!("_a={portal}&_n=a&id={id}")).status, 200);
            if portal == 8 || portal == 7 && own == "eu" {
                to_eu.insert(id.clone());
            }
            if portal != 7 || own == "us" {
                to_us.insert(id);
            }
        }
        assert_eq!(counts(&edge, "eu"), [to_eu.len() as u64; 2], "round {round}");
        assert_eq!(counts(&edge, "us"), [to_us.len() as u64; 2], "round {round}");
        edge.kill();
    }
    let edge = Edge::start_in(Arc::clone(&dir));
    assert_eq!(counts(&edge, "eu"), [to_eu.len() as u64; 2]);
    eu_open.store(true, SeqCst);
    edge.wait_delivered("eu");
    assert_eq!(counts(&edge, "us"), [to_us.len() as u64; 2], "the other one still waits");
    edge.kill();
    let edge = Edge::start_in(dir);
    us_open.store(true, SeqCst);
    edge.wait_delivered("us");
    assert_eq!((ids(&eu), ids(&us)), (to_eu.clone(), to_us.clone()));
    assert_eq!(counts(&edge, "eu"), [to_eu.len() as u64, 0]);
    assert_eq!(edge.upstream("eu")["lag_seconds"], 0);
}

#[test]
fn a_route_to_an_upstream_that_is_not_there_is_a_mistake_in_the_list() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = setup(&backend, &backend, LIST).start();
    let list = edge.dir().join("portals.toml");
    std::fs::write(&list, LIST.replace("[\"eu\"]", "[\"eu\", \"ue\"]")).unwrap();
    let failure = || edge.status()["portals"]["last_failure"].to_string();
    wait_for("the failure", || failure().contains("ue"));
    assert!(failure().contains("portals.toml:4:"), "{}", failure());
    assert!(failure().contains("there are `eu`, `us`"), "{}", failure());
    assert_eq!(edge.event("_a=7&_n=a").status, 200, "the last good list stays in force");
}

#[test]
fn explain_names_the_upstreams_of_an_event() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = tempfile::tempdir().unwrap();
    let config = setup(&backend, &backend, LIST).write(dir.path());
    for (portal, upstreams) in
        [(7, json!(["eu"])), (8, json!(["eu", "us"])), (62515, json!(["us"]))]
    {
        let query = format!("_a={portal}&_n=a");
        let output = command(&config, &["explain"]).args(["--json", &query]).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["upstreams"], upstreams, "{json}");
    }
}

#[test]
fn spool_stat_after_a_kill_counts_what_the_cursor_did_not_know() {
    let ((eu, _), (us, _)) = (closed(), closed());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    setup(&eu, &us, "portals = [62515]\n[[portal]]\nid = 7\nupstreams = [\"eu\"]\n")
        .write(dir.path());
    let edge = Edge::start_in(Arc::clone(&dir));
    for n in 0..15 {
        assert_eq!(edge.event(&format!("_a=7&_n=a&id={n}")).status, 200);
        // The cursor covers some of the events, but not all.
        if n == 4 {
            let known = |pending: &str| stat(&dir).contains(pending);
            wait_for("the count", || known("upstream eu: 5 accepted"));
        }
    }
    edge.kill();
    let told = stat(&dir);
    for row in [
        "upstream eu: 15 accepted, 0 delivered, 0 dead, 0 lost, 15 pending",
        "upstream us: 0 accepted, 0 delivered, 0 dead, 0 lost, 0 pending",
    ] {
        assert!(told.contains(row), "{told}");
    }
}

fn stat(dir: &tempfile::TempDir) -> String {
    let output = command(&dir.path().join("edge.toml"), &["spool", "stat"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
