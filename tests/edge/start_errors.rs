//! What `pixelgate run` and `pixelgate check` print when the edge cannot start (SPEC 8).

use crate::harness::{Setup, command};
use std::net::TcpListener;
use std::path::Path;

/// Runs a command that fails with exit code 2, and checks that its one line of output holds each
/// of `expect`.
fn check(config: &Path, arguments: &[&str], expect: &[&str]) {
    let output = command(config, arguments).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    let mut lines = printed.lines().filter(|line| line.starts_with("pixelgate:"));
    let (line, further) = (lines.next().expect(&printed), lines.next());
    assert_eq!(further, None, "one line: {printed}");
    for part in expect {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
        assert_eq!(line.matches(part).count(), 1, "{part:?} is there once: {line:?}");
    }
}

#[test]
fn a_spool_folder_below_a_file_is_reported_with_the_reason_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    std::fs::write(dir.path().join("spool"), "a file").unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("/spool\"", "/spool/below\"")).unwrap();
    check(&config, &["run"], &["spool/below", "cannot be used", "Not a directory"]);
}

#[test]
fn a_missing_portal_list_is_reported_with_the_reason_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    std::fs::remove_file(dir.path().join("portals.toml")).unwrap();
    for arguments in [["run"], ["check"]] {
        check(&config, &arguments, &["portals.source", "portals.toml", "No such file"]);
    }
}

#[test]
fn an_address_in_use_is_reported_with_the_reason_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("127.0.0.1:0", &address, 1)).unwrap();
    check(&config, &["run"], &["cannot listen on", &address, "Address already in use"]);
}

#[test]
fn a_state_folder_below_a_file_is_reported_with_the_reason_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let file = dir.path().join("portals.toml");
    let mut run = command(&config, &["run"]);
    let output = run.env("PIXELGATE__EDGE__STATE_DIR", file.join("state")).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("edge.state_dir"), "{printed}");
    assert!(printed.contains("Not a directory"), "{printed}");
}

#[test]
fn check_finds_what_run_would() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----";
    let (key, data) =
        (file("key.pem", encrypted), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    let pair = |cert: &str, key: &str| format!("cert = '{cert}', key = '{key}'");
    let tls = |pair: String| format!("tls = [{{ listen = '127.0.0.1:0', {pair} }}]");
    let other = crate::tls_origin::certificate(&["other.test"]);
    let cert = file("other.pem", &other.cert.pem());
    let own = format!("{data}/edge.key");
    let client = format!("url = 'https://h/'\ncert = '{cert}'\nkey = '{key}'");
    let collector = format!("[[upstream]]\nname = 'c'\nkind = 'http'\n{client}");
    let below = format!("[[upstream]]\nname = 'f'\nkind = 'file'\ndir = '{key}/events'");
    let setup = Setup::default;
    for (setup, expect) in [
        (setup().edge(&tls(pair(&cert, &key))), ["edge.toml: edge.tls: ", "is encrypted"]),
        (setup().edge(&tls(pair(&cert, &own))), ["edge.toml: edge.tls: ", "is not "]),
        (setup().upstreams(&collector), ["edge.toml: upstream.c.key: ", "is encrypted"]),
        (setup().upstreams(&below), ["edge.toml: upstream.f.dir: ", "no folder"]),
    ] {
        let config = setup.write(dir.path());
        check(&config, &["check"], &expect);
        check(&config, &["run"], &["edge.toml: "]);
    }
    let config = setup().listen("0.0.0.0:65001").listen("127.0.0.1:65001").write(dir.path());
    for arguments in [["check"], ["run"]] {
        check(&config, &arguments, &["listens on an address that edge.listen listens on"]);
    }
}
