//! SPEC 4: every verdict has its status, headers and body, and the connection stays open.

use crate::harness::{Edge, Setup};
use crate::http::{Connection, Response};
use serde_json::Value;

const RULES: &str = r#"portals = [62515]
[[portal]]
id = 1001
events = ["signup*"]
[[portal]]
id = 1002
rate = { per_second = 1, burst = 1 }
[[portal]]
id = 1003
expires = 2020-01-01
"#;

fn assert_common(response: &Response) {
    let expect = [
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("access-control-allow-origin", "*"),
        (
            "access-control-expose-headers",
            "X-Event-Verdict, X-Event-Id, X-Event-Ignored, Retry-After",
        ),
        ("cross-origin-resource-policy", "cross-origin"),
        ("connection", "keep-alive"),
    ];
    for (name, value) in expect {
        assert_eq!(response.header(name), Some(value), "{name} of {response:?}");
    }
    assert_eq!(response.header("etag"), None);
    assert_eq!(response.header("last-modified"), None);
    assert!(response.header("date").is_some());
}

fn is_pixel(response: &Response) -> bool {
    response.header("content-type") == Some("image/gif")
        && response.body.len() == 43
        && response.body.starts_with(b"GIF89a")
}

/// Every rejection that a request alone can bring about, with its status.
fn rejections() -> Vec<(&'static str, String, u16)> {
    let path = |query: &str| format!("/v1/event/?{query}");
    let long = "x".repeat(8192);
    let many = "a=1&".repeat(101);
    vec![
        ("missing_portal", path("_n=a"), 400),
        ("invalid_portal", path("_a=x&_n=a"), 400),
        ("missing_event", path("_a=62515"), 400),
        ("invalid_event", path("_a=62515&_n=a%00"), 400),
        ("invalid_email", path("_a=62515&_n=a&email=nobody"), 400),
        ("invalid_revenue", path("_a=62515&_n=a&_m=ten"), 400),
        ("invalid_external_id", path("_a=62515&_n=a&id=%07"), 400),
        ("invalid_encoding", path("_a=62515&_n=%FF"), 400),
        ("conflicting_param", path("_a=62515&_a=62516&_n=a"), 400),
        ("too_many_params", path(&many), 400),
        ("portal_not_allowed", path("_a=1&_n=a"), 403),
        ("portal_not_allowed", path("_a=1003&_n=a"), 403),
        ("event_not_allowed", path("_a=1001&_n=login"), 403),
        ("unknown_path", "/v1/event/more?_a=62515&_n=a".to_owned(), 404),
        ("query_too_long", path(&format!("_a=62515&_n={long}")), 414),
    ]
}

#[test]
fn an_accepted_event_is_a_pixel_on_a_connection_that_stays() {
    let edge = Edge::start();
    let mut connection = edge.connect();
    for _ in 0..3 {
        let response = connection.get("/v1/event/?_a=62515&_n=buy", "");
        assert_eq!(response.status, 200);
        assert_eq!(response.verdict(), "accepted");
        assert!(is_pixel(&response), "{response:?}");
        assert_common(&response);
    }
}

#[test]
fn every_rejection_has_its_status_and_its_two_bodies_on_one_connection() {
    let edge = Setup::default().portals(RULES).start();
    let mut connection = edge.connect();
    for (reason, target, status) in rejections() {
        for accept in ["", "Accept: image/webp,*/*;q=0.8\r\n", "Accept: */*\r\n"] {
            let response = connection.get(&target, accept);
            assert_eq!((response.verdict(), response.status), (reason, status));
            assert!(is_pixel(&response), "{reason}: {response:?}");
            assert_common(&response);
        }
        for accept in [
            "application/json",
            "text/plain, */*",
            "application/problem+json;q=0.1",
            "text/html\r\nAccept: application/json",
        ] {
            let response = connection.get(&target, &format!("Accept: {accept}\r\n"));
            assert_eq!((response.verdict(), response.status), (reason, status));
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
            assert_eq!(response.header("x-event-ignored"), None);
            assert_common(&response);
            let problem: Value = serde_json::from_slice(&response.body).unwrap();
            assert_eq!(problem["reason"], reason);
            assert_eq!(problem["status"], status);
            assert!(problem["title"].is_string() && problem["detail"].is_string());
        }
    }
    let accepted = connection.get("/v1/event/?_a=62515&_n=a", "");
    assert_eq!(accepted.status, 200, "the connection is still good");
    assert_eq!(Edge::events_in_files(edge.dir()).len(), 0, "nothing refused is kept");
}

/// RFC 9110, section 12.5.1: what has a weight of 0 is not acceptable.
#[test]
fn a_document_that_accept_refuses_is_not_sent() {
    for plain in [true, false] {
        let edge = Setup::default().edge(&format!("answer_plain = {plain}")).start();
        let mut connection = edge.connect();
        for (accept, is_document) in [
            ("application/json;q=0", false),
            ("application/json; Q=0.0", false),
            ("application/problem+json;charset=utf-8 ;\tq=0.000, */*", false),
            ("text/plain;x=\"a;q=1\";q=0", false),
            ("text/html;x=\"a,application/json\"", false),
            ("text/plain;q=0, application/json;q=0.001", true),
            ("application/json;x=\"a,b;q=0\"", true),
            ("image/*;q=0, application/json", true),
            ("application/json;q=1;level=0", true),
        ] {
            let lines = format!("Accept: {accept}\r\n");
            let response = connection.get("/v1/event/?_a=1&_n=a", &lines);
            assert_eq!(response.verdict(), "portal_not_allowed");
            assert_eq!(is_pixel(&response), !is_document, "{accept}: {response:?}");
        }
    }
}

#[test]
fn a_problem_names_the_parameter_and_echoes_nothing() {
    let edge = Edge::start();
    let target = "/v1/event/?_a=62515&_n=a&email=secret-person";
    let response = edge.connect().get(target, "Accept: application/json\r\n");
    let text = String::from_utf8(response.body).unwrap();
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["param"], "email");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_rate_that_is_used_up_says_when_to_come_back() {
    let edge = Setup::default().portals(RULES).start();
    let mut connection = edge.connect();
    let responses: Vec<_> = (0..3).map(|_| connection.get("/v1/event/?_a=1002&_n=a", "")).collect();
    let limited = responses.iter().find(|r| r.status == 429).expect("a burst of three is limited");
    assert_eq!(limited.verdict(), "rate_limited");
    assert!(limited.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_common(limited);
}

#[test]
fn a_full_spool_is_overloaded_and_says_when_to_come_back() {
    // No disk has this much room, so the spool is full from the start.
    let edge = Setup::default().spool("free_bytes_min = \"8EiB\"").start();
    let response = edge.event("_a=62515&_n=a");
    assert_eq!((response.status, response.verdict()), (503, "overloaded"));
    assert!(response.header("retry-after").is_some());
    assert_common(&response);
    assert_eq!(edge.admin("/readyz").status, 503);
    assert_eq!(edge.admin("/livez").status, 200);
}

#[test]
fn sec_gpc_is_refused_where_the_operator_says_so() {
    let edge = Setup::default().sections("[privacy]\ngpc = \"reject\"").start();
    let mut connection = edge.connect();
    let response = connection.get("/v1/event/?_a=62515&_n=a", "Sec-GPC: 1\r\n");
    assert_eq!((response.status, response.verdict()), (403, "privacy_opt_out"));
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
}

#[test]
fn an_answer_counts_the_parameters_that_were_dropped() {
    for plain in [true, false] {
        let edge = Setup::default().edge(&format!("answer_plain = {plain}")).start();
        let mut connection = edge.connect();
        let mut check = |query: &str, expect: Option<&str>| {
            let response = connection.get(&format!("/v1/event/?_a=62515&_n=a{query}"), "");
            assert_eq!((response.status, response.verdict()), (200, "accepted"));
            assert_eq!(response.header("x-event-ignored"), expect, "{query}");
            assert_eq!(response.header("x-event-id"), None);
            assert_common(&response);
        };
        check("&color=red&empty=", None);
        check("&color=red&t=1", Some("1"));
        check("&First%20Name=Ann&_x=1&note=%00&token=hush&c%FF=1", Some("5"));
        check("&amp;x=1".repeat(12).as_str(), Some("12"));
    }
}

#[test]
fn an_answer_names_the_events_id_where_the_operator_wants_it_so() {
    for plain in [true, false] {
        let setup = Setup::default().sections("[response]\nevent_id = true");
        let edge = setup.edge(&format!("answer_plain = {plain}")).start();
        let mut connection = edge.connect();
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..3 {
            let response = connection.get("/v1/event/?_a=62515&_n=a&t=1", "");
            assert_eq!(response.header("x-event-ignored"), Some("1"));
            ids.push(response.header("x-event-id").expect("an id").to_owned());
            assert_common(&response);
        }
        let refused = connection.get("/v1/event/?_a=62515", "");
        assert_eq!((refused.status, refused.header("x-event-id")), (400, None));
        let head = connection.request("HEAD", "/v1/event/?_a=62515&_n=a", "");
        assert_eq!((head.status, head.header("x-event-id")), (200, None));
        edge.wait_delivered("file");
        let events = Edge::events_in_files(edge.dir());
        let kept: Vec<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert_eq!(kept, ids);
    }
}

#[test]
fn credentials_are_withheld_under_the_names_that_the_operator_lists() {
    let names = "[events]\nwithhold_params = [\"Pin\"]\nignore_params = []";
    let edge = Setup::default().sections(names).start();
    let response = edge.event("_a=62515&_n=a&pin=1234&t=5&token=x");
    assert_eq!((response.verdict(), response.header("x-event-ignored")), ("accepted", Some("1")));
    edge.wait_delivered("file");
    let event = Edge::events_in_files(edge.dir()).remove(0);
    assert_eq!(event["properties"], serde_json::json!({ "t": "5", "token": "x" }));
}

#[test]
fn head_gets_the_headers_of_a_pixel_and_records_nothing() {
    let edge = Edge::start();
    let mut connection = edge.connect();
    let get = connection.get("/v1/event/?_a=62515&_n=a", "");
    let head = connection.request("HEAD", "/v1/event/?_a=62515&_n=a", "");
    assert_eq!(head.status, 200);
    let of_the_pixel = |response: &Response| {
        let mut headers = response.headers.clone();
        headers.retain(|(name, _)| name != "date" && name != "x-event-verdict");
        headers
    };
    assert_eq!(of_the_pixel(&head), of_the_pixel(&get));
    assert_eq!(head.header("x-event-verdict"), None, "nothing was judged");
    let below = connection.request("HEAD", "/v1/event/more", "");
    assert_eq!((below.status, below.verdict()), (404, "unknown_path"));
    let row = edge.wait_delivered("file");
    assert_eq!(row["accepted"], 1);
}

#[test]
fn options_gets_a_preflight_that_lasts_a_day() {
    let edge = Edge::start();
    let lines = "Origin: https://shop.test\r\nAccess-Control-Request-Method: GET\r\n";
    let response = edge.connect().request("OPTIONS", "/v1/event/", lines);
    assert_eq!(response.status, 204);
    assert_eq!(response.header("access-control-max-age"), Some("86400"));
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    assert!(response.header("access-control-allow-methods").unwrap().contains("GET"));
}

#[test]
fn other_methods_are_not_allowed_and_their_bodies_are_dropped() {
    let edge = Edge::start();
    let mut connection = edge.connect();
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"] {
        let response = connection.request(method, "/v1/event/?_a=62515&_n=a", "");
        assert_eq!((response.status, response.verdict()), (405, "method_not_allowed"), "{method}");
        assert_eq!(response.header("allow"), Some("GET, HEAD, OPTIONS"));
    }
    let post = "POST /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    connection.send(format!("{post}hello").as_bytes());
    assert_eq!(connection.read("POST").status, 405);
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200, "still in step");
}

#[test]
fn post_is_judged_by_its_query_where_it_is_allowed() {
    let edge = Setup::default().sections("[events]\nmethods = [\"GET\", \"POST\"]").start();
    let post = |connection: &mut Connection, length: usize| {
        let head = format!(
            "POST /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.send(head.as_bytes());
        let _ = connection.try_send(&vec![b'x'; length]);
        connection.read("POST")
    };
    let mut connection = edge.connect();
    for length in [0, 1, 64 << 10] {
        let response = post(&mut connection, length);
        assert_eq!((response.status, response.verdict()), (200, "accepted"), "{length} bytes");
        assert_eq!(response.header("connection"), Some("keep-alive"), "{length} bytes");
    }
    let response = post(&mut connection, (64 << 10) + 1);
    assert_eq!((response.status, response.verdict()), (200, "accepted"));
    assert_eq!(response.header("connection"), Some("close"), "too much to read for nothing");
    let options = edge.connect().request("OPTIONS", "/v1/event/", "");
    assert!(options.header("allow").unwrap().contains("POST"));
}

#[test]
fn an_empty_body_and_no_verdict_header_where_the_operator_wants_it_so() {
    let edge =
        Setup::default().sections("[response]\nbody = \"empty\"\nverdict_header = false").start();
    let mut connection = edge.connect();
    for query in ["_a=62515&_n=a", "_a=1&_n=a"] {
        let response = connection.get(&format!("/v1/event/?{query}"), "");
        assert_eq!(response.header("content-length"), Some("0"));
        assert_eq!(response.header("content-type"), Some("image/gif"));
        assert_eq!(response.header("x-event-verdict"), None);
        assert_common(&response);
    }
}

#[test]
fn rejections_as_pixels_are_all_200_but_overloaded() {
    let pixels = Setup::default().portals(RULES).sections("[response]\nrejections = \"pixel\"");
    let edge = pixels.clone().start();
    let mut connection = edge.connect();
    for (reason, target, _) in rejections() {
        for lines in ["", "Accept: application/json\r\n"] {
            let response = connection.get(&target, lines);
            assert_eq!((response.status, response.verdict()), (200, reason));
            assert!(is_pixel(&response), "{reason}");
        }
    }
    let full = pixels.spool("free_bytes_min = \"8EiB\"").start();
    assert_eq!(full.event("_a=62515&_n=a").status, 503);
}
