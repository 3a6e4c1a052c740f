//! The answer to a request and the event that is stored do not depend on the way by which the
//! request comes ("one request, one fate", SPEC 2).

mod http2;
mod requests;

use crate::delivery::RUNTIME;
use crate::harness::{Edge, PATIENCE, Setup, example, kill, wait_for};
use crate::http::{Connection, Response};
use crate::tls_client::{CERT, Client, KEY};
use http2::AnyClient;
use requests::{encoded, latin1, long_queries, queries, raw_queries, requests, ways};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PORTALS: &str = "portals = [62515]\n[[portal]]\nid = 1001\nevents = [\"signup*\"]\n";

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

/// The stored event, without the fields that are new for each event.
fn kept(edge: &Edge) -> Vec<Value> {
    edge.wait_delivered("file");
    sorted_events(edge.dir())
}

/// The events in the files of this folder, without the fields that are new for each event.
fn sorted_events(dir: &Path) -> Vec<Value> {
    let mut events = Edge::events_in_files(dir);
    for event in &mut events {
        event["id"].take();
        event["received_at"].take();
    }
    // Batches may be delivered in another order.
    events.sort_by_key(Value::to_string);
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

/// A TLS client of HTTP/1.1.
fn tls_client() -> Client {
    Client::with(&[Path::new(CERT)], rustls::ALL_VERSIONS, &["http/1.1"])
}

/// Sends all requests at once, and again those behind one whose answer closes the connection.
fn pipelined<S: Read + Write>(
    connect: impl Fn() -> Connection<S>,
    mut requests: &[(&'static str, Vec<u8>)],
) -> Vec<(&'static str, Response)> {
    let mut answers = Vec::new();
    while !requests.is_empty() {
        let mut connection = connect();
        let bytes: Vec<&[u8]> = requests.iter().map(|(_, bytes)| &bytes[..]).collect();
        // The edge may close before it has read all.
        let _ = connection.try_send(&bytes.concat());
        while let Some(((way, _), rest)) = requests.split_first() {
            let answer = connection.read("GET");
            let is_last = answer.header("connection") == Some("close");
            answers.push((*way, fate(answer)));
            requests = rest;
            if is_last {
                break;
            }
        }
    }
    answers
}

/// One edge, and what sends requests to it.
struct Target {
    edge: Edge,
    tls: SocketAddr,
    tls_client: Client,
    http2: http2::Clients,
}

impl Target {
    fn new((edge, tls): (Edge, SocketAddr)) -> Target {
        let http2 = http2::Clients::new(edge.address, tls);
        Target { edge, tls, tls_client: tls_client(), http2 }
    }

    /// The answers to a query, one for each way by which it can come.
    fn answers(&mut self, query: &[u8]) -> Vec<(&'static str, Response)> {
        let mut answers = Vec::new();
        let ways = ways(query);
        for (way, request, torn) in &ways {
            let mut connection = self.edge.connect();
            connection.send(&request[..*torn]);
            connection.send(&request[*torn..]);
            answers.push((*way, fate(connection.read("GET"))));
        }
        let mut all: Vec<_> = ways.into_iter().map(|(way, request, _)| (way, request)).collect();
        answers.extend(pipelined(|| self.edge.connect(), &all));
        let ends = ["HTTP/1.0 without a host", "no chunks", "a host in brackets"];
        all.retain(|(way, _)| !ends.contains(way));
        // The answer to this query closes the connection.
        all.sort_by_key(|(way, _)| *way == "HTTP/1.0");
        let over_tls = || self.tls_client.connect(self.tls, "edge.test").unwrap();
        answers.extend(pipelined(|| Connection::over(over_tls()), &all));
        let http2 = RUNTIME.block_on(self.http2.ask(query));
        answers.extend(http2.into_iter().map(|(way, answer)| (way, fate(answer))));
        answers
    }
}

#[test]
fn a_query_has_one_fate_by_every_way_it_can_come() {
    let mut edges = two_ways_and_tls().map(Target::new);
    let vectors = queries().into_iter().map(String::into_bytes).filter(|query| query.len() < 9000);
    let (mut accepted, mut number_of_ways) = (0, 0);
    for query in vectors.chain(raw_queries()) {
        let shown = query.escape_ascii().to_string();
        let spelled = [query.clone(), encoded(&query)];
        let mut answers = Vec::new();
        for edge in &mut edges {
            answers.extend(spelled.iter().flat_map(|query| edge.answers(query)));
        }
        for (way, answer) in &answers {
            assert_eq!(answers[0].1, *answer, "{shown}, {way}");
        }
        accepted += usize::from(answers[0].1.verdict() == "accepted");
        number_of_ways = answers.len() / 2;
    }
    println!("{number_of_ways} ways to each of two edges");
    for Target { edge, .. } in &edges {
        let events = contents(edge);
        assert_eq!(events.len(), accepted * number_of_ways);
        // Two queries may hold the same event.
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        events.into_iter().for_each(|event| *counts.entry(event).or_default() += 1);
        for (event, count) in counts {
            assert_eq!(count % number_of_ways, 0, "{event}");
        }
    }
}

/// How requests come to one of several edges.
#[derive(Debug, Clone, Copy)]
enum Over {
    Http1,
    Http1Tls,
    Http2,
    Http2Tls,
}

/// The answer to a request, which must be one that HTTP/2 has where it comes over HTTP/2.
fn answer_over(over: Over, (edge, tls): &(Edge, SocketAddr), request: &str) -> Response {
    let asked = || vec![http2::translated(request).unwrap()];
    let method = request.split(' ').next().unwrap();
    fate(match over {
        Over::Http1 => answer(edge, request),
        Over::Http1Tls => {
            let stream = tls_client().connect(*tls, "edge.test").unwrap();
            let mut connection = Connection::over(stream);
            connection.send(request.as_bytes());
            connection.read(method)
        }
        Over::Http2 => RUNTIME.block_on(async {
            AnyClient::in_clear(edge.address).await.ask_all(asked()).await.remove(0)
        }),
        Over::Http2Tls => RUNTIME
            .block_on(async { AnyClient::over_tls(*tls).await.ask_all(asked()).await.remove(0) }),
    })
}

#[test]
fn an_odd_request_has_one_fate_over_http2_and_tls() {
    let overs = [Over::Http1, Over::Http1Tls, Over::Http2, Over::Http2Tls];
    let edges: Vec<_> =
        overs.into_iter().flat_map(|o| two_ways_and_tls().map(|e| (o, e))).collect();
    let (both, http1_alone): (Vec<_>, Vec<_>) =
        requests().into_iter().partition(|request| http2::translated(request).is_some());
    println!("{} requests over HTTP/1 and HTTP/2, {} over HTTP/1", both.len(), http1_alone.len());
    let all = |requests: &[String], edges: &[(Over, (Edge, SocketAddr))]| {
        for request in requests {
            let expected = answer_over(Over::Http1, &edges[0].1, request);
            for (over, edge) in &edges[1..] {
                let found = answer_over(*over, edge, request);
                assert_eq!(expected, found, "{over:?} {request:?}");
            }
        }
        let expected = kept(&edges[0].1.0);
        for (over, (edge, _)) in &edges[1..] {
            assert_eq!(expected, kept(edge), "{over:?}");
        }
    };
    all(&both, &edges);
    all(&http1_alone, &edges[..4]);
}

/// `examples/embed.rs`: the plugin inside another proxy, which has Pingora's own server.
#[test]
fn a_query_has_the_same_fate_in_a_host_of_the_plugin() {
    let edge = two_ways().into_iter().next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let portals = dir.path().join("portals.toml");
    std::fs::write(&portals, PORTALS).unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let data = dir.path().join("data");
    let mut child = Command::new(example("embed"))
        .args([listen.to_string(), "127.0.0.1:1".to_owned()])
        .args([&portals, &data])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the proxy to listen", || TcpStream::connect(listen).is_ok());
    let vectors = queries().into_iter().map(String::into_bytes).filter(|query| query.len() < 9000);
    let mut accepted = 0;
    for query in vectors.chain(raw_queries()) {
        // Pingora's own server refuses some bytes that the edge takes.
        let query = String::from_utf8(encoded(&query)).unwrap();
        let head = format!("GET /v1/event/?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
        let [own, hosted] = [edge.address, listen].map(|address| {
            let mut connection = Connection::open(address);
            connection.send(head.as_bytes());
            fate(connection.read("GET"))
        });
        assert_eq!(own, hosted, "{query}");
        accepted += usize::from(own.verdict() == "accepted");
    }
    let events = || sorted_events(&data);
    wait_for("all events to be delivered", || events().len() == accepted);
    assert_eq!(kept(&edge), events());
    kill(&child, rustix::process::Signal::TERM);
    assert!(child.wait().unwrap().success());
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
    let vectors = queries().into_iter().map(String::into_bytes);
    for query in vectors.chain(raw_queries()) {
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
fn explain_takes_an_address_with_an_equals_sign_in_its_path_for_an_address() {
    let origin = crate::wire::Origin::start();
    let edge = Setup::default().portals(PORTALS).origin(origin.address).start();
    let config = edge.dir().join("edge.toml");
    let query = "_a=62515&_n=b&u=http://b.test/?c=d";
    for path in
        ["/v1/event;a=b/", "/v1/event/x=y/", "/v1/event/&c=d", "/a=b", "/ab", "//b/v1/event/"]
    {
        let mut connection = edge.connect();
        let head = format!("GET {path}?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.send(head.as_bytes());
        let told = connection.read("GET");
        let told = told.header("x-event-verdict").is_some().then(|| told.verdict().to_owned());
        for begin in ["", "https://a.test", "HTTP://a.test:80", "a.test"] {
            if path.starts_with("//") && !begin.is_empty() {
                continue;
            }
            let text = format!("{begin}{path}?{query}");
            let arguments = ["explain", "--json", &text];
            let output = crate::harness::command(&config, &arguments).output().unwrap();
            let page = crate::admin::post_explain(&edge, &text);
            let page = String::from_utf8(page.body).unwrap();
            let Some(told) = &told else {
                assert_eq!(output.status.code(), Some(2), "{text}");
                assert!(page.contains("this address is not below events.path"), "{text}: {page}");
                continue;
            };
            let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
            let said = explained.get("reason").unwrap_or(&explained["verdict"]);
            assert_eq!(*said, **told, "{text}");
            assert!(page.contains(told.as_str()), "{text}: {page}");
        }
    }
    let bare = crate::harness::command(&config, &["explain", query]).output().unwrap();
    assert!(bare.status.success(), "{bare:?}");
}

#[test]
fn a_client_that_wants_no_more_is_answered_and_left_on_both_ways() {
    let edges = two_ways();
    let event = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let refused = event.replace("62515", "1");
    for request in [event, &refused] {
        let answers = [0, 1].map(|way| {
            let mut connection = edges[way].connect();
            // No request behind the refused one is answered.
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
    // So long that all answers together exceed the buffers of any system.
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
        // Writes until the buffers of both sides are full, and the edge waits for us to read.
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
