//! SPEC 5, `quota`: the events of a portal in a UTC day, over restarts, kills and changes of the
//! list. A test that runs over midnight would see a new day.

use crate::admin::post_explain;
use crate::harness::{Edge, Setup, command, wait_for};
use crate::metering::totals;
use serde_json::{Value, json};
use std::sync::Arc;

const LIST: &str = "portals = [62515]\n[[portal]]\nid = 7\nquota = { per_day = 3 }\n";

/// Sends events of portal 7 until one is refused, and gives the number of those that were accepted.
fn accepted_until_refused(edge: &Edge) -> u64 {
    for accepted in 0..100 {
        let answer = edge.event("_a=7&_n=a");
        if answer.status == 200 {
            continue;
        }
        assert_eq!((answer.status, answer.verdict()), (429, "rate_limited"));
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=86_400).contains(&seconds), "{seconds}");
        let now = jiff::Timestamp::now().as_second().unsigned_abs();
        let left = (86_400 - now % 86_400).abs_diff(seconds);
        assert!(left <= 60, "it is {left} s off the next midnight");
        return accepted;
    }
    panic!("none was refused");
}

#[test]
fn a_portal_has_its_events_of_the_day_and_no_more() {
    let edge = Setup::default().portals(LIST).start();
    assert_eq!(accepted_until_refused(&edge), 3);
    assert_eq!(accepted_until_refused(&edge), 0);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200, "others have no quota");
    let row = totals(&edge, 7);
    assert_eq!(row["quota"], json!({ "per_day": 3, "used": 3 }));
    assert_eq!((&row["accepted"], &row["rejected"]), (&json!(3), &json!(2)));
    assert!(totals(&edge, 62515)["quota"].is_null());
    let explained = String::from_utf8(post_explain(&edge, "_a=7&_n=a").body).unwrap();
    assert!(explained.contains("at most 3 events a UTC day"), "{explained}");
}

#[test]
fn neither_a_restart_nor_a_kill_gives_it_again() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().portals(&LIST.replace("per_day = 3", "per_day = 5")).write(dir.path());
    let edge = Edge::start_in(Arc::clone(&dir));
    assert_eq!(edge.event("_a=7&_n=a").status, 200);
    assert_eq!(edge.event("_a=7&_n=a").status, 200);
    edge.stop();
    let edge = Edge::start_in(Arc::clone(&dir));
    assert_eq!(totals(&edge, 7)["quota"]["used"], 2);
    assert_eq!(edge.event("_a=7&_n=a").status, 200);
    // Kills at once: of all files only the spool's record shows the last event.
    edge.kill();
    let edge = Edge::start_in(Arc::clone(&dir));
    assert_eq!(accepted_until_refused(&edge), 2);
    edge.kill();
    let edge = Edge::start_in(dir);
    assert_eq!(accepted_until_refused(&edge), 0);
}

#[test]
fn a_new_list_counts_on() {
    let edge = Setup::default().portals(LIST).start();
    assert_eq!(accepted_until_refused(&edge), 3);
    let put = |list: &str| std::fs::write(edge.dir().join("portals.toml"), list).unwrap();
    let per_day = || totals(&edge, 7)["quota"]["per_day"].clone();
    put(&LIST.replace("per_day = 3", "per_day = 5"));
    wait_for("the new quota", || per_day() == 5);
    assert_eq!(accepted_until_refused(&edge), 2);
    // The list has no quota for a while; the events of that time count as well.
    put("portals = [62515, 7]\n");
    wait_for("no quota", || per_day().is_null());
    assert_eq!(edge.event("_a=7&_n=a").status, 200);
    put("portals = [62515, 7]\n[defaults]\nquota = { per_day = 8 }\n");
    wait_for("the default quota", || per_day() == 8);
    assert_eq!(accepted_until_refused(&edge), 2);
}

#[test]
fn a_successor_counts_on() {
    let old = Setup::default().portals(LIST).start();
    assert_eq!(old.event("_a=7&_n=a").status, 200);
    assert_eq!(old.event("_a=7&_n=a").status, 200);
    let new = old.upgrade();
    old.stop();
    wait_for("the old one's counts", || totals(&new, 7)["quota"]["used"] == 2);
    assert_eq!(accepted_until_refused(&new), 1);
}

#[test]
fn a_successor_knows_at_once_what_the_old_one_has_accepted() {
    let old = Setup::default().portals(LIST).start();
    for _ in 0..2 {
        assert_eq!(old.event("_a=7&_n=a").status, 200);
    }
    old.wait_delivered("file");
    // The old one writes its totals once a second; `spool stat` reads its files.
    let config = old.dir().join("edge.toml");
    let written = || {
        let stat = command(&config, &["spool", "stat"]).output().unwrap().stdout;
        let stat = String::from_utf8(stat).unwrap();
        let portals = stat.lines().find(|line| line.contains("portal")).unwrap_or_default();
        portals.contains("2 accepted") && portals.contains("2 delivered")
    };
    wait_for("the totals in the files", written);
    let new = old.upgrade();
    // Until the old one stops, either of them may answer a request for a page.
    let mut status = Value::Null;
    wait_for("a page of the new one", || {
        status = new.status();
        status["pid"] == new.pid()
    });
    assert_eq!(status["spool"]["lanes_of_other_processes"], 1);
    let up = &status["upstreams"][0];
    assert_eq!(
        (&up["accepted"], &up["delivered"], &up["pending"]),
        (&json!(2), &json!(2), &json!(0))
    );
    let row = &status["totals"]["portals"][0];
    assert_eq!((&row["portal"], &row["accepted"]), (&json!(7), &json!(2)), "{row}");
    let row = totals(&new, 7);
    assert_eq!((&row["accepted"], &row["delivered"]), (&json!(2), &json!(2)), "{row}");
    assert_eq!(row["quota"]["used"], 2);
    assert!(row["since"].is_string(), "{row}");
    old.stop();
    assert_eq!(accepted_until_refused(&new), 1);
    wait_for("the old one's lane", || new.status()["spool"]["lanes_of_other_processes"] == 0);
    assert_eq!(totals(&new, 7)["accepted"], 3, "no event counts twice");
    assert_eq!(new.upstream("file")["accepted"], 3);
    assert_eq!(accepted_until_refused(&new), 0);
}

#[test]
fn a_dry_run_counts_what_is_over_it() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().portals(LIST).write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[portals]\n", "[portals]\nmode = \"dry_run\"\n"))
        .unwrap();
    let edge = Edge::start_in(dir);
    for _ in 0..5 {
        assert_eq!(edge.event("_a=7&_n=a").status, 200);
    }
    let metrics = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let line = "pixelgate_dry_run_refusals_total{reason=\"rate_limited\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn what_is_accepted_in_spite_of_the_list_is_used_as_well() {
    let list = "[[portal]]\nid = 7\nevents = [\"b\"]\nquota = { per_day = 3 }\n";
    for mode in ["dry_run", "off"] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = Setup::default().portals(list).write(dir.path());
        let text = std::fs::read_to_string(&config).unwrap();
        let mode = format!("[portals]\nmode = \"{mode}\"\n");
        std::fs::write(&config, text.replace("[portals]\n", &mode)).unwrap();
        let edge = Edge::start_in(dir);
        for _ in 0..2 {
            assert_eq!(edge.event("_a=7&_n=a").status, 200);
        }
        let row = totals(&edge, 7);
        assert_eq!((&row["accepted"], &row["quota"]["used"]), (&json!(2), &json!(2)), "{mode}");
    }
}

#[test]
fn a_quota_that_cannot_be_is_a_mistake_with_its_line() {
    let edge = Setup::default().portals(LIST).start();
    let list = edge.dir().join("portals.toml");
    let failure = || edge.status()["portals"]["last_failure"]["what"].to_string();
    for wrong in ["0", "-1", "1000000001", "1.5", "3, per_hour = 1"] {
        std::fs::write(&list, LIST.replace("per_day = 3", &format!("per_day = {wrong}"))).unwrap();
        wait_for("the failure", || failure().contains("portals.toml:4:"));
        std::fs::write(&list, LIST.replace("[62515]", "[62515, ]]")).unwrap();
        wait_for("another failure", || failure().contains("portals.toml:1:"));
    }
    assert_eq!(accepted_until_refused(&edge), 3, "the list in force stays");
}
