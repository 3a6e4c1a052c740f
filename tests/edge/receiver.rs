//! `examples/receiver.rs`, the backend of the README, behind a real edge.

use crate::backend::{Backend, Request};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, example, wait_for};
use crate::http::Connection;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const WRONG_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The example, running.
struct Receiver {
    child: Child,
    address: SocketAddr,
    /// Kept open: the example would fail when it writes to a closed pipe.
    _stderr: BufReader<ChildStderr>,
}

impl Receiver {
    fn start(address: &str) -> Receiver {
        Receiver::start_with(address, SECRET, "receiving signed batches on ")
    }

    fn start_unsigned() -> Receiver {
        Receiver::start_with("127.0.0.1:0", "", "receiving batches, signed or not, on ")
    }

    fn start_with(address: &str, secret: &str, says: &str) -> Receiver {
        let mut child = Command::new(example("receiver"))
            .arg(address)
            .env("SECRET", secret)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix(says);
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Receiver { child, address, _stderr: stderr }
    }

    /// Ends it, and gives the events that it printed.
    fn stop(mut self) -> Vec<Value> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let printed = std::io::read_to_string(self.child.stdout.take().unwrap()).unwrap();
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn upstream(&self, secret: &str, more: &str) -> String {
        format!(
            "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nsecret = \"{secret}\"\n\
             url = \"http://{}/events\"\n{more}\n[upstream.batch]\nlinger_ms = 20\n",
            self.address
        )
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn external_ids(events: &[Value]) -> BTreeSet<u64> {
    events.iter().map(|event| event["external_id"].as_str().unwrap().parse().unwrap()).collect()
}

fn check_each_event_is_printed_once(more: &str) {
    let receiver = Receiver::start("127.0.0.1:0");
    let edge = Setup::default().upstreams(&receiver.upstream(SECRET, more)).start();
    for id in 0..50 {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={id}")).status, 200);
    }
    let row = edge.wait_delivered("collector");
    assert_eq!((&row["delivered"], &row["dead"]), (&50.into(), &0.into()), "{row}");
    let events = receiver.stop();
    assert_eq!(events.len(), 50);
    assert_eq!(external_ids(&events), (0..50).collect());
}

#[test]
fn the_example_prints_each_event_once() {
    check_each_event_is_printed_once("");
    check_each_event_is_printed_once("format = \"ndjson\"\ncompression = \"zstd\"");
}

#[test]
fn a_wrong_secret_is_refused_and_its_events_wait_for_the_right_one() {
    let receiver = Receiver::start("127.0.0.1:0");
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().upstreams(&receiver.upstream(WRONG_SECRET, "")).write(dir.path());
    let edge = Edge::start_in(Arc::clone(&dir));
    assert_eq!(edge.event("_a=62515&_n=a&id=1").status, 200);
    let mut row = Value::Null;
    wait_for("the refusal to be shown", || {
        row = edge.upstream("collector");
        row["state"] == "misconfigured"
    });
    assert_eq!((&row["pending"], &row["last_error"]), (&1.into(), &"answered 401".into()));

    Setup::default().upstreams(&receiver.upstream(SECRET, "")).write(dir.path());
    let edge = Edge::start_in(edge.stop());
    edge.wait_delivered("collector");
    let events = receiver.stop();
    assert_eq!((events.len(), external_ids(&events)), (1, [1].into()));
}

/// Sends a batch as it came from the edge; gives the status.
fn forward(request: &Request, to: SocketAddr) -> u16 {
    let mut bytes = b"POST /events HTTP/1.1\r\n".to_vec();
    for (name, value) in &request.headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(&request.body);
    let mut connection = Connection::open(to);
    connection.send(&bytes);
    connection.read("POST").status
}

#[test]
fn a_batch_that_comes_twice_counts_once_and_a_changed_one_not_at_all() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let secret = format!("secret = \"{SECRET}\"\ncompression = \"none\"");
    let edge = Setup::default().upstreams(&http_upstream(&backend, &secret)).start();
    assert_eq!(edge.event("_a=62515&_n=a&id=1&color=red").status, 200);
    edge.wait_delivered("collector");
    let request = backend.taken().remove(0);

    let receiver = Receiver::start("127.0.0.1:0");
    let mut changed = request.clone();
    let at = changed.body.windows(3).position(|three| three == b"red").unwrap();
    changed.body[at] = b'R';
    assert_eq!(forward(&changed, receiver.address), 401);
    for _ in 0..2 {
        assert_eq!(forward(&request, receiver.address), 200);
    }
    let events = receiver.stop();
    assert_eq!((events.len(), external_ids(&events)), (1, [1].into()));
    assert_eq!(events[0]["properties"]["color"], "red");
}

#[test]
fn what_cannot_be_taken_is_told_by_its_status() {
    let receiver = Receiver::start_unsigned();
    let post = |kind: &str, encoding: &str, body: &[u8]| {
        let headers = [("content-type", kind), ("content-encoding", encoding)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let length = ("content-length".to_owned(), body.len().to_string());
        let request = Request {
            method: "POST".to_owned(),
            target: "/events".to_owned(),
            headers: headers.into_iter().chain([length]).collect(),
            body: body.to_vec(),
        };
        forward(&request, receiver.address)
    };
    let json = "application/json";
    assert_eq!(post(json, "", b"[{\"id\":\"a\"},{\"id\":\"a\"}]"), 200);
    for wrong in [&b"["[..], b"{}", b"[{}]", b"[{\"id\":1}]", b"[{\"id\":\"b\"},{}]"] {
        assert_eq!(post(json, "", wrong), 400, "{wrong:?}");
    }
    assert_eq!(post(json, "gzip", b"[]"), 400);
    assert_eq!(post("text/plain", "", b"[]"), 415);
    // A small body that unfolds to a large one, and a large one.
    let large = vec![b' '; 9 << 20];
    assert_eq!(post(json, "zstd", &zstd::encode_all(&large[..], 1).unwrap()), 413);
    assert_eq!(post(json, "", &large), 413);
    assert_eq!(receiver.stop().len(), 1);
}
