//! SPEC 7, `legacy`: an existing backend gets each event as its original request, and revenue is
//! not booked twice unless the operator allows it.

use crate::backend::{Act, Backend, Request};
use crate::dead::{dead, letters};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command};
use serde_json::{Value, json};

fn start(backend: &Backend, more: &str) -> Edge {
    let url = backend.url("/v1/event/?from=edge");
    let upstream = format!(
        "[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n{more}\n\
         [upstream.batch]\nlinger_ms = 20\n"
    );
    Setup::default().upstreams(&upstream).start()
}

/// The numbers of delivered events and of dead letters, once nothing is pending.
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
        "/v1/event/?from=edge&_a=62515&_n=000000001625&email=person%2Bx@b%C3%BCcher.example\
         &_m=20.5&id=ext-77&favorite_color=orange%3Bblue&note=a%20b"
    );
    assert_eq!(request.header("user-agent"), "Tester/1");
    assert_eq!(request.header("referer"), "https://shop.test");
    assert_eq!(request.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(request.header("cookie"), "");
}

#[test]
fn a_query_becomes_no_longer_than_it_must() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = start(&backend, "");
    let bare = "-._~!$()*,/:@?".repeat(250);
    let encoded = format!("{bare}%26%3B%3D%2B%25%23%27%20x");
    for query in [format!("_a=62515&_n=a&note={bare}"), format!("_a=62515&_n=a&note={encoded}")] {
        assert_eq!(edge.event(&query).verdict(), "accepted");
        assert_eq!(ends(&edge).1, json!(0));
        let taken = backend.taken();
        let target = taken.last().unwrap().target.clone();
        assert_eq!(target, format!("/v1/event/?from=edge&{query}"));
    }
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

    // An operator has found out that the backend did not count the event, and replays its dead
    // letter while the edge runs.
    backend.script(|_| Act::Take);
    let (code, said) = dead(&edge, "replay");
    let done = "old: 1 delivered, 0 refused again, 0 not delivered\n";
    assert_eq!((code, said.as_str()), (Some(0), done));
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

/// The headers of the requests that a backend gets for one event on each way through the edge: the
/// fast path, and the ordinary one, which a request with `Upgrade` takes.
fn on_both_ways(setup: &Setup, upstream: &str, lines: &str) -> Vec<Request> {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let url = backend.url("/v1/event/");
    let table =
        format!("[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n{upstream}\n");
    let edge = setup.clone().upstreams(&table).start();
    for more in ["", "Upgrade: x\r\n"] {
        let lines = format!("{lines}{more}");
        let response = edge.connect().get("/v1/event/?_a=62515&_n=buy", &lines);
        assert_eq!(response.verdict(), "accepted");
    }
    ends(&edge);
    backend.taken()
}

#[test]
fn keep_host_sends_the_host_that_the_event_came_with() {
    let host = "Host: Track.Company.com:8080\r\n";
    for request in on_both_ways(&Setup::default(), "keep_host = true", host) {
        assert_eq!(request.header("host"), "Track.Company.com:8080");
    }
    for request in on_both_ways(&Setup::default(), "", host) {
        assert!(request.header("host").starts_with("127.0.0.1:"), "{request:?}");
    }
    let anonymous = Setup::default().sections("[privacy]\ngpc = \"anonymize\"");
    let lines = format!("{host}Sec-GPC: 1\r\n");
    for request in on_both_ways(&anonymous, "keep_host = true", &lines) {
        assert!(request.header("host").starts_with("127.0.0.1:"), "{request:?}");
    }
}

#[test]
fn the_headers_of_context_headers_go_along_and_none_that_frames_the_request() {
    let names =
        "[events]\ncontext_headers = [\"Accept-Language\", \"Host\", \"Expect\", \"X-Region\"]";
    let setup = Setup::default().sections(names).edge("trusted_proxies = [\"127.0.0.1\"]");
    let lines = "Accept-Language: de-CH, de;q=0.9\r\nX-Region: eu\r\nX-Other: no\r\n";
    let requests = on_both_ways(&setup, "", lines);
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.header("accept-language"), "de-CH, de;q=0.9");
        assert_eq!((request.header("x-region"), request.header("x-other")), ("eu", ""));
        assert!(request.header("host").starts_with("127.0.0.1:"), "{request:?}");
    }
}

#[test]
fn the_host_is_in_the_wire_form_where_an_upstream_sends_it_on() {
    for (keep_host, expect) in [(true, json!("edge.test")), (false, Value::Null)] {
        let backend = RUNTIME.block_on(Backend::playing([]));
        let url = backend.url("/v1/event/");
        let tables = format!(
            "{}[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n\
             keep_host = {keep_host}\n",
            http_upstream(&backend, "compression = \"none\"")
        );
        let edge = Setup::default().upstreams(&tables).start();
        assert_eq!(edge.event("_a=62515&_n=buy").status, 200);
        edge.wait_delivered("collector");
        edge.wait_delivered("old");
        let taken = backend.taken();
        let batch = taken.iter().find(|request| request.method == "POST").unwrap();
        let event = batch.events().remove(0);
        assert_eq!(event["context"]["host"], expect, "{event}");
    }
}

#[test]
fn the_url_may_hold_the_portal_and_no_event_chooses_a_machine() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let table =
        |url: &str| format!("[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n");
    let url = backend.url("/{portal}/v1/event/?of={portal}");
    let edge = Setup::default().upstreams(&table(&url)).start();
    for portal in [62515, 56043] {
        assert_eq!(edge.event(&format!("_a={portal}&_n=buy")).status, 200);
    }
    assert_eq!(ends(&edge), (json!(2), json!(0)));
    let mut targets: Vec<String> = backend.taken().into_iter().map(|r| r.target).collect();
    targets.sort_unstable();
    let expect = [56043, 62515].map(|of| format!("/{of}/v1/event/?of={of}&_a={of}&_n=buy"));
    assert_eq!(targets, expect);

    for (wrong, why) in [
        ("http://{portal}/", "is no URL"),
        ("http://10.0.0.{portal}/", "is no URL"),
        ("http://h:{portal}/", "is no URL"),
        ("https://{portal}@old.example/", "may hold {portal} in its host"),
        ("https://user:{portal}@old.example/", "may hold {portal} in its host"),
        ("https://old.example/#{portal}", "has a fragment"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = Setup::default().upstreams(&table(wrong)).write(dir.path());
        let output = command(&config, &["check"]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(told.contains(&format!("upstream.old.url: {why}")), "{told}");
    }
    let dir = tempfile::tempdir().unwrap();
    let config =
        Setup::default().upstreams(&table("https://{portal}.old.example/")).write(dir.path());
    assert_eq!(command(&config, &["check"]).output().unwrap().status.code(), Some(0));
}
