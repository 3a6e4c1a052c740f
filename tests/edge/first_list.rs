//! What the edge says of a portal URL that has not given its first list.

use crate::harness::{Edge, Setup, wait_for};
use serde_json::Value;
use std::net::TcpListener;
use std::sync::Arc;

/// Starts an edge whose portal URL refuses each connection.
fn start(mode: &str) -> Edge {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().write(dir.path());
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let file = format!("source = \"{}/portals.toml\"", dir.path().display());
    assert!(text.contains(&file));
    let url = format!("source = 'http://{gone}/portals.toml'\nmode = '{mode}'");
    std::fs::write(&config, text.replace(&file, &url)).unwrap();
    Edge::start_in(dir)
}

#[test]
fn no_list_is_said_to_be_in_force_where_none_was_ever_loaded() {
    for (mode, follows, status, ready) in [
        ("enforce", "so every event is rejected as overloaded", 503, 503),
        ("dry_run", "so every event is accepted as one that enforce would reject", 200, 200),
        ("off", "and every event is accepted because portals.mode is off", 200, 200),
    ] {
        let edge = start(mode);
        edge.wait_log(&format!("portals: no list could be loaded yet, {follows}: http"));
        let is_unread = |fault: &Value| fault["what"] == "portals_unread";
        let mut page = Value::Null;
        wait_for("the fault", || {
            page = edge.status();
            page["faults"].as_array().unwrap().iter().any(is_unread)
        });
        let readiness = edge.admin("/readyz");
        assert_eq!(readiness.status, ready, "{mode}");
        assert_eq!(edge.event("_a=62515&_n=a").status, status, "{mode}");
        let readiness = String::from_utf8(readiness.body).unwrap();
        for text in [edge.log(), page.to_string(), readiness] {
            for untrue in ["in force", "list in use", "last good"] {
                assert!(!text.contains(untrue), "{mode}: {text}");
            }
        }
    }
}
