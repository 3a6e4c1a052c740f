//! `examples/embed.rs`: a gate inside another Pingora proxy judges, stores and answers events.

use crate::harness::{PORTALS, example, wait_for};
use crate::http::Connection;
use crate::nginx::Nginx;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[test]
fn another_proxy_judges_keeps_answers_and_passes_on() {
    let nginx = Nginx::start();
    let dir = tempfile::tempdir().unwrap();
    let portals = dir.path().join("portals.toml");
    std::fs::write(&portals, PORTALS).unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Another build of the same program, such as one with another TLS backend (`.ci/features`).
    let program = std::env::var_os("PIXELGATE_TEST_EMBED").map(PathBuf::from);
    let mut child = Command::new(program.unwrap_or_else(|| example("embed")))
        .args([listen.to_string(), nginx.address.to_string()])
        .args([&portals, &dir.path().join("data")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the proxy to listen", || TcpStream::connect(listen).is_ok());

    let mut connection = Connection::open(listen);
    assert_eq!(connection.get("/page", "").status, 204, "the backend's answer");
    let accepted = connection.get("/v1/event/?_a=62515&_n=a", "");
    assert_eq!((accepted.status, accepted.verdict()), (200, "accepted"));
    assert_eq!(connection.get("/v1/event/?_a=1&_n=a", "").verdict(), "portal_not_allowed");
    assert_eq!(nginx.targets(), ["/page"]);

    crate::harness::kill(&child, rustix::process::Signal::TERM);
    assert!(child.wait().unwrap().success());
    let said = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(said.contains("Accepted") && said.contains("PortalNotAllowed"), "{said}");
}
