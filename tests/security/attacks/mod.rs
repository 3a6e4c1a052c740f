//! Attacks over HTTP/2 that cost a client little: each ends at a limit and is counted, costs a
//! bounded amount of memory, and leaves events of other clients alone.

mod figures;
mod scenes;

use crate::frames::{
    Client, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE, block, frame, get, literal,
};
use crate::harness::{Edge, Setup, wait_for};
use crate::nginx::Nginx;
use crate::origin::{Credulity, Origin};
use crate::{accepted, refused, wait_refused};

/// Most memory that an attack on one connection may take, in KiB, in any build.
const ATTACK_KIB_MAX: u64 = 24 << 10;

/// Runs an attack; events must be answered while its connections are open, and memory is bounded.
fn survive<T>(edge: &Edge, attack: impl FnOnce(&Edge) -> T) {
    assert_eq!(edge.event("_a=62515&_n=before").status, 200);
    let before = edge.resident_kib();
    let held = attack(edge);
    assert_eq!(edge.event("_a=62515&_n=meanwhile").status, 200);
    let grown = edge.resident_kib().saturating_sub(before);
    assert!(grown <= ATTACK_KIB_MAX, "{grown} KiB");
    drop(held);
}

/// CVE-2025-8671: the client makes the server reset its streams.
#[test]
fn streams_that_the_server_must_reset_end_their_connection() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    survive(&edge, |edge| {
        let mut client = Client::open(edge.address, b"");
        // A window above 2^31 - 1 is an error of the stream (RFC 9113, section 6.9.1).
        let made: Vec<u8> = (0..50_000_u32)
            .map(|n| 2 * n + 1)
            .flat_map(|n| [get(n, "/page"), frame(WINDOW_UPDATE, 0, n, &[0x7f, 255, 255, 255])])
            .flatten()
            .collect();
        client.flood(&made, 100);
        assert!(client.is_closed());
    });
    assert_eq!(refused(&edge, "h2_frames"), 1);
}

/// One large entry of the dynamic table, named again and again.
#[test]
fn a_header_block_that_grows_when_it_is_decoded_is_refused() {
    let edge = Edge::start();
    survive(&edge, |edge| {
        let mut client = Client::open(edge.address, b"");
        let mut stream = 1;
        for _ in 0..50 {
            let mut header = block("GET", "/page");
            // A literal with incremental indexing: name `x`, a value of 3,900 bytes.
            header.extend([0x40, 1, b'x', 0x7f, 0xbd, 0x1d]);
            header.extend([b'y'; 3900]);
            header.extend([0xbe; 10_000]);
            client.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &header));
            stream += 2;
            match client.next_answer() {
                Some(frame) => assert!(frame.kind == HEADERS || frame.kind == RST_STREAM),
                None => break,
            }
        }
        client
    });
}

/// Streams that promise a body and send none hold a connection to the origin until its timeout.
#[test]
fn idle_uploads_end_at_the_timeout_of_the_origin() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).edge("origin_timeout_seconds = 1").start();
    survive(&edge, |edge| {
        let mut clients: Vec<Client> = (0..3)
            .map(|_| {
                let mut client = Client::open(edge.address, b"");
                for n in 0..100_u32 {
                    let header = [block("POST", "/page"), literal("content-length", "9")].concat();
                    client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &header));
                }
                client
            })
            .collect();
        for client in &mut clients {
            // Each stream is answered 504.
            for _ in 0..100 {
                client.next_of(HEADERS);
            }
        }
        clients
    });
    assert!(!edge.log().contains("does not answer"), "the client is late, not the origin");
}

/// An origin may answer before it has the body. What is left of the exchange then would cost its
/// memory and a connection to the origin for as long as the client sends PINGs.
#[test]
fn an_upload_that_stops_after_its_answer_ends() {
    // Answers without reading the body.
    let origin = Nginx::start();
    let edge = Setup::default().origin(origin.address).edge("write_timeout_seconds = 1").start();
    let mut client = Client::open(edge.address, b"");
    let header = [block("POST", "/page"), literal("content-length", "9")].concat();
    client.send(&frame(HEADERS, END_HEADERS, 1, &header));
    assert_eq!(client.next_of(HEADERS).flags & END_STREAM, END_STREAM);
    let reset = client.next_of(RST_STREAM);
    // NO_ERROR (RFC 9113, section 8.1).
    assert_eq!((reset.stream, &reset.payload[..]), (1, &[0; 4][..]));
    wait_refused(&edge, "body_syntax", 1);
    client.send(&get(3, "/page"));
    assert_eq!(client.next_of(HEADERS).stream, 3);
}

/// CVE-2023-44487 and CVE-2025-8671: work for a stream that has ended is what they live on.
#[test]
fn a_stream_that_ends_with_its_request_starts_nothing() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    let mut client = Client::open(edge.address, b"");
    let cancelled = [get(1, "/cancelled"), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat();
    let broken = [get(3, "/broken"), frame(WINDOW_UPDATE, 0, 3, &[0x7f, 255, 255, 255])].concat();
    let event = [get(5, "/v1/event/?_a=62515&_n=a"), frame(RST_STREAM, 0, 5, &[0, 0, 0, 8])];
    client.send(&[cancelled, broken, event.concat(), get(7, "/served")].concat());
    assert_eq!(client.next_of(HEADERS).stream, 7);
    wait_for("the event, which counts without its client", || accepted(&edge) == 1);
    assert_eq!(origin.request_lines(Credulity::Chunks), ["GET /served HTTP/1.1"]);
}
