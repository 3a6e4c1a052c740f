//! SPEC 7, `hubspot`: old pixels keep working, and their events arrive in the successor API.

use crate::crm::{Fault, Hubspot};
use crate::dead::letters;
use crate::delivery::RUNTIME;
use crate::harness::{Edge, Setup, command, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often the process is killed.
const KILLS: usize = 6;

fn setup(hubspot: &Hubspot, rest: &str) -> Setup {
    let names = "event_names = { \"000000001625\" = \"bought\" }";
    let upstream = hubspot.upstream(&format!("{names}\n{rest}\n[upstream.batch]\nlinger_ms = 5"));
    Setup::default().portals("portals = [1, 2, 3]").upstreams(&upstream)
}

fn pixel(n: usize) -> String {
    let portal = 1 + n % 3;
    format!("_a={portal}&_n=000000001625&email=p{}@company.com&_m=20.50&id={n}&plan=x{n}", n % 7)
}

#[test]
fn an_old_pixel_becomes_an_occurrence_and_a_contact() {
    let hubspot = RUNTIME.block_on(Hubspot::start());
    let edge = setup(&hubspot, "").start();
    let query = "_a=2&_n=000000001625&email=Person@Company.com&_m=%2B20.50&id=ext-77\
                 &favorite_color=orange&favorite_color=blue&hapikey=no";
    assert_eq!(edge.event(query).verdict(), "accepted");
    edge.wait_delivered("crm");
    assert_eq!(edge.upstream("crm")["kind"], "hubspot");
    let state = hubspot.state();
    assert_eq!(state.wrong, Vec::<String>::new());
    let (portal, mut occurrence) = state.occurrences.values().next().unwrap().clone();
    for varying in ["uuid", "occurredAt"] {
        occurrence.as_object_mut().unwrap().remove(varying);
    }
    let expect = json!({
        "eventName": "pe2_bought", "email": "person@company.com",
        "properties": { "revenue": "20.5", "external_id": "ext-77" }
    });
    assert_eq!((portal, occurrence), (2, expect));
    let contact = &state.contacts[&(2, "person@company.com".to_owned())];
    assert_eq!(contact["favorite_color"], "orange;blue");
}

#[test]
fn every_answered_event_arrives_once_whatever_ends_the_process() {
    // Answers get lost besides: an occurrence may come again, but only under its uuid.
    let hubspot = RUNTIME.block_on(Hubspot::failing(|call| match call.before % 5 {
        2 => Fault::LoseAnswer,
        _ => Fault::None,
    }));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    setup(&hubspot, "").write(dir.path());
    let mut sent = 0;
    for round in 0..KILLS {
        let edge = Edge::start_in(Arc::clone(&dir));
        for _ in 0..20 + 7 * round {
            assert_eq!(edge.event(&pixel(sent)).status, 200);
            sent += 1;
        }
        // In the middle of whatever it does.
        let before = hubspot.state().occurrences.len();
        wait_for("something to arrive", || {
            hubspot.state().occurrences.len() > before.min(sent - 1)
        });
        edge.kill();
    }
    let edge = Edge::start_in(Arc::clone(&dir));
    let row = edge.wait_delivered("crm");
    assert_eq!((&row["accepted"], &row["dead"]), (&json!(sent), &json!(0)));
    let state = hubspot.state();
    assert_eq!(state.wrong, Vec::<String>::new());
    let id = |value: &Value| value["properties"]["external_id"].as_str().unwrap().to_owned();
    let ids: BTreeSet<String> = state.occurrences.values().map(|(_, o)| id(o)).collect();
    assert_eq!((ids.len(), state.occurrences.len()), (sent, sent));
    println!("{sent} events, {KILLS} kills, {} repeats dropped by their uuid", state.repeats);
}

#[test]
fn explain_says_what_would_be_sent_and_no_token() {
    let hubspot = RUNTIME.block_on(Hubspot::start());
    let dir = tempfile::tempdir().unwrap();
    let config = setup(&hubspot, "").write(dir.path());
    let explain = |arguments: &[&str]| {
        let output = command(&config, &[&["explain"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("token-"), "{said}");
        said
    };
    let said = explain(&[&pixel(0)]);
    for part in ["upstream crm", "pe1_bought", "revenue = 20.5", "plan = x0"] {
        assert!(said.contains(part), "{said}");
    }
    let said: Value = serde_json::from_str(&explain(&["--json", &pixel(0)])).unwrap();
    let expect = json!([{
        "upstream": "crm",
        "event": {
            "eventName": "pe1_bought", "email": "p0@company.com",
            "properties": { "revenue": "20.5", "external_id": "0" }
        },
        "contact": { "email": "p0@company.com", "plan": "x0" }
    }]);
    assert_eq!(said["translation"], expect);
    assert!(explain(&["_a=1&_n=look"]).contains("a dead letter: it has no email address"));
    assert_eq!(hubspot.state().calls.len(), 0, "nothing is sent");
}

#[test]
fn what_does_not_fit_is_listed_and_the_log_keeps_addresses_and_tokens_to_itself() {
    let hubspot = RUNTIME.block_on(Hubspot::failing(|call| match call.portal {
        3 => Fault::Refuse(401, Vec::new()),
        _ => Fault::None,
    }));
    let edge = setup(&hubspot, "").start();
    assert_eq!(edge.event("_a=1&_n=0042&email=a@b.example").status, 200);
    assert_eq!(edge.event("_a=2&_n=buy").status, 200);
    assert_eq!(edge.event("_a=3&_n=buy&email=a@b.example").status, 200);
    wait_for("two dead letters", || edge.upstream("crm")["dead"] == 2);
    wait_for("the fault", || edge.log().contains("portal 3: answered 401"));
    let mut why: Vec<String> =
        letters(&edge).iter().map(|letter| letter["detail"].as_str().unwrap().to_owned()).collect();
    why.sort_unstable();
    assert!(why[0].contains("email") && why[1].contains("event_names"), "{why:?}");
    assert_eq!(edge.upstream("crm")["pending"], 1);
    let log = edge.log();
    assert!(!log.contains("b.example") && !log.contains("token-"), "{log}");
}
