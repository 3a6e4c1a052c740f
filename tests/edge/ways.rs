//! One request, one fate (SPEC 2): by every way that a request can come, its answer and what is
//! stored of it are the same.

use crate::harness::{Edge, PATIENCE, Setup};
use crate::http::{Connection, Response};
use crate::tls_client::{CERT, Client, KEY};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
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
    queries.retain(|q| q.bytes().all(|b| b > b' ' && b != 0x7F && b != b'#') && q.len() < 30_000);
    queries
}

/// Queries with bytes that RFC 3986 does not allow in one. A character is a byte.
const RAW: &[&str] = &[
    "_a=62515&_n=a&q=\"b\"",
    "_a=62515&_n=a&q=<b>",
    "_a=62515&_n=a&q=`b`|{c}[d]\\^",
    "_a=62515&_n=\"a\"",
    "_a=62515&_n=<>",
    "_a=62515&_n=caf\u{c3}\u{a9}",
    "_a=62515&_n=a&city=caf\u{c3}\u{a9}",
    "_a=62515&_n=a&city=caf\u{e9}",
    "_a=62515&_n=a&city=caf\u{e9}&q=\u{c3}\u{a9}&r=%E9",
    "_a=62515&_n=caf\u{e9}",
    "_a=62515&_n=a&email=caf\u{e9}@a.test",
    "_a=62515&_n=a&id=\u{ff}\u{fe}",
    "_a=62515&_n=a&caf\u{e9}=b",
    "_a=62515&_n=a&\u{80}\u{ff}",
    "_a=62515\"&_n=a",
    "_a=1&_n=<a>",
];

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u8).collect()
}

/// Queries whose raw bytes count as if they were encoded: each as long as allowed, and longer.
fn long_queries() -> Vec<[Vec<u8>; 2]> {
    let begin = "_a=62515&_n=a&q=";
    let room = 8192 - begin.len();
    let long = |raw: &str| {
        let most = room / 3 / raw.chars().count();
        [most, most + 1].map(|count| latin1(&format!("{begin}{}", raw.repeat(count))))
    };
    ["\"", "<", "`", "\u{e9}", "\u{c3}\u{a9}"].map(long).to_vec()
}

fn raw_queries() -> Vec<Vec<u8>> {
    RAW.iter().map(|text| latin1(text)).chain(long_queries().concat()).collect()
}

/// The same query, with each byte encoded that RFC 3986 does not allow.
fn encoded(query: &[u8]) -> Vec<u8> {
    let is_allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=/?%".contains(byte);
    let mut encoded = Vec::new();
    for byte in query {
        match is_allowed(byte) {
            true => encoded.push(*byte),
            false => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    encoded
}

/// The ways a `GET` for a query can come over HTTP/1: a name, the bytes, and where they are torn.
fn ways(query: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    let request = |begin: &str, end: &str| [begin.as_bytes(), query, end.as_bytes()].concat();
    let plain = request("GET /v1/event/?", " HTTP/1.1\r\nHost: a\r\n\r\n");
    let (head, empty) = ("GET /v1/event/?", "Content-Length: 0\r\n");
    let half = plain.len() / 2;
    let absolute = request("GET HTTP://A:80/v1/event/?", " HTTP/1.1\r\nHost: a\r\n\r\n");
    vec![
        ("plain", plain.clone(), 0),
        ("torn", plain.clone(), half),
        ("HTTP/1.0", request(head, " HTTP/1.0\r\nHost: a\r\n\r\n"), 0),
        ("HTTP/1.0 without a host", request(head, " HTTP/1.0\r\n\r\n"), 0),
        ("absolute form", absolute, 0),
        ("an empty body", request(head, &format!(" HTTP/1.1\r\nHost: a\r\n{empty}\r\n")), 0),
        (
            "no chunks",
            request(head, " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            0,
        ),
        ("another case", request("GET /V1//event/?", " HTTP/1.1\r\nHost: a\r\n\r\n"), 0),
        ("a host in brackets", request(head, " HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), 0),
        ("behind an empty line", [b"\r\n".to_vec(), plain].concat(), 0),
    ]
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
        "Host: ",
        "Host: [::1",
        "Host: [::1]",
        "Host: a:8x",
        "Host: a:80",
        "Host: {a}",
        "Host: a,b",
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
        "GET /other?q=\"b\" HTTP/1.1",
        "GET v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET http:/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET http://b/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET ?_a=62515&_n=a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "HEAD /v1/event/?_a=62515&_n=\"a\" HTTP/1.1",
    ] {
        all.push(format!("{line}\r\nHost: a\r\n\r\n"));
    }
    all
}

/// A response without what differs from second to second, and from connection to connection.
fn fate(response: Response) -> Response {
    let mut response = comparable(response);
    response.headers.retain(|(name, _)| name != "connection");
    response
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
    two_ways_with("")
}

fn two_ways_with(lines: &str) -> [Edge; 2] {
    [true, false].map(|plain| {
        Setup::default()
            .portals(PORTALS)
            .edge(lines)
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

/// An event without its context, which the ways are free to fill differently.
fn contents(edge: &Edge) -> Vec<String> {
    let mut events = kept(edge);
    for event in &mut events {
        event["context"].take();
    }
    events.iter().map(Value::to_string).collect()
}

/// An edge for each way through it, and the address of its TLS listener.
fn two_ways_and_tls() -> [(Edge, SocketAddr); 2] {
    let tls = format!("tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    two_ways_with(&tls).map(|edge| {
        let log = edge.log();
        let address = log.split("listening on https://").nth(1).unwrap();
        let address = address.split(' ').next().unwrap().parse().unwrap();
        (edge, address)
    })
}

#[test]
fn a_query_has_one_fate_by_every_way_it_can_come() {
    let edges = two_ways_and_tls();
    let client = Client::with(&[Path::new(CERT)], rustls::ALL_VERSIONS, &["http/1.1"]);
    let vectors = queries().into_iter().map(String::into_bytes).filter(|query| query.len() < 9000);
    let (mut accepted, mut number_of_ways) = (0, 0);
    for query in vectors.chain(raw_queries()) {
        let shown = query.escape_ascii().to_string();
        let spelled = [query.clone(), encoded(&query)];
        let mut answers = Vec::new();
        for ((edge, tls), query) in edges.iter().flat_map(|e| spelled.iter().map(move |q| (e, q))) {
            let ways = ways(query);
            let mut over_tls = Connection::over(client.connect(*tls, "edge.test").unwrap());
            over_tls.send(&ways[0].1);
            answers.push(("TLS", fate(over_tls.read("GET"))));
            for (way, request, torn) in ways {
                let mut connection = edge.connect();
                connection.send(&request[..torn]);
                connection.send(&request[torn..]);
                answers.push((way, fate(connection.read("GET"))));
            }
        }
        for (way, answer) in &answers {
            assert_eq!(answers[0].1, *answer, "{shown}, {way}");
        }
        accepted += usize::from(answers[0].1.verdict() == "accepted");
        number_of_ways = answers.len() / 2;
    }
    for (edge, _) in &edges {
        let events = contents(edge);
        assert_eq!(events.len(), accepted * number_of_ways);
        for same in events.chunks(number_of_ways) {
            assert!(same.iter().all(|event| *event == same[0]), "{same:?}");
        }
    }
}

#[test]
fn raw_bytes_cost_what_they_break_and_nothing_else() {
    let edges = two_ways();
    for edge in &edges {
        let verdict = |query: &str| {
            let head = latin1(&format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let mut connection = edge.connect();
            connection.send(&head);
            connection.read("GET").verdict().to_owned()
        };
        assert_eq!(verdict("_a=62515&_n=caf\u{e9}"), "invalid_encoding");
        assert_eq!(verdict("_a=62515&_n=a&city=caf\u{e9}&q=\"b\"&r=\u{c3}\u{a9}"), "accepted");
        let events = kept(edge);
        let properties = serde_json::json!({"q": "\"b\"", "r": "\u{e9}"});
        assert_eq!(events[0]["properties"], properties);
        for [allowed, longer] in long_queries() {
            let [allowed, longer] =
                [allowed, longer].map(|q| q.iter().map(|&b| char::from(b)).collect::<String>());
            assert_eq!(verdict(&allowed), "accepted");
            assert_eq!(verdict(&longer), "query_too_long");
        }
    }
}

#[test]
fn explain_says_what_a_request_is_told() {
    let edge = Setup::default().portals(PORTALS).start();
    let config = edge.dir().join("edge.toml");
    for query in raw_queries() {
        // A command line holds text.
        let Ok(query) = String::from_utf8(query) else { continue };
        let mut connection = edge.connect();
        connection.send(format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let told = connection.read("GET").verdict().to_owned();
        let arguments = ["explain", "--json", &format!("/v1/event/?{query}")];
        let output = crate::harness::command(&config, &arguments).output().unwrap();
        let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = explained.get("reason").unwrap_or(&explained["verdict"]);
        assert_eq!(*said, told, "{query}");
    }
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
