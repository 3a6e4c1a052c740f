//! An edge continues with the files of the previous version: its configuration, the pending events
//! in its spool, its counts, its dead letters and its copy of the portal list.
//!
//! `tests/data/version_0_1/` was written by version 0.1.0, which was killed while five events
//! waited for a collector that was down. The collector had refused two events before. The portal
//! list came from a URL that no server answers now, so only its copy is left.

use crate::backend::{Act, Backend};
use crate::dead::letters;
use crate::delivery::RUNTIME;
use crate::harness::Edge;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

const LEFT_BEHIND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/version_0_1");

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// The folder as it was left, its configuration on this test's ports.
fn take_up(collector: &Backend) -> Edge {
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(LEFT_BEHIND), dir.path());
    let file = dir.path().join("edge.toml");
    let at = dir.path().display();
    let config = std::fs::read_to_string(&file).unwrap();
    let config = config
        .replace("127.0.0.1:18230", "127.0.0.1:0")
        .replace("127.0.0.1:18233", "127.0.0.1:0")
        .replace("http://127.0.0.1:18232/events", &collector.url("/take"))
        .replace("\"spool\"", &format!("\"{at}/spool\""))
        .replace("\"state\"", &format!("\"{at}/state\""));
    std::fs::write(&file, config).unwrap();
    Edge::start_in(Arc::new(dir))
}

#[test]
fn what_the_version_before_left_on_disk_is_taken_up() {
    let collector = RUNTIME.block_on(Backend::start(|_| Act::Take));
    let edge = take_up(&collector);

    let row = edge.wait_delivered("collector");
    let counts = ["accepted", "delivered", "dead", "lost"].map(|count| row[count].clone());
    assert_eq!(counts, [json!(7), json!(5), json!(2), json!(0)]);

    let events = collector.events();
    let of = |key: &str| events.iter().map(|e| e[key].clone()).collect::<Vec<Value>>();
    let ids: BTreeSet<String> = of("external_id").iter().map(Value::to_string).collect();
    let expected: BTreeSet<String> = (1..=5).map(|n| format!("\"waits-{n}\"")).collect();
    assert_eq!(ids, expected);
    assert_eq!(of("email"), vec![json!("person@company.com"); 5]);
    assert_eq!(of("revenue"), vec![json!(20.5); 5]);
    assert!(events.iter().all(|event| event["properties"] == json!({"plan": "pro"})));

    let refused: Vec<Value> = letters(&edge);
    let ids: Vec<&Value> = refused.iter().map(|letter| &letter["event"]["external_id"]).collect();
    assert_eq!(ids, [&json!("dead-1"), &json!("dead-2")]);

    // Version 0.1 counted nothing by portal: the totals count only what it left in its spool.
    for (portal, accepted, dead) in [(12345, 5, 0), (62515, 2, 2)] {
        let totals = crate::metering::totals(&edge, portal);
        let delivered = accepted - dead;
        let row = json!([{ "name": "collector", "delivered": delivered, "dead": dead }]);
        assert_eq!((&totals["accepted"], &totals["upstreams"]), (&json!(accepted), &row));
        assert!(totals["since"].is_string());
    }
    // The only fault is that the server of the portal list does not answer.
    let status = edge.status();
    let faults = status["faults"].as_array().unwrap();
    assert!(faults.iter().all(|fault| fault["what"] == "portals_unread"), "{faults:?}");

    // The rules of the list's copy are in force.
    assert_eq!(edge.event("_a=12345&_n=signup-again").status, 200);
    assert_eq!(edge.event("_a=12345&_n=buy").status, 403);
    assert_eq!(edge.event("_a=1&_n=signup").status, 403);
}
