//! SPEC 1: each exchange runs against the origin directly and through the edge. Both must be equal,
//! except for the differences listed here by name.

use crate::corpus::{self, Case};
use crate::harness::Setup;
use crate::nginx::Nginx;
use crate::wire::{Message, Origin, exchange};
use std::net::SocketAddr;

/// Headers of a request that the edge adds, changes or removes, and why.
const REQUEST_DIFFERENCES: &[&str] = &[
    // How the edge describes the client to the origin (SPEC 1).
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    // Fields of one hop, between the client and the edge (RFC 9110, section 7.6.1).
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "proxy-authorization",
    "http2-settings",
    // The message's framing, chosen anew for each hop; what it frames is compared.
    "transfer-encoding",
];
/// Headers of a response that the edge adds, changes or removes, and why.
const RESPONSE_DIFFERENCES: &[&str] = &[
    // Fields of one hop, between the edge and the client.
    "connection",
    "keep-alive",
    "proxy-connection",
    // The message's framing.
    "transfer-encoding",
];
// The HTTP version is that of each hop, and may differ as well.

/// A message without the parts that may differ.
fn without(mut message: Message, differences: &[&str]) -> Message {
    message.headers.retain(|(name, _)| !differences.contains(&&*name.to_ascii_lowercase()));
    message.start = message.start.replace("HTTP/1.0", "HTTP/1.1");
    message
}

/// What the client was answered, without the `Date` that the edge adds to a final answer of an
/// origin that has sent none (RFC 9110, section 6.6.1).
fn undated([direct, mut through]: [Vec<Message>; 2]) -> [Vec<Message>; 2] {
    if let (Some(direct), Some(through)) = (direct.last(), through.last_mut())
        && direct.header("date").is_none()
        && direct.status() != 101
    {
        let before = through.headers.len();
        through.headers.retain(|(name, _)| name != "Date");
        assert_eq!(through.headers.len(), before - 1, "{through:?}");
    }
    [direct, through]
}

/// The differences between an exchange with the origin and the same exchange through the edge.
fn compare(case: &Case, origin: &Origin, edge: SocketAddr) -> Vec<String> {
    let text = String::from_utf8_lossy(&case.request);
    let mut words = text.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    origin.on(target, case.script.clone());
    let ask = |address| {
        let responses = exchange(address, method, &case.request);
        (origin.take_seen(), responses)
    };
    let (direct, through) = (ask(origin.address), ask(edge));
    let mut differences = Vec::new();
    let mut hold = |what: &str, [direct, through]: [Vec<Message>; 2]| {
        if direct != through {
            let name = case.name;
            differences.push(format!("{name} ({target}): {what}\n  {direct:?}\n  {through:?}"));
        }
    };
    let clean = |messages: Vec<Message>, names: &[&str]| -> Vec<_> {
        messages.into_iter().map(|message| without(message, names)).collect()
    };
    assert_eq!(direct.0.len(), 1, "{}: the origin understands the request", case.name);
    let asked = [direct.0, through.0].map(|seen| clean(seen, REQUEST_DIFFERENCES));
    let answered = [direct.1, through.1].map(|seen| clean(seen, RESPONSE_DIFFERENCES));
    hold("the origin was asked", asked);
    hold("the client was answered", undated(answered));
    differences
}

fn check(cases: &[Case]) {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let differences: Vec<String> =
        cases.iter().flat_map(|case| compare(case, &origin, edge.address)).collect();
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// What nginx answers, directly and through the edge.
#[test]
fn nginx_answers_through_the_edge_as_it_does_itself() {
    let nginx = Nginx::start();
    std::fs::write(nginx.files().join("page"), "0123456789".repeat(1000)).unwrap();
    let edge = Setup::default().origin(nginx.address).start();
    let mut differences = Vec::new();
    for (method, target, lines) in [
        ("GET", "/files/page", ""),
        ("HEAD", "/files/page", ""),
        ("GET", "/files/page", "Range: bytes=5-9\r\n"),
        ("GET", "/files/page", "Range: bytes=0-1,5-6\r\n"),
        ("GET", "/files/page", "Range: bytes=99999-\r\n"),
        ("GET", "/files/page", "If-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT\r\n"),
        ("GET", "/files/page", "If-None-Match: *\r\n"),
        ("GET", "/files/page", "If-Match: \"other\"\r\n"),
        ("GET", "/files/page", "Accept-Encoding: gzip\r\n"),
        ("GET", "/files/missing", ""),
        ("GET", "/files", ""),
        ("GET", "/files//page", ""),
        ("GET", "/files/../files/page", ""),
        ("GET", "/files/%70age", ""),
        ("GET", "/files/page?a=b", ""),
        ("POST", "/files/page", "Content-Length: 0\r\n"),
        ("OPTIONS", "/files/page", ""),
        ("PROPFIND", "/files/page", ""),
        ("GET", "/anything", ""),
        ("GET", "/x%00", ""),
        ("GET", "/../x", ""),
    ] {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: edge.test\r\n{lines}Connection: close\r\n\r\n"
        );
        let ask = |address| {
            let answers = exchange(address, method, head.as_bytes());
            answers.into_iter().map(|m| without(m, RESPONSE_DIFFERENCES)).collect::<Vec<_>>()
        };
        let (direct, through) = (ask(nginx.address), ask(edge.address));
        if boundaryless(&direct) != boundaryless(&through) {
            differences.push(format!("{head}  {direct:?}\n  {through:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// nginx numbers the boundary of each multipart answer anew, and the two answers may be of
/// different seconds.
fn boundaryless(answers: &[Message]) -> Vec<Message> {
    let mut answers = answers.to_vec();
    for answer in &mut answers {
        let dates = answer.headers.iter_mut().filter(|(name, _)| name == "Date");
        dates.for_each(|(_, date)| date.clear());
        let kind = answer.header("content-type").unwrap_or_default().to_owned();
        if let Some((_, boundary)) = kind.split_once("boundary=") {
            answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
            let body = String::from_utf8(std::mem::take(&mut answer.body)).unwrap();
            answer.body = body.replace(boundary, "").into_bytes();
        }
    }
    answers
}

#[test]
fn what_is_said_of_one_connection_ends_with_it() {
    let origin = Origin::start();
    origin.answer(
        "/a",
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, Upgrade\r\nX-Hop: a\r\nUpgrade: h2c\r\n\
          Keep-Alive: timeout=5\r\nX-Kept: b\r\nContent-Length: 0\r\n\r\n",
    );
    let edge = Setup::default().origin(origin.address).start();
    let head = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, TE\r\nX-Hop: a\r\nTE: gzip\r\n\
                Proxy-Authorization: b\r\nX-Kept: b\r\n\r\n";
    let response = exchange(edge.address, "GET", head.as_bytes()).remove(0);
    let request = origin.take_seen().remove(0);
    for message in [&request, &response] {
        assert_eq!(message.header("x-kept"), Some("b"));
        for name in ["x-hop", "te", "upgrade", "keep-alive", "proxy-authorization"] {
            assert_eq!(message.header(name), None, "{name} of {}", message.start);
        }
    }
}

/// A change that Pingora makes and that no setting prevents. When this test fails, Pingora no
/// longer makes it.
#[test]
fn what_pingora_changes_is_known() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    // The fragment is cut off: no target has one (RFC 9112, section 3.2).
    exchange(edge.address, "GET", b"GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(origin.take_seen()[0].start, "GET /a?b HTTP/1.1");
}

/// RFC 9110, section 6.6.1: caches compute the freshness of an answer from its `Date`.
#[test]
fn an_answer_of_the_origin_has_the_date_of_the_origin() {
    const EPOCH: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    let dated = |status: &str, lines: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nDate: {EPOCH}\r\n{lines}\r\n{body}").into_bytes()
    };
    let origin = Origin::start();
    let sized = dated("200 OK", "Content-Length: 2\r\n", "ok");
    let hints = b"HTTP/1.1 103 Early Hints\r\nDate: then\r\n\r\n".to_vec();
    origin.answer("/sized", &sized);
    origin.answer("/hinted", &[hints, sized].concat());
    origin.answer("/chunked", &dated("200 OK", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"));
    origin.answer("/none", &dated("204 No Content", "", ""));
    origin.answer("/same", &dated("304 Not Modified", "", ""));
    origin.answer("/broken", &dated("200 OK", "Content-Length: 1\r\nContent-Length: 2\r\n", "ok"));
    origin.answer("/unasked", &dated("101 Switching Protocols", "Upgrade: a\r\n", ""));
    origin.answer("/undated", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let edge = Setup::default().origin(origin.address).start();
    let mut kept = edge.connect();
    for (target, status, is_origins) in [
        ("/sized", 200, true),
        ("/undated", 200, false),
        ("/chunked", 200, true),
        ("/none", 204, true),
        ("/same", 304, true),
        ("/hinted", 200, true),
        // In these the edge answers in place of the origin.
        ("/broken", 502, false),
        ("/unasked", 502, false),
        ("/v1/event/?_a=62515&_n=a", 200, false),
    ] {
        for head in [
            "HTTP/1.1\r\nHost: a",
            "HTTP/1.1\r\nHost: a\r\nConnection: close",
            "HTTP/1.0",
            "HTTP/1.0\r\nConnection: keep-alive",
        ] {
            let request = format!("GET {target} {head}\r\n\r\n");
            let answer = exchange(edge.address, "GET", request.as_bytes()).pop().unwrap();
            assert_eq!(answer.status(), status, "{request}");
            let dates: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "Date").collect();
            assert_eq!(dates.len(), 1, "{request}: {answer:?}");
            assert_eq!(dates[0].1 == EPOCH, is_origins, "{request}: {answer:?}");
        }
        // One after the other on one connection.
        if status != 502 && target != "/hinted" {
            let answer = kept.get(target, "");
            assert_eq!(answer.status, status, "{target}");
            assert_eq!(answer.header("date") == Some(EPOCH), is_origins, "{target}");
        }
    }
}

/// Targets that Pingora's parser refuses, and what the origin gets for each: as little as possible
/// is encoded. A character is a byte.
#[test]
fn a_target_with_any_bytes_reaches_the_origin() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    for (target, expect) in [
        ("/p?q=\"a\"", "/p?q=%22a%22"),
        ("/p?q=<a>", "/p?q=%3Ca%3E"),
        ("/<p>`", "/%3Cp%3E%60"),
        ("/p\"|{}^\\[]?`|{}^\\[]", "/p\"|{}^\\[]?`|{}^\\[]"),
        ("/caf\u{e9}?\u{ff}", "/caf%E9?%FF"),
        ("/caf\u{c3}\u{a9}?\u{c3}\u{a9}", "/caf\u{c3}\u{a9}?\u{c3}\u{a9}"),
        ("http://EDGE.test:80/a?b", "/a?b"),
        ("HTTP://edge.test", "/"),
        ("http://edge.test?b=\"", "/?b=%22"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        let head: Vec<u8> = head.chars().map(|c| c as u8).collect();
        assert_eq!(exchange(edge.address, "GET", &head)[0].status(), 204, "{target}");
        let seen = origin.take_seen().remove(0);
        assert_eq!(seen.start, format!("GET {expect} HTTP/1.1"), "{target}");
        assert_eq!(seen.header("host"), Some("edge.test"), "{target}");
        assert_eq!(seen.header("x-forwarded-host"), Some("edge.test"), "{target}");
    }
    let head = b"GET http://edge.test/a HTTP/1.0\r\n\r\n";
    assert_eq!(exchange(edge.address, "GET", head)[0].status(), 204);
    assert_eq!(origin.take_seen()[0].header("host"), Some("edge.test"));
    // A request without a host gets that of the origin: HTTP/1.1 needs one.
    assert_eq!(exchange(edge.address, "GET", b"GET /a HTTP/1.0\r\n\r\n")[0].status(), 204);
    let seen = origin.take_seen().remove(0);
    assert_eq!(seen.header("host"), Some(&*origin.address.to_string()));
    assert_eq!(seen.header("x-forwarded-host"), None);
    let head = b"OPTIONS http://edge.test HTTP/1.1\r\nHost: edge.test\r\n\r\n";
    assert_eq!(exchange(edge.address, "OPTIONS", head)[0].status(), 204);
    assert_eq!(origin.take_seen()[0].start, "OPTIONS * HTTP/1.1");
}

#[test]
fn the_last_hop_of_a_trace_is_the_one_it_names() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    for (method, hops, expect) in [
        ("OPTIONS", "2", Some("1")),
        ("TRACE", "1", Some("0")),
        ("OPTIONS", "0", None),
        ("TRACE", "0", None),
        ("GET", "0", Some("0")),
        ("OPTIONS", "many", Some("many")),
    ] {
        let head = format!("{method} /a HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\n\r\n");
        let status = exchange(edge.address, method, head.as_bytes())[0].status();
        let seen = origin.take_seen();
        let got = seen.first().and_then(|request| request.header("max-forwards"));
        assert_eq!(got, expect, "{method} {hops}");
        assert_eq!(status, if expect.is_some() { 204 } else { 405 }, "{method} {hops}");
    }
}

#[test]
fn a_request_reaches_the_origin_as_it_was_sent() {
    check(&corpus::request_lines());
    check(&corpus::request_headers());
    check(&corpus::request_bodies());
}

#[test]
fn a_response_reaches_the_client_as_it_was_sent() {
    check(&corpus::response_framing());
    check(&corpus::response_headers());
}
