//! SPEC 5 on the running binary: the portal list decides, and it can change at run time.

use crate::admin::post_explain;
use crate::harness::{Edge, Setup, wait_for};
use crate::wire::Origin;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::Arc;

/// Starts an edge whose portal list is a file `name` with this text.
fn with_list(name: &str, list: &str) -> Edge {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("portals.toml", name)).unwrap();
    std::fs::write(dir.path().join(name), list).unwrap();
    Edge::start_in(dir)
}

#[test]
fn the_list_is_read_in_three_formats() {
    let lists = [
        ("list.toml", "portals = [7, 8]\n[[portal]]\nid = 9\nevents = [\"a*\"]\n"),
        ("list.json", "{\"portals\": [7, 8], \"portal\": [{\"id\": 9, \"events\": [\"a*\"]}]}"),
        ("list.txt", "# ours\n7\n8 # the second\n\n9\n"),
    ];
    for (name, list) in lists {
        let edge = with_list(name, list);
        for portal in [7, 8, 9] {
            assert_eq!(edge.event(&format!("_a={portal}&_n=abc")).status, 200, "{name}");
        }
        assert_eq!(edge.event("_a=6&_n=abc").verdict(), "portal_not_allowed", "{name}");
        assert_eq!(edge.status()["portals"]["count"], 3);
    }
}

#[test]
fn a_change_is_picked_up_and_a_mistake_changes_nothing() {
    let edge = with_list("list.toml", "portals = [7]\n");
    let list = edge.dir().join("list.toml");
    let verdict = |portal: u32| edge.event(&format!("_a={portal}&_n=a")).verdict().to_owned();
    assert_eq!(verdict(8), "portal_not_allowed");

    std::fs::write(&list, "portals = [7, 8]\n").unwrap();
    wait_for("the new list", || verdict(8) == "accepted");

    std::fs::write(&list, "portals = [9,\n").unwrap();
    wait_for("the failure in /status", || !edge.status()["portals"]["last_failure"].is_null());
    assert_eq!((verdict(7).as_str(), verdict(8).as_str()), ("accepted", "accepted"));
    let ready = edge.admin("/readyz");
    assert_eq!(ready.status, 200, "the last good list stays in force");
    let names_it = String::from_utf8(ready.body).unwrap().contains("list.toml:");
    assert!(names_it, "the failure is named");
    assert!(edge.log().contains("list.toml"), "{}", edge.log());

    let new = edge.dir().join("list.new");
    std::fs::write(&new, "portals = [9]\n").unwrap();
    std::fs::rename(&new, &list).unwrap();
    edge.signal(rustix::process::Signal::HUP);
    wait_for("the renamed list", || verdict(9) == "accepted");
    assert_eq!(verdict(7), "portal_not_allowed");
    wait_for("readiness", || edge.admin("/readyz").body == b"ready\n");
}

#[test]
fn a_dry_run_accepts_and_counts_and_off_accepts_all() {
    let dry = Setup::default().portals("portals = [7]\n").start_with_mode("dry_run");
    assert_eq!(dry.event("_a=8&_n=a").status, 200);
    let metrics = String::from_utf8(dry.admin("/metrics").body).unwrap();
    let line = "pixelgate_dry_run_refusals_total{reason=\"portal_not_allowed\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let off = Setup::default().portals("portals = [7]\n").start_with_mode("off");
    assert_eq!(off.event("_a=8&_n=a").status, 200);
    assert_eq!(off.event("_a=&_n=a").verdict(), "missing_portal", "the parameters still count");
}

impl Setup {
    fn start_with_mode(self, mode: &str) -> Edge {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = self.write(dir.path());
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text.replace("[portals]\n", &format!("[portals]\nmode = \"{mode}\"\n"));
        std::fs::write(&config, text).unwrap();
        Edge::start_in(dir)
    }
}

#[test]
fn dropped_properties_are_not_passed_on() {
    let list = "[[portal]]\nid = 7\ndrop_properties = [\"ssn\"]\n";
    let edge = Setup::default().portals(list).start();
    assert_eq!(edge.event("_a=7&_n=a&ssn=078-05-1120&color=red").status, 200);
    edge.wait_delivered("file");
    let events = Edge::events_in_files(edge.dir());
    assert_eq!(events[0]["properties"], serde_json::json!({ "color": "red" }));
}

#[test]
fn a_portal_drops_email_and_id_and_is_stricter_about_privacy() {
    let list = "portals = [8]\n[[portal]]\nid = 7\ndrop_properties = [\"email\", \"id\"]\n\
        privacy = { ip = \"none\", referer = \"none\", gpc = \"reject\" }\n";
    let edge = Setup::default().portals(list).start();
    let send = |portal: u32, gpc: &str| {
        let mut connection = edge.connect();
        connection.send(
            format!(
                "GET /v1/event/?_a={portal}&_n=a&email=p@company.com&id=x&color=red HTTP/1.1\r\n\
                 Host: a\r\nReferer: https://shop.example/a\r\n{gpc}\r\n"
            )
            .as_bytes(),
        );
        connection.read("GET").verdict().to_owned()
    };
    assert_eq!((send(7, ""), send(8, "")), ("accepted".to_owned(), "accepted".to_owned()));
    assert_eq!(send(7, "Sec-GPC: 1\r\n"), "privacy_opt_out");
    assert_eq!(send(8, "Sec-GPC: 1\r\n"), "accepted");
    edge.wait_delivered("file");
    let events = Edge::events_in_files(edge.dir());
    let of = |portal: u32| events.iter().find(|event| event["portal"] == portal).unwrap();
    let (strict, plain) = (of(7), of(8));
    assert_eq!((&strict["email"], &strict["external_id"]), (&Value::Null, &Value::Null));
    assert_eq!(strict["context"], json!({}));
    assert_eq!(strict["properties"], json!({ "color": "red" }));
    assert_eq!((&plain["email"], &plain["external_id"]), (&json!("p@company.com"), &json!("x")));
    assert_eq!(plain["context"]["referer"], "https://shop.example");

    let explained = post_explain(&edge, "_a=7&_n=a&email=p@company.com&id=x").body;
    let explained = String::from_utf8(explained).unwrap();
    for line in [
        "email: not passed on (drop_properties)",
        "id: not passed on (drop_properties)",
        "stricter privacy: ip = none, referer = none, gpc = reject",
    ] {
        assert!(explained.contains(line), "{line}: {explained}");
    }
}

#[test]
fn a_dry_run_counts_a_portals_opt_out_and_keeps_no_more_than_it_allows() {
    let list = "[[portal]]\nid = 7\nprivacy = { gpc = \"reject\" }\n";
    let edge = Setup::default().portals(list).start_with_mode("dry_run");
    let mut connection = edge.connect();
    let query = "_a=7&_n=a&email=p@company.com";
    let head = format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\nSec-GPC: 1\r\n\r\n");
    connection.send(head.as_bytes());
    assert_eq!(connection.read("GET").verdict(), "accepted");
    let metrics = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let line = "pixelgate_dry_run_refusals_total{reason=\"privacy_opt_out\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    edge.wait_delivered("file");
    assert_eq!(Edge::events_in_files(edge.dir())[0]["email"], Value::Null);
}

/// Has the origin give this answer to a request for its list.
fn answer(origin: &Origin, head: &str, list: &str) {
    let length = list.len();
    let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{list}");
    origin.answer("/list.txt", answer.as_bytes());
}

/// A folder with a configuration whose portal list is that of the origin.
fn with_url(origin: &Origin) -> Arc<tempfile::TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    let file = dir.path().join("portals.toml").display().to_string();
    let url = format!("http://{}/list.txt", origin.address);
    std::fs::write(&config, text.replace(&file, &url)).unwrap();
    dir
}

#[test]
fn a_list_that_the_state_folder_does_not_take_is_a_fault_until_it_does() {
    let origin = Origin::start();
    let answer = |head: &str, list: &str| answer(&origin, head, list);
    answer("200 OK\r\nETag: \"v1\"", "7\n");
    let dir = with_url(&origin);
    // The place of the file into which a list is received.
    let in_the_way = dir.path().join("portals.copy.new");
    std::fs::create_dir(&in_the_way).unwrap();

    let edge = Edge::start_in(dir);
    wait_for("the list", || edge.event("_a=7&_n=a").status == 200);
    answer("304 Not Modified", "");
    let fault = || {
        let faults = edge.status()["faults"].as_array().unwrap().clone();
        faults.into_iter().find(|fault| fault["what"] == "portals_unstored")
    };
    wait_for("the fault", || fault().is_some());
    let text = fault().unwrap()["text"].to_string();
    assert!(text.contains("cannot be stored for the next start: Is a directory"), "{text}");
    let metrics = || String::from_utf8(edge.admin("/metrics").body).unwrap();
    assert!(metrics().contains("pixelgate_faults{what=\"portals_unstored\"} 1"));
    assert_eq!(edge.admin("/readyz").body, b"ready\n");

    std::fs::remove_dir(&in_the_way).unwrap();
    wait_for("the fault to be over", || fault().is_none());
    edge.wait_log("the list is stored in the state folder again");
    assert!(metrics().contains("pixelgate_faults{what=\"portals_unstored\"} 0"));
    assert!(edge.dir().join("portals.copy").is_file());
}

#[test]
fn a_wait_that_the_server_asks_for_is_told_and_ends_on_sighup() {
    let origin = Origin::start();
    let answer = |head: &str, list: &str| answer(&origin, head, list);
    answer("200 OK", "7\n");
    let dir = with_url(&origin);
    let edge = Edge::start_in(dir);
    wait_for("the list", || edge.event("_a=7&_n=a").status == 200);
    assert!(edge.status()["portals"]["retry_at"].is_null());

    answer("503 Service Unavailable\r\nRetry-After: 3600", "");
    edge.wait_log("it is asked again in 3600 seconds, or at once on SIGHUP");
    let told = |advice: &Value, at: &str| {
        let told = "Its server asked for a wait (Retry-After): it is asked again at";
        advice.as_str().is_some_and(|text| text.contains(&format!("{told} {at}, or on SIGHUP.")))
    };
    wait_for("the status", || {
        let status = edge.status();
        let at = status["portals"]["retry_at"].as_str();
        at.is_some_and(|at| {
            told(&status["faults"][0]["advice"], at) && told(&status["headline"]["advice"], at)
        })
    });

    answer("200 OK", "8\n");
    edge.signal(Signal::HUP);
    wait_for("the new list", || edge.event("_a=8&_n=a").status == 200);
    wait_for("the end of the wait", || edge.status()["portals"]["retry_at"].is_null());
}
