//! The edge before whatever the internet sends: the real binary, raw bytes, real peers.
//!
//! Past each limit the right status or a close, a count, and no harm to others; and whatever is
//! sent, the edge and what stands behind it agree about what was asked.

#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/harness.rs"]
mod harness;
#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/http.rs"]
mod http;
#[allow(dead_code, reason = "shared with tests/edge, which uses the rest")]
#[path = "../edge/nginx.rs"]
mod nginx;

mod client_address;
mod frames;
mod h2;
mod limits;
mod memory;
mod origin;
mod proxy_protocol;
mod resilience;
mod smuggling;

use harness::{Edge, wait_for};

/// A plain event request.
const EVENT: &str = "GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n";

/// How many connections ended at this limit.
fn refused(edge: &Edge, limit: &str) -> u64 {
    let page = edge.admin("/metrics");
    let text = String::from_utf8(page.body).unwrap();
    let name = format!("pixelgate_connections_refused_total{{limit=\"{limit}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).expect(&name);
    value.parse().unwrap()
}

/// Waits until as many connections have ended at this limit.
fn wait_refused(edge: &Edge, limit: &str, count: u64) {
    wait_for(&format!("{count} connections to end at {limit}"), || refused(edge, limit) >= count);
    assert_eq!(refused(edge, limit), count, "{limit}");
}

/// How many events were accepted.
fn accepted(edge: &Edge) -> u64 {
    edge.wait_delivered("file")["accepted"].as_u64().unwrap()
}
