//! Runs the commands that the documents show, and compares a table with what the binary prints.

use crate::harness::{Setup, command};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");
const OPERATING: &str = include_str!("../../docs/operating.md");

/// The portals in the examples of the page.
const PORTALS: &str = "portals = [62515]\n[[portal]]\nid = 12345\nevents = [\"signup*\"]\n";

/// Runs a line in bash, where `pixelgate` is the binary with this configuration.
fn in_shell(line: &str, config: &Path) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_pixelgate")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-c", line]).env("PATH", path).env("PIXELGATE_CONFIG", config);
    String::from_utf8(bash.output().unwrap().stdout).unwrap()
}

#[test]
fn troubleshooting_shows_each_reason_by_a_command_that_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().portals(PORTALS).write(dir.path());
    let mut shown = 0;
    for section in TROUBLESHOOTING.split("\n### `").skip(1) {
        let reason = section.split('`').next().unwrap();
        let see = section.split("- See it: ").nth(1).unwrap_or_else(|| panic!("{reason}"));
        let Some(line) = see.strip_prefix('`').and_then(|see| see.split('`').next()) else {
            continue;
        };
        let Some(line) = line.starts_with("pixelgate explain ").then_some(line) else { continue };
        let said = in_shell(line, &config);
        assert!(said.starts_with(&format!("rejected: {reason} (")), "{line}: {said}");
        shown += 1;
    }
    assert!(shown >= 14, "{shown} of the reasons can be seen with explain");
}

/// The first column of the table in a section of a page, without the backticks.
fn rows<'p>(page: &'p str, heading: &str) -> Vec<&'p str> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `"));
    cells.map(|line| line.split("` |").next().unwrap()).collect()
}

/// Whether a text holds the parts of `row`, between which `…` stands, in their order.
fn fits(row: &str, text: &str) -> bool {
    let mut rest = Some(text);
    for part in row.split('…') {
        rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, after)| after);
    }
    rest.is_some()
}

/// A section of an upstream with these keys.
fn upstream(kind: &str, keys: &str) -> String {
    format!("[[upstream]]\nname = 'u'\nkind = '{kind}'\n{keys}\n")
}

/// Configurations with one mistake each; `DIR` is their folder.
fn mistakes() -> Vec<Setup> {
    let edge = |keys: &str| Setup::default().edge(keys);
    let more = |sections: &str| Setup::default().sections(sections);
    let log = |path: &str| more(&format!("[access_log]\npath = 'DIR/{path}'"));
    let sends = |kind: &str, keys: &str| Setup::default().upstreams(&upstream(kind, keys));
    let tls = |cert: &str, key: &str| {
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
        let file = |name: &str| name.replace("DATA/", data);
        let (cert, key) = (file(cert), file(key));
        edge(&format!("tls = [{{ listen = '127.0.0.1:0', cert = '{cert}', key = '{key}' }}]"))
    };
    vec![
        edge("threds = 1"),
        edge("tls = [{ listen = '127.0.0.1:1' }]"),
        edge("threads = 'four'"),
        more("[response]\nbody = 'jpeg'"),
        edge("keepalive_seconds = 0"),
        Setup::default().listen("edge.test:80"),
        edge("origin = 'http://${NO_SUCH_NAME}'"),
        Setup::default().listen("0.0.0.0:65001").listen("127.0.0.1:65001"),
        Setup::default().listen("unix:DIR/a.sock").listen("unix:DIR/b/../a.sock"),
        Setup::default().listen("0.0.0.0:65001").edge("origin = 'http://localhost:65001'"),
        Setup::default().listen("192.0.2.1:1"),
        edge("proxy_protocol = true"),
        sends("file", &format!("dir = 'DIR/a'\n{}", upstream("file", "dir = 'DIR/c'"))),
        sends("file", "dir = 'DIR/spool/dead'"),
        sends("file", "dir = 'DIR/key.pem/below'"),
        log("portals.toml"),
        log("edge.toml"),
        log("upgrade.sock"),
        log("link"),
        log("second"),
        log("b/"),
        tls("DIR/b", "DATA/edge.key"),
        tls("DATA/edge.pem", "DATA/edge.pem"),
        tls("DATA/edge.pem", "DIR/key.pem"),
        tls("DIR/other.pem", "DATA/edge.key"),
        edge("origin_ca = 'DIR/portals.toml'"),
        sends("http", "url = 'https://h/'\ncert = 'DIR/portals.toml'"),
        sends("http", "url = 'https://h/'\nca = 'DIR/portals.toml'"),
        sends("http", "url = 'https://h/'\ncert = 'DIR/b'\nkey = 'DIR/key.pem'"),
        sends("http", "url = 'https://h/'\ncert = 'DIR/other.pem'\nkey = 'DIR/key.pem'"),
        sends("http", "url = 'https://h/'").portals("portals = [0]"),
    ]
}

/// Returns the row of the table of reasons for which a start fails that says the most of this line.
pub fn row_of(line: &str) -> Option<&'static str> {
    let rows = rows(OPERATING, "A start that fails").into_iter();
    rows.filter(|row| fits(row, line)).max_by_key(|row| row.len())
}

#[test]
fn operating_lists_each_reason_for_which_a_start_fails() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::create_dir(at.join("b")).unwrap();
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----";
    std::fs::write(at.join("key.pem"), encrypted).unwrap();
    let other = crate::tls_origin::certificate(&["other.test"]);
    std::fs::write(at.join("other.pem"), other.cert.pem()).unwrap();
    std::fs::write(at.join("event"), "").unwrap();
    std::fs::create_dir_all(at.join("events")).unwrap();
    std::fs::hard_link(at.join("event"), at.join("events/event")).unwrap();
    std::fs::hard_link(at.join("event"), at.join("second")).unwrap();
    std::os::unix::fs::symlink("portals.toml", at.join("link")).unwrap();

    let mut shown = BTreeSet::new();
    let mut see = |config: &Path, environment: &[(&str, &str)]| {
        let mut check = command(config, &["check"]);
        let output = check.envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said} {environment:?}");
        shown.insert(row_of(&said).unwrap_or_else(|| panic!("no row of the table fits {said}")));
    };
    for setup in mistakes() {
        let config = setup.write(at);
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("DIR", at.to_str().unwrap())).unwrap();
        see(&config, &[]);
    }
    let config = Setup::default().write(at);
    let file = at.join("event").display().to_string();
    for set in [
        ("PIXELGATE__", "1"),
        ("PIXELGATE__EDGE__LISTEN", "[]"),
        ("PIXELGATE__ADMIN__LISTEN", "0.0.0.0:0"),
        ("PIXELGATE__EDGE__STATE_DIR", file.as_str()),
        ("PIXELGATE__SPOOL__DIR", file.as_str()),
        ("PIXELGATE__PORTALS__SOURCE", "none.toml"),
    ] {
        see(&config, &[set]);
    }
    see(&at.join("none"), &[]);
    let proxied = Setup::default().upstreams(&upstream("http", "url = 'https://h/'")).write(at);
    see(&proxied, &[("HTTPS_PROXY", "junk junk")]);
    let rows = rows(OPERATING, "A start that fails");
    let unseen: Vec<_> = rows.iter().filter(|row| !shown.contains(*row)).collect();
    assert!(unseen.is_empty(), "no mistake of this test shows {unseen:?}");
}
