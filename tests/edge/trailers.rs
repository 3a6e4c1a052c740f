//! Trailers of chunked messages (SPEC 1), in both directions and over HTTP/1 and HTTP/2.

use crate::delivery::RUNTIME;
use crate::h2::{Client, connect, read, start_with};
use crate::harness::{Edge, PATIENCE, Setup};
use crate::wire::{Act, Message, Origin, Script, exchange, read_responses};
use bytes::Bytes;
use http::{HeaderMap, Request};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
/// Every field that a recipient might take for a header, and one that is none of these.
const HARMFUL: &str = "Content-Length: 99\r\nTRANSFER_ENCODING: chunked\r\nHost: b\r\n\
                       If-Match: a\r\nx-forwarded-for: 6.6.6.6\r\nX-Original-URL: /v1/event/\r\n\
                       Connection: close\r\nX-Sum: 1\r\n";

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Requests one after the other on one connection.
struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn ask(&mut self, request: &str) -> Message {
        self.stream.write_all(request.as_bytes()).unwrap();
        let method = request.split(' ').next().unwrap();
        read_responses(&mut self.reader, method).pop().expect("a response")
    }
}

fn chunked(trailers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n5\r\nhello\r\n0\r\n{trailers}\r\n")
}

fn upload(version: &str, headers: &str, trailers: &str) -> String {
    format!(
        "PUT /up {version}\r\nHost: a\r\n{headers}{CHUNKED}\r\n5\r\nhello\r\n0\r\n{trailers}\r\n"
    )
}

fn start() -> (Origin, Edge) {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    (origin, edge)
}

#[test]
fn trailers_of_an_answer_reach_a_client_of_http1() {
    let (origin, edge) = start();
    origin.answer("/a", chunked("Server-Timing:db;dur=5 \r\nX-Sum:\t\u{e9}\r\n").as_bytes());
    origin.answer("/plain", chunked("").as_bytes());
    let mut connection = Connection::open(edge.address);
    for _ in 0..2 {
        let answer = connection.ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(answer.body, b"hello");
        // The two bytes of one character in UTF-8, each read as Latin-1 here.
        let expect = [pair("Server-Timing", "db;dur=5"), pair("X-Sum", "\u{c3}\u{a9}")];
        assert_eq!(answer.trailers, expect);
        let answer = connection.ask("GET /plain HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((answer.body.as_slice(), answer.trailers.len()), (&b"hello"[..], 0));
    }
    assert_eq!(origin.open(), 1, "the connection to the origin is used again");
}

#[test]
fn trailers_that_could_be_taken_for_headers_are_left_out() {
    let (origin, edge) = start();
    origin.answer("/up", chunked(HARMFUL).as_bytes());
    let answer = exchange(edge.address, "PUT", upload("HTTP/1.1", "", HARMFUL).as_bytes());
    assert_eq!(answer[0].trailers, [pair("X-Sum", "1")]);
    assert_eq!(origin.take_seen()[0].trailers, [pair("X-Sum", "1")]);
}

#[test]
fn trailers_of_an_upload_reach_the_origin_with_what_announces_them() {
    let (origin, edge) = start();
    let announced = "Trailer: X-Sum\r\nTE: trailers, deflate;q=0.5\r\nConnection: TE\r\n";
    let mut connection = Connection::open(edge.address);
    for _ in 0..2 {
        connection.ask(&upload("HTTP/1.1", announced, "X-Sum: 1\r\nx-sum: 2\r\n"));
        let seen = origin.take_seen().remove(0);
        assert_eq!(seen.body, b"hello");
        assert_eq!(seen.trailers, [pair("X-Sum", "1"), pair("x-sum", "2")]);
        let said = ["trailer", "te", "connection"].map(|name| seen.header(name));
        assert_eq!(said, [Some("X-Sum"), Some("trailers"), Some("TE")]);
        connection.ask(&upload("HTTP/1.1", "", ""));
        let seen = origin.take_seen().remove(0);
        assert_eq!((seen.trailers.len(), seen.header("te")), (0, None));
    }
    assert_eq!(origin.open(), 1, "the connection to the origin is used again");
}

/// The second attempt at an origin sends the trailers, too.
#[test]
fn trailers_of_a_request_that_is_tried_again_are_sent_again() {
    let (origin, edge) = start();
    let mut connection = Connection::open(edge.address);
    connection.ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    let once = Script { after_body: vec![Act::Close], ..Script::default() };
    origin.on("/up", once);
    let answer = connection.ask(&upload("HTTP/1.1", "", "X-Sum: 1\r\n"));
    assert_eq!(answer.status(), 502);
    let seen = origin.take_seen();
    assert_eq!(seen.len(), 3, "one attempt on the connection used before, and one on a new one");
    for attempt in &seen[1..] {
        assert_eq!(attempt.trailers, [pair("X-Sum", "1")]);
    }
}

#[test]
fn more_trailers_than_header_lines_are_refused() {
    let (origin, _) = start();
    let edge = Setup::default().origin(origin.address).edge("header_lines_max = 8").start();
    for (lines, expect) in [(8, 204), (9, 400)] {
        let request = upload("HTTP/1.1", "", &"X-Sum: 1\r\n".repeat(lines));
        assert_eq!(exchange(edge.address, "PUT", request.as_bytes())[0].status(), expect);
    }
}

#[test]
fn a_recipient_without_chunks_gets_no_trailers() {
    let (origin, edge) = start();
    origin.answer("/a", chunked("X-Sum: 1\r\n").as_bytes());
    let old = exchange(edge.address, "GET", b"GET /a HTTP/1.0\r\n\r\n").remove(0);
    assert_eq!(old.body, b"hello");
    let head = format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n");
    origin.answer("/head", head.as_bytes());
    let mut connection = Connection::open(edge.address);
    assert_eq!(connection.ask("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
    let answer = connection.ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.trailers, [pair("X-Sum", "1")]);
}

/// Bodies and pieces that look like a last chunk, and every place at which a message can be cut.
#[test]
fn trailers_are_found_wherever_a_message_is_cut() {
    let (origin, edge) = start();
    let body = "5\r\n0\r\n\r\n\r\n7\r\n\r\n0\r\n\r\n\r\n0\r\nX-Sum: 1\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n";
    let answer = format!("{hints}HTTP/1.1 200 OK\r\n{CHUNKED}\r\n{body}");
    let mut connection = Connection::open(edge.address);
    for cut in 1..answer.len() {
        let (first, rest) = answer.split_at(cut);
        let acts = [first, rest].map(|piece| Act::Send(piece.as_bytes().to_vec()));
        let [first, rest] = acts;
        let pause = Act::Pause(std::time::Duration::from_millis(2));
        origin.on("/a", Script { after_body: vec![first, pause, rest], ..Script::default() });
        let answer = connection.ask("GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(answer.body, b"0\r\n\r\n\r\n0\r\n\r\n", "cut at {cut}");
        assert_eq!(answer.trailers, [pair("X-Sum", "1")], "cut at {cut}");
    }
}

async fn put(client: &mut Client, request: http::request::Builder, trailers: HeaderMap) -> u16 {
    let mut ready = client.sender().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
    stream.send_trailers(trailers).unwrap();
    read(response).await.map_or(0, |answer| answer.status.as_u16())
}

#[test]
fn trailers_pass_between_http2_and_an_origin_of_http1() {
    let origin = Origin::start();
    origin.answer("/a", chunked(&format!("Grpc-Status: 0\r\n{HARMFUL}")).as_bytes());
    let empty = format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n0\r\nX-Sum: 1\r\n\r\n");
    origin.answer("/empty", empty.as_bytes());
    origin.answer("/plain", chunked("").as_bytes());
    let setup = Setup::default().origin(origin.address).edge("header_lines_max = 8");
    let (_edge, address) = start_with(setup);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let answer = client.get("/a").await;
        let trailers = answer.trailers.expect("trailers");
        assert_eq!((answer.body.as_slice(), trailers.len()), (&b"hello"[..], 2));
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-sum"]),
            (&"0".parse().unwrap(), &"1".parse().unwrap())
        );
        let answer = client.get("/empty").await;
        assert!(answer.body.is_empty() && answer.trailers.expect("trailers")["x-sum"] == "1");
        assert_eq!(client.get("/plain").await.trailers, None);

        let sum = |lines: usize| {
            let mut trailers = HeaderMap::new();
            (0..lines).for_each(|_| _ = trailers.append("x-sum", "1".parse().unwrap()));
            trailers
        };
        let request = || Request::put("https://edge.test/up");
        assert_eq!(put(&mut client, request(), sum(8)).await, 204);
        assert_eq!(put(&mut client, request(), sum(9)).await, 0, "the stream is reset");
        let sized = request().header("content-length", "5");
        assert_eq!(put(&mut client, sized, sum(1)).await, 204);
        let mut harmful = sum(1);
        harmful.insert("content-length", "99".parse().unwrap());
        harmful.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        assert_eq!(put(&mut client, request(), harmful).await, 204);
    });
    let seen = origin.take_seen();
    let of = |at: usize| (seen[at].body.as_slice(), seen[at].trailers.len());
    let whole = (3..seen.len()).filter(|at| !seen[*at].truncated).map(of).collect::<Vec<_>>();
    assert_eq!(whole, [(&b"hello"[..], 8), (&b"hello"[..], 0), (&b"hello"[..], 1)]);
}
