//! What `pixelgate run` and `pixelgate check` print when the edge cannot start (SPEC 8).

use crate::documented::row_of;
use crate::harness::{Edge, PATIENCE, Setup, command};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    assert!(row_of(line).is_some(), "docs/operating.md does not list {line:?}");
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
    check(
        &config,
        &["run"],
        &["edge.listen: cannot listen on", &address, "Address already in use"],
    );
    // The edge that is to be upgraded listens there, too: `check` names it and finds no mistake.
    let output = command(&config, &["check"]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains(&format!("edge.listen: {address}: Address already in")), "{printed}");
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
        (setup().edge(&tls(pair(&cert, &key))), [": edge.tls: ", "is encrypted"]),
        (setup().edge(&tls(pair(&cert, &own))), [": edge.tls: ", "is not "]),
        (setup().upstreams(&collector), [": upstream.c.key: ", "is encrypted"]),
        (setup().upstreams(&below), [": upstream.f.dir: ", "no folder"]),
    ] {
        let config = setup.write(dir.path());
        check(&config, &["check"], &expect);
        check(&config, &["run"], &["edge.toml:"]);
    }
    let config = setup().listen("0.0.0.0:65001").listen("127.0.0.1:65001").write(dir.path());
    for arguments in [["check"], ["run"]] {
        check(&config, &arguments, &["listens on an address that edge.listen listens on"]);
    }
    let own = setup().listen("0.0.0.0:65001").edge("origin = 'http://localhost:65001'");
    let config = own.write(dir.path());
    for arguments in [["check"], ["run"]] {
        check(&config, &arguments, &["edge.origin: entry 1 is an address that edge.listen"]);
    }
    // Clients of the edge would reach the admin pages.
    let origins = "origin = ['http://192.0.2.1', 'http://127.0.0.1:65001']";
    for admin in ["127.0.0.1:65001", "[::]:65001"] {
        let config = setup().edge(origins).write(dir.path());
        let text = std::fs::read_to_string(&config).unwrap();
        let from = "[admin]\nlisten = \"127.0.0.1:0\"";
        assert!(text.contains(from));
        let to = format!("[admin]\ntoken = \"0123456789abcdef\"\nlisten = \"{admin}\"");
        std::fs::write(&config, text.replace(from, &to)).unwrap();
        for arguments in [["check"], ["run"]] {
            check(&config, &arguments, &["edge.origin: entry 2 is an address that admin.listen"]);
        }
    }
}

#[test]
fn one_unix_socket_is_no_two_listeners() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
    for other in ["a/../a/q.sock", "link/q.sock"] {
        let first = format!("unix:{at}/a/q.sock");
        let setup = Setup::default().listen(&first).listen(&format!("unix:{at}/{other}"));
        let config = setup.write(dir.path());
        for arguments in [["check"], ["run"]] {
            check(
                &config,
                &arguments,
                &["edge.listen: unix:", "is a socket that edge.listen also"],
            );
        }
        assert!(!dir.path().join("a/q.sock").exists(), "nothing was made");
    }
}

#[test]
fn a_file_upstream_and_the_spool_share_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    for (folder, expect) in [
        ("spool", "is a folder of the spool"),
        ("spool/dead", "is a folder of the spool"),
        ("spool/lane-00000001/events", "is a folder of the spool"),
        ("events/../spool", "is a folder of the spool"),
        ("spool/events/../dead", "is a folder of the spool"),
    ] {
        let upstream = format!("[[upstream]]\nname = 'u'\nkind = 'file'\ndir = '{at}/{folder}'");
        let config = Setup::default().upstreams(&upstream).write(dir.path());
        for arguments in [["check"], ["run"]] {
            check(&config, &arguments, &["edge.toml:", ": upstream.u.dir: ", expect]);
        }
    }
}

/// The one line that a command which does not start prints, and its exit code.
fn failure(config: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut command = command(config, arguments);
    command.envs(environment.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= until {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut printed = String::new();
    child.stderr.unwrap().read_to_string(&mut printed).unwrap();
    let line = printed.lines().find(|line| line.starts_with("pixelgate:"));
    (status.code().unwrap_or(-1), line.unwrap_or_default().to_owned())
}

/// Whether `:7`, which follows the name of the file, is the line of the key, or that of its table
/// where the table lacks the key.
fn is_line_of(key: &str, place: &str, text: &str) -> bool {
    let number: usize = place[1..].parse().unwrap();
    let line = text.lines().nth(number - 1).unwrap();
    let last = key.split(':').next().unwrap().rsplit('.').next().unwrap();
    line.starts_with(&format!("{last} = ")) || ["[[upstream]]", "[otlp]"].contains(&line)
}

/// The key that is wrong, the rest of the configuration, and the environment.
type Case<'a> = (String, Setup, Vec<(&'a str, &'a str)>);

/// Makes in `dir` things of the wrong kind, which are then named as a file or a folder.
fn make_stand_ins(dir: &Path) {
    let at = |name: &str| dir.join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("text"), "some text\n").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    for (name, target) in [("dangling", "none/file"), ("proc", "/proc"), ("sys", "/sys")] {
        std::os::unix::fs::symlink(target, at(name)).unwrap();
    }
}

/// Wrong things in the place of a folder.
const FOLDERS: [&str; 8] = [
    "text",
    "text/below",
    "fifo",
    "dangling",
    "sys/new/below",
    "proc",
    "proc/new",
    "proc/new/below",
];

#[test]
fn whatever_a_key_names_check_refuses_it_as_run_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    make_stand_ins(dir.path());
    // Wrong things in the place of a file that is read, and of one that is written.
    let read = ["none", "folder", "text", "empty", "fifo", "text/below", "dangling"];
    let written = ["folder", "none/", "none/.", "none/below", "text/below", "dangling", "proc/new"];
    let http = "[[upstream]]\nname = 'u'\nkind = 'http'\nurl = 'https://h/'\n";
    let pair = |cert: &str, key: &str| {
        format!("tls = [{{ listen = '127.0.0.1:0', cert = '{cert}', key = '{key}' }}]")
    };
    let (cert, key) = (format!("{data}/edge.pem"), format!("{data}/edge.key"));
    let mut all: Vec<Case<'_>> = Vec::new();
    let mut add = |key: &str, setup: Setup| all.push((key.to_owned(), setup, Vec::new()));
    for name in read {
        let path = format!("{at}/{name}");
        add("edge.tls", Setup::default().edge(&pair(&path, &key)));
        add("edge.tls", Setup::default().edge(&pair(&cert, &path)));
        add("edge.origin_ca", Setup::default().edge(&format!("origin_ca = '{path}'")));
        let upstream = |rest: &str| Setup::default().upstreams(&format!("{http}{rest}"));
        add("upstream.u.ca", upstream(&format!("ca = '{path}'")));
        add("upstream.u.cert", upstream(&format!("cert = '{path}'\nkey = '{key}'")));
        add("upstream.u.key", upstream(&format!("cert = '{cert}'\nkey = '{path}'")));
    }
    add("edge.tls", Setup::default().edge(&pair(&key, &key)));
    add("edge.tls", Setup::default().edge(&pair(&cert, &cert)));
    for name in written {
        let section = format!("[access_log]\npath = '{at}/{name}'");
        add("access_log.path", Setup::default().sections(&section));
    }
    let long = "x".repeat(120);
    for name in ["folder", "text", "none/below", "text/below", "proc/new", "dangling", &long] {
        add("edge.listen: cannot listen on", Setup::default().listen(&format!("unix:{at}/{name}")));
    }
    for name in FOLDERS {
        let file = format!("[[upstream]]\nname = 'u'\nkind = 'file'\ndir = '{at}/{name}'");
        add("upstream.u.dir", Setup::default().upstreams(&file));
    }
    add("edge.listen: cannot listen on", Setup::default().listen("192.0.2.1:1"));
    let named = FOLDERS.map(|name| format!("{at}/{name}"));
    for path in &named {
        let state = vec![("PIXELGATE__EDGE__STATE_DIR", path.as_str())];
        all.push(("edge.state_dir: ".to_owned(), Setup::default(), state));
        let spool = vec![("PIXELGATE__SPOOL__DIR", path.as_str())];
        all.push(("spool.dir: ".to_owned(), Setup::default(), spool));
    }
    let proxy = |value| vec![("HTTPS_PROXY", value)];
    for mistake in ["junk junk", "socks5://p", "http://p/path"] {
        all.push(("upstream.u.proxy".to_owned(), Setup::default().upstreams(http), proxy(mistake)));
        if cfg!(feature = "otlp") {
            let otlp = Setup::default().sections("[otlp]\nendpoint = 'https://h'");
            all.push(("otlp.endpoint".to_owned(), otlp, proxy(mistake)));
        }
    }
    for case in all {
        check_refused(dir.path(), case);
    }
}

/// Checks that `check` and `run` refuse the configuration, and name the key with its place.
fn check_refused(dir: &Path, (key, setup, environment): Case<'_>) {
    let config = setup.write(dir);
    let text = std::fs::read_to_string(&config).unwrap();
    let is_set = environment.iter().any(|(name, _)| name.starts_with("PIXELGATE__"));
    for arguments in [["check"], ["run"]] {
        let (code, line) = failure(&config, &arguments, &environment);
        assert_eq!(code, 2, "{arguments:?} with {text}");
        let (place, reason) = line["pixelgate: ".len()..].split_once(": ").unwrap();
        assert!(reason.starts_with(&key), "{arguments:?}: {line:?} is not of {key}, {text}");
        match place.strip_prefix(config.to_str().unwrap()) {
            Some(number) => assert!(is_line_of(&key, number, &text), "{line} with {text}"),
            None => assert!(is_set && place == "environment", "{line}"),
        }
        assert!(row_of(&line).is_some(), "docs/operating.md does not list {line:?}");
        let debug = ["Other(", "Os {", "Error(", "\\\""].iter().find(|of| line.contains(**of));
        assert_eq!(debug, None, "{line}");
    }
}

#[test]
fn an_access_log_that_would_spoil_another_file_names_both_keys() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    for (path, expect) in [
        ("edge.toml", "access_log.path: is this configuration file"),
        ("portals.toml", "access_log.path: is the file that portals.source names"),
        ("spool/access.log", "access_log.path: is in the folder that spool.dir names"),
        ("events/access.log", "access_log.path: is in the folder that upstream.file.dir names"),
        ("ca.pem", "access_log.path: is the file that edge.origin_ca names"),
        ("configuration.json", "access_log.path: is a file of the edge in edge.state_dir"),
        ("portals.copy", "access_log.path: is a file of the edge in edge.state_dir"),
        ("upgrade.sock", "access_log.path: is a file of the edge in edge.state_dir"),
        ("edge.sock", "access_log.path: is the socket that edge.listen names"),
    ] {
        let log = format!("[access_log]\npath = \"{at}/./{path}\"");
        let setup = Setup::default().listen(&format!("unix:{at}/edge.sock")).sections(&log);
        let setup = setup.edge(&format!("origin_ca = \"{at}/ca.pem\""));
        let config = setup.write(dir.path());
        let before = std::fs::read(&config).unwrap();
        for arguments in [["run"], ["check"]] {
            check(&config, &arguments, &[expect]);
        }
        assert_eq!(std::fs::read(&config).unwrap(), before);
    }
}

#[test]
fn an_access_log_that_is_a_folder_of_a_start_is_refused_by_check_and_run() {
    for (own, key) in [
        ("state_dir = \"DIR\"", "edge.state_dir"),
        ("dir = \"DIR/spool\"", "spool.dir"),
        ("dir = \"DIR/events\"", "upstream.file.dir"),
    ] {
        for (below, arguments) in [("", ["check"]), ("", ["run"]), ("/below", ["check"])] {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().display().to_string();
            let log = format!("[access_log]\npath = \"{at}/new\"");
            let config = Setup::default().sections(&log).write(dir.path());
            let text = std::fs::read_to_string(&config).unwrap();
            let (name, _) = own.split_once('=').unwrap();
            let line = format!("{name}= \"{at}/new{below}\"\n");
            let own = format!("{}\n", own.replace("DIR", &at));
            assert!(text.contains(&own));
            std::fs::write(&config, text.replace(&own, &line)).unwrap();
            let expect = format!("it is a folder that a start makes, because of {key}");
            let at_once = format!("access_log.path: is in the folder that {key} names");
            let expect = if below.is_empty() && key != "edge.state_dir" { at_once } else { expect };
            check(&config, &arguments, &[&expect]);
        }
    }
}

#[test]
fn an_access_log_that_leads_to_another_file_is_refused_by_check_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for folder in ["spool/dead", "events", "logs"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    for file in ["spool/dead/crm.ndjson", "events/a.ndjson", "logs/access.log"] {
        std::fs::write(at.join(file), "").unwrap();
    }
    Setup::default().write(at);
    let linked = |link: fn(&Path, &Path) -> std::io::Result<()>, target: &str, name: &str| {
        link(&at.join(target), &at.join(name)).unwrap();
    };
    let hard: fn(&Path, &Path) -> std::io::Result<()> = |a, b| std::fs::hard_link(a, b);
    let soft: fn(&Path, &Path) -> std::io::Result<()> = |a, b| std::os::unix::fs::symlink(a, b);
    linked(soft, "portals.toml", "to-list");
    linked(hard, "portals.toml", "list");
    linked(hard, "spool/dead/crm.ndjson", "dead");
    linked(hard, "events/a.ndjson", "event");
    linked(soft, "spool/access.log", "to-new");
    linked(soft, "spool", "to-spool");
    linked(soft, "logs/access.log", "to-log");
    for (path, expect) in [
        ("to-list", "it leads to the file that portals.source names"),
        ("list", "it leads to the file that portals.source names"),
        ("dead", "it is also a file in the folder that spool.dir names"),
        ("event", "it is also a file in the folder that upstream.file.dir names"),
        ("to-new", "it leads into the folder that spool.dir names"),
        ("to-spool/access.log", "it leads into the folder that spool.dir names"),
    ] {
        let log = format!("[access_log]\npath = \"{}/{path}\"", at.display());
        let config = Setup::default().sections(&log).write(at);
        for arguments in [["run"], ["check"]] {
            check(&config, &arguments, &["access_log.path: ", path, "cannot be opened", expect]);
        }
        assert!(!at.join("spool/access.log").exists(), "nothing was made there");
    }
    // The configuration itself by a link of either kind, and a link to a log that has no other use.
    for (link, name) in [(soft, "to-itself"), (hard, "itself")] {
        let log = format!("[access_log]\npath = \"{}/{name}\"", at.display());
        let config = Setup::default().sections(&log).write(at);
        link(&config, &at.join(name)).unwrap();
        let expect = "it leads to the file that --config names";
        check(&config, &["check"], &[expect]);
        check(&config, &["run"], &[expect]);
        std::fs::remove_file(at.join(name)).unwrap();
    }
    let log = format!("[access_log]\npath = \"{}/to-log\"", at.display());
    let config = Setup::default().sections(&log).write(at);
    assert_eq!(command(&config, &["check"]).output().unwrap().status.code(), Some(0));
}

#[test]
fn a_listener_is_an_address_because_a_start_waits_for_no_name_server() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("127.0.0.1:0", "edge.invalid:80", 1)).unwrap();
    for arguments in [["run"], ["check"]] {
        check(&config, &arguments, &["edge.listen: entry 1 is neither", "an IP address"]);
    }
}

#[test]
fn check_takes_files_below_a_state_folder_that_run_makes() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let at = dir.path().display().to_string();
    let log = format!("[access_log]\npath = '{at}/new/access.log'");
    let listen = format!("unix:{at}/new/state/edge.sock");
    let config = Setup::default().sections(&log).listen(&listen).write(dir.path());
    let state = format!("{at}/new/state");
    let set = [("PIXELGATE__EDGE__STATE_DIR", state.as_str())];
    let output = command(&config, &["check"]).envs(set).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!dir.path().join("new").exists(), "check makes nothing");
    let edge = Edge::start_with(dir, &set);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}
