//! The admin listener (SPEC 8): its pages, and which requests it answers.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, PATIENCE, Setup, command, wait_for};
use crate::http::{Connection, Response};
use pixelgate::internals::admin::{
    CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX, EXPLAIN_BYTES_MAX, RECENT_EVENTS, STREAMS_MAX,
};
use prometheus_parse::{Scrape, Value as Metric};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

const TOKEN: &str = "sixteen bytes ok";

/// A connection to `/live`.
pub struct Live(BufReader<TcpStream>);

impl Live {
    pub fn open(edge: &Edge) -> Live {
        let mut stream = TcpStream::connect(edge.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET /live HTTP/1.1\r\nHost: {}\r\n\r\n", edge.admin);
        stream.write_all(head.as_bytes()).unwrap();
        Live(BufReader::new(stream))
    }

    /// What follows `begins` in the next line that begins with it; `None` at the end of the stream.
    pub fn line(&mut self, begins: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(rest) = line.trim_end().strip_prefix(begins) {
                return Some(rest.to_owned());
            }
        }
    }

    fn event(&mut self) -> Value {
        serde_json::from_str(&self.line("data: ").unwrap()).unwrap()
    }
}

/// Asks `/explain` as the page does.
pub fn post_explain(edge: &Edge, text: &str) -> Response {
    let mut connection = Connection::open(edge.admin);
    let head = format!(
        "POST /explain HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{text}",
        edge.admin,
        text.len()
    );
    // A body that is too long may be answered before all of it is written.
    let _ = connection.try_send(head.as_bytes());
    connection.read("POST")
}

fn metrics(edge: &Edge) -> (String, Scrape) {
    let text = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    (text, scrape)
}

/// Name and labels of each sample in a scrape.
fn series(scrape: &Scrape) -> BTreeSet<String> {
    scrape.samples.iter().map(|s| format!("{} {}", s.metric, s.labels)).collect()
}

#[test]
fn a_scrape_is_what_prometheus_reads_and_its_labels_are_bounded() {
    let edge = Edge::start();
    let (text, before) = metrics(&edge);
    for name in [
        "requests_total",
        "rejected_total",
        "ignored_params_total",
        "dry_run_refusals_total",
        "spool_pending_events",
        "spool_bytes",
        "spool_free_bytes",
        "spool_quarantined_bytes",
        "spool_commit_seconds",
        "delivered_events_total",
        "dead_events_total",
        "batches_total",
        "delivery_lag_seconds",
        "upstream_up",
        "portals",
        "portal_events_total",
        "portals_refresh_failures_total",
        "origin_failures_total",
        "ready",
        "faults",
    ] {
        let name = format!("pixelgate_{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} has no type");
        assert!(before.samples.iter().any(|s| s.metric == name), "{name} has no sample");
    }
    for number in 0..50 {
        edge.event(&format!("_a={number}&_n=event{number}&p{number}=1&_x{number}=1"));
        edge.get(&format!("/v1/event/{number}"));
    }
    edge.event("_a=62515&_n=a");
    edge.wait_delivered("file");
    let (_, after) = metrics(&edge);
    let mut listed = series(&before);
    for outcome in ["accepted", "rejected", "delivered"] {
        // Of the portals in the list only this one had an event.
        let labels = format!("outcome=\"{outcome}\",portal=\"62515\"");
        listed.insert(format!("pixelgate_portal_events_total {labels}"));
    }
    assert_eq!(listed, series(&after), "no request brings another series of its own");
    let accepted = after.samples.iter().find(|sample| {
        sample.metric == "pixelgate_requests_total"
            && sample.labels.get("verdict") == Some("accepted")
    });
    assert_eq!(accepted.unwrap().value, Metric::Counter(1.0));
}

#[test]
fn every_answer_keeps_to_itself_and_the_page_runs_only_its_own_script() {
    let edge = Edge::start();
    let paths = ["/", "/metrics", "/livez", "/readyz", "/status", "/nothing"];
    for page in paths.map(|path| edge.admin(path)).iter().chain([&post_explain(&edge, "_a=1")]) {
        assert_eq!(page.header("access-control-allow-origin"), None);
        assert_eq!(page.header("cross-origin-resource-policy"), Some("same-origin"));
        assert_eq!(page.header("cache-control"), Some("no-store"));
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    }
    let page = edge.admin("/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(edge.admin("/nothing").status, 404);
    let host = format!("Host: {}\r\n", edge.admin);
    let ask =
        |method: &str, path: &str| Connection::open(edge.admin).request(method, path, &host).status;
    assert_eq!(ask("HEAD", "/status"), 200);
    assert_eq!(ask("DELETE", "/status"), 405);
    assert_eq!(ask("GET", "/explain"), 405);
}

#[test]
fn the_status_has_the_keys_of_the_contract() {
    let edge = Edge::start();
    edge.event("_a=62515&_n=a");
    let status = edge.status();
    let has = |value: &Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "{key} is not in {value}");
        }
    };
    has(&status, &["version", "uptime_seconds", "verdicts", "spool", "portals", "upstreams"]);
    assert_eq!(status["faults"].as_array().map(Vec::len), Some(0), "{status}");
    has(&status["spool"], &["bytes", "free_bytes", "seconds_to_full", "quarantined_bytes"]);
    has(&status["portals"], &["count", "mode", "loaded_at", "last_failure"]);
    let counts = ["accepted", "delivered", "dead", "pending", "lag_seconds", "last_error"];
    has(&status["upstreams"][0], &counts);
    has(&status["upstreams"][0], &["name", "kind", "state"]);
    assert_eq!(status["verdicts"]["accepted"], 1);
    assert_eq!(status["ready"], true);
}

#[test]
fn an_upstream_that_is_down_leaves_the_edge_ready() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    wait_for("the headline to say so", || {
        let status = edge.status();
        let text = status["headline"]["text"].as_str().unwrap();
        text.contains("Upstream collector") && text.contains("1 event waits safely on disk")
    });
    assert_eq!(edge.admin("/readyz").status, 200);
    let (_, scrape) = metrics(&edge);
    let up = scrape.samples.iter().find(|s| s.metric == "pixelgate_upstream_up").unwrap();
    assert_eq!(up.value, Metric::Gauge(0.0));
}

#[test]
fn with_a_token_only_the_empty_page_is_open() {
    let edge = Setup::default().sections(&format!("token = \"{TOKEN}\"")).start();
    let elsewhere = Connection::open(edge.admin).get("/", "Host: edge1.example:9090\r\n");
    assert_eq!(elsewhere.status, 200, "with a token any host name is served");
    for path in ["/metrics", "/livez", "/readyz", "/status", "/live", "/explain", "/nothing"] {
        let denied = edge.admin(path);
        assert_eq!(denied.status, 401, "{path}");
        assert_eq!(denied.header("www-authenticate"), Some("Bearer"));
        assert_eq!(edge.admin_with(path, "Authorization: Bearer wrong\r\n").status, 401, "{path}");
    }
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let authorization = format!("Authorization: {scheme} {TOKEN}\r\n");
        assert_eq!(edge.admin_with("/status", &authorization).status, 200, "{scheme}");
    }
}

#[test]
fn a_token_is_taken_from_the_variable_that_the_configuration_names() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().sections("token = \"${ADMIN_TOKEN}\"").write(dir.path());
    let output = command(&config, &["check"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("admin.token: ${ADMIN_TOKEN} is not in the environment"), "{said}");

    // The file of a secret often ends in a newline.
    let edge = Edge::start_with(dir, &[("ADMIN_TOKEN", "sixteen bytes ok\n")]);
    let status = |token: &str| {
        edge.admin_with("/status", &format!("Authorization: Bearer {token}\r\n")).status
    };
    assert_eq!((status(TOKEN), status("${ADMIN_TOKEN}")), (200, 401));
}

#[test]
fn a_token_of_digits_is_taken_from_the_environment_as_it_is() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(dir.path());
    let edge = Edge::start_with(dir, &[("PIXELGATE__ADMIN__TOKEN", "1234567890123456")]);
    let bearer = "Authorization: Bearer 1234567890123456\r\n";
    assert_eq!(edge.admin_with("/status", bearer).status, 200);
}

#[test]
fn silent_connections_keep_out_no_probe() {
    let edge = Edge::start();
    let silent = |n: usize| {
        let octet = u8::try_from(1 + n / CONNECTIONS_PER_ADDRESS_MAX).unwrap();
        let from = SocketAddr::from(([127, 0, 0, octet], 0));
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &from).unwrap();
        connect(&socket, &edge.admin).unwrap();
        TcpStream::from(socket)
    };
    // First more connections than one address may have, then more than all may have together.
    for count in [CONNECTIONS_PER_ADDRESS_MAX + 13, 2 * CONNECTIONS_MAX] {
        let mut open: Vec<_> = (0..count).map(silent).collect();
        assert_eq!(edge.admin("/livez").status, 200);
        // The oldest is closed for a later one, and the youngest because it stays silent.
        for stream in [open.remove(0), open.pop().unwrap()] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
        }
    }
}

#[test]
fn without_a_token_other_names_and_other_sites_are_refused() {
    let edge = Edge::start();
    let port = edge.admin.port();
    let get = |lines: &str| Connection::open(edge.admin).get("/status", lines).status;
    assert_eq!(get(&format!("Host: localhost:{port}\r\n")), 200);
    assert_eq!(get(&format!("Host: evil.example:{port}\r\n")), 403);
    assert_eq!(Connection::open(edge.admin).get("/", "Host: evil.example\r\n").status, 403);
    assert_eq!(edge.admin_with("/status", "Sec-Fetch-Site: cross-site\r\n").status, 403);
    assert_eq!(edge.admin_with("/status", "Origin: https://evil.example\r\n").status, 403);
    assert_eq!(
        edge.admin_with("/status", &format!("Origin: http://{}\r\n", edge.admin)).status,
        200
    );
}

#[test]
fn a_live_page_receives_an_event_and_a_later_page_the_history() {
    let edge = Edge::start();
    let mut early = Live::open(&edge);
    assert_eq!(early.line("HTTP/1.1 ").as_deref(), Some("200 OK"));
    early.event();
    edge.event("_a=62515&_n=signup&email=person@company.com");
    edge.event("_a=1&_n=signup");
    let heard = |live: &mut Live| {
        let mut accepted = 0;
        loop {
            let event = live.event();
            let seconds = event["seconds"].as_array().unwrap();
            accepted += seconds.iter().map(|second| second[1].as_u64().unwrap()).sum::<u64>();
            let recent = event["status"]["recent"].as_array().unwrap();
            if recent.len() == 2 && accepted == 1 {
                return event;
            }
        }
    };
    for mut live in [early, Live::open(&edge)] {
        let status = &heard(&mut live)["status"];
        assert_eq!(status["recent"][0]["reason"], "portal_not_allowed");
        assert_eq!(status["recent"][0]["portal"], 1);
        assert_eq!(status["recent"][1]["email"], "p…@c….com");
        assert_eq!(status["recent"][1]["event"], "signup");
        let ranked = &status["ranking"]["portals"];
        assert_eq!((&ranked[0]["portal"], &ranked[1]["portal"]), (&1.into(), &62515.into()));
        assert_eq!(ranked[0]["mostly"], "portal_not_allowed");
        assert_eq!(status["lately"]["reasons"][0]["count"], 1);
    }
}

#[test]
fn the_ranking_counts_each_accepted_event_of_each_worker() {
    let list = "portals = [1, 2, 3, 4, 5]\n";
    let edge = Setup::default().edge("threads = 4").portals(list).start();
    std::thread::scope(|senders| {
        for _ in 0..4 {
            senders.spawn(|| {
                let mut connection = edge.connect();
                for event in 0..100 {
                    let target = format!("/v1/event/?_a={}&_n=a", 1 + event % 5);
                    assert_eq!(connection.get(&target, "").status, 200);
                }
            });
        }
    });
    let status = edge.status();
    let ranked = status["ranking"]["portals"].as_array().unwrap();
    let accepted: Vec<_> = ranked.iter().map(|portal| portal["accepted"].as_u64()).collect();
    assert_eq!(accepted, [Some(80); 5], "{status}");
    assert!(status["recent"].as_array().unwrap().len() <= RECENT_EVENTS);
}

#[test]
fn a_stop_ends_open_pages_at_once() {
    let mut edge = Setup::default().edge("shutdown_grace_seconds = 3600").start();
    let mut live = Live::open(&edge);
    live.event();
    edge.signal(Signal::TERM);
    assert_eq!(live.line("event: ").as_deref(), Some("stopping"));
    // The grace period is an hour, so the stop ends in time only because the pages were closed.
    assert_eq!(edge.wait().code(), Some(0));
    assert_eq!(live.line("event: "), None);
}

#[test]
fn the_number_of_open_pages_is_limited() {
    let edge = Edge::start();
    let mut all: Vec<Live> = (0..STREAMS_MAX).map(|_| Live::open(&edge)).collect();
    all.iter_mut().for_each(|live| drop(live.event()));
    assert_eq!(edge.admin("/live").status, 503);
    assert_eq!(edge.admin("/status").status, 200);
    all.pop();
    wait_for("a place to be free again", || {
        Live::open(&edge).line("HTTP/1.1 ").as_deref() == Some("200 OK")
    });
}

#[test]
fn the_page_explains_as_the_command_does_and_counts_nothing() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let list = "[[portal]]\nid = 7\nrate = { per_second = 1, burst = 1 }\n";
    // Nothing listens on this port: the test needs only the request that would be sent.
    let crm = "[[upstream]]\nname = \"crm\"\nkind = \"hubspot\"\nurl = \"http://127.0.0.1:1\"\n\
               tokens = { \"7\" = \"t0ps3cret\" }\n";
    let config = Setup::default().portals(list).upstreams(crm).write(dir.path());
    let edge = Edge::start_in(std::sync::Arc::clone(&dir));
    for text in [
        "_a=7&_n=buy&email=P@x.example&hapikey=hush&_m=2e1",
        "https://track.example.com/v1/event/?_a=7&_n=buy&email={{contact.email}}",
        "_a=1&_n=buy&amp;x=1",
        "/v1/event/more",
        "_a=7&_n=buy",
    ] {
        let output = command(&config, &["explain", text]).output().unwrap();
        let page: Value = serde_json::from_slice(&post_explain(&edge, text).body).unwrap();
        assert!(!page.to_string().contains("t0ps3cret"), "{page}");
        let mut text = page["verdict"].as_str().unwrap().to_owned();
        for section in page["sections"].as_array().unwrap() {
            text += &format!("\n\n{}:", section["title"].as_str().unwrap());
            for line in section["lines"].as_array().unwrap() {
                text += &format!("\n  {}", line.as_str().unwrap());
            }
        }
        assert_eq!(text + "\n", String::from_utf8(output.stdout).unwrap());
        assert_eq!(page["accepted"].as_bool(), Some(output.status.success()));
    }
    let other: Value = serde_json::from_slice(&post_explain(&edge, "/other?x=1").body).unwrap();
    assert!(other["accepted"].is_null() && other["verdict"].as_str().unwrap().contains("origin"));
    assert_eq!(edge.event("_a=7&_n=buy").status, 200, "explain used up no event of the rate");
    assert_eq!(edge.status()["verdicts"]["invalid_email"], 0, "nothing was counted");
    let most = "x".repeat(EXPLAIN_BYTES_MAX);
    assert_eq!(post_explain(&edge, &most).status, 200);
    assert_eq!(post_explain(&edge, &(most + "x")).status, 413);
}
