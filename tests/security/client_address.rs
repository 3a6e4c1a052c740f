//! The client's address: which headers are believed, and what is stored of the address.

use crate::harness::{Edge, Setup};
use crate::origin::Origin;
use serde_json::Value;

/// The stored context of one event sent with these header lines.
fn context(setup: Setup, lines: &str) -> Value {
    let edge = setup.spool("linger_ms = 0").start();
    let response = edge.connect().get("/v1/event/?_a=62515&_n=a&email=a@b.example", lines);
    assert_eq!(response.verdict(), "accepted", "{lines}");
    edge.wait_delivered("file");
    Edge::events_in_files(edge.dir()).pop().unwrap()
}

/// The stored addresses of events sent with each of these header lines, in order.
fn addresses(setup: Setup, all: &[&str]) -> Vec<String> {
    let edge = setup.spool("linger_ms = 0").start();
    for (n, lines) in all.iter().enumerate() {
        let response = edge.connect().get(&format!("/v1/event/?_a=62515&_n={n}"), lines);
        assert_eq!(response.verdict(), "accepted", "{lines}");
    }
    edge.wait_delivered("file");
    let events = Edge::events_in_files(edge.dir());
    (0..all.len())
        .map(|n| {
            let name = n.to_string();
            let event = events.iter().find(|event| event["event"] == name.as_str()).unwrap();
            event["context"]["ip"].as_str().unwrap_or("none").to_owned()
        })
        .collect()
}

fn trusting() -> Setup {
    Setup::default().edge("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\", \"fd00::/8\"]")
}

#[test]
fn only_what_trusted_proxies_wrote_is_believed() {
    let many = format!("X-Forwarded-For: {}203.0.113.7\r\n", "6.6.6.6, ".repeat(1_000));
    let cases = [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.9.9.9\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 203.0.113.7:4711\r\n", "203.0.113.7"),
        ("X-Forwarded-For: [2001:db8::7]:4711\r\n", "2001:db8::7"),
        ("X-Forwarded-For: ::ffff:203.0.113.7\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 6.6.6.6, unknown, 10.9.9.9\r\n", "10.9.9.9"),
        ("X-Forwarded-For: 6.6.6.6, \u{e9}\r\n", "127.0.0.1"),
        ("X-Forwarded-For: \r\n", "127.0.0.1"),
        ("Forwarded: for=6.6.6.6, for=\"[2001:db8::7]:4711\";proto=https\r\n", "2001:db8::7"),
        ("Forwarded: for=_hidden, for=10.9.9.9\r\n", "10.9.9.9"),
        ("Forwarded: for=\"6.6.6.6, for=203.0.113.7\r\n", "203.0.113.7"),
        (&many, "203.0.113.7"),
    ];
    let lines = cases.map(|(lines, _)| lines);
    let expect = cases.map(|(_, expect)| expect);
    assert_eq!(addresses(trusting(), &lines), expect);
    assert_eq!(
        addresses(Setup::default(), &lines),
        lines.map(|_| "127.0.0.1"),
        "from an untrusted client"
    );
}

/// RFC 7239, section 4, and RFC 9110, sections 5.6.1 and 5.6.4.
#[test]
fn strings_and_empty_elements_are_read_as_the_standards_say() {
    let cases = [
        ("Forwarded: for=203.0.113.7;host=\"a,for=6.6.6.6\"\r\n", "203.0.113.7"),
        ("Forwarded: host=\"a;for=6.6.6.6\";for=203.0.113.7\r\n", "203.0.113.7"),
        ("Forwarded: by=\"\\\",for=6.6.6.6;\";for=\"\\2\\03.0.113.7\"\r\n", "203.0.113.7"),
        ("Forwarded: for=\"[2001:db8::7]:_port\"\r\n", "2001:db8::7"),
        ("Forwarded: for=6.6.6.6, for=unknown\r\n", "127.0.0.1"),
        ("Forwarded: for=203.0.113.7,\r\n", "203.0.113.7"),
        ("Forwarded: for=203.0.113.7, , for=10.9.9.9 ,\t,\r\n", "203.0.113.7"),
        ("Forwarded: for=6.6.6.6\r\nForwarded: for=203.0.113.7\r\nForwarded:\r\n", "203.0.113.7"),
        ("Forwarded: for=\"6.6.6.6\\, for=\"203.0.113.7:80\"\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 203.0.113.7,\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 203.0.113.7, , 10.9.9.9 ,\t,\r\n", "203.0.113.7"),
        ("X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For:\r\n", "203.0.113.7"),
        ("X-Forwarded-For: ,\r\nForwarded: for=6.6.6.6\r\n", "127.0.0.1"),
    ];
    let lines = cases.map(|(lines, _)| lines);
    assert_eq!(addresses(trusting(), &lines), cases.map(|(_, expect)| expect));
}

/// 10,000 entries do not fit in a header of 64 KiB. With a larger limit they are accepted, and cost
/// no more time.
#[test]
fn ten_thousand_entries_are_not_walked() {
    let lines = format!("X-Forwarded-For: {}203.0.113.7\r\n", "6.6.6.6, ".repeat(10_000));
    let large = trusting().edge("header_bytes_max = \"256KiB\"");
    assert_eq!(addresses(large, &[&lines]), ["203.0.113.7"]);
    let edge = trusting().start();
    let mut connection = edge.connect();
    let request = format!("GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let _ = connection.try_send(request.as_bytes());
    assert_eq!(connection.read("GET").status, 431);
}

#[test]
fn the_configured_header_alone_is_believed() {
    let lines = "CF-Connecting-IP: 203.0.113.7\r\nX-Forwarded-For: 6.6.6.6\r\n";
    let own = || trusting().edge("client_ip_header = \"CF-Connecting-IP\"");
    let twice = "CF-Connecting-IP: 6.6.6.6\r\nCF-Connecting-IP: 203.0.113.7\r\n";
    let list = "CF-Connecting-IP: 6.6.6.6, 203.0.113.7\r\n";
    let without = "X-Forwarded-For: 6.6.6.6\r\n";
    let found = addresses(own(), &[lines, twice, list, without]);
    assert_eq!(found, ["203.0.113.7", "203.0.113.7", "127.0.0.1", "127.0.0.1"]);
    let chain = trusting().edge("client_ip_header = \"Forwarded\"");
    let both = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=203.0.113.7\r\n";
    assert_eq!(addresses(chain, &[both]), ["203.0.113.7"]);
}

#[test]
fn an_address_is_stored_as_privacy_allows() {
    let lines = ["X-Forwarded-For: 203.0.113.7\r\n", "X-Forwarded-For: 2001:db8:1:2:3::7\r\n"];
    for (keep, expect) in [
        ("full", ["203.0.113.7", "2001:db8:1:2:3::7"]),
        ("truncated", ["203.0.113.0", "2001:db8:1::"]),
        ("none", ["none", "none"]),
    ] {
        let setup = trusting().sections(&format!("[privacy]\nip = \"{keep}\""));
        assert_eq!(addresses(setup, &lines), expect, "{keep}");
    }
}

#[test]
fn a_browsers_privacy_signals_are_stored_as_flags() {
    let flags = |lines: &str| {
        let event = context(Setup::default(), lines);
        ["gpc", "dnt", "prefetch"].map(|flag| event["context"].get(flag).is_some())
    };
    assert_eq!(flags(""), [false; 3]);
    assert_eq!(flags("Sec-GPC: 0\r\nDNT: 0\r\nPurpose: other\r\n"), [false; 3]);
    assert_eq!(flags("Sec-GPC: 1\r\nDNT: 1\r\nSec-Purpose: prefetch\r\n"), [true; 3]);
    assert_eq!(flags("Sec-Purpose: prefetch;prerender\r\n"), [false, false, true]);
    assert_eq!(flags("Purpose: prefetch\r\n"), [false, false, true]);
    assert_eq!(flags("X-Moz: prefetch\r\n"), [false, false, true]);
}

#[test]
fn what_global_privacy_control_does_is_configured() {
    let lines = "Sec-GPC: 1\r\nUser-Agent: me\r\nReferer: https://a.example/\r\n";
    let with = |gpc: &str| Setup::default().sections(&format!("[privacy]\ngpc = \"{gpc}\""));
    let flagged = context(with("flag"), lines);
    assert_eq!(flagged["email"], "a@b.example");
    assert_eq!(flagged["context"]["user_agent"], "me");
    let anonymous = context(with("anonymize"), lines);
    assert_eq!(anonymous.get("email"), None);
    assert_eq!(anonymous["context"], serde_json::json!({ "gpc": true }));
    let edge = with("reject").start();
    let refused = edge.connect().get("/v1/event/?_a=62515&_n=a", lines);
    assert_eq!((refused.status, refused.verdict()), (403, "privacy_opt_out"));
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

/// An origin may route by these headers instead of by the path (SPEC 2).
#[test]
fn only_trusted_proxies_may_replace_the_path_by_a_header() {
    let names = ["X-Original-URL", "x-rewrite-url", "X_Original_URL", "X-Rewrite_URL"];
    let lines: String = names.iter().map(|name| format!("{name}: /v1/event/\r\n")).collect();
    let lines = format!("A: 1\r\n{lines}X-HTTP-Method-Override: PUT\r\nB: 2\r\n");
    for (setup, passes) in [(Setup::default(), false), (trusting(), true)] {
        let origin = Origin::start();
        let edge = setup.origin(origin.address).start();
        assert_eq!(edge.connect().get("/page", &lines).status, 200);
        let sent = String::from_utf8(origin.bytes().concat()).unwrap();
        for name in names {
            assert_eq!(sent.contains(name), passes, "{name} in {sent}");
        }
        let order = ["A: 1", "X-HTTP-Method-Override: PUT", "B: 2"].map(|line| sent.find(line));
        assert!(order.is_sorted() && order[0].is_some(), "{sent}");
    }
}
