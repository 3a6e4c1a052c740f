//! The path guard against real origins (SPEC 2): whatever target a client sends, an origin's own
//! handler of the event path is never reached through the edge.
//!
//! Each target goes through the edge once in each way that a request can come. A recorder behind
//! the edge notes the targets that are passed on, and these are then sent to every origin, as they
//! were passed on.
//!
//! `PIXELGATE_FLEET_TARGETS` says how many targets are generated, `PIXELGATE_FLEET_SEED` from
//! which seed.

pub mod origins;
mod targets;

use crate::h2::{RUNTIME, stock};
use crate::harness::{Edge, Setup};
use origins::Fleet;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use targets::{KNOWN, PASSED, Random};

/// Targets that are generated unless the environment says how many.
const TARGETS: u64 = 1000;
const SEED: u64 = 1;

/// An origin that notes the targets it is asked for.
struct Recorder {
    address: SocketAddr,
    targets: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

impl Recorder {
    fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let targets = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&targets);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || record(stream, &noted));
            }
        });
        Recorder { address, targets }
    }

    fn targets(&self) -> BTreeSet<Vec<u8>> {
        self.targets.lock().unwrap().clone()
    }
}

/// Answers the requests of one connection, none of which has a body.
fn record(stream: TcpStream, noted: &Mutex<BTreeSet<Vec<u8>>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).is_ok_and(|read| read == 0) {
                return;
            }
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = line.strip_prefix(b"GET ").expect("only GET is sent");
        let target = line.strip_suffix(b" HTTP/1.1").expect("the edge speaks HTTP/1.1");
        noted.lock().unwrap().insert(target.to_vec());
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        if reader.get_mut().write_all(answer).is_err() {
            return;
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Sends `GET` for each target, one after the other.
fn send_http1(edge: &Edge, targets: impl IntoIterator<Item = String>) {
    let mut connection = edge.connect();
    for target in targets {
        connection.send(format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n").as_bytes());
        let response = connection.read("GET");
        if response.header("connection") == Some("close") {
            connection = edge.connect();
        }
    }
}

/// Sends the targets over HTTP/2, except for those that its client refuses to send.
fn send_http2(edge: &Edge, targets: &[String]) {
    let requests = targets.iter().filter_map(|target| {
        let uri = format!("http://edge.test{target}").parse::<http::Uri>().ok()?;
        Some(http::Request::get(uri).body(()).unwrap())
    });
    RUNTIME.block_on(async {
        let mut client = stock(edge.address).await;
        for (number, request) in requests.enumerate() {
            // A connection ends after some thousand requests.
            if number % 500 == 499 {
                client = stock(edge.address).await;
            }
            client = client.ready().await.unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            while let Some(piece) = body.data().await {
                let length = piece.unwrap().len();
                body.flow_control().release_capacity(length).unwrap();
            }
        }
    });
}

#[test]
fn no_origins_event_handler_is_reached_through_the_edge() {
    let (count, seed) =
        (setting("PIXELGATE_FLEET_TARGETS", TARGETS), setting("PIXELGATE_FLEET_SEED", SEED));
    let mut random = Random(seed);
    let known = KNOWN.iter().chain(PASSED).map(|target| (*target).to_owned());
    let targets: Vec<String> = known.chain((0..count).map(|_| random.target())).collect();

    let recorder = Recorder::start();
    let edge = Setup::default().origin(recorder.address).start();
    send_http1(&edge, targets.iter().cloned());
    send_http1(&edge, targets.iter().map(|target| format!("http://edge.test{target}")));
    send_http2(&edge, &targets);
    let passed = recorder.targets();
    for target in PASSED {
        assert!(passed.contains(target.as_bytes()), "{target} did not reach the origin as it is");
    }

    let fleet = Fleet::start();
    println!("{} of {} targets were passed on, seed {seed}", passed.len(), targets.len());
    let reached: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = fleet
            .origins
            .iter()
            .map(|origin| {
                scope.spawn(|| {
                    assert!(origin.is_reached_by(b"/v1/event/"), "{}", origin.name);
                    let known = KNOWN.iter().filter(|t| origin.is_reached_by(t.as_bytes())).count();
                    println!("{}: reached directly by {known} known targets", origin.name);
                    let reached = passed.iter().filter(|target| origin.is_reached_by(target));
                    let named = reached.map(|t| format!("{}: {}", origin.name, t.escape_ascii()));
                    let named: Vec<String> = named.collect();
                    assert!(origin.is_reached_by(b"/v1/event/"), "{} has ended", origin.name);
                    named
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(reached.is_empty(), "reached through the edge:\n{}", reached.join("\n"));
}
