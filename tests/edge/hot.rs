//! SPEC 8: a changed configuration takes effect in the running edge, or is named as one that needs
//! an upgrade; a mistake changes nothing.

use crate::backend::{Backend, Request};
use crate::delivery::RUNTIME;
use crate::harness::{Edge, Setup, command, wait_for};
use crate::reload::{Load, STEADY, list, rename_over};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use toml::{Table, Value};

const REFERENCE: &str = include_str!("../../config/reference.toml");
const PEM: &str = concat!("'", env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.pem'");

const TLS: &str = concat!(
    "[{ listen = '127.0.0.1:1', cert = '",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/edge.pem', key = '",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/edge.key' }]"
);

/// Whether the behaviour of the edge shows a change. Where there is none, only the log shows it.
type Probe = fn(&Subject) -> bool;

/// Each key, another value for it (`DIR`: the edge's folder), and the probe of the change.
const CHANGES: &[(&str, &str, Option<Probe>)] = &[
    ("edge.listen", "['127.0.0.1:1']", None),
    ("edge.tls", TLS, None),
    ("edge.origin", "'http://127.0.0.1:1'", Some(|s| s.edge.get("/page").status == 502)),
    ("edge.origin_ca", PEM, None),
    ("edge.origin_health_path", "'/health'", None),
    ("edge.origin_health_seconds", "6", None),
    ("edge.origin_timeout_seconds", "6", None),
    ("edge.origin_idle_seconds", "6", None),
    ("edge.connection_seconds_max", "6", None),
    ("edge.threads", "1", None),
    ("edge.keepalive_seconds", "1", Some(|s| s.after("_n=a", "").1.is_closed())),
    ("edge.header_timeout_seconds", "1", Some(|s| s.edge.connect().is_closed())),
    ("edge.write_timeout_seconds", "6", None),
    ("edge.connections_max", "6000", None),
    ("edge.connections_per_address_max", "6000", None),
    ("edge.requests_per_connection_max", "100000000", None),
    ("edge.header_bytes_max", "'2KiB'", Some(|s| s.status("X-A: ", &"x".repeat(3000)) == 431)),
    ("edge.header_lines_max", "20", Some(|s| s.status("X-A: ", &"\r\nX-A: b".repeat(30)) == 431)),
    ("edge.h2_streams_max", "6", None),
    ("edge.buffered_bytes_max", "'16MiB'", None),
    ("edge.answer_plain", "false", None),
    ("edge.drain_seconds", "6", None),
    ("edge.shutdown_grace_seconds", "6", None),
    (
        "edge.trusted_proxies",
        "'127.0.0.1'",
        Some(|s| s.context("X-Forwarded-For: 203.0.113.7\r\n")["ip"] == "203.0.113.7"),
    ),
    ("edge.client_ip_header", "'X-Real-IP'", None),
    ("edge.proxy_protocol", "true", None),
    ("edge.state_dir", "'DIR/elsewhere'", None),
    ("events.methods", "['GET', 'POST']", Some(|s| s.post() == 200)),
    ("events.query_bytes_max", "64", Some(|s| s.verdict(&"a".repeat(70)) == "query_too_long")),
    ("events.params_max", "2", Some(|s| s.verdict("_n=a&b=1") == "too_many_params")),
    ("events.ignore_params", "['p']", Some(|s| s.answer_has("x-event-ignored", "p=1"))),
    ("events.withhold_params", "['p']", Some(|s| s.answer_has("x-event-ignored", "p=1"))),
    ("events.utk_cookie", "'utk'", Some(|s| s.context("Cookie: utk=1f\r\n")["utk"] == "1f")),
    ("events.context_headers", "['X-Region']", None),
    ("portals.source", "'DIR/other.toml'", Some(|s| s.edge.event("_a=101&_n=a").status == 200)),
    ("portals.mode", "'off'", Some(|s| s.edge.event("_a=9&_n=a").status == 200)),
    ("portals.refresh_seconds", "6", None),
    ("portals.stale_seconds_max", "86400", None),
    ("portals.headers", "{ A = 'b' }", None),
    ("portals.proxy", "''", None),
    ("response.body", "'empty'", Some(|s| s.edge.event("_a=7&_n=a").body.is_empty())),
    ("response.rejections", "'pixel'", Some(|s| s.edge.event("_a=9&_n=a").status == 200)),
    ("response.event_id", "true", Some(|s| s.answer_has("x-event-id", ""))),
    ("privacy.ip", "'none'", Some(|s| s.context("")["ip"].is_null())),
    (
        "privacy.referer",
        "'none'",
        Some(|s| s.context("Referer: http://a/\r\n")["referer"].is_null()),
    ),
    ("privacy.referer_query", "true", None),
    ("privacy.gpc", "'reject'", Some(|s| s.after("_n=a", "Sec-GPC: 1\r\n").0 == "privacy_opt_out")),
    ("spool.dir", "'DIR/elsewhere'", None),
    ("spool.durability", "'interval'", None),
    ("spool.linger_ms", "6", None),
    ("spool.sync_ms", "6", None),
    ("spool.commit_seconds_max", "6", None),
    ("spool.unreadable_seconds_max", "6", None),
    ("spool.bytes_max", "'4GiB'", None),
    ("spool.free_bytes_min", "'1MiB'", None),
    ("spool.segment_bytes", "'16MiB'", None),
    ("batch.events_max", "6", None),
    ("batch.bytes_max", "'2MiB'", None),
    ("batch.linger_ms", "6", None),
    ("log.format", "'json'", Some(|s| s.edge.log()[s.logged..].contains("{\"time\":"))),
    ("log.level", "'debug'", None),
    ("log.verdicts", "9", Some(|s| s.edge.log()[s.logged..].contains("pixelgate::verdict"))),
    ("access_log.path", "'DIR/access.log'", Some(|s| s.edge.dir().join("access.log").exists())),
    ("access_log.format", "'combined'", None),
    ("access_log.buffer_bytes", "'2MiB'", None),
    ("access_log.flush_seconds", "6", None),
    ("metrics.portals_max", "0", None),
    ("otlp.endpoint", "'http://127.0.0.1:1'", None),
    ("otlp.interval_seconds", "6", None),
    ("otlp.headers", "{ A = 'b' }", None),
    ("admin.listen", "'127.0.0.1:1'", None),
    ("admin.token", "'sixteen bytes ok'", Some(|s| s.edge.admin("/metrics").status == 401)),
    ("upstream.kind", "'legacy'", None),
    ("upstream.attempts_max", "6", None),
    ("upstream.url", "'BACKEND/other'", Some(|s| s.delivered("").target == "/other")),
    ("upstream.format", "'ndjson'", Some(|s| s.sent("content-type") == "application/x-ndjson")),
    ("upstream.compression", "'zstd'", Some(|s| s.sent("content-encoding") == "zstd")),
    ("upstream.headers", "{ X-Own = 'b' }", Some(|s| s.sent("x-own") == "b")),
    (
        "upstream.secret",
        "'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'",
        Some(|s| !s.sent("webhook-signature").is_empty()),
    ),
    ("upstream.timeout_seconds", "6", None),
    ("upstream.connection_seconds_max", "6", None),
    ("upstream.proxy", "'BACKEND'", Some(|s| s.delivered("").target.starts_with("http://"))),
    ("upstream.concurrency_max", "6", None),
    ("upstream.order", "'portal'", None),
    ("upstream.ca", PEM, None),
    ("upstream.cert", PEM, None),
    ("upstream.key", "'DIR/none'", None),
    // These stand last, because the load does not go on under them.
    ("events.path", "'/v2/event/'", Some(|s| s.edge.get("/v2/event/?_a=7&_n=a").status == 200)),
    ("response.verdict_header", "false", Some(|s| !s.answer_has("x-event-verdict", ""))),
];

/// Keys that are a mistake without another key. The keys of `upstream` have a test of their own.
const NOT_ALONE: &[&str] = &[
    "otlp.endpoint",
    "otlp.headers",
    "edge.proxy_protocol",
    "portals.headers",
    "portals.proxy",
    "upstream.cert",
    "upstream.key",
];

/// An edge with one upstream of kind `http`, whose configuration file changes.
struct Subject {
    edge: Edge,
    backend: Backend,
    /// The configuration that it was started with.
    first: Table,
    /// The length of its log before the last change.
    logged: usize,
}

impl Subject {
    fn start() -> Subject {
        let backend = RUNTIME.block_on(Backend::playing([]));
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::write(dir.path().join("other.toml"), list(101)).unwrap();
        let url = backend.url("/take");
        let upstream =
            format!("[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"{url}\"\n");
        let setup = Setup::default().portals(&list(100)).upstreams(&upstream);
        let config = setup.sections("[batch]\nlinger_ms = 5").write(dir.path());
        let first = toml::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        Subject { edge: Edge::start_in(dir), backend, first, logged: 0 }
    }

    fn path(&self) -> PathBuf {
        self.edge.dir().join("edge.toml")
    }

    /// Puts the first configuration with one key changed in the place of the file.
    fn write(&mut self, key: &str, value: &str) {
        let dir = self.edge.dir().display().to_string();
        let value = value.replace("DIR", &dir).replace("BACKEND", &self.backend.url(""));
        let value: Table = toml::from_str(&format!("v = {value}")).expect(key);
        let (section, name) = key.split_once('.').unwrap();
        let mut table = self.first.clone();
        let place = match section {
            "upstream" => &mut table["upstream"].as_array_mut().unwrap()[0],
            _ => table.entry(section).or_insert_with(|| Value::Table(Table::new())),
        };
        place.as_table_mut().unwrap().insert(name.to_owned(), value["v"].clone());
        self.put(&table.to_string());
    }

    fn put(&mut self, text: &str) {
        self.logged = self.edge.log().len();
        rename_over(&self.path(), text);
    }

    /// Waits for the first line since the last change that holds this text.
    fn logged(&self, what: &str) -> String {
        let find = || {
            let log = self.edge.log();
            log[self.logged..].lines().find(|line| line.contains(what)).map(str::to_owned)
        };
        wait_for(&format!("the log to say {what:?}"), || find().is_some());
        find().unwrap()
    }

    /// The output of `pixelgate check --diff`.
    fn diff(&self) -> String {
        let output = command(&self.path(), &["check", "--diff"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn fault(&self) -> Option<String> {
        let faults = self.edge.status()["faults"].take();
        let found = faults.as_array()?.iter().find(|f| f["what"] == "config_reload")?;
        Some(found["text"].as_str().unwrap_or_default().to_owned())
    }

    /// The verdict on an event of [`STEADY`], and its connection.
    fn after(&self, query: &str, lines: &str) -> (String, crate::http::Connection) {
        let mut connection = self.edge.connect();
        let answer = connection.get(&format!("/v1/event/?_a={STEADY}&{query}"), lines);
        (answer.verdict().to_owned(), connection)
    }

    fn verdict(&self, query: &str) -> String {
        self.after(query, "").0
    }

    fn status(&self, name: &str, value: &str) -> u16 {
        let line = format!("{name}{value}\r\n");
        self.edge.connect().get("/v1/event/?_a=7&_n=a", &line).status
    }

    fn post(&self) -> u16 {
        self.edge.connect().request("POST", "/v1/event/?_a=7&_n=a", "Content-Length: 0\r\n").status
    }

    fn answer_has(&self, header: &str, query: &str) -> bool {
        self.edge.event(&format!("_a=7&_n=a&{query}")).header(header).is_some()
    }

    /// The request by which the backend gets a new event.
    fn delivered(&self, lines: &str) -> Request {
        let name = format!("e{}", self.backend.taken().len());
        assert_eq!(self.after(&format!("_n={name}"), lines).0, "accepted");
        let has = |request: &Request| request.events().iter().any(|e| e["event"] == name.as_str());
        let find = || self.backend.taken().into_iter().find(&has);
        wait_for("the event", || find().is_some());
        find().unwrap()
    }

    fn sent(&self, header: &str) -> String {
        self.delivered("").header(header).to_owned()
    }

    fn context(&self, lines: &str) -> serde_json::Value {
        let name = format!("e{}", self.backend.taken().len());
        let events = self.delivered(lines).events();
        let event = events.into_iter().find(|event| event["event"] == name.as_str());
        event.map(|event| event["context"].clone()).unwrap_or_default()
    }
}

/// The keys of the sections, and those of `[[upstream]]` of kind `http`.
fn keys() -> BTreeSet<String> {
    let is_word = |text: &str| {
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut keys = BTreeSet::new();
    for (at, block) in REFERENCE.split("[[upstream]]\n").enumerate() {
        if at > 0 && !block.contains("kind = \"http\"") {
            continue;
        }
        let mut section = if at > 0 { "upstream" } else { "" }.to_owned();
        for line in block.lines().map(|line| line.trim_start_matches("# ")) {
            let name = line.trim_matches(['[', ']']);
            if line.starts_with('[') && is_word(name) {
                section = name.to_owned();
            } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| is_word(key)) {
                keys.insert(format!("{section}.{key}"));
            }
        }
    }
    keys.remove("upstream.name");
    keys.insert("upstream.attempts_max".to_owned());
    keys
}

#[test]
fn each_changed_key_is_in_force_or_named_under_load() {
    let listed: BTreeSet<String> = CHANGES.iter().map(|(key, ..)| (*key).to_owned()).collect();
    assert_eq!(listed.symmetric_difference(&keys()).collect::<Vec<_>>(), Vec::<&String>::new());

    // One edge for each half of the keys, because one place in the code logs at most 60 lines a
    // minute.
    CHANGES.chunks(CHANGES.len().div_ceil(2)).for_each(each_in_force_or_named);
}

fn each_in_force_or_named(changes: &[(&str, &str, Option<Probe>)]) {
    let mut subject = Subject::start();
    assert_eq!(subject.diff(), "no key has changed\n");
    let mut load = Some(Load::on(&subject.edge));
    for (key, value, probe) in changes {
        if *key == "events.path"
            && let Some(load) = load.take()
        {
            load.end();
        }
        if NOT_ALONE.contains(key) {
            continue;
        }
        subject.write(key, value);
        let shown = key.replace("upstream.", "upstream.collector.");
        let needs_upgrade = match *key {
            "edge.state_dir" => true,
            _ => {
                let diff = subject.diff();
                let line = diff.lines().find(|line| line.starts_with(&shown));
                line.unwrap_or_else(|| panic!("{key} is not in {diff:?}")).contains("upgrade")
            }
        };
        subject.edge.signal(Signal::HUP);
        if needs_upgrade {
            let line = subject.logged("not in force, needs an upgrade: ");
            assert!(line.contains(&shown) && probe.is_none(), "{line}");
            wait_for("the fault", || subject.fault().is_some_and(|text| text.contains(&shown)));
        } else {
            let line = subject.logged("in force from now on: ");
            assert!(line.contains(&shown), "{line}");
            if let Some(probe) = probe {
                wait_for(&format!("{key} to be in force"), || probe(&subject));
            }
        }
        load.iter().for_each(Load::goes_on);
    }
    let first = subject.first.to_string();
    subject.put(&first);
    subject.edge.signal(Signal::HUP);
    wait_for("what was in force at first", || subject.diff() == "no key has changed\n");
    wait_for("no fault", || subject.fault().is_none());
}

#[test]
fn a_file_with_a_mistake_changes_nothing_and_is_a_fault() {
    let mut subject = Subject::start();
    let load = Load::on(&subject.edge);
    let good = fs::read_to_string(subject.path()).unwrap();
    for (mistake, named) in [
        ("[privacy]\nip = \"nnoe\"\n[response]\nbody = \"empty\"", "privacy.ip: "),
        ("[response]\nbody = \"empty\"\nbodyy = 1", "`bodyy`"),
        ("[response]\nbody = \"empty\"\n[admn]", "`admn`"),
        ("[response]\nbody = \"empty\"\n[events]\nparams_max = 1", "events.params_max: "),
    ] {
        subject.put(&format!("{mistake}\n{good}"));
        subject.edge.signal(Signal::HUP);
        let line = subject.logged("the configuration in force stays");
        assert!(line.contains("edge.toml") && line.contains(named), "{line}");
        wait_for("the fault", || subject.fault().is_some_and(|text| text.contains(named)));
        assert_eq!(subject.edge.admin("/readyz").body, b"ready\n");
        assert_eq!(subject.edge.event("_a=7&_n=a").body.len(), 43);
    }
    // The list of portals and the upstream's files are part of what must be sound.
    for (key, value, named) in [
        ("portals.source", "'DIR/none.toml'", "none.toml"),
        ("upstream.ca", "'DIR/none.pem'", "upstream.collector.ca: "),
        ("edge.origin_ca", "'DIR/none.pem'", "edge.origin_ca: "),
    ] {
        subject.write(key, value);
        subject.edge.signal(Signal::HUP);
        let line = subject.logged("the configuration in force stays");
        assert!(line.contains(named), "{line}");
    }
    subject.put(&good);
    subject.edge.signal(Signal::HUP);
    subject.logged("no key has changed that a reload puts in force");
    wait_for("no fault", || subject.fault().is_none());
    load.end();
}

#[test]
fn a_changed_file_takes_effect_without_a_signal() {
    let mut subject = Subject::start();
    let load = Load::on(&subject.edge);
    subject.write("response.body", "'empty'");
    subject.logged("in force from now on: response.body");
    assert!(subject.edge.event("_a=7&_n=a").body.is_empty());
    load.end();
}

#[test]
fn certificates_of_an_upstream_are_read_again() {
    let mut subject = Subject::start();
    let dir = subject.edge.dir().to_owned();
    let pair = || crate::tls_origin::certificate(&["client.test"]);
    let (cert, key) = (dir.join("client.pem"), dir.join("client.key"));
    crate::tls_origin::write_pair(&pair(), &cert, &key);
    let mut table = subject.first.clone();
    let upstream = table["upstream"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
    upstream.insert("cert".into(), cert.display().to_string().into());
    upstream.insert("key".into(), key.display().to_string().into());
    subject.put(&table.to_string());
    subject.edge.signal(Signal::HUP);
    subject.logged("in force from now on: upstream.collector.cert, upstream.collector.key");
    // A key that does not fit its certificate.
    fs::write(&cert, pair().cert.pem()).unwrap();
    let line = subject.logged("what was read before stays in use");
    assert!(line.contains("upstream.collector.cert: "), "{line}");
    let named = "upstream.collector.cert: ";
    wait_for("the fault", || subject.fault().is_some_and(|text| text.contains(named)));
    assert_eq!(subject.delivered("").target, "/take");
    crate::tls_origin::write_pair(&pair(), &cert, &key);
    subject.logged("upstream collector: its changed files are in use from now on");
    wait_for("no fault", || subject.fault().is_none());
    assert_eq!(subject.delivered("").target, "/take");
}

#[test]
fn a_public_admin_listener_keeps_its_token_whatever_the_file_says() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = Setup::default().write(dir.path());
    let first = fs::read_to_string(&path).unwrap();
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\n";
    let public = "[admin]\nlisten = \"0.0.0.0:0\"\ntoken = \"sixteen bytes ok\"\n";
    let good = first.replace(admin, public);
    fs::write(&path, &good).unwrap();
    let edge = Edge::start_in(dir);
    let token = "Authorization: Bearer sixteen bytes ok\r\n";
    let without_token = public.replace("token = \"sixteen bytes ok\"\n", "");
    let status = || {
        let page = edge.admin_with("/status", token);
        assert_eq!(page.status, 200);
        String::from_utf8(page.body).unwrap()
    };
    let without_admin = first.replace(admin, "");
    for text in ["[log]\n".to_owned(), without_admin, good.replace(public, &without_token)] {
        rename_over(&path, &text);
        edge.signal(Signal::HUP);
        let mistake = ": admin.token: is needed where admin.listen";
        wait_for("the fault", || status().contains(mistake));
        assert_eq!(edge.admin("/metrics").status, 401);
        rename_over(&path, &good);
        edge.signal(Signal::HUP);
        wait_for("no fault", || !status().contains("config_reload"));
    }
    // Another token is in force even if the file no longer names the admin listener.
    rename_over(&path, &first.replace(admin, "[admin]\ntoken = \"another sixteen bytes\"\n"));
    edge.signal(Signal::HUP);
    edge.wait_log("in force from now on: admin.token");
    let token = "Authorization: Bearer another sixteen bytes\r\n";
    assert_eq!(edge.admin_with("/status", token).status, 200);
}

#[test]
fn a_fifo_or_a_folder_in_the_place_of_the_file_is_a_mistake() {
    let mut subject = Subject::start();
    let good = fs::read_to_string(subject.path()).unwrap();
    let path = subject.path();
    for make in ["mkfifo", "mkdir"] {
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new(make).arg(&path).status().unwrap();
        assert!(made.success());
        subject.edge.signal(Signal::HUP);
        let mistake = "edge.toml: cannot be read: is not a regular file; the configuration in";
        wait_for("the fault", || subject.fault().is_some_and(|text| text.contains(mistake)));
        for arguments in [["check"], ["run"]] {
            let output = command(&path, &arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(2));
            let printed = String::from_utf8(output.stderr).unwrap();
            assert!(printed.contains("edge.toml: cannot be read: is not a regular"), "{printed}");
        }
        match make {
            "mkdir" => fs::remove_dir(&path).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        subject.put(&good);
        subject.edge.signal(Signal::HUP);
        wait_for("no fault", || subject.fault().is_none());
    }
}

#[test]
fn an_upstream_that_is_removed_or_added_needs_an_upgrade_as_a_whole() {
    let mut subject = Subject::start();
    let mut table = subject.first.clone();
    let upstream = table["upstream"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
    upstream.insert("name".into(), "other".into());
    subject.put(&table.to_string());
    let whole = "upstream.collector: needs an upgrade\nupstream.other: needs an upgrade\n";
    assert_eq!(subject.diff(), whole);
    subject.edge.signal(Signal::HUP);
    subject.logged("no key has changed that a reload puts in force");
    let line = subject.logged("not in force, needs an upgrade: ");
    assert!(line.ends_with(": upstream.collector, upstream.other"), "{line}");
    assert_eq!(subject.delivered("").target, "/take");
}
