//! What a reload changes of the spool, of delivery, of the logs and of the origins shows in what
//! the edge does (SPEC 8), on the running binary and without a lost request.

use crate::backend::{Act, Backend, Request};
use crate::delivery::RUNTIME;
use crate::harness::{Edge, Setup, wait_for};
use crate::http::Connection;
use crate::reload::{Load, STEADY, list, rename_over};
use crate::wire::Origin;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A running edge whose configuration file changes.
struct Subject {
    edge: Edge,
    first: String,
}

impl Subject {
    fn start(setup: Setup) -> Subject {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = setup.portals(&list(100)).write(dir.path());
        let first = fs::read_to_string(config).unwrap();
        Subject { edge: Edge::start_in(dir), first }
    }

    /// Replaces a part of the first configuration, and waits until the reload is over.
    fn change(&self, from: &str, to: &str) {
        assert!(self.first.contains(from), "{from} is not in {}", self.first);
        let logged = self.edge.log().len();
        rename_over(&self.edge.dir().join("edge.toml"), &self.first.replacen(from, to, 1));
        self.edge.signal(Signal::HUP);
        wait_for("the reload", || self.edge.log()[logged..].contains("in force from now on: "));
        let log = self.edge.log();
        assert!(!log[logged..].contains("needs an upgrade"), "{}", &log[logged..]);
    }

    fn verdict(&self) -> String {
        self.edge.event(&format!("_a={STEADY}&_n=a")).verdict().to_owned()
    }
}

/// An upstream at an address without a listener.
const NOWHERE: &str =
    "[[upstream]]\nname = \"nowhere\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1\"";

#[test]
fn a_full_spool_takes_events_again_when_its_bound_is_raised() {
    let full = Setup::default().upstreams(NOWHERE).spool("bytes_max = \"16KiB\"\nlinger_ms = 0");
    let subject = Subject::start(full);
    wait_for("a full spool", || subject.verdict() == "overloaded");
    subject.change("bytes_max = \"16KiB\"", "bytes_max = \"16MiB\"");
    wait_for("room", || subject.verdict() == "accepted");
    for _ in 0..200 {
        assert_eq!(subject.verdict(), "accepted");
    }
}

#[test]
fn the_free_space_that_the_disk_must_keep_changes_at_once() {
    let subject = Subject::start(Setup::default().spool("free_bytes_min = 0"));
    assert_eq!(subject.verdict(), "accepted");
    subject.change("free_bytes_min = 0", "free_bytes_min = \"4PiB\"");
    wait_for("too little space", || subject.verdict() == "overloaded");
    subject.change("free_bytes_min = 0", "free_bytes_min = 1");
    wait_for("enough space", || subject.verdict() == "accepted");
}

#[test]
fn an_open_batch_is_closed_by_a_shorter_linger_or_a_smaller_size() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let url = backend.url("/take");
    let upstream = format!("[[upstream]]\nname = \"c\"\nkind = \"http\"\nurl = \"{url}\"\n");
    let setup = Setup::default().sections("[batch]\nlinger_ms = 600000").upstreams(&upstream);
    let subject = Subject::start(setup);
    let delivered = |count: usize| {
        wait_for("the events", || backend.events().len() == count);
    };
    assert_eq!(subject.verdict(), "accepted");
    subject.change("linger_ms = 600000", "linger_ms = 1");
    delivered(1);
    subject.change("linger_ms = 600000", "linger_ms = 500000");
    (0..3).for_each(|_| assert_eq!(subject.verdict(), "accepted"));
    // The upstream's table is the last one of the file, so its keys can be added at the end.
    let own = "[upstream.batch]\nlinger_ms = 600000\nevents_max = 1\n";
    let table = format!("{}\n{own}", subject.first);
    let logged = subject.edge.log().len();
    rename_over(&subject.edge.dir().join("edge.toml"), &table);
    subject.edge.signal(Signal::HUP);
    wait_for("the reload", || subject.edge.log()[logged..].contains("upstream.c.batch"));
    delivered(4);
    let sizes: Vec<_> = backend.taken().iter().map(|request| request.events().len()).collect();
    assert_eq!(sizes, [1, 1, 1, 1]);
}

/// The lines of an access log.
fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn an_access_log_begins_moves_changes_its_form_and_ends_under_load() {
    let subject = Subject::start(Setup::default().sections("[access_log]\npath = \"\""));
    let load = Load::on(&subject.edge);
    let path = |name: &str| subject.edge.dir().join(name);
    let to = |name: &str, more: &str| format!("path = \"{}\"\n{more}", path(name).display());
    subject.change("path = \"\"", &to("a.log", ""));
    wait_for("lines", || lines(&path("a.log")).len() > 20);
    subject.change("path = \"\"", &to("b.log", "format = \"combined\""));
    wait_for("lines", || lines(&path("b.log")).len() > 20);
    load.goes_on();
    wait_for("the first log to be left", || {
        let before = lines(&path("a.log")).len();
        load.goes_on();
        lines(&path("a.log")).len() == before
    });
    for line in lines(&path("a.log")) {
        assert!(serde_json::from_str::<Value>(&line).is_ok(), "{line}");
    }
    let combined = lines(&path("b.log"));
    assert!(combined.iter().all(|line| line.starts_with("127.0.0.1 - - [")), "{combined:?}");
    subject.change("path = \"\"", "path = \"\"\nflush_seconds = 2");
    wait_for("the second log to be left", || {
        let before = lines(&path("b.log")).len();
        load.goes_on();
        lines(&path("b.log")).len() == before
    });
    load.end();
    // A path that cannot be opened changes nothing.
    let text = subject.first.replacen("path = \"\"", &to("none/c.log", ""), 1);
    rename_over(&path("edge.toml"), &text);
    subject.edge.signal(Signal::HUP);
    subject.edge.wait_log("c.log cannot be opened");
    assert_eq!(subject.verdict(), "accepted");
}

/// An origin that says its name to every request.
fn origin(name: &str) -> Origin {
    let origin = Origin::start();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    origin.answer("/page", answer.as_bytes());
    origin
}

#[test]
fn other_origins_take_over_and_no_request_fails() {
    let (first, second) = (origin("first"), origin("second"));
    let of = |origin: &Origin| format!("origin = \"http://{}\"", origin.address);
    let setup = Setup::default().edge(&of(&first));
    let subject = Subject::start(setup);
    let ended = AtomicBool::new(false);
    let body = |connection: &mut Connection| {
        let response = connection.get("/page", "");
        assert_eq!(response.status, 200);
        String::from_utf8(response.body).unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = subject.edge.connect();
            while !ended.load(Relaxed) {
                body(&mut connection);
            }
        });
        for _ in 0..3 {
            subject.change(&of(&first), &of(&second));
            assert_eq!(body(&mut subject.edge.connect()), "second");
            // An origin by its host name, which is looked up before the log says that it is in
            // force.
            let by_name = format!("origin = [\"http://localhost:{}\"]", first.address.port());
            subject.change(&of(&first), &by_name);
            assert_eq!(body(&mut subject.edge.connect()), "first");
        }
        ended.store(true, Relaxed);
    });
    subject.change(&of(&first), "");
    assert_eq!(subject.edge.get("/page").status, 404);
}

#[test]
fn a_proxy_in_front_begins_and_ends_to_be_trusted() {
    let subject = Subject::start(Setup::default().edge("trusted_proxies = []"));
    let ip = |name: &str, lines: &str| {
        let target = format!("/v1/event/?_a={STEADY}&_n={name}");
        assert_eq!(subject.edge.connect().get(&target, lines).status, 200);
        address(&subject.edge, name)
    };
    let forwarded = "X-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.8\r\n";
    assert_eq!(ip("a", forwarded), "127.0.0.1");
    subject.change("trusted_proxies = []", "trusted_proxies = \"127.0.0.1\"");
    assert_eq!(ip("b", forwarded), "203.0.113.7");
    let header = "trusted_proxies = \"127.0.0.1\"\nclient_ip_header = \"X-Real-IP\"";
    subject.change("trusted_proxies = []", header);
    assert_eq!(ip("c", forwarded), "203.0.113.8");
    let header = "trusted_proxies = \"127.0.0.1\"\nproxy_protocol = true";
    subject.change("trusted_proxies = []", header);
    let mut connection = subject.edge.connect();
    connection.send(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n");
    assert_eq!(connection.get(&format!("/v1/event/?_a={STEADY}&_n=d"), "").status, 200);
    assert_eq!(address(&subject.edge, "d"), "203.0.113.9");
    subject.change("trusted_proxies = []", "trusted_proxies = \"10.0.0.1\"");
    assert_eq!(ip("e", forwarded), "127.0.0.1");
}

/// The stored address of the event of this name.
fn address(edge: &Edge, name: &str) -> String {
    edge.wait_delivered("file");
    let events = Edge::events_in_files(edge.dir());
    let event = events.iter().find(|event| event["event"] == name).expect(name);
    event["context"]["ip"].as_str().unwrap_or("none").to_owned()
}

#[test]
fn the_peer_of_a_unix_socket_is_trusted_where_the_list_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("edge.sock");
    let setup = Setup::default().listen(&format!("unix:{}", socket.display()));
    let subject = Subject::start(setup.edge("trusted_proxies = []"));
    let ip = |name: &str| {
        let mut connection = Connection::over(UnixStream::connect(&socket).unwrap());
        let target = format!("/v1/event/?_a={STEADY}&_n={name}");
        assert_eq!(connection.get(&target, "X-Forwarded-For: 203.0.113.7\r\n").status, 200);
        address(&subject.edge, name)
    };
    assert_eq!(ip("a"), "none");
    subject.change("trusted_proxies = []", "trusted_proxies = [\"unix:\"]");
    assert_eq!(ip("b"), "203.0.113.7");
}

#[test]
fn a_file_that_was_emptied_is_refused_and_one_that_was_empty_at_start_is_not() {
    let subject = Subject::start(Setup::default());
    let path = subject.edge.dir().join("edge.toml");
    for emptied in ["", "\n# nothing is left\n"] {
        rename_over(&path, emptied);
        subject.edge.signal(Signal::HUP);
        subject.edge.wait_log("edge.toml: sets no key, unlike what is in force");
        let fault = || subject.edge.status()["faults"][0].clone();
        wait_for("the fault", || fault()["what"] == "config_reload");
        assert_eq!(subject.verdict(), "accepted");
        rename_over(&path, &subject.first);
        subject.edge.signal(Signal::HUP);
        wait_for("the fault to be over", || fault().is_null());
    }

    // An edge whose keys all come from its environment.
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("edge.toml"), "").unwrap();
    fs::write(dir.path().join("portals.toml"), list(100)).unwrap();
    let at = dir.path().display();
    let set = [
        ("PIXELGATE__EDGE", format!("{{ listen = \"127.0.0.1:0\", state_dir = \"{at}\" }}")),
        ("PIXELGATE__PORTALS__SOURCE", format!("{at}/portals.toml")),
        ("PIXELGATE__SPOOL__DIR", format!("{at}/spool")),
        ("PIXELGATE__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        (
            "PIXELGATE__UPSTREAM",
            "[{ name = \"a\", kind = \"http\", url = \"http://127.0.0.1:1\" }]".to_owned(),
        ),
    ];
    let edge = Edge::start_with(dir, &set.each_ref().map(|(name, value)| (*name, value.as_str())));
    edge.signal(Signal::HUP);
    edge.wait_log("no key has changed that a reload puts in force");
}

/// Events wait because `first` asked for a pause of an hour. After the change they arrive at
/// `then`. The part `from` of the upstream's table becomes `to`.
fn check_change_ends_the_pause(table: &str, (from, to): (&str, &str), then: &Backend) {
    let subject = Subject::start(Setup::default().upstreams(table));
    let event = |n| subject.edge.event(&format!("_a={STEADY}&_n=a&email=p@company.com&id={n}"));
    (0..3).for_each(|n| assert_eq!(event(n).verdict(), "accepted"));
    let mut row = Value::Null;
    wait_for("the pause", || {
        row = subject.edge.upstream("c");
        row["last_error"].is_string() && row["state"] != "ok"
    });
    assert_eq!((&row["pending"], then.taken().len()), (&3.into(), 0), "{row}");
    subject.change(from, to);
    // The counts are true at once, and the state after the worker's next look.
    wait_for("the events at the new destination", || {
        row = subject.edge.upstream("c");
        row["delivered"] == 3 && row["state"] == "ok"
    });
    assert!(!then.taken().is_empty(), "{row}");
}

#[test]
fn another_destination_ends_the_pause_that_the_one_before_asked_for() {
    let hubspot = "kind = \"hubspot\"\ntokens = { \"7\" = \"t\" }\nevent_names = { a = \"b\" }\n\
                   contacts = false";
    for (kind, status) in [
        ("kind = \"http\"", 503),
        ("kind = \"http\"", 404),
        ("kind = \"http\"\norder = \"portal\"", 503),
        ("kind = \"legacy\"", 503),
        (hubspot, 503),
        (hubspot, 429),
    ] {
        let pause = move |_: &_| Act::RefuseWith(status, vec![("Retry-After", "3600".into())]);
        let first = RUNTIME.block_on(Backend::start(pause));
        let then = RUNTIME.block_on(Backend::playing([]));
        let (from, to) = (first.url("/"), then.url("/"));
        let batch = "[upstream.batch]\nlinger_ms = 5";
        let table = format!("[[upstream]]\nname = \"c\"\n{kind}\nurl = \"{from}\"\n{batch}");
        check_change_ends_the_pause(&table, (&from, &to), &then);
    }
}

#[test]
fn other_credentials_end_the_pause_that_those_before_have_led_to() {
    for kind in [
        "kind = \"http\"\nheaders = { Authorization = \"Bearer old\" }",
        "kind = \"hubspot\"\ntokens = { \"7\" = \"old\" }\nevent_names = { a = \"b\" }\n\
         contacts = false",
    ] {
        let backend =
            RUNTIME.block_on(Backend::start(|request| match request.header("authorization") {
                "Bearer new" => Act::Take,
                _ => Act::RefuseWith(401, vec![("Retry-After", "3600".into())]),
            }));
        let (url, batch) = (backend.url("/"), "[upstream.batch]\nlinger_ms = 5");
        let table = format!("[[upstream]]\nname = \"c\"\n{kind}\nurl = \"{url}\"\n{batch}");
        check_change_ends_the_pause(&table, ("old\"", "new\""), &backend);
    }
}

#[test]
fn other_limits_do_not_end_the_pause_of_a_portal() {
    let backend =
        RUNTIME.block_on(Backend::start(|request| match request.header("authorization") {
            "Bearer limited" => Act::RefuseWith(429, vec![("Retry-After", "3600".into())]),
            _ => Act::Take,
        }));
    // A batch is one event of each portal.
    let table = format!(
        "[[upstream]]\nname = \"c\"\nkind = \"hubspot\"\nurl = \"{}\"\n\
         tokens = {{ \"7\" = \"limited\", \"100\" = \"free\" }}\nevent_names = {{ a = \"b\" }}\n\
         contacts = false\nconcurrency_max = 3\n\
         [upstream.batch]\nevents_max = 2\nlinger_ms = 600000",
        backend.url("/")
    );
    let subject = Subject::start(Setup::default().upstreams(&table));
    let deliver = |delivered: u64| {
        for portal in [7, 100] {
            let event = format!("_a={portal}&_n=a&email=p@company.com");
            assert_eq!(subject.edge.event(&event).verdict(), "accepted");
        }
        wait_for("the event of the free portal", || {
            subject.edge.upstream("c")["delivered"] == delivered
        });
    };
    deliver(1);
    subject.change("concurrency_max = 3", "concurrency_max = 4");
    deliver(2);
    let limited = |request: &Request| request.header("authorization") == "Bearer limited";
    assert_eq!(backend.seen().iter().filter(|request| limited(request)).count(), 1);
}
