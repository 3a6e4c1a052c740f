//! Security tests of the real binary with raw bytes and real peers.
//!
//! A client that exceeds a limit gets the right status or a close, is counted, and harms no other
//! client. Whatever a client sends, the edge and the origin agree about which requests it made.

#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/harness.rs"]
mod harness;
#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/http.rs"]
mod http;
#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/nginx.rs"]
mod nginx;

mod attacks;
mod client_address;
mod desync;
mod fleet;
mod frames;
mod h2;
mod h2_rules;
mod limits;
mod memory;
mod origin;
mod proxy_protocol;
mod resilience;
mod smuggling;

use harness::{Edge, wait_for};

/// A fast-path event request.
const EVENT: &str = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";

/// Number of connections that ended at this limit.
fn refused(edge: &Edge, limit: &str) -> u64 {
    let page = edge.admin("/metrics");
    let text = String::from_utf8(page.body).unwrap();
    let name = format!("pixelgate_connections_refused_total{{limit=\"{limit}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).expect(&name);
    value.parse().unwrap()
}

/// Waits until `count` connections have ended at this limit.
fn wait_refused(edge: &Edge, limit: &str, count: u64) {
    wait_for(&format!("{count} connections to end at {limit}"), || refused(edge, limit) >= count);
    assert_eq!(refused(edge, limit), count, "{limit}");
}

/// Number of accepted events.
fn accepted(edge: &Edge) -> u64 {
    edge.wait_delivered("file")["accepted"].as_u64().unwrap()
}
