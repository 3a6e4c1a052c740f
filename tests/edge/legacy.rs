//! SPEC 7, `legacy`: an existing backend gets each event as its original request, and revenue is
//! not booked twice unless the operator allows it.

use crate::backend::{Act, Backend};
use crate::dead::{dead, letters};
use crate::delivery::RUNTIME;
use crate::harness::{Edge, Setup};
use serde_json::{Value, json};

fn start(backend: &Backend, more: &str) -> Edge {
    let url = backend.url("/v1/event/?from=edge");
    let upstream = format!(
        "[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n{more}\n\
         [upstream.batch]\nlinger_ms = 20\n"
    );
    Setup::default().upstreams(&upstream).start()
}

/// Delivered and dead, once nothing is pending.
fn ends(edge: &Edge) -> (Value, Value) {
    let row = edge.wait_delivered("old");
    (row["delivered"].clone(), row["dead"].clone())
}

#[test]
fn an_event_arrives_as_its_canonical_get() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = start(&backend, "");
    let query = "&id=ext-77&_n=000000001625&_a=0062515&email=Person%2BX@B%C3%BCcher.example\
                 &_m=%2B20.50&favorite_color=orange&favorite_color=blue&Note=a+b&t=99&hapikey=no";
    let lines = "User-Agent: Tester/1\r\nReferer: https://shop.test/thanks?a=b\r\nCookie: no=1\r\n";
    let response = edge.connect().get(&format!("/v1/event/?{query}"), lines);
    assert_eq!(response.verdict(), "accepted");
    assert_eq!(ends(&edge), (json!(1), json!(0)));

    let taken = backend.taken();
    assert_eq!(taken.len(), 1);
    let request = &taken[0];
    assert_eq!(request.method, "GET");
    assert_eq!(
        request.target,
        "/v1/event/?from=edge&_a=62515&_n=000000001625&email=person%2Bx%40b%C3%BCcher.example\
         &_m=20.5&id=ext-77&favorite_color=orange%3Bblue&note=a%20b"
    );
    assert_eq!(request.header("user-agent"), "Tester/1");
    assert_eq!(request.header("referer"), "https://shop.test");
    assert_eq!(request.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(request.header("cookie"), "");
}

#[test]
fn revenue_that_may_have_counted_waits_for_a_person_who_sends_it_again() {
    // A gateway lost its backend: the backend may or may not have counted the event.
    let backend = RUNTIME.block_on(Backend::start(|request| {
        if request.target.contains("_m=") { Act::Refuse(504) } else { Act::Take }
    }));
    let edge = start(&backend, "");
    assert_eq!(edge.event("_a=62515&_n=buy&_m=20.5&id=1").status, 200);
    assert_eq!(ends(&edge), (json!(0), json!(1)));
    assert_eq!(edge.event("_a=62515&_n=look&id=2").status, 200);
    assert_eq!(ends(&edge), (json!(1), json!(1)));

    let listed = letters(&edge);
    assert_eq!(listed.len(), 1);
    let letter = &listed[0];
    assert_eq!((&letter["upstream"], &letter["reason"]), (&json!("old"), &json!("undeliverable")));
    assert_eq!((&letter["status"], &letter["event"]["revenue"]), (&json!(504), &json!(20.5)));
    assert!(letter["detail"].as_str().unwrap().contains("may have counted"), "{letter}");
    assert_eq!(backend.taken().len(), 1, "it was not sent again");

    // The person looked it up and found that it had not counted. The edge goes on meanwhile.
    backend.script(|_| Act::Take);
    let (code, said) = dead(&edge, "replay");
    assert_eq!((code, said.as_str()), (Some(0), "old: 1 delivered, 0 refused again, 0 put back\n"));
    let taken = backend.taken();
    assert_eq!(taken.len(), 2);
    assert!(taken[1].target.ends_with("&_m=20.5&id=1"), "{}", taken[1].target);
    assert_eq!(letters(&edge), Vec::<Value>::new());
}

#[test]
fn on_unknown_retry_sends_revenue_again() {
    let backend = RUNTIME.block_on(Backend::playing([Act::Refuse(504), Act::ResetAfterBody]));
    let edge = start(&backend, "on_unknown = \"retry\"");
    assert_eq!(edge.event("_a=62515&_n=buy&_m=20.5&id=1").status, 200);
    assert_eq!(ends(&edge), (json!(1), json!(0)));
    assert_eq!((backend.seen().len(), backend.taken().len()), (3, 2), "it may count twice");
    assert_eq!(letters(&edge), Vec::<Value>::new());
}

#[test]
fn an_event_without_revenue_is_sent_until_it_arrives() {
    let backend = RUNTIME.block_on(Backend::playing([Act::Refuse(504), Act::ResetAfterBody]));
    let edge = start(&backend, "on_unknown = \"dead\"");
    assert_eq!(edge.event("_a=62515&_n=look&id=1").status, 200);
    assert_eq!(ends(&edge), (json!(1), json!(0)));
    assert_eq!(backend.seen().len(), 3);
}
