//! Responses that precede the final one (RFC 9110, section 15.2), and those that may not.

use crate::delivery::RUNTIME;
use crate::h2::{connect, start_with};
use crate::harness::{PATIENCE, Setup, wait_for};
use crate::wire::{Act, Message, Origin, Script, read_responses};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\n\r\n";
const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
/// A response that no request has asked for.
const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
/// The most informational responses that an origin may send to one request.
const INTERIM_MAX: usize = 100;

/// An origin that sends these bytes to each request for `/a`, and then nothing.
fn origin(bytes: &str) -> Origin {
    let origin = Origin::start();
    let after_body = vec![Act::Send(bytes.as_bytes().to_vec()), Act::Hang];
    origin.on("/a", Script { before_body: vec![], after_body });
    origin
}

/// The responses to a request, and the bytes between them and the edge's close.
fn responses(address: SocketAddr, request: &str) -> (Vec<Message>, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let responses = read_responses(&mut reader, "GET");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    (responses, rest)
}

fn statuses(responses: &[Message]) -> Vec<u16> {
    responses.iter().map(Message::status).collect()
}

#[test]
fn an_origin_switches_to_no_protocol_that_the_client_has_not_asked_for() {
    let origin = origin(&format!("{SWITCHED}{SMUGGLED}"));
    let (edge, address) = start_with(Setup::default().origin(origin.address));
    for (version, lines) in [
        ("HTTP/1.1", ""),
        ("HTTP/1.0", ""),
        ("HTTP/1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        ("HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        ("HTTP/1.1", "Connection: Upgrade\r\n"),
    ] {
        let request = format!("GET /a {version}\r\nHost: a\r\n{lines}\r\n");
        let (responses, rest) = responses(edge.address, &request);
        assert_eq!((statuses(&responses), rest), (vec![502], vec![]), "{request:?}");
        wait_for("the connection to the origin to close", || origin.open() == 0);
    }
    let status = RUNTIME.block_on(async { connect(address).await.get("/a").await.status });
    assert_eq!(status, 502);
    wait_for("the connection to the origin to close", || origin.open() == 0);
}

#[test]
fn informational_responses_pass_up_to_their_limit() {
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for (interim, status) in [(INTERIM_MAX, 200), (INTERIM_MAX + 1, 502)] {
        let origin = origin(&format!("{}{last}", HINT.repeat(interim)));
        let edge = Setup::default().origin(origin.address).start();
        let request = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let (responses, rest) = responses(edge.address, request);
        let expect = [vec![103; INTERIM_MAX], vec![status]].concat();
        assert_eq!((statuses(&responses), rest), (expect, vec![]), "{interim}");
    }
}

#[test]
fn an_origin_that_fails_after_an_informational_response_is_a_bad_gateway() {
    let origin = origin(&format!("{HINT}garbage\r\n\r\n"));
    let (edge, address) = start_with(Setup::default().origin(origin.address));
    let (responses, rest) = responses(edge.address, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((statuses(&responses), rest), (vec![103, 502], vec![]));
    let answer = RUNTIME.block_on(async { connect(address).await.get("/a").await });
    assert_eq!(answer.status, 502);
}
