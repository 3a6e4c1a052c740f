//! Request smuggling: the edge and every origin, however lenient, must agree where a request ends.

use crate::frames::{
    Client, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, block, frame, literal,
};
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

/// All response bytes until the edge closes.
pub fn all_answers(address: SocketAddr, bytes: &[u8]) -> String {
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

/// A request of `tests/data/framing.toml`, which says what the fields mean.
pub struct Framed {
    pub what: String,
    pub send: Vec<u8>,
    pub expect: String,
}

impl Framed {
    /// Whether the edge refuses it, and if so, whether its header alone suffices for that.
    fn is_refused(&self) -> Option<bool> {
        match self.expect.as_str() {
            "refused" => Some(true),
            "broken" => Some(false),
            _ => None,
        }
    }

    /// The request line, and its method.
    pub fn line(&self) -> (String, String) {
        let text = String::from_utf8_lossy(&self.send).trim_start().to_owned();
        let line = text.lines().next().unwrap().to_owned();
        (line.clone(), line.split(' ').next().unwrap().to_owned())
    }
}

pub fn corpus() -> Vec<Framed> {
    let table: toml::Table = include_str!("../data/framing.toml").parse().unwrap();
    let mut all = Vec::new();
    for source in table["source"].as_array().unwrap() {
        for request in source["requests"].as_array().unwrap() {
            let text = |key| request.get(key).and_then(|text| text.as_str()).unwrap_or_default();
            let send: Vec<u8> = text("send").chars().map(|c| u8::try_from(c).unwrap()).collect();
            let shown = send.escape_ascii().to_string();
            let what = format!("{}: {} {shown}", source["name"].as_str().unwrap(), text("what"));
            all.push(Framed { what, send, expect: text("expect").to_owned() });
        }
    }
    assert!(all.len() >= 300, "{}", all.len());
    all
}

/// All attacks, each followed by a request and an event that must not be found.
pub fn attacks() -> Vec<Framed> {
    let mut all: Vec<_> =
        corpus().into_iter().filter(|request| request.is_refused().is_some()).collect();
    all.iter_mut().for_each(|attack| attack.send.extend_from_slice(SMUGGLED.as_bytes()));
    all
}

/// Asserts that there is at most one answer, a refusal, and then a close.
fn refuses(edge: &Edge, attack: &Framed) {
    let answers = all_answers(edge.address, &attack.send);
    assert!(answers.matches("HTTP/1.1 ").count() <= 1, "{}: {answers}", attack.what);
    let status = answers.split(' ').nth(1).unwrap_or("none");
    // What begins as HTTP/2 gets no answer of HTTP/1.
    let is_silent = attack.send.starts_with(b"PRI ") && answers.is_empty();
    let is_connect = attack.send.starts_with(b"CONNECT ") && status == "405";
    assert!(is_silent || is_connect || status == "400", "{}: {answers}", attack.what);
}

#[test]
fn an_attack_reaches_no_origin_and_ends_its_connection() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let (by_header, by_body): (Vec<_>, Vec<_>) =
        attacks().into_iter().partition(|attack| attack.is_refused() == Some(true));
    by_header.iter().for_each(|attack| refuses(&edge, attack));
    assert!(origin.bytes().is_empty(), "the origin was asked");
    by_body.iter().for_each(|attack| refuses(&edge, attack));
    for how in [Credulity::Length, Credulity::Chunks] {
        assert_eq!(origin.request_lines(how), Vec::<String>::new(), "{how:?}: no whole request");
    }
    assert_eq!(accepted(&edge), 0, "no event was smuggled in");
    assert!(refused(&edge, "header_syntax") > 50);
    assert!(refused(&edge, "body_syntax") > 20);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    assert!(!edge.log().contains("ERROR"), "{}", edge.log());
}

#[test]
fn nginx_finds_no_more_requests_than_were_made() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    for attack in attacks() {
        refuses(&edge, &attack);
    }
    assert_eq!(edge.get("/after").status, 204);
    for target in nginx.targets() {
        assert!(["/attack", "/after"].contains(&target.as_str()), "{target}");
    }
    assert_eq!(accepted(&edge), 0);
}

#[test]
fn what_looks_like_an_attack_and_is_none_has_one_effect() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let mut lines = Vec::new();
    for request in corpus().iter().filter(|request| request.is_refused().is_none()) {
        let (line, method) = request.line();
        let mut connection = edge.connect();
        connection.send(&request.send);
        let answer = connection.read(&method);
        let (verdict, closes) = match request.expect.strip_suffix("; close") {
            Some(verdict) => (verdict, true),
            None => (request.expect.as_str(), false),
        };
        if verdict == "passed" {
            assert_eq!((answer.status, answer.verdict()), (200, "none"), "{}", request.what);
            lines.push(line);
        } else {
            assert_eq!(answer.verdict(), verdict, "{}", request.what);
        }
        assert_eq!(answer.header("connection") == Some("close"), closes, "{}", request.what);
        if closes {
            assert!(connection.is_closed(), "{}", request.what);
        } else {
            assert_eq!(connection.get("/next", "").status, 200, "{}", request.what);
            lines.push("GET /next HTTP/1.1".to_owned());
        }
        lines.sort();
        for how in [Credulity::Length, Credulity::Chunks] {
            let mut found = origin.request_lines(how);
            found.sort();
            assert_eq!(found, lines, "{how:?}: {}", request.what);
        }
    }
}

#[test]
fn an_event_whose_http_2_body_is_cut_is_not_kept() {
    let edge = Edge::start();
    let mut client = Client::open(edge.address, b"");
    let event = block("GET", "/v1/event/?_a=62515&_n=a");
    for stream in [1, 3, 5] {
        client.send(&frame(HEADERS, END_HEADERS, stream, &event));
        client.send(&frame(DATA, 0, stream, b"hel"));
        client.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    // The answer to it shows that the edge has read all frames before it.
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 7, &block("GET", "/v1/event/?_a=1")));
    while client.next().is_some_and(|frame| frame.stream != 7) {}
    assert_eq!(accepted(&edge), 0);
    assert!(!edge.log().contains("ERROR"), "{}", edge.log());
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
