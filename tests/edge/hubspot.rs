//! SPEC 7, `hubspot`: old pixels keep working, and their events arrive in the successor API.

use crate::backend::Backend;
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
    // Some answers get lost, too: an occurrence may come again, but only under its uuid.
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
        // Kills the edge while it delivers.
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
fn an_id_and_a_cookie_tie_an_event_to_the_contact_of_an_earlier_one() {
    let hubspot = RUNTIME.block_on(Hubspot::start());
    {
        let mut state = hubspot.state();
        state.matches_ids = true;
        state.has_default_properties = true;
        state.utks.insert("1f".to_owned());
    }
    let rest = "match_external_id = true\nexternal_id_contact_property = \"legacy_id\"\n\
                context_properties = true";
    let setup = setup(&hubspot, rest).sections("[events]\nutk_cookie = \"hubspotutk\"");
    let edge = setup.start();
    let lines = "User-Agent: Tester/1\r\nReferer: https://shop.test/x\r\n";
    let cookie = format!("{lines}Cookie: a=b; hubspotutk=1f\r\n");
    for (query, lines) in [
        ("_a=2&_n=buy&email=a@b.example&id=ext-7", lines),
        ("_a=2&_n=buy&id=ext-7&_m=5", lines),
        ("_a=2&_n=buy", &cookie),
    ] {
        let response = edge.connect().get(&format!("/v1/event/?{query}"), lines);
        assert_eq!(response.verdict(), "accepted", "{query}");
        // The contact of the first event is there before the second one comes.
        assert_eq!(edge.wait_delivered("crm")["dead"], 0);
    }
    let state = hubspot.state();
    assert_eq!((&state.wrong, state.contacts.len()), (&Vec::new(), 1));
    assert_eq!(state.contacts[&(2, "a@b.example".to_owned())]["legacy_id"], "ext-7");
    let context = json!({ "hs_user_agent": "Tester/1", "hs_referrer": "https://shop.test" });
    let mut found: Vec<Value> = state.occurrences.values().map(|(_, of)| of.clone()).collect();
    found.sort_by_key(|of| of.get("utk").is_some());
    for occurrence in &found {
        for (name, value) in context.as_object().unwrap() {
            assert_eq!(occurrence["properties"][name], *value);
        }
    }
    assert!(found.len() == 3 && found[2]["utk"] == "1f", "{found:?}");
    drop(state);
    let config = edge.dir().join("edge.toml");
    let output = command(&config, &["explain", "_a=2&_n=buy&id=ext-7"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("HubSpot finds the contact by the id"), "{said}");
}

/// The requests of client libraries as `docs/migration.md` lists them, as (target, library).
fn library_requests() -> Vec<(String, String)> {
    let page = include_str!("../../docs/migration.md");
    let rows = page.lines().filter(|line| line.contains("| `GET /v1/event"));
    rows.map(|row| {
        let (library, request) = row.trim_matches('|').split_once('|').unwrap();
        let target = request.trim().trim_matches('`').strip_prefix("GET ").unwrap();
        (target.to_owned(), library.trim().to_owned())
    })
    .collect()
}

#[test]
fn the_requests_of_client_libraries_go_through_the_whole_loop() {
    let hubspot = RUNTIME.block_on(Hubspot::start());
    let old = RUNTIME.block_on(Backend::playing([]));
    let url = old.url("/v1/event/");
    let legacy = format!(
        "[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\nkeep_host = true\n"
    );
    let edge = setup(&hubspot, "").upstreams(&legacy).start();
    let requests = library_requests();
    assert_eq!(requests.len(), 3);
    for (target, library) in &requests {
        // One of the portals that the fake of HubSpot knows.
        let target = target.replace("_a=62515", "_a=2");
        let response = edge.connect().get(&target, "Host: track.company.com\r\n");
        assert_eq!((response.status, response.verdict()), (200, "accepted"), "{library}");
        edge.wait_delivered("old");
    }
    let sent = old.taken();
    assert_eq!(sent.len(), 3);
    for (request, (target, library)) in sent.iter().zip(&requests) {
        assert_eq!(request.header("host"), "track.company.com", "{library}");
        let start = "/v1/event/?_a=2&_n=000000001625&email=person@company.com";
        assert!(request.target.starts_with(start), "{library}: {request:?}");
        let color = "favorite_color=orange";
        assert_eq!(request.target.contains(color), target.contains(color), "{library}");
        assert!(!request.target.contains("hapikey"), "{library}: {request:?}");
    }
    assert_eq!(edge.wait_delivered("crm")["dead"], 0);
    let state = hubspot.state();
    assert_eq!((&state.wrong, state.occurrences.len()), (&Vec::new(), 3));
    for (_, occurrence) in state.occurrences.values() {
        assert_eq!(occurrence["eventName"], "pe2_bought");
        assert_eq!(occurrence["email"], "person@company.com");
    }
    let contact = &state.contacts[&(2, "person@company.com".to_owned())];
    assert_eq!(contact["favorite_color"], "orange");
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
