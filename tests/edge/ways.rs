//! The fast path and Pingora's path give the same verdicts: for the whole corpus, answers and
//! stored events are equal.

use crate::harness::{Edge, PATIENCE, Setup};
use crate::http::Response;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PORTALS: &str = "portals = [62515]\n[[portal]]\nid = 1001\nevents = [\"signup*\"]\n";

/// Every query of the vectors.
fn queries() -> Vec<String> {
    let mut queries = Vec::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let vectors = table.values().filter_map(|value| value.as_array()).flatten();
        let query = |vector: &toml::Value| Some(vector.get("query")?.as_str()?.to_owned());
        queries.extend(vectors.filter_map(query));
    }
    assert!(queries.len() >= 300, "{}", queries.len());
    // What cannot stand in a request line never arrives as a query.
    queries.retain(|q| q.bytes().all(|b| b.is_ascii_graphic() && b != b'#') && q.len() < 30_000);
    queries
}

/// Requests that are unusual in other ways than by their query.
fn requests() -> Vec<String> {
    let event = "/v1/event/?_a=62515&_n=a";
    let mut all: Vec<String> = [
        "Host: a",
        "Host: a\r\nHost: b",
        "host: a",
        "X: y",
        "Host: a\r\nConnection: keep-alive",
        "Host: a\r\nConnection: Close",
        "Host: a\r\nConnection: close\r\nConnection: keep-alive",
        "Host: a\r\nConnection: close, x",
        "Host: a\r\nUser-Agent: b \r\nX:\r\nY: ",
        "Host: a\r\nUser-Agent:  b \t\r\nX:\tc",
        "Host: a\r\nUser-Agent: b\r\n c",
        "Host: a\r\nUser-Agent: b\nX: y",
        "Host: a\r\nConnection: keep-alive\r\nConnection: close",
        "Host: a\r\nDNT: 0\r\nDNT: 1\r\nX-Moz: prefetch\r\nReferer:\r\nReferer: x",
        "Host: a\r\nAccept: application/json",
        "Host: a\r\nAccept: image/*",
        "Host: a\r\nUser-Agent: a\u{9b}31m\u{202e}b",
        "Host: a\r\nReferer: https://ann@a.test:8443/x?y#z",
        "Host: a\r\nExpect: 100-continue",
        "Host: a\r\nContent-Length: 0",
        "Host: a\r\nSec-GPC: 1\r\nDNT: 1\r\nPurpose: prefetch",
        "Host: a\r\nUser-Agent: \r\nReferer: https://a.test/?q",
        "Host: a\r\nUser-Agent: caf\u{e9}",
        "Host: a\r\nX-Forwarded-For: 1.2.3.4",
        "Host: a\r\nCookie: a=b\r\nAuthorization: Basic eA==",
    ]
    .iter()
    .map(|headers| format!("GET {event} HTTP/1.1\r\n{headers}\r\n\r\n"))
    .collect();
    for line in [
        "GET /v1/event HTTP/1.1",
        "GET /V1//event/ HTTP/1.1",
        "GET /v1/event/x?_a=62515 HTTP/1.1",
        "GET http://a/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET /v1/event/?_a=1001&_n=b HTTP/1.1",
        "GET /v1/event/?_a=1001&_n=signup HTTP/1.1",
        "POST /v1/event/ HTTP/1.1",
        "HEAD /v1/event/?_a=62515&_n=a HTTP/1.1",
        "OPTIONS /v1/event/ HTTP/1.1",
        "GET /v1/event/?_a=62515&_n=a#b HTTP/1.1",
        "GET /other HTTP/1.1",
    ] {
        all.push(format!("{line}\r\nHost: a\r\n\r\n"));
    }
    all
}

/// A response without what differs from second to second.
fn comparable(mut response: Response) -> Response {
    response.headers.retain(|(name, _)| name != "date");
    response.headers.sort();
    response
}

fn answer(edge: &Edge, request: &str) -> Response {
    let mut connection = edge.connect();
    connection.send(request.as_bytes());
    comparable(connection.read(request.split(' ').next().unwrap()))
}

/// What was kept, without what is new for each event.
fn kept(edge: &Edge) -> Vec<Value> {
    edge.wait_delivered("file");
    let mut events = Edge::events_in_files(edge.dir());
    for event in &mut events {
        event["id"].take();
        event["received_at"].take();
    }
    events
}

fn two_ways() -> [Edge; 2] {
    [true, false].map(|plain| {
        Setup::default()
            .portals(PORTALS)
            .edge(&format!("answer_plain = {plain}"))
            .spool("linger_ms = 0\ndurability = \"interval\"")
            .start()
    })
}

#[test]
fn every_request_is_answered_and_kept_alike_on_both_ways() {
    let edges = two_ways();
    let queries = queries().into_iter().map(|query| {
        format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n\r\n")
    });
    let mut count = 0;
    for request in queries.chain(requests()) {
        let [front, pingora] = [0, 1].map(|way| answer(&edges[way], &request));
        assert_eq!(front, pingora, "{request:?}");
        count += 1;
    }
    let [front, pingora] = [0, 1].map(|way| kept(&edges[way]));
    assert_eq!(front, pingora);
    assert!(front.len() > 100, "{} of {count} requests were kept", front.len());
}

#[test]
fn a_client_that_wants_no_more_is_answered_and_left_on_both_ways() {
    let edges = two_ways();
    let event = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let refused = event.replace("62515", "1");
    for request in [event, &refused] {
        let answers = [0, 1].map(|way| {
            let mut connection = edges[way].connect();
            // Nothing behind it is answered.
            connection.send(request.repeat(2).as_bytes());
            let answer = comparable(connection.read("GET"));
            assert!(connection.is_closed(), "{request:?}");
            answer
        });
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0].header("connection"), Some("close"));
    }
    assert_eq!(kept(&edges[0]).len(), 1);
}

#[test]
fn pipelined_requests_change_ways_without_losing_step() {
    let edges = two_ways();
    // Plain ones and others in turn, all sent at once: an unusual one among them may end the
    // connection, but nothing is answered out of turn.
    let plain = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = "HEAD /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";
    let wrong = "GET /v1/event/?_a=62515 HTTP/1.1\r\nHost: a\r\n\r\n";
    for order in [[plain, plain, wrong], [plain, head, plain], [wrong, wrong, plain]] {
        let answers = [0, 1].map(|way| {
            let mut connection = edges[way].connect();
            connection.send(order.concat().as_bytes());
            order.map(|request| comparable(connection.read(request.split(' ').next().unwrap())))
        });
        assert_eq!(answers[0], answers[1]);
    }
}

#[test]
fn a_client_that_reads_late_gets_each_answer_whole_and_once() {
    const REQUESTS: usize = 40_000;
    let edge = Setup::default().start();
    // So long that all of them are more than any system buffers.
    let cookie = "c".repeat(400);
    let request =
        format!("GET /v1/event/?_a=1&_n=a HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let (told, is_stuck) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        let all = request.repeat(REQUESTS);
        let mut rest = all.as_bytes();
        // Until the buffers of both sides are full: the edge waits for us to read.
        writer.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Ok(sent) = writer.write(rest) {
            rest = &rest[sent..];
            assert!(!rest.is_empty(), "all was taken");
        }
        told.send(()).unwrap();
        writer.set_write_timeout(None).unwrap();
        writer.write_all(rest).unwrap();
    });
    is_stuck.recv_timeout(PATIENCE).unwrap();
    let mut read = |bytes: usize| {
        let mut answer = vec![0; bytes];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    let mut first = Vec::new();
    while !first.ends_with(b"\r\n\r\n") {
        first.extend(read(1));
    }
    first.extend(read(pixelgate::internals::response::pixel::PIXEL.len()));
    let undated = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).into_owned();
        text.split("\r\n").filter(|line| !line.starts_with("Date: ")).collect::<String>()
    };
    for number in 1..REQUESTS {
        assert_eq!(undated(&read(first.len())), undated(&first), "answer {number}");
    }
    asking.join().unwrap();
}

#[test]
fn a_torn_request_is_answered_alike_on_both_ways() {
    let edges = two_ways();
    let request = "GET /v1/event/?_a=62515&_n=a&m=%20x HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
    for cut in 1..request.len() {
        let answers = [0, 1].map(|way| {
            let mut connection = edges[way].connect();
            connection.send(&request.as_bytes()[..cut]);
            connection.send(&request.as_bytes()[cut..]);
            comparable(connection.read("GET"))
        });
        assert_eq!(answers[0], answers[1], "torn at {cut}");
    }
}
