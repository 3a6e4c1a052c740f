//! The lines that the edge writes to standard error (SPEC 8), as text and as JSON.

use crate::harness::{Edge, Setup, command, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::Arc;

fn json_lines(edge: &Edge) -> Vec<Value> {
    let log = edge.log();
    log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn every_line_is_an_object_where_json_is_asked_for() {
    let edge = Setup::default().sections("[log]\nformat = \"json\"").start();
    let lines = json_lines(&edge);
    assert!(lines.len() >= 2);
    for line in &lines {
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key} is not in {line}");
        }
    }
}

#[test]
fn single_verdicts_are_logged_where_they_are_asked_for_and_say_nothing_more() {
    for (format, accepted, rejected) in [
        ("text", "verdict=accepted", "reason=invalid_email"),
        ("json", "\"verdict\":\"accepted\"", "\"reason\":\"invalid_email\""),
    ] {
        let log = format!("[log]\nformat = \"{format}\"\nverdicts = 2");
        let edge = Setup::default().sections(&log).start();
        edge.event("_a=62515&_n=zanzibar&email=zanzibar@a.example&color=zanzibar");
        edge.event("_a=62515&_n=zanzibar&email=zanzibar");
        wait_for("both in the log", || {
            edge.log().contains(accepted) && edge.log().contains(rejected)
        });
        let log = edge.log();
        let line = log.lines().find(|line| line.contains(rejected)).unwrap();
        assert!(line.contains("62515") && line.contains("rejected"), "{line}");
        assert!(!log.contains("zanzibar"), "{log}");
    }
    let edge = Edge::start();
    edge.event("_a=62515&_n=a");
    wait_for("the event to be seen", || !edge.status()["recent"].as_array().unwrap().is_empty());
    assert!(!edge.log().contains("verdict"), "log.verdicts is not set");
}

#[test]
fn the_environment_overrides_the_level() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = Setup::default().sections("[log]\nlevel = \"off\"").write(dir.path());
    // The level stays on: the harness waits for the line with the port.
    let edge = Edge::start_with(Arc::clone(&dir), &[("RUST_LOG", "info")]);
    assert!(edge.log().contains("INFO"));
    drop(edge);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(&path, text.replacen("127.0.0.1:0", &address, 1)).unwrap();
    let output = command(&path, &["run"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&address), "the reason for not starting is logged even so: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_mistake_in_the_section_is_told_by_its_key() {
    let check = |line: &str, expect: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let path = Setup::default().sections(&format!("[log]\n{line}")).write(dir.path());
        let output = command(&path, &["check"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in expect {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
    };
    check("verdicts = 1001", &["log.verdicts", "1000"]);
    check("format = \"xml\"", &["log.format", "`json`"]);
    check("level = \"loud\"", &["log.level", "`info`"]);
}

#[test]
fn a_changed_level_without_effect_is_named() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().write(dir.path());
    let edge = Edge::start_with(Arc::clone(&dir), &[("RUST_LOG", "info")]);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "[log]\nlevel = \"debug\"\n").unwrap();
    edge.signal(Signal::HUP);
    edge.wait_log("log.level: RUST_LOG of the environment comes before it");
    assert!(!edge.log().contains("DEBUG"), "{}", edge.log());
}
