//! h2spec, a public conformance suite for HTTP/2, against the event path and pass-through.
//!
//! `PIXELGATE_TEST_H2SPEC` names its program. Without it the test says that it is skipped.

use super::{Field, Peer, Results};
use std::net::SocketAddr;
use std::process::Command;

/// Fails in clear, where bytes that do not begin as HTTP/2 are read as HTTP/1 and answered 400.
const NO_PREFACE: &str = "× 2: Sends invalid connection preface";

/// Runs the suite for one path over TLS, and in clear where the peer has a listener for that.
fn h2spec(program: &str, peer: &Peer, path: &str) -> Results {
    // nginx 1.22 has no listener for both versions in clear.
    let in_clear = peer.judges.then_some(("in clear", peer.clear, &[][..]));
    let over_tls = Some(("over TLS", peer.tls, &["-t", "-k"][..]));
    let run = |(name, address, options): (&str, SocketAddr, &[&str])| {
        let mut command = Command::new(program);
        command.args(["-S", "-h", "127.0.0.1", "-P", path, "-o", "5"]).args(options);
        let output = command.args(["-p", &address.port().to_string()]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let summary = text.lines().rev().find(|line| line.contains(" passed, "));
        let summary = summary.unwrap_or("no summary");
        println!("h2spec {name}, {path}: {summary}");
        let failures = text.split("Failures:").nth(1).unwrap_or_default().lines();
        let failures: Vec<&str> = failures.map(str::trim).filter(|l| l.starts_with('×')).collect();
        let is_known = name == "in clear" && failures == [NO_PREFACE];
        let result = match output.status.success() || is_known {
            true => "ok".to_owned(),
            false => format!("{summary} {failures:?}"),
        };
        (format!("h2spec {name}, {path}"), result)
    };
    in_clear.into_iter().chain(over_tls).map(run).collect()
}

#[test]
fn h2spec_passes() {
    let Ok(program) = std::env::var("PIXELGATE_TEST_H2SPEC") else {
        println!("skipped: PIXELGATE_TEST_H2SPEC names no h2spec");
        return;
    };
    let Some(field) = Field::start() else { return };
    // The path of a page, and that of an event.
    for path in ["/range", "/v1/event/?_a=62515&_n=a"] {
        field.compare(|peer| h2spec(&program, peer, path), 2);
    }
}
