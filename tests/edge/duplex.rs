//! Exchanges in which both sides send in turns: `Expect: 100-continue`, WebSockets, pipelined
//! requests, and the effect on one side when the other closes.

use crate::harness::{Edge, PATIENCE, Setup, wait_for};
use crate::wire::{Act, Origin, Script, read_head, read_responses};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

fn start() -> (Origin, Edge) {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    (origin, edge)
}

fn connect(edge: &Edge) -> (TcpStream, BufReader<TcpStream>) {
    let stream = TcpStream::connect(edge.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream.try_clone().unwrap(), BufReader::new(stream))
}

fn send(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

#[test]
fn a_client_that_asks_first_sends_its_body_when_the_origin_wants_it() {
    let (origin, edge) = start();
    let before_body = vec![send("HTTP/1.1 100 Continue\r\n\r\n")];
    let after_body = vec![send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")];
    origin.on("/upload", Script { before_body, after_body });
    let (mut writer, mut reader) = connect(&edge);
    let head = "PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\
                Expect: 100-continue\r\n\r\n";
    writer.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_head(&mut reader).unwrap().status(), 100);
    writer.write_all(b"hello").unwrap();
    assert_eq!(read_responses(&mut reader, "PUT")[0].status(), 201);
    let seen = origin.take_seen().remove(0);
    assert_eq!(
        (seen.body.as_slice(), seen.header("expect")),
        (&b"hello"[..], Some("100-continue"))
    );
}

#[test]
fn a_client_that_asks_first_may_be_refused() {
    let (origin, edge) = start();
    let refusal =
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    origin
        .on("/upload", Script { before_body: vec![send(refusal), Act::Close], after_body: vec![] });
    let (mut writer, mut reader) = connect(&edge);
    let head = "PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\
                Expect: 100-continue\r\n\r\n";
    writer.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_responses(&mut reader, "PUT")[0].status(), 417);
}

/// Many clients read an answer only after they have sent all of the body.
#[test]
fn an_answer_that_comes_early_breaks_no_upload() {
    const PIECES: usize = 256;
    let piece = vec![b'x'; 1 << 16];
    let (origin, edge) = start();
    let refusal =
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    origin
        .on("/upload", Script { before_body: vec![send(refusal), Act::Close], after_body: vec![] });
    let alone = Setup::default().start();
    let event = "/v1/event/?_a=62515&_n=a";
    for (edge, target, status) in [(&edge, "/upload", 413), (&alone, "/", 404), (&edge, event, 200)]
    {
        let (mut writer, mut reader) = connect(edge);
        let length = PIECES * piece.len();
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&piece.repeat(2)).unwrap();
        let answers = read_responses(&mut reader, "GET");
        assert_eq!(answers[0].status(), status, "{target}");
        assert_eq!(answers[0].header("connection"), Some("close"), "{target}");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the edge has closed its sending direction");
        for number in 2..PIECES {
            writer.write_all(&piece).unwrap_or_else(|e| panic!("{target}, piece {number}: {e}"));
        }
    }
}

/// An origin that answers before it has read a body may take the rest of it for the next request.
#[test]
fn a_connection_whose_answer_came_early_serves_no_other_request() {
    let (origin, edge) = start();
    let before_body = vec![send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")];
    origin.on("/upload", Script { before_body, after_body: vec![] });
    for (framing, rest) in
        [("Content-Length: 5", "ello"), ("Transfer-Encoding: chunked", "ello\r\n0\r\n\r\n")]
    {
        let (mut writer, mut reader) = connect(&edge);
        let size = if framing.starts_with('T') { "5\r\n" } else { "" };
        let head = format!("PUT /upload HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{size}h");
        writer.write_all(head.as_bytes()).unwrap();
        assert_eq!(read_head(&mut reader).unwrap().status(), 200);
        assert_eq!(origin.open(), 1);
        writer.write_all(rest.as_bytes()).unwrap();
        wait_for("the connection to the origin to close", || origin.open() == 0);
    }
}

/// Far more than all buffers on the way hold, so that an origin that sends it back waits to send
/// and does not read meanwhile; and every value of a byte.
fn much() -> Vec<u8> {
    (0..64_000_000_u32).map(|n| (n % 251) as u8).collect()
}

#[test]
fn an_upload_that_comes_back_while_it_is_sent_passes() {
    let (origin, edge) = start();
    let sent = much();
    let length = sent.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    origin.on("/echo", Script { before_body: vec![send(&answer), Act::Echo], after_body: vec![] });
    let (mut writer, mut reader) = connect(&edge);
    let head = format!("PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let sending = sent.clone();
    let sender = std::thread::spawn(move || {
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&sending).unwrap();
        writer
    });
    assert_eq!(read_head(&mut reader).unwrap().status(), 200);
    let mut echoed = vec![0; length];
    reader.read_exact(&mut echoed).unwrap();
    assert!(echoed == sent, "the bytes differ");
    sender.join().unwrap();
}

/// An origin that answers each request by its header, and reads and closes nothing after that.
fn origin_that_reads_no_body(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            if read_head(&mut BufReader::with_capacity(256, &stream)).is_some() {
                stream.write_all(answer.as_bytes()).unwrap();
            }
            open.push(stream);
        }
    });
    address
}

#[test]
fn an_origin_that_answers_an_upload_without_reading_it_is_heard_at_once() {
    for answer in [
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 413 Content Too Large\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nno\r\n0\r\n\r\n",
    ] {
        let edge = Setup::default().origin(origin_that_reads_no_body(answer)).start();
        for framing in ["Content-Length: 64000011", "Transfer-Encoding: chunked"] {
            let (mut writer, mut reader) = connect(&edge);
            let head = format!("POST /upload HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            let sender = std::thread::spawn(move || {
                // One chunk, whose first and last line are data where the length frames the body.
                let end: &[u8] = if head.contains("chunked") { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                for piece in [head.as_bytes(), b"3D09000\r\n", &vec![7; 64_000_000], end] {
                    // The edge may close the connection once it has answered.
                    if writer.write_all(piece).is_err() {
                        return;
                    }
                }
            });
            let refused = read_head(&mut reader).unwrap();
            assert_eq!((refused.status(), refused.header("connection")), (413, Some("close")));
            let mut rest = Vec::new();
            // An error means that the peer closed during the upload; what came before it was read.
            let _ = reader.read_to_end(&mut rest);
            assert!(rest.windows(2).any(|word| word == b"no"), "{framing}: {rest:?}");
            sender.join().unwrap();
        }
        // The connections to the origin serve no other request: it would not be read there.
        assert_eq!(edge.get("/page").status, 413);
        assert!(!edge.log().contains("does not answer"), "{}", edge.log());
    }
}

const UPGRADE: &str = "GET /socket?a=b HTTP/1.1\r\nHost: edge.test\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";

#[test]
fn a_websocket_is_two_streams_of_bytes_until_one_side_closes() {
    let (origin, edge) = start();
    origin.on(
        "/socket?a=b",
        Script {
            // The origin speaks first, at once behind its answer.
            before_body: vec![send(SWITCHED), send("hello"), Act::Echo],
            after_body: vec![],
        },
    );
    let (mut writer, mut reader) = connect(&edge);
    writer.write_all(UPGRADE.as_bytes()).unwrap();
    let answer = read_head(&mut reader).unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("x"));
    let mut greeting = [0; 5];
    reader.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    let sent = much();
    let sending = sent.clone();
    let sender = std::thread::spawn(move || {
        writer.write_all(&sending).unwrap();
        writer
    });
    let mut echoed = vec![0; sent.len()];
    reader.read_exact(&mut echoed).unwrap();
    assert!(echoed == sent, "the bytes differ");
    let writer = sender.join().unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the close arrives");
}

#[test]
fn a_websocket_that_the_origin_closes_is_closed() {
    let (origin, edge) = start();
    let before_body = vec![send(SWITCHED), send("bye"), Act::Close];
    origin.on("/socket?a=b", Script { before_body, after_body: vec![] });
    let (mut writer, mut reader) = connect(&edge);
    writer.write_all(UPGRADE.as_bytes()).unwrap();
    assert_eq!(read_head(&mut reader).unwrap().status(), 101);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
}

#[test]
fn an_upgrade_that_the_origin_declines_is_an_answer_like_any_other() {
    let (origin, edge) = start();
    origin.answer("/socket?a=b", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno");
    let (mut writer, mut reader) = connect(&edge);
    writer.write_all(UPGRADE.as_bytes()).unwrap();
    let answer = read_responses(&mut reader, "GET").remove(0);
    assert_eq!((answer.status(), answer.body.as_slice()), (400, &b"no"[..]));
}

#[test]
fn requests_that_were_sent_ahead_are_answered_in_their_order() {
    let (origin, edge) = start();
    for n in 0..20 {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{n:02}");
        origin.answer(&format!("/{n}"), answer.as_bytes());
    }
    let (mut writer, mut reader) = connect(&edge);
    let ahead: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    writer.write_all(ahead.as_bytes()).unwrap();
    for n in 0..20 {
        let answer = read_responses(&mut reader, "GET").remove(0);
        assert_eq!(answer.body, format!("{n:02}").into_bytes());
    }
}

/// An origin that says one thing and then nothing for a long time.
fn half_said(origin: &Origin) {
    let half = send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    origin.on("/half", Script { before_body: vec![], after_body: vec![half, Act::Hang] });
}

#[test]
fn what_an_origin_says_arrives_when_it_says_it_and_a_client_that_leaves_frees_it() {
    let (origin, edge) = start();
    half_said(&origin);
    let (mut writer, mut reader) = connect(&edge);
    writer.write_all(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_head(&mut reader).unwrap().status(), 200);
    let mut chunk = [0; 9];
    reader.read_exact(&mut chunk).unwrap();
    assert_eq!(&chunk, b"4\r\nhalf\r\n");
    drop((writer, reader));
    // The edge would wait for a silent origin as long as the harness for anything: that the
    // origin is left before shows that the client's leaving is the cause.
    wait_for("the origin's connection to close", || origin.open() == 0);
    assert!(!edge.log().contains("does not answer"), "{}", edge.log());
}
