//! SPEC 1: a request that is not an event reaches the origin byte for byte.

use crate::harness::{Setup, wait_for};
use crate::nginx::Nginx;
use std::net::TcpListener;

/// Bytes that compress badly and repeat nowhere, so that a lost or doubled block shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

const LARGE: usize = 50_000_000;

#[test]
fn a_large_download_arrives_as_it_is() {
    let nginx = Nginx::start();
    let file = noise(LARGE);
    std::fs::write(nginx.files().join("large"), &file).unwrap();
    let edge = Setup::default().origin(nginx.address).start();
    let mut connection = edge.connect();
    for _ in 0..2 {
        let response = connection.get("/files/large", "");
        assert_eq!(response.status, 200);
        assert!(response.body == file, "the bytes differ");
        assert_eq!(response.header("connection"), Some("keep-alive"));
    }
}

#[test]
fn a_large_upload_arrives_as_it_is_sized_and_chunked() {
    let nginx = Nginx::start();
    let file = noise(LARGE);
    let edge = Setup::default().origin(nginx.address).start();
    let mut connection = edge.connect();
    let head = format!("PUT /files/sized HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
    connection.send(head.as_bytes());
    connection.send(&file);
    assert_eq!(connection.read("PUT").status, 201);
    assert!(std::fs::read(nginx.files().join("sized")).unwrap() == file, "the bytes differ");

    let head = "PUT /files/chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes());
    for chunk in file.chunks(77_777) {
        connection.send(format!("{:x}\r\n", chunk.len()).as_bytes());
        connection.send(chunk);
        connection.send(b"\r\n");
    }
    connection.send(b"0\r\n\r\n");
    assert_eq!(connection.read("PUT").status, 201);
    assert!(std::fs::read(nginx.files().join("chunked")).unwrap() == file, "the bytes differ");
}

#[test]
fn methods_ranges_and_conditions_are_the_origins_business() {
    let nginx = Nginx::start();
    std::fs::write(nginx.files().join("page"), "0123456789").unwrap();
    let edge = Setup::default().origin(nginx.address).start();
    let mut connection = edge.connect();
    let whole = connection.get("/files/page", "");
    assert_eq!(whole.body, b"0123456789");
    let part = connection.get("/files/page", "Range: bytes=2-4\r\n");
    assert_eq!((part.status, part.body.as_slice()), (206, &b"234"[..]));
    let tag = whole.header("etag").unwrap().to_owned();
    let same = connection.get("/files/page", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((same.status, same.body.len()), (304, 0));
    let head = connection.request("HEAD", "/files/page", "");
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    assert_eq!(connection.request("DELETE", "/files/page", "").status, 204);
    assert_eq!(connection.get("/files/page", "").status, 404);
}

#[test]
fn the_origin_learns_who_asked_how_and_for_whom() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    let echo = |lines: &str| {
        let response = edge.connect().get("/echo?a=b%20c", lines);
        String::from_utf8(response.body).unwrap()
    };
    let plain = "GET /echo?a=b%20c|edge.test|127.0.0.1|http|edge.test|kept\n";
    assert_eq!(echo("X-Custom: kept\r\n"), plain);
    let chained = echo("X-Forwarded-For: 203.0.113.7\r\nX-Custom: kept\r\n");
    assert!(chained.contains("|203.0.113.7, 127.0.0.1|"), "{chained}");
    let spoofed = echo("X-Forwarded-Proto: https\r\nX-Forwarded-Host: bank.test\r\n");
    assert!(spoofed.contains("|http|edge.test|"), "{spoofed}");
}

#[test]
fn a_trusted_proxy_is_believed_about_scheme_and_host() {
    let nginx = Nginx::start();
    let edge =
        Setup::default().origin(nginx.address).edge("trusted_proxies = [\"127.0.0.0/8\"]").start();
    let lines = "X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\n";
    let response = edge.connect().get("/echo", lines);
    let text = String::from_utf8(response.body).unwrap();
    assert!(text.contains("|https|shop.test|"), "{text}");
}

#[test]
fn a_dead_origin_is_502_and_is_logged_once() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Setup::default().origin(gone).start();
    for _ in 0..20 {
        let response = edge.get("/page?email=secret@person.test");
        assert_eq!((response.status, response.header("connection")), (502, Some("close")));
    }
    edge.wait_log("does not answer");
    let log = edge.log();
    assert_eq!(log.matches("does not answer").count(), 1, "{log}");
    assert!(!log.contains("secret"), "{log}");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200, "events do not need the origin");

    let nginx = Nginx::start_at(gone).expect("the port is still free");
    assert_eq!(edge.get("/page").status, 204);
    wait_for("the log to say so", || edge.log().contains("answers again"));
    drop(nginx);
}

#[test]
fn the_living_one_of_several_origins_answers() {
    let nginx = Nginx::start();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let origins = format!("origin = [\"http://{gone}\", \"http://{}\"]", nginx.address);
    let edge = Setup::default().edge(&origins).start();
    let mut connection = edge.connect();
    for _ in 0..6 {
        assert_eq!(connection.get("/page", "").status, 204);
    }
}

#[test]
fn without_an_origin_there_is_nothing_else() {
    let edge = Setup::default().start();
    let mut connection = edge.connect();
    assert_eq!(connection.get("/page", "").status, 404);
    assert_eq!(connection.request("HEAD", "/page", "").status, 404);
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
}
