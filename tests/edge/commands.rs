//! The command line and its error messages (SPEC 8 and 9).

use crate::harness::{Edge, Setup, command};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Output;

fn run(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(config, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn explain(arguments: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let all: Vec<_> = std::iter::once("explain").chain(arguments.iter().copied()).collect();
    let (code, stdout, stderr) = run(&config, &all);
    assert!(!dir.path().join("spool").exists(), "explain records nothing");
    (code, stdout + &stderr)
}

#[test]
fn explain_prints_an_accepted_event_as_json() {
    let query = "_a=62515&_n=000000001625&email=P@Company.com&_m=2e1&color=red&hapikey=x&_x=1";
    let url = format!("https://track.example.com/v1/event/?{query}");
    let path = format!("/V1/event?{query}");
    let host = format!("track.example.com/v1/event/?{query}");
    let mark = format!("?{query}");
    for form in [query, &url, &path, &host, &mark] {
        let (code, out) = explain(&["--json", form]);
        assert_eq!(code, 0, "{form}: {out}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        let expect = json!({
            "verdict": "accepted",
            "event": {
                "portal": 62515, "event": "000000001625", "email": "p@company.com", "revenue": 20,
                "properties": { "color": "red" }
            },
            "ignored": [
                { "param": "hapikey", "why": "withheld" }, { "param": "_x", "why": "underscore" }
            ],
            "upstreams": ["file"]
        });
        assert_eq!(answer, expect, "{form}");
    }
}

#[test]
fn explain_prints_a_rejection_as_json() {
    let (code, out) = explain(&["--json", "_a=62515&_n=a&email=nobody"]);
    assert_eq!(code, 1);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["verdict"], "rejected");
    assert_eq!(answer["reason"], "invalid_email");
    assert_eq!(answer["status"], 400);
    assert_eq!(answer["param"], "email");
    assert!(answer["detail"].as_str().unwrap().contains("person@company.com"));
    let (code, out) = explain(&["--json", "/v1/event/more?_a=62515&_n=a"]);
    assert_eq!((code, out.contains("unknown_path")), (1, true));
}

#[test]
fn explain_tells_a_marketer_what_to_change() {
    let check = |query: &str, expect: &[&str]| {
        let (_, out) = explain(&[query]);
        for part in expect {
            assert!(out.contains(part), "{part:?} is not in {out}");
        }
    };
    check("_a=62515&_n=buy&email=P@x.example", &["accepted", "portal", "62515", "p@x.example"]);
    check("_a=1&_n=buy", &["rejected: portal_not_allowed", "_a", "operator"]);
    check("_a=62515&_n=buy&amp;email=a@b.example", &["&amp;", "amp;email"]);
    check("_a=62515&_n=buy&email={{contact.email}}", &["rejected: invalid_email", "placeholder"]);
    check("/other?x=1", &["passed on to the origin"]);
    check(
        "_a=62515&_n=buy&color=#ff0000&size=2",
        &["accepted", "color: Browsers send no part of a link"],
    );
    check("/v1/event/?_a=62515&_n=buy#x?", &["accepted", "_n: Browsers send no part of a link"]);
    check("/v1/event/#?_a=62515&_n=buy", &["rejected: missing_portal", "#: Browsers send"]);
    check("//v1/event/?_a=62515&_n=buy", &["accepted", "//: A link that begins with //"]);
    let link = "//track.example.com/v1/event/?_a=62515&_n=buy";
    check(link, &["rejected: unknown_path", "//: A link that begins with //"]);
    check("_a=62515&_n=buy&oauth=x&auth=hush", &["oauth = x", "auth (its value is not shown)"]);
}

#[test]
fn explain_shows_no_control_character_to_a_terminal() {
    let (code, out) = explain(&["_a=62515&_n=a&note=%09%0Ared&%1b[31m=x"]);
    assert_eq!(code, 0);
    assert!(!out.contains('\u{1b}'), "{out:?}");
}

#[test]
fn explain_keeps_the_order_of_the_contract() {
    let (_, out) = explain(&["--json", "_n=a&z=1&b=2&_a=62515&email=a@b.example&_m=5&id=x&_q=1"]);
    let expect = "{\"verdict\":\"accepted\",\"event\":{\"portal\":62515,\"event\":\"a\",\
        \"email\":\"a@b.example\",\"external_id\":\"x\",\"revenue\":5,\
        \"properties\":{\"b\":\"2\",\"z\":\"1\"}},\
        \"ignored\":[{\"param\":\"_q\",\"why\":\"underscore\"}],\"upstreams\":[\"file\"]}\n";
    assert_eq!(out, expect);
    let (_, out) = explain(&["--json", "_a=62515&_n=a&email=nobody"]);
    let expect = "{\"verdict\":\"rejected\",\"reason\":\"invalid_email\",\"status\":400,\
        \"param\":\"email\",\"detail\":\"";
    assert!(out.starts_with(expect), "{out}");
}

#[test]
fn explain_takes_bytes_that_are_not_utf8() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    for name in ["caf\u{e9}", "\u{e9}\u{c3}\u{a9}"] {
        let latin1: Vec<u8> = name.chars().map(|c| c as u8).collect();
        let encoded: String = latin1.iter().map(|byte| format!("%{byte:02X}")).collect();
        for query in ["_a=62515&_n=a&note=", "/v1/event/?_a=62515&_n="] {
            let raw = [query.as_bytes(), &latin1].concat();
            let mut command = command(&config, &["explain", "--json"]);
            let Output { stdout, .. } = command.arg(OsStr::from_bytes(&raw)).output().unwrap();
            let (_, expect) = explain(&["--json", &format!("{query}{encoded}")]);
            assert_eq!(String::from_utf8(stdout).unwrap(), expect, "{query}{encoded}");
        }
    }
}

#[test]
fn explain_shows_what_arrived_before_what_it_means() {
    let query = "_a=0062515&_n=a%2Fb&email=A+b@x.example&note=a+b&bell=%07%e2%80%ae&hapikey=hush";
    let arrived = "what arrived:\n  _a = 0062515\n  _n = a/b\n  email = A+b@x.example\n  \
        note = a b\n  bell = \\u{7}\\u{202e}\n  hapikey (its value is not shown)\n\n";
    let accepted = format!("accepted: this event counts.\n\n{arrived}what was made of it:\n");
    let (_, out) = explain(&[query]);
    assert!(out.starts_with(&accepted), "{out}");
    let (_, out) = explain(&[&query.replace("A+b@", "nobody")]);
    let arrived = arrived.replace("A+b@", "nobody");
    assert!(
        out.starts_with(&format!("rejected: invalid_email (status 400)\n\n{arrived}")),
        "{out}"
    );
    assert!(!out.contains("hush"), "{out}");

    // No more lines than a person reads.
    let query = "&x=1".repeat(100);
    let (_, out) = explain(&[&query]);
    assert!(out.contains("  x = 1\n\n"), "{out}");
    let (_, out) = explain(&[&format!("{query}&y=2&y=3")]);
    assert!(out.contains("  x = 1\n  and 2 more\n\n") && !out.contains("y = "), "{out}");
}

#[test]
fn explain_names_the_rule_that_decided() {
    let dir = tempfile::tempdir().unwrap();
    let list = "[[portal]]\nid = 7\nevents = [\"buy\", \"signup*\"]\ndrop_properties = [\"ssn\"]\n\
        [[portal]]\nid = 8\nexpires = 2020-02-29\n";
    let config = Setup::default().portals(list).write(dir.path());
    let check = |query: &str, expect: &[&str]| {
        let (code, out, _) = run(&config, &["explain", query]);
        for part in expect {
            assert!(out.contains(part), "{part:?} is not in {out}");
        }
        (code, out)
    };
    let rule = "policy:\n  the event name fits `signup*` of `events`\n";
    let ssn = "ssn: not passed on (drop_properties)";
    let (code, out) = check("_a=7&_n=signup-now&ssn=078-05-1120&color=red", &[rule, ssn, "red"]);
    assert_eq!((code, out.matches("078-05-1120").count()), (0, 1), "it arrived and went: {out}");
    let refused = "rejected: event_not_allowed (status 403)";
    let (code, out) =
        check("_a=7&_n=sell&ssn=1", &[refused, "the event name fits none of `events`"]);
    assert_eq!((code, out.contains(ssn)), (1, false), "{out}");
    check("_a=8&_n=a", &["rejected: portal_not_allowed", "the portal has expired on 2020-02-29"]);
    check("_a=9&_n=a", &["rejected: portal_not_allowed", "the portal is not in the list"]);
    assert!(!check("_a=9&_n=a&email=x", &["invalid_email"]).1.contains("policy"));

    let text = std::fs::read_to_string(&config).unwrap();
    let dry = text.replace("[portals]\n", "[portals]\nmode = \"dry_run\"\n");
    std::fs::write(&config, dry).unwrap();
    let dry = "a dry run: enforce would answer portal_not_allowed";
    assert_eq!(check("_a=9&_n=a", &["accepted", "the portal is not in the list", dry]).0, 0);
}

#[test]
fn check_says_what_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let (code, out, _) = run(&config, &["check"]);
    assert_eq!(code, 0);
    assert!(out.contains("portals: 2") && out.contains("upstream file"), "{out}");
}

#[test]
fn a_wrong_configuration_is_reported_by_file_key_and_reason() {
    let check = |change: &dyn Fn(String) -> String, expect: &[&str]| {
        for arguments in [&["check"][..], &["run"]] {
            let dir = tempfile::tempdir().unwrap();
            let config = Setup::default().write(dir.path());
            let text = change(std::fs::read_to_string(&config).unwrap());
            std::fs::write(&config, text).unwrap();
            let (code, _, said) = run(&config, arguments);
            assert_eq!(code, 2, "{arguments:?}: {said}");
            for part in expect {
                assert!(said.contains(part), "{part:?} is not in {said:?}");
            }
            assert_eq!(said.trim_end().lines().count(), 1, "one line: {said:?}");
        }
    };
    let replace = |from: &'static str, to: &'static str| {
        move |text: String| {
            assert!(text.contains(from));
            text.replacen(from, to, 1)
        }
    };
    check(&replace("[edge]", "[edge]\nlisten_on = 1"), &["edge.toml:2", "listen_on", "listen"]);
    check(&replace("kind = \"file\"", "kind = \"fax\""), &["edge.toml", "kind", "http"]);
    check(&replace("[edge]", "[edge]\nkeepalive_seconds = 0"), &["edge.toml:2: edge.keepalive_s"]);
    check(&replace("[spool]", "[spool]\nlinger_ms = 5000"), &["edge.toml:", ": spool.linger_ms"]);
    check(&replace("[spool]", "[spool]\nbytes_max = \"lots\""), &["edge.toml", "spool.bytes_max"]);
    check(&replace("[edge]", "[events]\npath = \"event\"\n[edge]"), &["edge.toml", "events.path"]);
    check(&replace("[edge]", "[edge]\norigin = \"gopher://a\""), &["edge.toml", "edge.origin"]);
    check(&replace("portals.toml", "missing.toml"), &["missing.toml"]);
    check(&replace("127.0.0.1:0\"\n", "0.0.0.0:0\"\n"), &["admin.token"]);
}

#[test]
fn a_broken_portal_list_is_a_start_up_error_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().portals("portals = [\n  1,\n  0,\n]\n").write(dir.path());
    let (code, _, said) = run(&config, &["check"]);
    assert_eq!(code, 2);
    assert!(said.contains("portals.toml:3"), "{said}");
}

#[test]
fn the_environment_overrides_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    for (name, value, expect) in [
        ("PIXELGATE__EDGE__THREADS", "lots", "environment: edge.threads: "),
        ("PIXELGATE__METRICS__PORTALS_MAX", "1001", "environment: metrics.portals_max: must be"),
    ] {
        let output = command(&config, &["check"]).env(name, value).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(said.contains(expect), "{said}");
    }
}

#[test]
fn check_compares_with_a_running_edge_alone() {
    let edge = Setup::default().start();
    let config = edge.dir().join("edge.toml");
    let (code, out, _) = run(&config, &["check", "--diff"]);
    assert_eq!((code, out.as_str()), (0, "no key has changed\n"));
    for end in [Edge::stop, Edge::kill] {
        let dir = end(Edge::start_in(Setup::default().start().stop()));
        let (code, out, said) = run(&dir.path().join("edge.toml"), &["check", "--diff"]);
        assert_eq!((code, out.as_str()), (1, ""), "{said}");
        assert!(said.contains(": no edge runs with this edge.state_dir\n"), "{said}");
    }
}
