//! TLS listeners: HTTP/2 and HTTP/1.1 by a real TLS client, with the same verdicts.

use crate::delivery::RUNTIME;
use crate::harness::Setup;
use crate::nginx::Nginx;
use crate::tls_client::{CERT, Client, KEY};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

fn client(address: SocketAddr, h2: bool) -> reqwest::Client {
    // A second installation finds the first, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pem = std::fs::read(CERT).unwrap();
    let builder = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
        .resolve("edge.test", address);
    let builder = if h2 { builder } else { builder.http1_only() };
    builder.build().unwrap()
}

#[test]
fn events_and_pass_through_work_over_tls_in_both_versions_of_http() {
    let nginx = Nginx::start();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tls = format!("tls = [{{ listen = \"{address}\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = Setup::default().origin(nginx.address).edge(&tls).start();
    for (h2, version) in [(true, http::Version::HTTP_2), (false, http::Version::HTTP_11)] {
        RUNTIME.block_on(async {
            let client = client(address, h2);
            let get = |target: &str| client.get(format!("https://edge.test{target}")).send();
            let accepted = get("/v1/event/?_a=62515&_n=a").await.unwrap();
            assert_eq!(accepted.version(), version);
            assert_eq!(accepted.status(), 200);
            assert_eq!(accepted.headers()["x-event-verdict"], "accepted");
            assert_eq!(accepted.bytes().await.unwrap().len(), 43);
            let refused = get("/v1/event/?_a=1&_n=a").await.unwrap();
            assert_eq!(refused.status(), 403);
            assert_eq!(get("/page").await.unwrap().status(), 204);
            let echo = get("/echo").await.unwrap().text().await.unwrap();
            assert!(echo.contains("|https|edge.test|"), "{echo}");
        });
    }
    assert_eq!(edge.wait_delivered("file")["accepted"], 2);
}

#[test]
fn a_protocol_that_is_not_agreed_on_is_refused_in_words_that_clients_know() {
    let tls = format!("tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = Setup::default().edge(&tls).start();
    let log = edge.log();
    let address = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let connect = |alpn: &[&str]| {
        let client = Client::with(&[Path::new(CERT)], rustls::ALL_VERSIONS, alpn);
        client.connect(address, "edge.test")
    };
    // RFC 7301, section 3.2.
    let refused = connect(&["spdy/1"]).unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    // RFC 9113, section 3.2: HTTP/2 over TLS is agreed on by ALPN alone.
    for alpn in [&[][..], &["http/1.1"]] {
        let mut stream = connect(alpn).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{alpn:?}: {answer:?}");
    }
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let tls =
        "tls = [{ listen = \"127.0.0.1:0\", cert = \"/missing.pem\", key = \"/missing.key\" }]";
    let config = Setup::default().edge(tls).write(dir.path());
    for arguments in [&["check"][..], &["run"]] {
        let output = crate::harness::command(&config, arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("edge.tls") && said.contains("/missing.pem"), "{said}");
    }
}
