//! No text of a request is in a log line, a metric or a page, even at the most verbose log level;
//! in the access log its path alone is.

use crate::admin::{Live, post_explain};
use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, wait_for};
use std::net::TcpListener;
use std::sync::Arc;

/// A word in every request below, and nowhere else.
const SECRET: &str = "zanzibar";

#[test]
fn the_log_at_its_loudest_the_metrics_and_the_status_hold_no_personal_data() {
    // An origin that is gone and an upstream that echoes its requests cause more log lines.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = RUNTIME.block_on(Backend::playing([Act::Refuse(500), Act::Refuse(404)]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let access = dir.path().join("access.log");
    let section = format!("[access_log]\npath = \"{}\"", access.display());
    let setup = Setup::default().origin(gone).sections(&section);
    setup.upstreams(&http_upstream(&backend, "")).write(dir.path());
    let edge = Edge::start_with(dir, &[("RUST_LOG", "trace")]);

    let targets = [
        format!("/v1/event/?_a=62515&_n={SECRET}@a.example&email={SECRET}@a.example"),
        format!("/v1/event/?_a=62515&_n=a&id={SECRET}&color={SECRET}&{SECRET}=1"),
        format!("/v1/event/?_a=62515&_n=a&email={SECRET}"),
        format!("/v1/event/?_a=1&_n=a={SECRET}&note={SECRET}"),
        format!("/v1/event/{SECRET}"),
        format!("/page?email={SECRET}@a.example"),
        format!("/v1/event/?_a=62515&_n=%FF&note={SECRET}"),
    ];
    let headers = format!("Referer: https://a.test/{SECRET}\r\nCookie: {SECRET}\r\n");
    for target in &targets {
        edge.connect().get(target, &headers);
        edge.connect().request("HEAD", target, &headers);
    }
    // Bytes that are no HTTP, and a request that ends in the middle.
    for bytes in [
        format!("GET /v1/event/?{SECRET} HTTP/9.9\r\nHost: a\r\n\r\n"),
        format!("{SECRET}\0\r\n\r\n"),
        format!("GET /?{SECRET} HTTP/1.1\r\nHost: a\r\n{SECRET}: \0\r\n\r\n"),
        format!("GET /?{SECRET} HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"),
        format!("POST /?{SECRET} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{SECRET}"),
    ] {
        let mut connection = edge.connect();
        connection.send(bytes.as_bytes());
        if !bytes.starts_with("POST") {
            let _ = connection.read_one("GET");
        }
    }
    wait_for("attempts at the upstream", || backend.seen().len() >= 2);
    edge.wait_delivered("collector");

    wait_for("the last events to be seen", || {
        let recent = edge.status()["recent"].as_array().unwrap().len();
        recent >= targets.len() - 1
    });
    // The answer of `/explain` quotes the text; no other page does.
    let told = post_explain(&edge, &format!("_a=62515&_n=a&email={SECRET}@a.example")).body;
    assert!(String::from_utf8(told).unwrap().contains(SECRET));

    let mut pages: Vec<String> = ["/metrics", "/status", "/readyz", "/livez", "/"]
        .iter()
        .map(|page| String::from_utf8(edge.admin(page).body).unwrap())
        .collect();
    pages.push(Live::open(&edge).line("data: ").unwrap());
    wait_for("the access log", || std::fs::read_to_string(&access).unwrap().contains("/page"));
    let logs =
        [("the log", &edge.log()), ("the access log", &std::fs::read_to_string(access).unwrap())];
    for (place, text) in pages.iter().map(|p| ("a page", p)).chain(logs) {
        let found = text.lines().find(|line| line.to_lowercase().contains(SECRET));
        assert_eq!(found, None, "{place} tells");
    }
    assert!(edge.log().contains("does not answer"), "there was something to log");
}
