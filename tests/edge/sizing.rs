//! Checks the numbers of docs/scaling.md against the binary: bytes per event on disk and on the
//! wire, and the cost of an outage of the log, a killed edge and a lost disk.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The number of measured events, enough for some segments.
const EVENTS: usize = 2000;
const SEGMENT_BYTES: u64 = 256 << 10;
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
     Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) \
     Version/17.6 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like \
     Gecko) Version/17.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
];

/// A typical event: the example of the legacy API's page, as a browser sends it.
struct Typical {
    email: String,
    external_id: String,
    revenue: String,
    order: String,
    agent: &'static str,
    referer: String,
    address: String,
}

/// The nth event. No two are equal, and each is the same in every run.
fn typical(n: usize) -> Typical {
    let spread = (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Typical {
        email: format!("person.{:05x}@company{}.com", spread >> 44, n % 97),
        external_id: format!("{:016x}", spread),
        revenue: format!("{}.{}5", 10 + n % 90, n % 9),
        order: format!("{}", 100_000 + n),
        agent: AGENTS[n % AGENTS.len()],
        referer: format!("https://shop.example.com/checkout/thank-you?order={}", 100_000 + n),
        address: format!("203.0.{}.{}", n / 256 % 256, n % 256),
    }
}

impl Typical {
    fn target(&self) -> String {
        format!(
            "/v1/event/?_a=62515&_n=000000001625&email={}&_m={}&id={}&favorite_color=orange\
             &order={}",
            self.email, self.revenue, self.external_id, self.order
        )
    }

    fn lines(&self) -> String {
        let (agent, referer, address) = (self.agent, &self.referer, &self.address);
        format!("User-Agent: {agent}\r\nReferer: {referer}\r\nX-Forwarded-For: {address}\r\n")
    }

    /// The formula of docs/scaling.md.
    fn disk_bytes(&self) -> u64 {
        let event = 38 + "62515".len() + "000000001625".len();
        let email = 11 + self.email.len();
        let external_id = 17 + self.external_id.len();
        let revenue = 11 + self.revenue.len();
        let properties = [("favorite_color", "orange"), ("order", &self.order)];
        let properties: usize = properties.iter().map(|(n, v)| 6 + n.len() + v.len()).sum();
        let json = event + email + external_id + revenue + properties - 1;
        (16 + 38 + json + 4 + 2 + self.agent.len() + 2 + self.referer.len()) as u64
    }
}

fn setup(backend: &Backend) -> Setup {
    Setup::default()
        .edge("trusted_proxies = [\"127.0.0.1\"]")
        .sections("[privacy]\nreferer = \"full\"\nreferer_query = true")
        .spool(&format!("durability = \"interval\"\nsegment_bytes = {SEGMENT_BYTES}"))
        .upstreams(&http_upstream(backend, ""))
}

fn send(edge: &Edge, events: impl Iterator<Item = usize>) -> u64 {
    let mut connection = edge.connect();
    let mut bytes = 0;
    for n in events {
        let event = typical(n);
        assert_eq!(connection.get(&event.target(), &event.lines()).status, 200);
        bytes += event.disk_bytes();
    }
    bytes
}

#[test]
fn the_disk_fills_by_the_formula_and_the_wire_is_as_small_as_said() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let edge = setup(&backend).start();
    let formula = send(&edge, 0..EVENTS);
    let held = || edge.status()["spool"]["bytes"].as_u64().unwrap();
    // Only each segment's header comes on top. The status is updated after the commit.
    let headers = 64 * formula.div_ceil(SEGMENT_BYTES - 512);
    wait_for("the spool's size", || (formula..=formula + headers).contains(&held()));

    let stat = command(&edge.dir().join("edge.toml"), &["spool", "stat"]).output().unwrap();
    let stat = String::from_utf8(stat.stdout).unwrap();
    let files =
        stat.split(" segments, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let files: u64 = files.expect(&stat);
    // Whole segments: the last one is made in its full size, and one may lie ready.
    assert!(files >= formula && files <= formula + headers + 2 * SEGMENT_BYTES, "{files}: {stat}");

    backend.script(|_| Act::Take);
    // A new process connects at once; this one is in a pause, which grows after each failure.
    let edge = Edge::start_in(edge.stop());
    edge.wait_delivered("collector");
    let taken = backend.taken();
    let sizes = taken.iter().filter(|request| request.header("x-batch-events") == "500");
    let sizes: Vec<(usize, usize)> =
        sizes.map(|request| (request.body.len(), request.plain().len())).collect();
    assert!(!sizes.is_empty());
    let (wire, plain) = sizes[sizes.len() - 1];
    println!(
        "an event: {} bytes on disk, {} as JSON, {} of it on the wire (gzip)",
        formula / EVENTS as u64,
        plain / 500,
        wire / 500
    );
    assert!(wire * 4 < plain, "{wire} of {plain}");
}

/// The external ids of the events in the log, and the number of events that came again under a
/// known id.
fn in_log(backend: &Backend) -> (BTreeSet<String>, usize) {
    let (mut ids, mut known, mut again) = (BTreeSet::new(), BTreeSet::new(), 0);
    for event in backend.events() {
        again += usize::from(!known.insert(event["id"].to_string()));
        ids.insert(event["external_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), known.len(), "an event came under two ids");
    (ids, again)
}

#[test]
fn an_outage_of_the_log_costs_nothing_and_a_lost_disk_what_waited_on_it() {
    const BEFORE: usize = 30;
    const DURING: usize = 120;
    let backend = RUNTIME.block_on(Backend::playing([]));
    let mut edges: Vec<Edge> = (0..3).map(|_| setup(&backend).start()).collect();
    let range =
        |edge: usize, of: std::ops::Range<usize>| of.map(move |n| edge * (BEFORE + DURING) + n);
    for (n, edge) in edges.iter().enumerate() {
        send(edge, range(n, 0..BEFORE));
        edge.wait_delivered("collector");
    }

    // The log is down. Every edge goes on answering, and its spool has the size of the formula.
    backend.script(|_| Act::Refuse(503));
    for (n, edge) in edges.iter().enumerate() {
        let formula = send(edge, range(n, BEFORE..BEFORE + DURING));
        wait_for("what waits", || edge.upstream("collector")["pending"] == DURING);
        let held = edge.status()["spool"]["bytes"].as_u64().unwrap();
        // Delivered events are trimmed by whole segments, and this segment is not full. What is
        // delivered of a segment is counted by the mean size of its events.
        let range = formula - formula / 100..=formula + SEGMENT_BYTES;
        assert!(range.contains(&held), "{held} and not {formula}");
    }

    // One edge is killed and starts again on its disk; another one loses its disk.
    let lost = edges.remove(1);
    let waited = lost.upstream("collector")["pending"].clone();
    drop(Arc::try_unwrap(lost.kill()).expect("no other handle of the folder is left"));
    let back = Edge::start_in(edges.remove(0).kill());
    edges.push(back);
    backend.script(|_| Act::Take);
    for edge in &edges {
        edge.wait_delivered("collector");
    }
    let (arrived, again) = in_log(&backend);
    let sent: BTreeSet<String> =
        (0..3 * (BEFORE + DURING)).map(|n| typical(n).external_id).collect();
    let missing: BTreeSet<&String> = sent.difference(&arrived).collect();
    let on_the_lost_disk: Vec<String> =
        range(1, BEFORE..BEFORE + DURING).map(|n| typical(n).external_id).collect();
    assert_eq!(missing, on_the_lost_disk.iter().collect(), "exactly what waited on that disk");
    assert_eq!(waited, Value::from(missing.len()), "and /status had said how much that was");
    println!("{} of {} events arrived, {again} of them twice", arrived.len(), sent.len());
}
