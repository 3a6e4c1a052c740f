//! Clients that disconnect, are slow or send too much: each loses its own connection at most.

use crate::harness::{Edge, PATIENCE, Setup};
use crate::http::Connection;
use crate::nginx::Nginx;
use crate::{EVENT, accepted};
use rustix::net::sockopt::set_socket_linger;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// 1000 distinct events sent at once: all are answered in order, and all are stored.
#[test]
fn a_thousand_pipelined_events_are_answered_in_order_and_kept() {
    let edge = Setup::default().spool("linger_ms = 0\ndurability = \"interval\"").start();
    let mut writer = TcpStream::connect(edge.address).unwrap();
    let mut connection = Connection::of(writer.try_clone().unwrap());
    let all: String = (0..1000)
        .map(|n| {
            // Every tenth event is rejected, so that the responses show their order.
            let portal = if n % 10 == 0 { 1 } else { 62515 };
            format!("GET /v1/event/?_a={portal}&_n=event{n} HTTP/1.1\r\nHost: a\r\n\r\n")
        })
        .collect();
    let sending = std::thread::spawn(move || writer.write_all(all.as_bytes()).unwrap());
    for n in 0..1000 {
        let expect = if n % 10 == 0 { "portal_not_allowed" } else { "accepted" };
        assert_eq!(connection.read("GET").verdict(), expect, "answer {n}");
    }
    sending.join().unwrap();
    assert_eq!(accepted(&edge), 900);
    let events = Edge::events_in_files(edge.dir());
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for n in (0..1000).filter(|n| n % 10 != 0) {
        assert!(names.contains(&format!("event{n}").as_str()), "event{n}");
    }
}

#[test]
fn a_reset_in_the_middle_of_a_header_costs_its_connection_alone() {
    let edge = Edge::start();
    let mut other = edge.connect();
    for cut in 0..EVENT.len() {
        let mut stream = TcpStream::connect(edge.address).unwrap();
        stream.write_all(&EVENT.as_bytes()[..cut]).unwrap();
        // Closing now sends RST.
        set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        drop(stream);
    }
    assert_eq!(other.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    assert_eq!(accepted(&edge), 1);
    assert!(!edge.log().contains("panick"), "{}", edge.log());
}

#[test]
fn a_client_that_closes_its_half_is_answered_all_the_same() {
    let edge = Edge::start();
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.write_all(EVENT.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    answer.push_str(&String::from_utf8_lossy(&bytes));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(accepted(&edge), 1);
}

#[test]
fn half_open_connections_do_not_keep_others_out() {
    let edge = Setup::default().edge("header_timeout_seconds = 1\nconnections_max = 200").start();
    // Each client sends a part of a request and nothing more, like a machine that lost its network.
    let silent: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect(edge.address).unwrap();
            stream.write_all(&EVENT.as_bytes()[..n % EVENT.len()]).unwrap();
            stream
        })
        .collect();
    crate::harness::wait_for("their places to come back", || {
        let mut connection = edge.connect();
        let _ = connection.try_send(EVENT.as_bytes());
        connection.read_one("GET").is_ok_and(|response| response.status == 200)
    });
    drop(silent);
}

#[test]
fn a_slow_reader_gets_all_of_its_download() {
    let nginx = Nginx::start();
    let file: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(nginx.files().join("file"), &file).unwrap();
    let edge = Setup::default().origin(nginx.address).start();
    let mut stream = TcpStream::connect(edge.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /files/file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let mut piece = [0; 64 << 10];
    loop {
        let length = stream.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        all.extend_from_slice(&piece[..length]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(all.ends_with(&file), "{} bytes received", all.len());
}

#[test]
fn a_slow_writer_uploads_all_of_its_file() {
    let nginx = Nginx::start();
    let file: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let edge = Setup::default().origin(nginx.address).edge("header_timeout_seconds = 1").start();
    let mut connection = Connection::open(edge.address);
    let head =
        format!("PUT /files/f HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", file.len());
    connection.send(head.as_bytes());
    // The upload takes longer than the header deadline, which does not apply to a body. The end of
    // an idle connection shows that the deadline has passed.
    for piece in file.chunks(file.len() / 2) {
        connection.send(piece);
        assert!(Connection::open(edge.address).is_closed());
    }
    assert_eq!(connection.read("PUT").status, 201);
    assert!(std::fs::read(nginx.files().join("f")).unwrap() == file, "the bytes differ");
}
