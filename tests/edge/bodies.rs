//! Requests with bodies, whole and broken, and requests sent without waiting for answers: each is
//! answered in its turn, or refused and followed by nothing.

use crate::harness::{Edge, PATIENCE, Setup};
use crate::wire::{Act, Message, Origin, Script, exchange, read_head, read_responses};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

const EVENT: &str = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Sends each piece in a segment of its own, reads the answers to requests with these `methods`,
/// at most one for each, and closes.
fn answers(address: SocketAddr, pieces: &[&str], methods: &[&str]) -> Vec<Message> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut writer = stream.try_clone().unwrap();
    for piece in pieces {
        // Fails if the edge has refused and closed already.
        let _ = writer.write_all(piece.as_bytes());
        // Lets the edge read this piece before the next one is sent.
        std::thread::yield_now();
    }
    let mut reader = BufReader::new(stream);
    let all = methods.iter().flat_map(|method| read_responses(&mut reader, method)).collect();
    let _ = writer.shutdown(Shutdown::Both);
    all
}

/// As [`answers`], for requests after which the edge closes by itself.
fn refusal(address: SocketAddr, request: &str, cut: bool) -> Vec<Message> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    writer.write_all(request.as_bytes()).unwrap();
    if cut {
        writer.shutdown(Shutdown::Write).unwrap();
    }
    let mut reader = BufReader::new(stream);
    let mut all = Vec::new();
    loop {
        let more = read_responses(&mut reader, "GET");
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    assert_eq!(reader.read(&mut [0]).unwrap_or(0), 0);
    all
}

fn statuses(answers: &[Message]) -> Vec<u16> {
    answers.iter().map(Message::status).collect()
}

fn accepted(edge: &Edge) -> u64 {
    edge.wait_delivered("file")["accepted"].as_u64().unwrap()
}

/// Bodies that are no bodies, each with the header line that announces one, and whether the client
/// closes its side after it.
const BROKEN: &[(&str, &str, bool)] = &[
    (CHUNKED, "zz", false),
    (CHUNKED, "\r\nhello\r\n0\r\n\r\n", false),
    (CHUNKED, "5;a\nb\r\nhello\r\n0\r\n\r\n", false),
    (CHUNKED, "5\r\nhello0\r\n\r\n", false),
    (CHUNKED, "8000000000000000\r\nhello", false),
    (CHUNKED, "ffffffffffffffff\r\nhello", false),
    (CHUNKED, "10000000000000000\r\nhello", false),
    (CHUNKED, "5\r\nhello\r\nfffffffffffffff0\r\nhello", false),
    (CHUNKED, "00000000000000000000000000000000000\r\n\r\n", false),
    (CHUNKED, "0\r\nX\r\n\r\n", false),
    (CHUNKED, "0\r\nX : y\r\n\r\n", false),
    (CHUNKED, "", true),
    (CHUNKED, "5", true),
    (CHUNKED, "5\r", true),
    (CHUNKED, "5\r\nhe", true),
    (CHUNKED, "5\r\nhello\r\n", true),
    (CHUNKED, "5\r\nhello\r\n0\r\n", true),
    ("Content-Length: 5\r\n", "", true),
    ("Content-Length: 5\r\n", "hell", true),
];

#[test]
fn a_request_with_a_broken_body_is_refused_and_its_event_is_not_kept() {
    let origin = Origin::start();
    let edge = Setup::default()
        .sections("[events]\nmethods = [\"GET\", \"POST\"]")
        .origin(origin.address)
        .start();
    for line in [
        "GET /v1/event/?_a=62515&_n=a",
        "POST /v1/event/?_a=62515&_n=a",
        // The event is refused, too: it has no known portal.
        "GET /v1/event/?_a=1&_n=a",
        "GET /v1/event/more",
        "PUT /v1/event/?_a=62515&_n=a",
        "OPTIONS /v1/event/",
        // A request for the origin, which gets the body as far as it is sound.
        "POST /upload",
    ] {
        for (announced, body, cut) in BROKEN {
            let request = format!("{line} HTTP/1.1\r\nHost: a\r\n{announced}\r\n{body}");
            let behind = if *cut { "" } else { EVENT };
            let answers = refusal(edge.address, &format!("{request}{behind}"), *cut);
            assert_eq!(statuses(&answers), [400], "{request:?}");
            assert_eq!(answers[0].header("connection"), Some("close"), "{request:?}");
            assert_eq!(answers[0].header("x-event-verdict"), None, "{request:?}");
        }
    }
    assert_eq!(accepted(&edge), 0);
    let refused = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let count = "pixelgate_connections_refused_total{limit=\"body_syntax\"} ";
    let refused = refused.lines().find_map(|line| line.strip_prefix(count)).unwrap();
    assert_eq!(refused.parse(), Ok(7 * BROKEN.len()));
    let log = edge.log();
    assert!(!log.contains("ERROR") && !log.contains("does not answer"), "{log}");
    // The next request on a connection to the origin meets nothing of the broken one.
    assert_eq!(edge.get("/after").status, 204);
    for seen in origin.take_seen() {
        let whole = seen.start == "GET /after HTTP/1.1";
        assert!(whole || (seen.start == "POST /upload HTTP/1.1" && seen.truncated), "{seen:?}");
    }
}

#[test]
fn the_parameters_of_a_form_are_read_after_those_of_the_query() {
    let edge = Setup::default().sections("[events]\nmethods = [\"GET\", \"POST\"]").start();
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let charset = "content-type: Application/X-WWW-Form-URLencoded ; charset=utf-8\r\n";
    let long = format!("_n=a&q={}", "x".repeat(8192));
    let longer = format!("_n=a&q={}", "x".repeat(70_000));
    let just = format!("{:&<8192}", "_a=62515&_n=a");
    let beyond = format!("{just}&");
    for (method, query, lines, body, verdict) in [
        ("POST", "_a=62515", form, "_n=a&q=b+c", "accepted"),
        ("POST", "", charset, "_a=62515&_n=a&q=b%20c\r\n", "accepted"),
        ("POST", "_a=62515&q=b", form, "&&_n=a&q=c", "accepted"),
        ("POST", "_a=62515&_n=a", form, "_n=b", "conflicting_param"),
        ("POST", "_a=62515&_n=a", form, "", "accepted"),
        ("POST", "_a=62515", "Content-Type: text/plain\r\n", "_n=a", "missing_event"),
        ("POST", "_a=62515", "", "_n=a", "missing_event"),
        ("GET", "_a=62515", form, "_n=a", "missing_event"),
        ("POST", "_a=62515", form, &long, "query_too_long"),
        ("POST", "_a=62515", form, &longer, "query_too_long"),
        ("POST", "", form, &just, "accepted"),
        ("POST", "", form, &beyond, "query_too_long"),
    ] {
        let (start, length) = (format!("{method} /v1/event/?{query} HTTP/1.1"), body.len());
        let chunks = format!("{CHUNKED}\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
        for framed in [format!("Content-Length: {length}\r\n\r\n{body}"), chunks] {
            if framed.contains("\r\n0\r\n\r\n0\r\n") {
                continue; // Chunks of no bytes would end twice.
            }
            let request = format!("{start}\r\nHost: a\r\n{lines}{framed}");
            let mut connection = edge.connect();
            let _ = connection.try_send(request.as_bytes());
            assert_eq!(connection.read(method).verdict(), verdict, "{start} {lines}");
        }
    }
    let mut connection = edge.connect();
    let head = "POST /v1/event/?_a=62515 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\
                Expect: 100-continue\r\n";
    connection.send(format!("{head}{form}\r\n").as_bytes());
    assert_eq!(connection.read_one("POST").unwrap().status, 100);
    connection.send(b"_n=a");
    assert_eq!(connection.read("POST").verdict(), "accepted");
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").verdict(), "accepted", "in step");
    edge.wait_delivered("file");
    let events = Edge::events_in_files(edge.dir());
    let mut properties: Vec<String> =
        events.iter().map(|event| event["properties"].to_string()).collect();
    // Batches may be delivered in another order.
    properties.sort();
    let (both, one) = ("{\"q\":\"b;c\"}", "{\"q\":\"b c\"}");
    assert_eq!(properties, [one, one, one, one, both, both, "{}", "{}", "{}", "{}", "{}"]);
}

/// An origin that answers each request for `/N` with `N`.
fn numbered() -> (Origin, Edge) {
    let origin = Origin::start();
    for n in 0..4 {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}");
        origin.answer(&format!("/{n}"), answer.as_bytes());
    }
    let edge = Setup::default().origin(origin.address).start();
    (origin, edge)
}

#[test]
fn requests_behind_each_other_are_answered_in_their_order_however_they_are_cut() {
    let (origin, edge) = numbered();
    let get = "GET /0 HTTP/1.1\r\nHost: a\r\n\r\n";
    let sized = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let chunked =
        "PUT /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let delete = "DELETE /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    // Some clients end a body with a line end that belongs to nothing.
    let stray = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\n";
    let options = "OPTIONS /v1/event/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let with_body =
        "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok";
    let mut events = 0;
    for requests in [
        vec![get, get, get],
        vec![sized, get, EVENT],
        vec![chunked, EVENT, chunked],
        vec![delete, EVENT, delete],
        vec![stray, get, stray, EVENT],
        vec![EVENT, options, with_body, sized, with_body],
    ] {
        let methods: Vec<&str> =
            requests.iter().map(|request| request.split(' ').next().unwrap()).collect();
        let expect: Vec<_> = requests.iter().map(|request| expected(request)).collect();
        let all = requests.concat();
        // In two segments, cut behind every line feed and at every seventh byte.
        for cut in (0..all.len()).filter(|cut| cut % 7 == 0 || all[..*cut].ends_with('\n')) {
            origin.take_seen();
            let answers = answers(edge.address, &[&all[..cut], &all[cut..]], &methods);
            let got: Vec<_> = answers
                .iter()
                .map(|answer| (answer.status(), String::from_utf8_lossy(&answer.body).into_owned()))
                .collect();
            for (got, expect) in got.iter().zip(&expect) {
                assert_eq!(got.0, expect.0, "{all:?} cut at {cut}");
                assert!(got.1.starts_with(&expect.1), "{all:?} cut at {cut}: {got:?}");
            }
            assert_eq!(got.len(), expect.len(), "{all:?} cut at {cut}");
            let asked: Vec<String> =
                origin.take_seen().iter().map(|seen| seen.start[..6].to_owned()).collect();
            let to_origin: Vec<String> = requests
                .iter()
                .filter(|request| !request.contains("/v1/event"))
                .map(|request| request[..6].to_owned())
                .collect();
            assert_eq!(asked, to_origin, "{all:?} cut at {cut}");
            events += requests.iter().filter(|request| request.contains("_a=")).count() as u64;
        }
    }
    assert_eq!(accepted(&edge), events);
}

/// The status of the answer, and how its body begins.
fn expected(request: &str) -> (u16, String) {
    match request.split(' ').nth(1).unwrap() {
        "/v1/event/" => (204, String::new()),
        target if target.starts_with("/v1/event") => (200, "GIF89a".to_owned()),
        target => (200, target[1..].to_owned()),
    }
}

#[test]
fn nothing_behind_the_last_answer_of_a_connection_is_executed() {
    let (origin, edge) = numbered();
    for first in [
        "GET /0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /0 HTTP/1.0\r\nHost: a\r\n\r\n",
        "POST /0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "POST /v1/event/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /v1/event/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let all = format!("{first}GET /1 HTTP/1.1\r\nHost: a\r\n\r\n{EVENT}");
        let answers = refusal(edge.address, &all, false);
        assert_eq!(answers.len(), 1, "{first:?}");
        assert_eq!(answers[0].header("connection"), Some("close"), "{first:?}");
    }
    assert!(origin.take_seen().iter().all(|seen| seen.start.contains(" /0 ")));
    assert_eq!(accepted(&edge), 0);
}

#[test]
fn a_client_of_http_1_0_gets_neither_chunks_nor_interim_answers() {
    let origin = Origin::start();
    let send = |text: &str| Act::Send(text.as_bytes().to_vec());
    let chunks = send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let close = send("HTTP/1.1 200 OK\r\n\r\nok");
    let hint = send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    let goes_on = send("HTTP/1.1 100 Continue\r\n\r\n");
    for (target, acts) in [
        ("/chunks", vec![chunks.clone()]),
        ("/close", vec![close, Act::Close]),
        ("/hints", vec![hint.clone(), hint, chunks.clone()]),
        ("/continue", vec![goes_on, chunks]),
    ] {
        origin.on(target, Script { before_body: vec![], after_body: acts });
    }
    let edge = Setup::default().origin(origin.address).start();
    for target in ["/chunks", "/close", "/hints", "/continue"] {
        for lines in ["", "Connection: keep-alive\r\n", "Expect: 100-continue\r\n"] {
            let request = format!("GET {target} HTTP/1.0\r\nHost: a\r\n{lines}\r\n");
            let answers = refusal(edge.address, &request, false);
            assert_eq!(statuses(&answers), [200], "{request:?}");
            let answer = &answers[0];
            assert_eq!(answer.header("transfer-encoding"), None, "{request:?}");
            assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
            assert_eq!(answer.body, b"ok", "{request:?}");
        }
    }
    // A length that is known ends the body without a close.
    let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    origin.answer("/sized", sized);
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..2 {
        let request = b"GET /sized HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        stream.write_all(request).unwrap();
        let answer = read_responses(&mut reader, "GET").remove(0);
        assert_eq!((answer.status(), answer.header("connection")), (200, Some("keep-alive")));
    }
}

#[test]
fn a_response_has_one_length_or_is_refused() {
    let origin = Origin::start();
    for (target, lengths) in [
        ("/twice", "Content-Length: 2\r\nContent-Length: 2\r\n"),
        ("/list", "Content-Length: 2, 2\r\n"),
        ("/differ", "Content-Length: 2\r\nContent-Length: 3\r\n"),
        ("/both", "Content-Length: 2, 3\r\n"),
        ("/sign", "Content-Length: +2\r\n"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nX: y\r\n{lengths}\r\nok");
        origin.answer(target, answer.as_bytes());
    }
    let edge = Setup::default().origin(origin.address).start();
    for target in ["/twice", "/list"] {
        let response = edge.get(target);
        let lengths: Vec<_> =
            response.headers.iter().filter(|(name, _)| name == "content-length").collect();
        assert_eq!(lengths, [&("content-length".to_owned(), "2".to_owned())], "{target}");
        assert_eq!((response.status, &response.body[..]), (200, &b"ok"[..]), "{target}");
    }
    for target in ["/differ", "/both", "/sign"] {
        assert_eq!(edge.get(target).status, 502, "{target}");
    }
}

#[test]
fn a_response_is_of_the_version_and_framing_of_this_hop() {
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    let origin = Origin::start();
    for (target, answer) in [
        ("/sized", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("/chunks", format!("HTTP/1.0 200 OK\r\n{CHUNKED}\r\n2\r\nok\r\n0\r\n\r\n")),
        ("/none", format!("HTTP/1.1 204 No Content\r\n{CHUNKED}\r\n0\r\n\r\n")),
        ("/length", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n".to_owned()),
    ] {
        origin.answer(target, answer.as_bytes());
    }
    let edge = Setup::default().origin(origin.address).start();
    let ask = |target: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        exchange(edge.address, "GET", request.as_bytes()).remove(0)
    };
    for target in ["/sized", "/chunks"] {
        let answer = ask(target);
        assert_eq!((answer.start.as_str(), answer.body), ("HTTP/1.1 200 OK", b"ok".to_vec()));
    }
    // A client that believed either header would wait for a body.
    for target in ["/none", "/length"] {
        let answer = ask(target);
        assert_eq!(answer.start, "HTTP/1.1 204 No Content", "{target}");
        for name in ["transfer-encoding", "content-length"] {
            assert_eq!(answer.header(name), None, "{target}");
        }
    }
}

#[test]
fn a_response_may_have_as_many_header_lines_as_documented() {
    const LINES_MAX: usize = 256;
    let origin = Origin::start();
    for lines in [LINES_MAX, LINES_MAX + 1] {
        let many: String = (1..lines).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{many}\r\nok");
        origin.answer(&format!("/{lines}"), answer.as_bytes());
    }
    let edge = Setup::default().origin(origin.address).start();
    let response = edge.get(&format!("/{LINES_MAX}"));
    assert_eq!(response.status, 200);
    let own = response.headers.iter().filter(|(name, _)| name.starts_with("x-")).count();
    assert_eq!(own, LINES_MAX - 1);
    assert_eq!(edge.get(&format!("/{}", LINES_MAX + 1)).status, 502);
}

#[test]
fn a_tunnel_opens_however_fast_the_origin_answers() {
    const TUNNELS: usize = 400;
    let origin = Origin::start();
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n";
    let before_body = vec![Act::Send(switched.to_vec()), Act::Echo];
    origin.on("/socket", Script { before_body, after_body: vec![] });
    let edge = Setup::default().origin(origin.address).start();
    let upgrade = b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                    Upgrade: websocket\r\n\r\n";
    for number in 0..TUNNELS {
        // Leaves a connection to the origin for the next request.
        assert_eq!(edge.get("/pooled").status, 204);
        let mut stream = TcpStream::connect(edge.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(upgrade).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        assert_eq!(read_head(&mut reader).unwrap().status(), 101);
        stream.write_all(b"hello").unwrap();
        let mut echo = [0; 5];
        let echoed = reader.read_exact(&mut echo);
        assert!(echoed.is_ok() && &echo == b"hello", "tunnel {number}: {echoed:?}");
    }
}
