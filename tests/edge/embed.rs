//! The examples that embed a gate, each run as its own process. `embed_calls.rs` tests what no
//! example shows.

use crate::harness::{PORTALS, example, kill, wait_for};
use crate::http::Connection;
use crate::nginx::Nginx;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// An example that listens, running in a folder of its own.
struct Host {
    child: Child,
    listen: SocketAddr,
    out: BufReader<ChildStdout>,
}

impl Host {
    /// Starts `program LISTEN arguments…`.
    fn start(program: PathBuf, arguments: &[&str]) -> Host {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(program)
            .arg(listen.to_string())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("the host to listen", || TcpStream::connect(listen).is_ok());
        let out = BufReader::new(child.stdout.take().unwrap());
        Host { child, listen, out }
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// Stops it as a service manager does, and returns what else it printed.
    fn stop(mut self) -> String {
        kill(&self.child, rustix::process::Signal::TERM);
        assert!(self.child.wait().unwrap().success());
        std::io::read_to_string(self.out).unwrap()
    }
}

/// The path of an example, or of the same program built with another TLS backend (`.ci/features`).
fn host_program(name: &str) -> PathBuf {
    match std::env::var_os("PIXELGATE_TEST_HOST") {
        Some(folder) => Path::new(&folder).join(name),
        None => example(name),
    }
}

/// The events in the files of a folder.
fn events(folder: &Path) -> Vec<Value> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let lines = files.map(|path| std::fs::read_to_string(path).unwrap());
    let lines = lines.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

/// Waits until a folder's files hold so many events, and returns them.
fn wait_for_events(folder: &Path, count: usize) -> Vec<Value> {
    wait_for("events in files", || folder.exists() && events(folder).len() >= count);
    events(folder)
}

#[test]
fn another_proxy_judges_keeps_answers_and_passes_on() {
    let nginx = Nginx::start();
    let dir = tempfile::tempdir().unwrap();
    let portals = dir.path().join("portals.toml");
    std::fs::write(&portals, PORTALS).unwrap();
    let (backend, data) = (nginx.address.to_string(), dir.path().join("data"));
    let arguments = [&*backend, portals.to_str().unwrap(), data.to_str().unwrap()];
    let host = Host::start(host_program("embed"), &arguments);

    let mut connection = Connection::open(host.listen);
    assert_eq!(connection.get("/page", "").status, 204, "the backend's answer");
    let accepted = connection.get("/v1/event/?_a=62515&_n=a", "");
    assert_eq!((accepted.status, accepted.verdict()), (200, "accepted"));
    assert_eq!(connection.get("/v1/event/?_a=1&_n=a", "").verdict(), "portal_not_allowed");
    assert_eq!(nginx.targets(), ["/page"]);

    assert_eq!(host.stop(), "accepted\nrejected; reason=portal_not_allowed\n");
}

#[test]
fn gates_of_one_process_have_paths_portals_spools_and_metrics_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let hosts = [folder, "a.example=62515", "b.example=7"];
    let host = Host::start(example("embed_virtual_hosts"), &hosts);

    let mut connection = Connection::open(host.listen);
    let mut check = |of: &str, target: &str, expect: (u16, &str)| {
        let response = connection.get(target, &format!("Host: {of}\r\n"));
        assert_eq!((response.status, response.verdict()), expect, "{of} {target}");
    };
    check("a.example", "/a.example/?_a=62515&_n=x", (200, "accepted"));
    check("a.example", "/a.example/?_a=7&_n=x", (403, "portal_not_allowed"));
    check("b.example", "/b.example/?_a=7&_n=y", (200, "accepted"));
    check("b.example", "/b.example/?_a=7&_n=z", (200, "accepted"));
    check("b.example", "/a.example/?_a=62515&_n=x", (404, "none"));
    let a = wait_for_events(&dir.path().join("a.example/events"), 1);
    let b = wait_for_events(&dir.path().join("b.example/events"), 2);
    assert_eq!((a.len(), b.len()), (1, 2));

    let said = host.stop();
    let id = a[0]["id"].as_str().unwrap();
    assert!(said.contains(&format!("accepted portal=Some(62515) id=Some({id})")), "{said}");
    assert!(said.contains("reason=portal_not_allowed portal=Some(7) id=None"), "{said}");
    for (gate, count) in [("a.example", 1), ("b.example", 2)] {
        let line =
            format!("pixelgate_requests_total{{gate=\"{gate}\",verdict=\"accepted\"}} {count}");
        assert!(said.contains(&line), "{line} in {said}");
    }
}

#[test]
fn an_inspector_adds_to_the_context_or_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start(example("embed_inspect"), &[dir.path().to_str().unwrap()]);

    let mut connection = Connection::open(host.listen);
    let accepted = connection.get("/v1/event/?_a=62515&_n=signup&plan=pro", "");
    assert_eq!((accepted.status, accepted.verdict()), (200, "accepted"));
    let refused = connection.get("/v1/event/?_a=62515&_n=internal_test", "");
    assert_eq!((refused.status, refused.verdict()), (403, "refused_by_host"));
    let events = wait_for_events(&dir.path().join("events"), 1);
    assert_eq!(events[0]["context"]["added"], serde_json::json!({ "customer": "paying" }));

    let said = host.stop();
    let line = "rejected; reason=refused_by_host internal events do not come from outside\n";
    assert!(said.ends_with(line), "{said}");
}

#[test]
fn the_http_server_runs_around_a_hosts_proxy() {
    let nginx = Nginx::start();
    let dir = tempfile::tempdir().unwrap();
    let backend = nginx.address.to_string();
    let host = Host::start(host_program("embed_front"), &[&*backend, dir.path().to_str().unwrap()]);

    let mut connection = Connection::open(host.listen);
    assert_eq!(connection.get("/page", "").status, 204, "the backend's answer");
    assert_eq!(connection.get("/v1/event/?_a=62515&_n=fast", "").verdict(), "accepted");
    // A target in absolute form, which the fast path leaves to the proxy.
    let target = "http://edge.test/v1/event/?_a=62515&_n=slow";
    assert_eq!(connection.get(target, "").verdict(), "accepted");
    assert_eq!(connection.get("/", "A: b\r\nA b: c\r\n").status, 400, "strict framing");
    wait_for_events(&dir.path().join("events"), 2);
    assert_eq!(nginx.targets(), ["/page"]);
    host.stop();
}

#[test]
fn an_upstream_of_the_hosts_own_gets_the_events_and_no_files_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::start(example("upstream"), &[dir.path().to_str().unwrap()]);
    let sent = Connection::open(host.listen).get("/v1/event/?_a=62515&_n=signup", "");
    assert_eq!((sent.status, sent.verdict()), (200, "accepted"));
    let event: Value = serde_json::from_str(&host.line()).unwrap();
    assert_eq!((&event["portal"], &event["event"]), (&62515.into(), &"signup".into()));
    assert_eq!(host.stop(), "");
    assert!(!dir.path().join("events").exists());
}
