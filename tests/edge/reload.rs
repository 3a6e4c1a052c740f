//! SPEC 5 under load: portal lists change, hold mistakes or lose their source, and no event is
//! affected.

use crate::harness::{Edge, Setup, command, wait_for};
use crate::http::{Connection, Response};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;

/// The portal that is in every list. The load consists of its events.
pub const STEADY: u32 = 7;
/// How many further answers show that the load goes on.
const FURTHER: u64 = 20;

/// A list of [`STEADY`] and one more portal, which shows which list is in force.
pub fn list(marker: u32) -> String {
    format!("portals = [{STEADY}, {marker}]\n")
}

/// A folder with a configuration whose `[portals]` holds these lines; none: the harness's own.
/// The list is that of marker 100.
fn folder(portals: &str) -> Arc<TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().portals(&list(100)).write(dir.path());
    let own = format!("source = \"{}/portals.toml\"\nrefresh_seconds = 1\n", dir.path().display());
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(&own));
    if !portals.is_empty() {
        let portals = portals.replace("DIR", &dir.path().display().to_string());
        fs::write(&config, text.replace(&own, &portals)).unwrap();
    }
    dir
}

pub fn rename_over(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Events of [`STEADY`], on a persistent connection and on new ones, as fast as they are answered.
/// Each must be accepted.
pub struct Load {
    ended: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn on(edge: &Edge) -> Load {
        let (ended, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = |persistent: bool| {
            let (address, ended, answered) = (edge.address, ended.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::open(address);
                while !ended.load(Relaxed) {
                    if !persistent {
                        connection = Connection::open(address);
                    }
                    let target = format!("/v1/event/?_a={STEADY}&_n=load");
                    let response = connection.get(&target, "");
                    assert_eq!((response.status, response.verdict()), (200, "accepted"));
                    answered.fetch_add(1, Relaxed);
                }
            })
        };
        let threads = [true, false].into_iter().map(thread).collect();
        let load = Load { ended, answered, threads };
        load.goes_on();
        load
    }

    /// Waits for [`FURTHER`] further answers. Fails if an event was refused or an answer was
    /// broken.
    pub fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        wait_for("further answers", || {
            let unhurt = !self.threads.iter().any(JoinHandle::is_finished);
            assert!(unhurt, "an event was refused or broken");
            self.answered.load(Relaxed) >= before + FURTHER
        });
    }

    /// Ends the load. Fails as [`Load::goes_on`] does.
    pub fn end(self) {
        self.goes_on();
        self.ended.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("no event is refused or broken");
        }
    }
}

fn answer(edge: &Edge, portal: u32) -> Response {
    edge.event(&format!("_a={portal}&_n=a"))
}

fn verdict(edge: &Edge, portal: u32) -> String {
    answer(edge, portal).verdict().to_owned()
}

/// Waits until the list of `marker` is in force, and checks that the list before it is not.
fn takes_effect(edge: &Edge, marker: u32) {
    wait_for("the new list", || verdict(edge, marker) == "accepted");
    assert_eq!(verdict(edge, marker - 1), "portal_not_allowed");
}

/// The status and the body of `/readyz`.
fn readiness(edge: &Edge) -> (u16, String) {
    let page = edge.admin("/readyz");
    (page.status, String::from_utf8(page.body).unwrap())
}

fn is_well(edge: &Edge) -> bool {
    readiness(edge) == (200, "ready\n".to_owned())
}

/// Waits for a failure whose text contains `what`. Checks that `/status`, `/readyz` and the log
/// name it, that the edge stays ready and that the list of `marker` is still in force. Returns its
/// text.
fn failed_and_changed_nothing(edge: &Edge, marker: u32, what: &str) -> String {
    let mut status = Value::Null;
    wait_for(&format!("the failure in /status: {what}"), || {
        status = edge.status()["portals"].take();
        status["last_failure"]["what"].as_str().is_some_and(|text| text.contains(what))
    });
    let failure = status["last_failure"]["what"].as_str().unwrap().to_owned();
    assert!(status["last_failure"]["at"].is_string() && status["count"] == 2, "{status}");
    let ready = format!("ready\nportals: cannot be refreshed: {failure}\n");
    assert_eq!(readiness(edge), (200, ready));
    let logged = format!("the list in use stays: {failure}");
    wait_for("the log", || edge.log().contains(&logged));
    assert_eq!(verdict(edge, STEADY), "accepted", "{failure}");
    assert_eq!(verdict(edge, marker), "accepted", "{failure}");
    assert_eq!(verdict(edge, marker + 1), "portal_not_allowed", "{failure}");
    failure
}

/// Swaps `..data` as Kubernetes does for a ConfigMap's volume.
fn mount(dir: &Path, marker: u32) {
    let folder = format!("..2026_{marker}");
    fs::create_dir(dir.join(&folder)).unwrap();
    fs::write(dir.join(&folder).join("portals.toml"), list(marker)).unwrap();
    let before = fs::read_link(dir.join("..data"));
    symlink(&folder, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if let Ok(before) = before {
        fs::remove_dir_all(dir.join(before)).unwrap();
    }
}

#[test]
fn each_kind_of_change_takes_effect_under_load() {
    let dir = folder("");
    let path = dir.path().join("portals.toml");
    mount(dir.path(), 100);
    fs::remove_file(&path).unwrap();
    symlink("..data/portals.toml", &path).unwrap();
    let edge = Edge::start_in(Arc::clone(&dir));
    let load = Load::on(&edge);
    for marker in 101..104 {
        mount(dir.path(), marker);
        takes_effect(&edge, marker);
    }
    for marker in 104..107 {
        rename_over(&path, &list(marker));
        takes_effect(&edge, marker);
    }
    for marker in 107..110 {
        fs::write(&path, list(marker)).unwrap();
        takes_effect(&edge, marker);
    }
    load.end();
    assert_eq!(edge.status()["portals"]["last_failure"], Value::Null);
    assert!(is_well(&edge));
}

#[test]
fn a_hangup_has_the_list_read_at_once_under_load() {
    let dir = folder("source = \"DIR/portals.toml\"\nrefresh_seconds = 86400\n");
    let path = dir.path().join("portals.toml");
    let edge = Edge::start_in(dir);
    let load = Load::on(&edge);
    for marker in 101..111 {
        rename_over(&path, &list(marker));
        // The edge looks at the file by itself only hours later.
        assert_eq!(verdict(&edge, marker), "portal_not_allowed");
        edge.signal(Signal::HUP);
        takes_effect(&edge, marker);
    }
    rename_over(&path, "portals = [7,\n\n0]\n");
    edge.signal(Signal::HUP);
    failed_and_changed_nothing(&edge, 110, "portals.toml:3:");
    load.end();
}

/// A change of the list, and the failure that is reported.
type BadEdit = (fn(&Path), &'static str);

const BAD_EDITS: &[BadEdit] = &[
    (|path| rewrite(path, "portals = [\n  7,\n  8;\n]\n"), "portals.toml:3:"),
    (|path| rewrite(path, "portals = [\n  7,\n  8,\n  7,\n]\n"), "portals.toml:4:"),
    (|path| rewrite(path, "portals = [\n\n\n  7,\n  0,\n]\n"), "portals.toml:5:"),
    (|path| rewrite(path, "\n\n\nportals = [\n  7,\n  eight,\n]\n"), "portals.toml:6:"),
    (|path| rewrite(path, "portals = [\n  7,\n\n\n\n\n  8"), "portals.toml:7:"),
    (
        |path| rewrite(path, "portals = [7]\n\n\n\n\n[[portal]]\nid = 8\nevnts = [\"a\"]\n"),
        "portals.toml:8:",
    ),
    (|path| rewrite(path, ""), "portals.toml: there is no portal in it"),
    (|path| fs::remove_file(path).unwrap(), "portals.toml: No such file"),
    (replace_by_fifo, "portals.toml: is not a regular file"),
    (
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap(),
        "portals.toml: Permission denied",
    ),
];

fn rewrite(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

/// A process that opened this FIFO as a file would hang.
fn replace_by_fifo(path: &Path) {
    fs::remove_file(path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn no_bad_edit_changes_anything_under_load() {
    let dir = folder("");
    let path = dir.path().join("portals.toml");
    let config = dir.path().join("edge.toml");
    let edge = Edge::start_in(dir);
    let load = Load::on(&edge);
    for (marker, (edit, place)) in (100..).zip(BAD_EDITS) {
        edit(&path);
        if place.contains("Permission") && fs::File::open(&path).is_ok() {
            eprintln!("skipped: root may read a file without permission");
            continue;
        }
        let loaded_at = edge.status()["portals"]["loaded_at"].take();
        let failure = failed_and_changed_nothing(&edge, marker, place);
        assert_eq!(edge.status()["portals"]["loaded_at"], loaded_at);
        load.goes_on();
        let check = command(&config, &["check"]).output().unwrap();
        let said = String::from_utf8(check.stderr).unwrap();
        assert_eq!(
            (check.status.code(), said.contains(&failure)),
            (Some(2), true),
            "{failure}\n{said}"
        );

        rename_over(&path, &list(marker + 1));
        takes_effect(&edge, marker + 1);
        wait_for("readiness after the repair", || is_well(&edge));
        assert!(command(&config, &["check"]).output().unwrap().status.success());
    }
    load.end();
    // A list without portals is valid only where it says so.
    rewrite(&path, "portals = []\n");
    wait_for("the empty list", || edge.status()["portals"]["count"] == 0);
    assert_eq!(verdict(&edge, STEADY), "portal_not_allowed");
    assert!(is_well(&edge));
}

#[test]
fn rules_change_with_a_reload() {
    let dir = folder("");
    let path = dir.path().join("portals.toml");
    let edge = Edge::start_in(dir);
    let load = Load::on(&edge);
    let mut marker = 100;
    let mut rule = |rule: &str| {
        marker += 1;
        rename_over(&path, &format!("{}[[portal]]\nid = 9\n{rule}\n", list(marker)));
        takes_effect(&edge, marker);
    };
    rule("rate = { per_second = 1, burst = 1 }");
    wait_for("a limited event", || {
        let limited = answer(&edge, 9);
        limited.verdict() == "rate_limited"
            && (limited.status, limited.header("retry-after")) == (429, Some("1"))
    });
    rule("rate = { per_second = 1, burst = 1000000 }");
    for _ in 0..50 {
        assert_eq!(verdict(&edge, 9), "accepted");
    }
    rule("expires = 2020-02-29");
    assert_eq!(verdict(&edge, 9), "portal_not_allowed");
    rule("expires = 2999-01-01");
    assert_eq!(verdict(&edge, 9), "accepted");
    rule("events = [\"b*\"]");
    assert_eq!(verdict(&edge, 9), "event_not_allowed");
    rule("");
    assert_eq!(verdict(&edge, 9), "accepted");
    load.end();
}

/// A server with a list, which can go away and come back.
struct ListServer {
    address: SocketAddr,
    desk: Arc<ServerDesk>,
    running: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct ServerDesk {
    /// The marker of the list that is served, also its `ETag`; or a whole answer instead of it.
    marker: AtomicU64,
    instead: Mutex<Option<String>>,
    /// How many answers were 304.
    confirmed: AtomicU64,
    gone: AtomicBool,
}

impl ServerDesk {
    fn answer(&self, stream: &mut TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let marker = self.marker.load(Relaxed);
        let instead = self.instead.lock().unwrap().clone();
        let answer = if let Some(instead) = instead {
            instead
        } else if head.contains(&format!("if-none-match: \"{marker}\"\r\n")) {
            self.confirmed.fetch_add(1, Relaxed);
            "304 Not Modified\r\n\r\n".to_owned()
        } else {
            let list = list(u32::try_from(marker).unwrap());
            format!("200 OK\r\nETag: \"{marker}\"\r\n{}", body("application/toml", &list))
        };
        // The edge may have closed the connection.
        let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes());
    }
}

fn body(content_type: &str, text: &str) -> String {
    let length = text.len();
    format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{text}")
}

impl ListServer {
    fn start(marker: u64) -> ListServer {
        let address = "127.0.0.1:0".parse().unwrap();
        let mut server = ListServer { address, desk: Arc::default(), running: None };
        server.desk.marker.store(marker, Relaxed);
        server.come_back();
        server
    }

    /// Lines of `[portals]` with this server as the source. The query is treated as a secret.
    fn source(&self) -> String {
        let address = self.address;
        format!("source = \"http://{address}/portals.toml?token=hush\"\nrefresh_seconds = 1\n")
    }

    /// Closes the port.
    fn go(&mut self) {
        self.desk.gone.store(true, Relaxed);
        // The thread ends at the next connection.
        drop(TcpStream::connect(self.address));
        self.running.take().unwrap().join().unwrap();
    }

    fn come_back(&mut self) {
        let mut listener = None;
        wait_for("the server's port", || {
            listener = TcpListener::bind(self.address).ok();
            listener.is_some()
        });
        let listener = listener.unwrap();
        self.address = listener.local_addr().unwrap();
        self.desk.gone.store(false, Relaxed);
        let desk = Arc::clone(&self.desk);
        self.running = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if desk.gone.load(Relaxed) {
                    return;
                }
                desk.answer(&mut stream.unwrap());
            }
        }));
    }

    fn serve(&self, marker: u32) {
        *self.desk.instead.lock().unwrap() = None;
        self.desk.marker.store(marker.into(), Relaxed);
    }

    fn wait_confirmed(&self) {
        let before = self.desk.confirmed.load(Relaxed);
        wait_for("another 304", || self.desk.confirmed.load(Relaxed) > before);
    }
}

#[test]
fn a_url_that_misbehaves_and_goes_away_changes_nothing_under_load() {
    let mut server = ListServer::start(100);
    let edge = Edge::start_in(folder(&server.source()));
    wait_for("the first load", || verdict(&edge, 100) == "accepted");
    let load = Load::on(&edge);
    server.wait_confirmed();
    assert!(is_well(&edge));
    server.serve(101);
    takes_effect(&edge, 101);

    let page = body("text/html", "<html>sorry</html>");
    let cut = body("application/toml", &list(102)).replace("Length: ", "Length: 9");
    for (instead, what) in [
        ("500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned(), "portals.toml: answered 500"),
        (format!("200 OK\r\n{}", body("application/toml", "\0\u{7}\n")), "portals.toml:1:"),
        (format!("200 OK\r\n{}", body("application/toml", "portals = [7,\n0]")), ".toml:2:"),
        (format!("200 OK\r\n{page}"), "neither Content-Type nor name"),
        (format!("200 OK\r\n{cut}"), "end of file before message length reached"),
        ("garbage".to_owned(), "invalid HTTP"),
    ] {
        *server.desk.instead.lock().unwrap() = Some(instead);
        failed_and_changed_nothing(&edge, 101, what);
        load.goes_on();
        server.serve(101);
        wait_for("readiness after the repair", || is_well(&edge));
    }
    server.go();
    failed_and_changed_nothing(&edge, 101, "Connection refused");
    load.goes_on();
    server.serve(102);
    server.come_back();
    takes_effect(&edge, 102);
    wait_for("readiness", || is_well(&edge));
    load.end();

    // A restart while the server is away goes on with the last good copy.
    server.go();
    let edge = Edge::start_in(edge.stop());
    assert_eq!(verdict(&edge, 102), "accepted");
    failed_and_changed_nothing(&edge, 102, "Connection refused");
    server.serve(103);
    server.come_back();
    takes_effect(&edge, 103);
    wait_for("readiness", || is_well(&edge));
    let shown = format!("{}{}", edge.log(), edge.status());
    assert!(!shown.contains("hush"), "a URL's query is not shown: {shown}");
}

#[test]
fn without_a_first_load_every_event_is_overloaded() {
    let mut server = ListServer::start(100);
    server.go();
    let edge = Edge::start_in(folder(&server.source()));
    let refused = answer(&edge, STEADY);
    assert_eq!((refused.status, refused.verdict()), (503, "overloaded"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(readiness(&edge).0, 503);
    server.come_back();
    wait_for("the first load", || verdict(&edge, STEADY) == "accepted");
    wait_for("readiness", || is_well(&edge));
}

#[test]
fn a_list_too_old_is_overloaded_until_its_source_is_back() {
    let mut server = ListServer::start(100);
    let edge = Edge::start_in(folder(&format!("{}stale_seconds_max = 2\n", server.source())));
    wait_for("the first load", || verdict(&edge, STEADY) == "accepted");
    server.go();
    wait_for("the list to be too old", || {
        let refused = answer(&edge, STEADY);
        (refused.status, refused.verdict()) == (503, "overloaded")
    });
    assert_eq!(readiness(&edge).0, 503);
    wait_for("the log", || edge.log().contains("too old"));
    server.come_back();
    wait_for("the list to be confirmed", || verdict(&edge, STEADY) == "accepted");
    wait_for("readiness", || is_well(&edge));
    assert_eq!(edge.status()["portals"]["count"], 2, "the same list as before");
}
