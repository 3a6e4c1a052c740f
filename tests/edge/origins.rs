//! Origins that fail, in every way, alone and beside healthy ones, and over TLS: events are
//! accepted in each case.

use crate::harness::{Edge, Setup, wait_for};
use crate::nginx::Nginx;
use crate::tls_origin::{TlsOrigin, certificate, write_pair};
use crate::wire::{Act, Message, Origin, Script, exchange};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

fn get(edge: SocketAddr, target: &str) -> Message {
    let head = format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    let answers = exchange(edge, "GET", head.as_bytes());
    answers.into_iter().next_back().unwrap_or_default()
}

/// An address with no listener.
fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn list(origins: &[SocketAddr]) -> String {
    let urls: Vec<_> = origins.iter().map(|address| format!("\"http://{address}\"")).collect();
    format!("origin = [{}]", urls.join(", "))
}

/// A fault of an origin, and the answer that the client gets.
fn failures() -> Vec<(&'static str, Vec<Act>, u16, bool)> {
    let send = |bytes: &str| Act::Send(bytes.as_bytes().to_vec());
    let reset_after =
        |bytes: &str| vec![send(bytes), Act::Pause(Duration::from_millis(50)), Act::Reset];
    vec![
        ("/closes", vec![Act::Close], 502, false),
        ("/resets", vec![Act::Reset], 502, false),
        ("/never", vec![Act::Hang], 504, false),
        ("/garbage", vec![send("\u{1}\u{2} what?\r\n\r\n"), Act::Close], 502, false),
        ("/half-head", vec![send("HTTP/1.1 200 OK\r\nX-A"), Act::Close], 502, false),
        (
            "/two-lengths",
            vec![
                send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                Act::Close,
            ],
            502,
            false,
        ),
        (
            "/bad-length",
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab"), Act::Close],
            502,
            false,
        ),
        (
            "/reset-sized",
            reset_after("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            200,
            true,
        ),
        (
            "/reset-chunked",
            reset_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
            200,
            true,
        ),
        (
            "/bad-chunk",
            vec![
                send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n"),
                Act::Close,
            ],
            200,
            true,
        ),
        (
            "/silent-sized",
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), Act::Hang],
            200,
            true,
        ),
    ]
}

#[test]
fn each_failure_has_its_status_and_half_an_answer_never_looks_whole() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).edge("origin_timeout_seconds = 1").start();
    let failures = failures();
    for (target, acts, ..) in &failures {
        origin.on(target, Script { after_body: acts.clone(), ..Script::default() });
    }
    let address = edge.address;
    // All faults at once, among events, which need no origin.
    let asked: Vec<_> = failures
        .iter()
        .map(|(target, _, status, truncated)| {
            let (target, expect) = (*target, (*status, *truncated));
            std::thread::spawn(move || {
                let answer = get(address, target);
                assert_eq!((answer.status(), answer.truncated), expect, "{target}: {answer:?}");
                let hint = answer.header("connection");
                assert!(answer.status() == 200 || hint == Some("close"), "{target}: {answer:?}");
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(get(address, "/well").status(), 204);
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
        assert_eq!(edge.admin("/livez").status, 200);
    }
    for asked in asked {
        asked.join().unwrap();
    }
    assert_eq!(edge.wait_delivered("file")["accepted"], 20);
    // Idle connections to healthy origins remain; those to failed origins are closed.
    wait_for("failed connections to close", || origin.open() <= 21);
}

/// Behaves as Node does, which resets the connection after a refusal when more of the body arrives.
#[test]
fn an_origin_that_fails_behind_the_beginning_of_its_answer_has_answered() {
    let origin = Origin::start();
    let edge = Setup::default()
        .origin(origin.address)
        .edge("origin_timeout_seconds = 1\norigin_health_seconds = 3600")
        .start();
    for (target, acts, status, truncated) in failures().into_iter().filter(|failure| failure.3) {
        origin.on(target, Script { after_body: acts, ..Script::default() });
        let answer = get(edge.address, target);
        assert_eq!((answer.status(), answer.truncated), (status, truncated), "{target}");
    }
    assert_eq!(get(edge.address, "/well").status(), 204);
    assert!(!edge.log().contains("does not answer"), "{}", edge.log());
}

#[test]
fn a_request_that_can_be_repeated_goes_to_another_origin_and_one_that_cannot_does_not() {
    let broken = Origin::start();
    broken.on("/a", Script { after_body: vec![Act::Close], ..Script::default() });
    let well = Origin::start();
    for n in 0..2 {
        // One of the two edges begins with the broken origin.
        let order =
            if n == 0 { [broken.address, well.address] } else { [well.address, broken.address] };
        let edge =
            Setup::default().edge(&list(&order)).edge("origin_health_seconds = 3600").start();
        assert_eq!(get(edge.address, "/a").status(), 204);
        assert_eq!(get(edge.address, "/a").status(), 204);
    }
    assert!(!broken.take_seen().is_empty(), "the broken one was asked");
    well.take_seen();

    let edge = Setup::default()
        .edge(&list(&[broken.address, well.address]))
        .edge("origin_health_seconds = 3600")
        .start();
    let post = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let statuses: Vec<u16> =
        (0..4).map(|_| exchange(edge.address, "POST", post.as_bytes())[0].status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 1, "{statuses:?}");
    assert_eq!(broken.take_seen().len() + well.take_seen().len(), 4, "none was sent twice");
}

#[test]
fn nothing_was_sent_to_an_origin_that_is_not_there_so_anything_goes_to_the_next() {
    let well = Origin::start();
    let edge = Setup::default().edge(&list(&[nowhere(), well.address])).start();
    let post = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for _ in 0..4 {
        assert_eq!(exchange(edge.address, "POST", post.as_bytes())[0].status(), 204);
    }
    let seen = well.take_seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|request| request.body == b"hello"));
}

#[test]
fn a_dead_origin_is_taken_out_and_comes_back() {
    let first = Nginx::start();
    let second = Nginx::start();
    let edge = Setup::default()
        .edge(&list(&[first.address, second.address]))
        .edge("origin_health_seconds = 1")
        .start();
    let asked = || (first_targets(&first), first_targets(&second));
    for _ in 0..6 {
        assert_eq!(get(edge.address, "/page").status(), 204);
    }
    let (one, other) = asked();
    assert!(one > 0 && other > 0, "both have their turns: {one} and {other}");
    let address = second.address;
    drop(second);
    edge.wait_log("does not answer");
    for _ in 0..6 {
        assert_eq!(get(edge.address, "/page").status(), 204);
    }
    let second = Nginx::start_at(address).expect("the port is still free");
    edge.wait_log("answers again");
    wait_for("it to be asked again", || {
        get(edge.address, "/page").status() == 204 && first_targets(&second) > 0
    });
    assert_eq!(edge.log().matches("does not answer").count(), 1, "{}", edge.log());
}

fn first_targets(nginx: &Nginx) -> usize {
    nginx.targets().iter().filter(|target| *target == "/page").count()
}

#[test]
fn an_origin_that_is_alive_and_says_it_is_not_well_is_taken_out() {
    let sick = Origin::start();
    let well = Origin::start();
    sick.answer("/health", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let edge = Setup::default()
        .edge(&list(&[sick.address, well.address]))
        .edge("origin_health_seconds = 1\norigin_health_path = \"/health\"")
        .start();
    edge.wait_log("its health checks fail");
    sick.take_seen();
    for _ in 0..10 {
        assert_eq!(get(edge.address, "/page").status(), 204);
    }
    let pages = sick.take_seen().iter().filter(|m| m.start.contains("/page")).count();
    assert_eq!(pages, 0, "the failing origin gets only health checks");
    sick.answer("/health", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    edge.wait_log("answers again");
    wait_for("it to be asked", || {
        get(edge.address, "/page").status() == 204
            && sick.take_seen().iter().any(|m| m.start.contains("/page"))
    });
}

fn secure(origin: &TlsOrigin, ca: &str, name: &str) -> Edge {
    let port = origin.address.port();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, ca).unwrap();
    let lines = format!(
        "origin = \"https://{name}:{port}\"\norigin_ca = \"{}\"\n\
         origin_timeout_seconds = 10",
        path.display()
    );
    Setup::default().edge(&lines).start()
}

#[test]
fn an_origin_over_tls_is_verified_by_name_and_gets_the_clients_host() {
    let pair = certificate(&["localhost", "127.0.0.1"]);
    let origin = TlsOrigin::start(&pair);
    for name in ["localhost", "127.0.0.1"] {
        let edge = secure(&origin, &pair.cert.pem(), name);
        let answer = get(edge.address, "/page");
        assert_eq!(
            (answer.status(), answer.body.as_slice()),
            (200, &b"secret"[..]),
            "{}",
            edge.log()
        );
    }
    let seen = origin.seen();
    assert_eq!(seen[0], (Some("localhost".to_owned()), "edge.test".to_owned()));
    assert_eq!(seen[1].0, None, "an address is no name");
}

#[test]
fn an_origin_that_cannot_prove_who_it_is_is_sent_nothing() {
    let pair = certificate(&["localhost"]);
    let origin = TlsOrigin::start(&pair);
    let other = certificate(&["localhost"]);
    for (ca, name, why) in [
        (other.cert.pem(), "localhost", "invalid peer certificate"),
        (pair.cert.pem(), "127.0.0.1", "invalid peer certificate"),
    ] {
        let edge = secure(&origin, &ca, name);
        assert_eq!(get(edge.address, "/page?email=secret@person.test").status(), 502);
        edge.wait_log("does not answer");
        let log = edge.log();
        assert!(log.contains(why), "{log}");
        assert!(!log.contains("secret@"), "{log}");
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    }
    assert!(origin.seen().is_empty());
}

#[test]
fn an_origin_ca_that_cannot_be_used_is_told_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let pair = certificate(&["a"]);
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
    write_pair(&pair, &cert, &key);
    for file in ["/missing.pem".as_ref(), key.as_path()] {
        let lines = format!("origin = \"https://localhost\"\norigin_ca = \"{}\"", file.display());
        let config = Setup::default().edge(&lines).write(dir.path());
        for arguments in [&["check"][..], &["run"]] {
            let output = crate::harness::command(&config, arguments).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("edge.origin_ca"), "{said}");
            assert!(said.contains(&*file.to_string_lossy()), "{said}");
        }
    }
}
