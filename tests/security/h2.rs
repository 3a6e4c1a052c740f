//! HTTP/2: a regular client, and abusive clients that send arbitrary frames.

use crate::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, block, frame, get,
};
use crate::harness::{Edge, Setup};
use crate::nginx::Nginx;
use crate::origin::Origin;
use crate::{accepted, refused, wait_refused};
use bytes::Bytes;
use h2::client::SendRequest;
use std::net::SocketAddr;
use std::sync::LazyLock;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

const EVENT_PATH: &str = "/v1/event/?_a=62515&_n=a";
/// The code of `REFUSED_STREAM` (RFC 9113, section 7).
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// A regular client on a connection of its own.
pub async fn stock(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

fn request(path: &str) -> http::Request<()> {
    http::Request::get(format!("http://a{path}")).body(()).unwrap()
}

async fn status(client: &SendRequest<Bytes>, path: &str) -> u16 {
    let mut client = client.clone().ready().await.unwrap();
    let (response, _) = client.send_request(request(path), true).unwrap();
    let mut response = response.await.unwrap();
    while let Some(piece) = response.body_mut().data().await {
        let length = piece.unwrap().len();
        response.body_mut().flow_control().release_capacity(length).unwrap();
    }
    response.status().as_u16()
}

#[test]
fn by_prior_knowledge_events_and_pass_through_work_on_plain_listeners() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    RUNTIME.block_on(async {
        let client = stock(edge.address).await;
        assert_eq!(status(&client, EVENT_PATH).await, 200);
        assert_eq!(status(&client, "/v1/event/?_a=1&_n=a").await, 403);
        assert_eq!(status(&client, "/page").await, 204);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..90 {
            let client = client.clone();
            all.spawn(async move { status(&client, EVENT_PATH).await });
        }
        assert!(all.join_all().await.iter().all(|status| *status == 200));
    });
    assert_eq!(accepted(&edge), 91);
}

#[test]
fn a_preface_and_a_request_have_their_time() {
    let edge = Setup::default().edge("header_timeout_seconds = 1").start();
    let mut torn = Client::connect(edge.address);
    torn.send(&PREFACE[..20]);
    assert!(torn.is_closed(), "half a preface");
    wait_refused(&edge, "header_time", 1);
    let mut idle = Client::open(edge.address, b"");
    assert!(idle.is_closed(), "no request");
    wait_refused(&edge, "header_time", 2);
    // Frames other than requests do not extend the deadline.
    let mut busy = Client::open(edge.address, b"");
    busy.send(&frame(PING, 0, 0, b"12345678"));
    assert!(busy.is_closed());
    wait_refused(&edge, "header_time", 3);
    let mut open = Client::open(edge.address, b"");
    open.send(&frame(HEADERS, END_STREAM, 1, &block("GET", EVENT_PATH)));
    assert!(open.is_closed(), "a header block that does not end");
    wait_refused(&edge, "header_time", 4);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn an_idle_connection_ends() {
    let edge = Setup::default().edge("keepalive_seconds = 1").start();
    let mut client = Client::open(edge.address, b"");
    client.send(&get(1, EVENT_PATH));
    client.next_of(HEADERS);
    assert!(client.is_closed());
    assert_eq!(accepted(&edge), 1);
}

/// CVE-2023-44487: requests that are cancelled at once cost the client nothing.
#[test]
fn a_rapid_reset_ends_its_connection_and_harms_no_other_client() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    RUNTIME.block_on(async {
        let other = stock(edge.address).await;
        assert_eq!(status(&other, EVENT_PATH).await, 200);
        let client = stock(edge.address).await;
        let mut opened = 0;
        while let Ok(mut client) = client.clone().ready().await {
            let Ok((_, mut sending)) = client.send_request(request("/page"), false) else { break };
            sending.send_reset(h2::Reason::CANCEL);
            opened += 1;
            assert!(opened < 100_000, "it goes on for ever");
            tokio::task::yield_now().await;
        }
        assert_eq!(status(&other, EVENT_PATH).await, 200);
    });
    // Either the h2 crate's limit on resets of streams that were not begun, or the server's.
    let mut raw = Client::open(edge.address, b"");
    let pairs: Vec<u8> = (0..50_000_u32)
        .flat_map(|n| [get(2 * n + 1, "/page"), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])])
        .flatten()
        .collect();
    raw.flood(&pairs, 100);
    assert!(raw.is_closed());
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn too_many_resets_end_the_connection() {
    let edge = Setup::default().edge("h2_streams_max = 3").start();
    let mut client = Client::open(edge.address, b"");
    for n in 0..7_u32 {
        client.send(&get(2 * n + 1, EVENT_PATH));
        client.next_of(HEADERS);
        client.send(&frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]));
    }
    assert!(client.is_closed());
    wait_refused(&edge, "h2_resets", 1);
    assert_eq!(accepted(&edge), 7, "what was asked before was answered");
}

#[test]
fn too_many_frames_without_a_request_end_the_connection() {
    let edge = Edge::start();
    let floods = [
        frame(PING, 0, 0, b"12345678"),
        frame(SETTINGS, 0, 0, b""),
        frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]),
        frame(0xbb, 0, 0, b"unknown"),
    ];
    for (count, flood) in floods.iter().enumerate() {
        let mut client = Client::open(edge.address, b"");
        client.flood(flood, 1_000_000);
        assert!(client.is_closed());
        wait_refused(&edge, "h2_frames", count as u64 + 1);
    }
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn empty_data_ends_its_connection() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    let mut client = Client::open(edge.address, b"");
    client.send(&frame(HEADERS, END_HEADERS, 1, &block("POST", "/page")));
    client.flood(&frame(DATA, 0, 1, b""), 1_000_000);
    assert!(client.is_closed());
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

#[test]
fn a_header_block_without_end_ends_its_connection() {
    let edge = Edge::start();
    let mut client = Client::open(edge.address, b"");
    client.send(&frame(HEADERS, END_STREAM, 1, &block("GET", EVENT_PATH)));
    client.flood(&frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y']), 1_000_000);
    assert!(client.is_closed());
    // Each piece is as large as a frame may be, so that the limit on bytes is the one that is met.
    let mut client = Client::open(edge.address, b"");
    client.send(&frame(HEADERS, END_STREAM, 1, &block("GET", EVENT_PATH)));
    client.flood(&frame(CONTINUATION, 0, 1, &[b'x'; 16_000]), 10_000);
    assert!(client.is_closed());
    assert_eq!(accepted(&edge), 0);
}

#[test]
fn a_header_list_has_the_size_limit_of_a_header() {
    let edge = Setup::default().edge("header_bytes_max = \"1KiB\"").start();
    RUNTIME.block_on(async {
        let client = stock(edge.address).await;
        assert_eq!(status(&client, EVENT_PATH).await, 200);
        // Each field counts 32 bytes beside its name and its value (RFC 9113, section 6.5.2).
        let path = (":path", EVENT_PATH);
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":authority", "a"), path, ("x", "")];
        let least: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        for (bytes, expect) in [(1023, 200), (1024, 200), (1025, 431), (1500, 431)] {
            let mut large = request(EVENT_PATH);
            large.headers_mut().insert("x", "y".repeat(bytes - least).parse().unwrap());
            let mut ready = client.clone().ready().await.unwrap();
            let (response, _) = ready.send_request(large, true).unwrap();
            assert_eq!(response.await.unwrap().status(), expect, "{bytes} bytes");
        }
    });
    assert_eq!(accepted(&edge), 3);
}

#[test]
fn concurrent_streams_are_limited() {
    // The origin answers a request once all of it has arrived.
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).edge("h2_streams_max = 4").start();
    let mut client = Client::open(edge.address, b"");
    let settings = client.next_of(SETTINGS).payload;
    // The edge announces SETTINGS_MAX_CONCURRENT_STREAMS and enforces it.
    assert!(settings.chunks(6).any(|s| s == [0, 3, 0, 0, 0, 4]), "{settings:?}");
    for n in 0..5_u32 {
        client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &block("POST", "/page")));
    }
    let reset = client.next_of(RST_STREAM);
    assert_eq!((reset.stream, &reset.payload[..]), (9, &REFUSED_STREAM[..]));
    for n in 0..4_u32 {
        client.send(&frame(DATA, END_STREAM, 2 * n + 1, b"x"));
    }
    let mut answered: Vec<u32> = (0..4).map(|_| client.next_of(HEADERS).stream).collect();
    answered.sort_unstable();
    assert_eq!(answered, [1, 3, 5, 7]);
}

#[test]
fn past_the_request_limit_a_connection_gets_goaway() {
    let edge = Setup::default().edge("requests_per_connection_max = 3").start();
    let mut client = Client::open(edge.address, b"");
    for n in 0..3_u32 {
        client.send(&get(2 * n + 1, EVENT_PATH));
    }
    let mut answers = 0;
    let mut goaway = false;
    while answers < 3 || !goaway {
        let frame = client.next().expect("all answers and the word to go");
        answers += u32::from(frame.kind == HEADERS);
        goaway |= frame.kind == GOAWAY;
    }
    assert_eq!(accepted(&edge), 3);
    // A client that ignores GOAWAY is disconnected.
    let mut client = Client::open(edge.address, b"");
    for n in 0..100_u32 {
        let request = get(2 * n + 1, EVENT_PATH);
        if n < 7 {
            client.send(&request);
        }
    }
    client.send(&get(15, EVENT_PATH));
    assert!(client.is_closed());
    wait_refused(&edge, "requests", 1);
}

#[test]
fn a_window_that_is_not_opened_costs_its_stream() {
    let nginx = Nginx::start();
    std::fs::write(nginx.files().join("large"), vec![7; 1_000_000]).unwrap();
    let edge = Setup::default().origin(nginx.address).edge("write_timeout_seconds = 1").start();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: the edge may send no DATA.
    let mut client = Client::open(edge.address, &[0, 4, 0, 0, 0, 0]);
    client.send(&get(1, "/files/large"));
    client.send(&get(3, EVENT_PATH));
    let mut reset = Vec::new();
    while reset.len() < 2 {
        let frame = client.next().expect("the end of both streams");
        if frame.kind == RST_STREAM {
            reset.push(frame.stream);
        }
    }
    assert!(refused(&edge, "write_time") >= 1);
    assert_eq!(accepted(&edge), 1);
}
