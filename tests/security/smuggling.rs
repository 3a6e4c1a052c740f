//! Request smuggling: the edge and every origin, however lenient, must agree where a request ends.

use crate::frames::{Client, DATA, END_HEADERS, END_STREAM, HEADERS, block, frame, literal};
use crate::harness::{Edge, PATIENCE, Setup};
use crate::http::Connection;
use crate::nginx::Nginx;
use crate::origin::{Credulity, Origin};
use crate::{accepted, refused};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The request that an attacker smuggles.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n\
    GET /v1/event/?_a=62515&_n=smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Ambiguous header lines. Each is sent with `POST /attack HTTP/1.1` and a host, and is followed by
/// the smuggled request.
const UNSOUND: &[&str] = &[
    // CL.TE, TE.CL, and both in every order.
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // TE.TE: some readers do not take one of them for a coding, or for a header.
    "Transfer-Encoding: xchunked\r\n\r\n",
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    "\x00Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Several lengths, or an invalid one.
    "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "Content-Length: 5, 5\r\n\r\nhello",
    "Content-Length: 5, 6\r\n\r\nhello",
    "Content-Length: +5\r\n\r\nhello",
    "Content-Length: -5\r\n\r\nhello",
    "Content-Length: 0x5\r\n\r\nhello",
    "Content-Length: 5 \x0b\r\n\r\nhello",
    "Content-Length: 5a\r\n\r\nhello",
    "Content-Length: \r\n\r\n",
    "Content-Length: 18446744073709551621\r\n\r\nhello",
    "Content-Length : 5\r\n\r\nhello",
    "Content_Length: 5\r\n\r\nhello",
    // Lines that some readers split or join.
    "X: a\x00b\r\n\r\n",
    "X: a\r\n\tb\r\n\r\n",
    "X: a\rb\r\n\r\n",
    "X\r\n\r\n",
    ": x\r\n\r\n",
    "X y: z\r\n\r\n",
    "X: y\n\n",
    "X: y\n\r\n",
    "X: y\r\n\n",
    // Two hosts.
    "Host: b\r\n\r\n",
    "Host : b\r\n\r\n",
];

/// Ambiguous request lines and hosts.
const LINES: &[&str] = &[
    "GET /attack HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET  /attack HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET\t/attack\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /attack\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /attack\x0b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /attack HTTP/1.1\nHost: a\n\n",
    "GET /attack HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET /attack HTTP/9.9\r\nHost: a\r\n\r\n",
    "GET /attack HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET /attack HTTP/1.1x\r\nHost: a\r\n\r\n",
    "GET /attack\r\n\r\n",
    "GET /attack HTTP/0.9\r\n\r\n",
    "G(T /attack HTTP/1.1\r\nHost: a\r\n\r\n",
    " GET /attack HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /attack HTTP/1.1\r\n\r\n",
    "GET /attack HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET /attack HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET /attack HTTP/1.1\r\nHost: b@a\r\n\r\n",
    "GET /attack HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "GET http://b/attack HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://b@a/attack HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /attack HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
];

/// Malformed chunked bodies, each after a valid header.
const CHUNKS: &[&str] = &[
    "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    "10000000000000000\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\x00\r\nhello\r\n0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
];

/// All response bytes until the edge closes.
fn all_answers(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Writing fails if the edge has refused and closed already.
    let _ = stream.write_all(bytes);
    let mut answers = Vec::new();
    match stream.read_to_end(&mut answers) {
        Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("{e}; it does not close after {:?}", bytes.escape_ascii().to_string())
        }
        _ => {}
    }
    String::from_utf8_lossy(&answers).into_owned()
}

/// All attacks, each with whether the header alone suffices to refuse it.
fn attacks() -> Vec<(Vec<u8>, bool)> {
    let post = |rest: &str| format!("POST /attack HTTP/1.1\r\nHost: a\r\n{rest}{SMUGGLED}");
    let headers = UNSOUND.iter().map(|rest| (post(rest).into_bytes(), true));
    let lines = LINES.iter().map(|line| (format!("{line}{SMUGGLED}").into_bytes(), true));
    let chunked = |body| post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}")).into_bytes();
    let chunks = CHUNKS.iter().map(|body| (chunked(body), false));
    headers.chain(lines).chain(chunks).collect()
}

fn refuses(edge: &Edge, attack: &[u8], by_header: bool) {
    let shown = attack.escape_ascii().to_string();
    let answers = all_answers(edge.address, attack);
    assert!(answers.matches("HTTP/1.1 ").count() <= 1, "{shown}: {answers}");
    if by_header {
        let status = answers.split(' ').nth(1).unwrap_or("none");
        let silent = attack.starts_with(b"PRI ") && answers.is_empty();
        assert!(silent || ["400", "405"].contains(&status), "{shown}: {answers}");
    }
}

#[test]
fn an_attack_reaches_no_origin_and_ends_its_connection() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    for (attack, by_header) in attacks() {
        let before = origin.bytes().len();
        refuses(&edge, &attack, by_header);
        let shown = attack.escape_ascii().to_string();
        if by_header {
            assert_eq!(origin.bytes().len(), before, "the origin was asked: {shown}");
        }
    }
    for how in [Credulity::Length, Credulity::Chunks] {
        for line in origin.request_lines(how) {
            assert_eq!(line, "POST /attack HTTP/1.1", "{how:?}");
        }
    }
    assert_eq!(accepted(&edge), 0, "no event was smuggled in");
    assert!(refused(&edge, "header_syntax") > 50);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn nginx_finds_no_more_requests_than_were_made() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    for (attack, by_header) in attacks() {
        refuses(&edge, &attack, by_header);
    }
    assert_eq!(edge.get("/after").status, 204);
    for target in nginx.targets() {
        assert!(["/attack", "/after"].contains(&target.as_str()), "{target}");
    }
    assert_eq!(accepted(&edge), 0);
}

/// Valid requests with any body framing, and the request lines that an origin must find.
const SOUND: &[(&str, &str)] = &[
    ("Content-Length: 0\r\n\r\n", ""),
    ("Content-Length: 5\r\n\r\nhello", "hello"),
    ("Content-Length: 37\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: abc\r\n\r\n", "GET /smuggled"),
    ("Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
    ("Transfer-Encoding: chunked\r\n\r\n005\r\nhello\r\n000\r\n\r\n", "hello"),
    ("Transfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n", "hello"),
    ("Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "llo"),
    ("Upgrade: h2c\r\nHTTP2-Settings: x\r\nContent-Length: 5\r\n\r\nhello", "hello"),
];

#[test]
fn a_valid_request_arrives_as_one() {
    for (rest, expect) in SOUND {
        let origin = Origin::start();
        let edge = Setup::default().origin(origin.address).start();
        let mut connection = edge.connect();
        connection.send(format!("POST /sound HTTP/1.1\r\nHost: a\r\n{rest}").as_bytes());
        assert_eq!(connection.read("POST").status, 200, "{rest:?}");
        assert_eq!(connection.get("/next", "").status, 200, "{rest:?}");
        for how in [Credulity::Length, Credulity::Chunks] {
            let lines = origin.request_lines(how);
            assert_eq!(lines, ["POST /sound HTTP/1.1", "GET /next HTTP/1.1"], "{rest:?} {how:?}");
        }
        let bytes = String::from_utf8(origin.bytes().concat()).unwrap();
        assert!(bytes.contains(expect), "{rest:?}: {bytes}");
        let lower = bytes.to_ascii_lowercase();
        assert!(!lower.contains("upgrade") && !lower.contains("http2-settings"), "{bytes}");
    }
}

#[test]
fn trailers_become_no_headers() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let mut connection = edge.connect();
    connection.send(
        b"POST /trailers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n\
          5\r\nhello\r\n0\r\nContent-Length: 60\r\nX-Forwarded-For: 6.6.6.6\r\nHost: b\r\n\r\n",
    );
    // Either the request is served without its trailers, or it is refused.
    let _ = connection.read_one("POST");
    let bytes = String::from_utf8(origin.bytes().concat()).unwrap();
    let head = bytes.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    assert!(!head.contains("content-length") && !head.contains("6.6.6.6"), "{bytes}");
    assert!(head.matches("\nhost:").count() <= 1, "{bytes}");
    for how in [Credulity::Length, Credulity::Chunks] {
        let lines = origin.request_lines(how);
        assert!(lines.len() <= 1, "{how:?}: {lines:?}");
    }
}

#[test]
fn bytes_after_a_refused_request_are_ignored() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let bad = "GET /attack HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n";
    let good = crate::EVENT;
    let answers = all_answers(edge.address, [good, bad, good, SMUGGLED].concat().as_bytes());
    let statuses: Vec<&str> =
        answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "400"], "{answers}");
    assert_eq!(accepted(&edge), 1);
    assert!(origin.bytes().is_empty());
}

#[test]
fn a_refusal_arrives_though_the_client_goes_on_sending() {
    let edge = Edge::start();
    for _ in 0..20 {
        let mut connection = Connection::open(edge.address);
        let attack = [b"GET /a HTTP/1.1\r\nX : y\r\n\r\n".to_vec(), vec![b'x'; 100_000]].concat();
        let _ = connection.try_send(&attack);
        assert_eq!(connection.read("GET").status, 400);
    }
}

/// HTTP/2 requests (method, path, further fields, body) that would break lines once written as
/// HTTP/1, where CR and LF end a line.
type Downgrade =
    (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

const DOWNGRADES: &[Downgrade] = &[
    // The first is valid: it shows that the origin is reached.
    ("POST", "/sound", &[("x", "y")], "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("GET", "/a HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled", &[], ""),
    ("GET", "/a\r\nSmuggled: 1", &[], ""),
    ("GET", "/a HTTP/1.1", &[], ""),
    ("GET", "/a\n", &[], ""),
    ("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nGET", "/a", &[], ""),
    ("GET", "/a", &[("x", "y\r\nSmuggled: 1")], ""),
    ("GET", "/a", &[("x", "y\nSmuggled: 1")], ""),
    ("GET", "/a", &[("x\r\nSmuggled", "1")], ""),
    ("GET", "/a", &[("x: y\r\nsmuggled", "1")], ""),
    ("GET", "/a", &[("x", "a\0b")], ""),
    ("GET", "/a", &[("host", "b")], ""),
    ("GET", "/a", &[("host", "a"), ("host", "b")], ""),
    ("POST", "/a", &[("transfer-encoding", "chunked")], "0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
    ("POST", "/a", &[("content-length", "0")], "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("POST", "/a", &[("content-length", "999")], "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("POST", "/a", &[("content-length", "0"), ("content-length", "37")], "GET /smuggled"),
    ("GET", "/a", &[("connection", "upgrade"), ("upgrade", "h2c")], ""),
    ("GET", "http://b/smuggled", &[], ""),
    ("GET", "", &[], ""),
];

#[test]
fn what_http_2_may_hold_ends_no_line_in_http_1() {
    for (method, path, lines, body) in DOWNGRADES {
        let origin = Origin::start();
        let edge = Setup::default().origin(origin.address).start();
        let mut client = Client::open(edge.address, b"");
        let mut header = block(method, path);
        for (name, value) in *lines {
            header.extend(literal(name, value));
        }
        let ended = if body.is_empty() { END_STREAM } else { 0 };
        // In one write: otherwise a valid header is passed on before its body contradicts it.
        let mut frames = frame(HEADERS, END_HEADERS | ended, 1, &header);
        if !body.is_empty() {
            frames.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
        }
        client.send(&frames);
        // A response, a reset or a close ends the request.
        while let Some(frame) = client.next() {
            if frame.stream == 1 && frame.kind != DATA {
                break;
            }
        }
        let bytes = origin.bytes().concat().to_ascii_lowercase();
        let text = String::from_utf8_lossy(&bytes);
        let shown = format!("{method:?} {path:?} {lines:?}: {text}");
        assert!(!text.contains("\nsmuggled:") && !text.contains("upgrade"), "{shown}");
        for how in [Credulity::Length, Credulity::Chunks] {
            let found = origin.request_lines(how);
            assert!(found.len() <= 1, "{shown}");
            assert_eq!(found.len() == 1, *path == "/sound", "{shown}");
            assert!(!found.iter().any(|line| line.contains("smuggled")), "{shown}");
        }
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    }
}
