//! SPEC 5 on the running binary: the portal list decides, and it can change at run time.

use crate::harness::{Edge, Setup, wait_for};

/// Starts an edge whose portal list is a file `name` with this text.
fn with_list(name: &str, list: &str) -> Edge {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
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
        let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
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
