//! The PROXY header: first on a connection, from trusted proxies only, whole and in time.

use crate::harness::{Edge, Setup, command};
use crate::http::Connection;
use crate::{EVENT, refused, wait_refused};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.key");
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\x0a\0\0\x01\x12\x67\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn setup() -> Setup {
    Setup::default()
        .edge("proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]")
        .spool("linger_ms = 0")
}

/// The stored address of each event, in order.
fn addresses(edge: &Edge) -> Vec<String> {
    edge.wait_delivered("file");
    // In stored order: ids of one millisecond are not ordered.
    let events = Edge::events_in_files(edge.dir());
    events.iter().map(|event| event["context"]["ip"].as_str().unwrap().to_owned()).collect()
}

fn answers_event(mut stream: impl Read + Write) {
    stream.write_all(EVENT.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[test]
fn its_address_is_the_clients() {
    let edge = setup().start();
    for header in [V1, V2, LOCAL, b"PROXY UNKNOWN\r\n"] {
        let mut stream = TcpStream::connect(edge.address).unwrap();
        stream.write_all(header).unwrap();
        answers_event(&mut stream);
        answers_event(&mut stream);
    }
    let expect = ["203.0.113.7"; 4].into_iter().chain(["127.0.0.1"; 4]);
    assert_eq!(addresses(&edge), expect.collect::<Vec<_>>());
}

#[test]
fn it_may_come_in_any_pieces_and_with_the_first_request() {
    let edge = setup().start();
    for header in [V1, V2] {
        let all = [header, EVENT.as_bytes()].concat();
        for cut in (1..all.len()).step_by(7) {
            let mut connection = edge.connect();
            connection.send(&all[..cut]);
            connection.send(&all[cut..]);
            assert_eq!(connection.read("GET").status, 200, "cut at {cut}");
        }
    }
    assert!(addresses(&edge).iter().all(|address| address == "203.0.113.7"));
}

#[test]
fn behind_it_forwarded_headers_are_believed_as_behind_any_peer() {
    let edge = setup().start();
    let lines = "X-Forwarded-For: 198.51.100.1\r\n";
    let by_proxy = b"PROXY TCP4 10.0.0.9 10.0.0.1 4711 443\r\n";
    for header in [V1, by_proxy] {
        let mut connection = edge.connect();
        connection.send(header);
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", lines).status, 200);
    }
    assert_eq!(addresses(&edge), ["203.0.113.7", "198.51.100.1"]);
}

#[test]
fn the_origin_learns_of_the_client_too() {
    let nginx = crate::nginx::Nginx::start();
    let edge = setup().origin(nginx.address).start();
    let mut connection = edge.connect();
    connection.send(V2);
    let echo = String::from_utf8(connection.get("/echo", "").body).unwrap();
    assert!(echo.contains("|203.0.113.7|"), "{echo}");
}

#[test]
fn without_a_valid_header_in_time_the_connection_closes() {
    let edge = setup().edge("header_timeout_seconds = 1").start();
    let too_long = format!("PROXY {}", "x".repeat(200));
    let wrong: [&[u8]; 8] = [
        EVENT.as_bytes(),
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\n",
        too_long.as_bytes(),
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        &V1[..20],
        b"",
    ];
    for (count, bytes) in wrong.iter().enumerate() {
        let mut connection = edge.connect();
        let _ = connection.try_send(bytes);
        assert!(connection.is_closed(), "{}", bytes.escape_ascii());
        wait_refused(&edge, "proxy_header", count as u64 + 1);
    }
    assert_eq!(edge.wait_delivered("file")["accepted"], 0);
}

#[test]
fn an_untrusted_peer_is_refused() {
    let lines = "proxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]";
    let edge = Setup::default().edge(lines).start();
    let mut connection = edge.connect();
    let _ = connection.try_send(&[V1, EVENT.as_bytes()].concat());
    assert!(connection.is_closed());
    wait_refused(&edge, "proxy_header", 1);
}

#[test]
fn where_it_is_not_awaited_it_is_no_http() {
    let edge = Edge::start();
    for header in [V1, V2] {
        let mut connection = edge.connect();
        let _ = connection.try_send(&[header, EVENT.as_bytes()].concat());
        assert_eq!(connection.read("GET").status, 400);
        assert!(connection.is_closed());
    }
    assert_eq!(refused(&edge, "header_syntax"), 2);
}

#[test]
fn unix_sockets_carry_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.sock");
    let edge = setup().listen(&format!("unix:{}", path.display())).start();
    answers_event(std::os::unix::net::UnixStream::connect(&path).unwrap());
    assert_eq!(edge.wait_delivered("file")["accepted"], 1);
}

#[test]
fn it_requires_trusted_proxies() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().edge("proxy_protocol = true").write(dir.path());
    for arguments in [&["check"][..], &["run"]] {
        let output = command(&config, arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("edge.proxy_protocol") && said.contains("trusted_proxies"), "{said}");
    }
}

/// An edge with a TLS and a plaintext listener, and a client's TLS settings.
fn with_tls(setup: Setup) -> (Edge, SocketAddr, Arc<rustls::ClientConfig>) {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tls = format!("tls = [{{ listen = \"{address}\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = setup.edge(&tls).start();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(CERT).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (edge, address, Arc::new(config))
}

#[test]
fn who_shakes_hands_for_http_2_and_says_nothing_more_is_left() {
    let (edge, address, config) = with_tls(Setup::default().edge("header_timeout_seconds = 1"));
    let mut config = rustls::ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "edge.test".try_into().unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap());
    stream.flush().unwrap();
    let closed = stream.read(&mut [0; 100]);
    assert!(!closed.is_ok_and(|length| length > 0));
    wait_refused(&edge, "header_time", 1);
}

#[test]
fn it_stands_before_tls() {
    let (edge, address, config) = with_tls(setup());
    for header in [V1, V2] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(header).unwrap();
        let name = "edge.test".try_into().unwrap();
        let client = rustls::ClientConnection::new(config.clone(), name).unwrap();
        answers_event(rustls::StreamOwned::new(client, stream));
    }
    assert_eq!(addresses(&edge), ["203.0.113.7", "203.0.113.7"]);
    let mut stream = Connection::open(address);
    let _ = stream.try_send(b"\x16\x03\x01\x02\x00\x01\x00");
    assert!(stream.is_closed(), "TLS without a PROXY header");
    wait_refused(&edge, "proxy_header", 1);
}

#[test]
fn tls_handshakes_count_as_connections_and_are_not_logged_each() {
    let (edge, address, config) = with_tls(Setup::default().edge("connections_max = 10"));
    for count in 1..=50 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // An alert, or nothing.
        let _ = stream.read_to_end(&mut Vec::new());
        wait_refused(&edge, "tls_handshake", count);
    }
    let shaking: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    crate::harness::wait_for("the places to be taken", || {
        drop(edge.connect());
        refused(&edge, "connections") > 0
    });
    assert!(edge.log().lines().filter(|line| line.contains("handshake")).count() <= 2);
    assert!(!edge.log().contains("Downstream"), "{}", edge.log());
    drop(shaking);
    crate::harness::wait_for("the places to come back", || {
        let stream = TcpStream::connect(address).unwrap();
        let name = "edge.test".try_into().unwrap();
        let client = rustls::ClientConnection::new(config.clone(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(client, stream);
        let sent = stream.write_all(EVENT.as_bytes()).is_ok();
        sent && stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0)
    });
}

#[test]
fn a_handshake_has_the_header_deadline() {
    let (edge, address, _) = with_tls(Setup::default().edge("header_timeout_seconds = 1"));
    let mut silent = Connection::open(address);
    let mut begun = Connection::open(address);
    begun.send(b"\x16\x03\x01\x02\x00\x01\x00");
    for connection in [&mut silent, &mut begun] {
        assert!(connection.is_closed());
    }
    wait_refused(&edge, "tls_handshake", 2);
}
