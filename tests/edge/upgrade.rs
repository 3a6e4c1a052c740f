//! `pixelgate run --upgrade`: a new process replaces the old one without a failed request (SPEC 8).

use crate::disk_faults::shows_fault;
use crate::harness::{Edge, PATIENCE, Setup, command, wait_for};
use crate::http::Connection;
use crate::nginx::Nginx;
use crate::tls_client::{CERT, Client, KEY};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// How often the edge is upgraded under load: `PIXELGATE_TEST_UPGRADES`, else 4.
fn upgrades() -> u64 {
    let set = std::env::var("PIXELGATE_TEST_UPGRADES").ok();
    set.map_or(4, |count| count.parse().expect("PIXELGATE_TEST_UPGRADES is a number"))
}

/// The state that all clients share.
#[derive(Default)]
struct Tally {
    next: AtomicU64,
    over: AtomicBool,
    /// Ids of events that were answered 200.
    answered: Mutex<Vec<u64>>,
    /// Failures that a client saw; there must be none.
    faults: Mutex<Vec<String>>,
}

/// A kind of connection, and the request on it.
struct Way {
    name: &'static str,
    connect: Box<dyn Fn() -> io::Result<Box<dyn Duplex>> + Send>,
    /// Whether the client reuses a connection that the edge leaves open.
    keep: bool,
    /// `None`: an event.
    target: Option<&'static str>,
}

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

fn tcp(address: SocketAddr) -> io::Result<Box<dyn Duplex>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// Sends requests until the test ends. Every connection must be accepted and every request
/// answered.
fn run(way: &Way, tally: &Tally) {
    while !tally.over.load(Relaxed) {
        if let Err(e) = run_connection(way, tally) {
            tally.faults.lock().unwrap().push(format!("{}: {e}", way.name));
        }
    }
}

fn run_connection(way: &Way, tally: &Tally) -> io::Result<()> {
    let failed =
        |at: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{at}: {e}"));
    let mut stream = BufReader::new((way.connect)().map_err(failed("connecting"))?);
    loop {
        let id = tally.next.fetch_add(1, Relaxed);
        let event = format!("/v1/event/?_a=62515&_n=upgrade&id={id}");
        let target = way.target.unwrap_or(&event);
        let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.get_mut().write_all(head.as_bytes()).map_err(failed("sending"))?;
        let (status, keeps) = read_answer(&mut stream).map_err(failed("waiting for the answer"))?;
        match (status, way.target) {
            (200, None) => tally.answered.lock().unwrap().push(id),
            (200 | 204, Some(_)) => {}
            (other, _) => return Err(io::Error::other(format!("answered {other}"))),
        }
        if !keeps || !way.keep || tally.over.load(Relaxed) {
            return Ok(());
        }
    }
}

/// Reads a whole answer. Returns its status and whether the connection stays open.
fn read_answer(stream: &mut BufReader<Box<dyn Duplex>>) -> io::Result<(u16, bool)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_ascii_lowercase()),
        }
    }
    let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name));
    let length = value("content-length: ").map_or(0, |length| length.parse().unwrap());
    io::copy(&mut stream.by_ref().take(length), &mut io::sink())?;
    let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    Ok((status, value("connection: ") != Some("close")))
}

/// Every kind of client: plain, TLS and Unix, persistent and new, events and pass-through, and
/// admin.
fn ways(edge: &Edge, tls: SocketAddr, unix: PathBuf) -> Vec<Way> {
    let (plain, admin) = (edge.address, edge.admin);
    let client = Client::trusting(&[Path::new(CERT)]);
    let secure =
        move || -> io::Result<Box<dyn Duplex>> { Ok(Box::new(client.connect(tls, "edge.test")?)) };
    let local = move || -> io::Result<Box<dyn Duplex>> {
        let stream = UnixStream::connect(&unix)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Box::new(stream))
    };
    let mut ways = Vec::new();
    for keep in [true, false] {
        let plain = move || tcp(plain);
        let mut way = |name, connect, target| ways.push(Way { name, connect, keep, target });
        way("plain", Box::new(plain) as Box<_>, None);
        way("plain to the origin", Box::new(plain), Some("/page"));
        way("tls", Box::new(secure.clone()), None);
        way("tls to the origin", Box::new(secure.clone()), Some("/page"));
        way("unix", Box::new(local.clone()), None);
        way("admin", Box::new(move || tcp(admin)), Some("/livez"));
    }
    ways
}

fn tls_and_unix(dir: &Path) -> String {
    format!(
        "listen = [\"127.0.0.1:0\", \"unix:{}/edge.sock\"]\n\
         tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]\n\
         shutdown_grace_seconds = 60",
        dir.display()
    )
}

/// Starts an edge with every kind of listener; gives the address of the TLS one.
fn start(dir: &Arc<tempfile::TempDir>, setup: Setup) -> (Edge, SocketAddr) {
    let path = setup.edge(&tls_and_unix(dir.path())).write(dir.path());
    // The harness's own listener is in the lines above.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("listen = [\"127.0.0.1:0\"]\n", "", 1)).unwrap();
    let edge = Edge::start_in(Arc::clone(dir));
    let log = edge.log();
    let tls = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let tls = tls.parse().unwrap();
    (edge, tls)
}

#[test]
fn upgrade_after_upgrade_under_load_refuses_nothing_and_loses_nothing() {
    let nginx = Nginx::start();
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (mut edge, tls) = start(&dir, Setup::default().origin(nginx.address));
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = ways(&edge, tls, dir.path().join("edge.sock"))
        .into_iter()
        .map(|way| {
            let tally = Arc::clone(&tally);
            std::thread::spawn(move || run(&way, &tally))
        })
        .collect();
    let answered = || tally.answered.lock().unwrap().len();
    for round in 0..upgrades() {
        let before = answered();
        wait_for("events", || answered() > before + 50);
        let next = edge.upgrade();
        assert_eq!((next.address, next.admin), (edge.address, edge.admin));
        // In every other round the signal comes while the new process is still starting.
        if round % 2 == 0 {
            edge.wait_log("the new process accepts");
        } else {
            edge.wait_log("a new process has the listening sockets");
        }
        edge.signal(Signal::QUIT);
        assert_eq!(edge.wait().code(), Some(0), "{}", edge.log());
        assert!(!edge.log().contains("still in flight"), "{}", edge.log());
        edge = next;
    }
    let before = answered();
    wait_for("events of the last process", || answered() > before + 50);
    tally.over.store(true, Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let faults = tally.faults.lock().unwrap();
    assert!(
        faults.is_empty(),
        "{} faults, such as {:#?}",
        faults.len(),
        &faults[..faults.len().min(9)]
    );
    // The lane of a process that ended is taken up within seconds; until then its events are in no
    // count of this process, and `pending` alone could be 0 too early.
    let answered_events = answered() as u64;
    wait_for("the events of the ended processes to be taken up", || {
        edge.upstream("file")["accepted"].as_u64().unwrap() >= answered_events
    });
    edge.wait_delivered("file");
    let dir = edge.stop();
    let (ids, repeated) = delivered(&dir);
    let doubled = ids.values().filter(|ids| ids.len() > 1).count();
    assert_eq!(doubled, 0, "requests are two events in the spool");
    let answered = tally.answered.lock().unwrap();
    let lost = answered.iter().filter(|id| !ids.contains_key(id)).count();
    assert_eq!(lost, 0, "of {} answered events are lost", answered.len());
    let count = answered.len();
    println!("{} upgrades, {count} events answered, none lost, {repeated} repeated", upgrades());
}

/// The ids under which each request was delivered, and how many lines repeat an earlier one:
/// delivery is at least once, under one id.
fn delivered(dir: &tempfile::TempDir) -> (BTreeMap<u64, BTreeSet<String>>, usize) {
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut repeated = 0;
    for event in Edge::events_in_files(dir.path()) {
        let request = event["external_id"].as_str().unwrap().parse().unwrap();
        let new = ids.entry(request).or_default().insert(event["id"].as_str().unwrap().to_owned());
        repeated += usize::from(!new);
    }
    (ids, repeated)
}

#[test]
fn an_idle_connection_has_the_grace_period_and_is_told_that_it_closes() {
    let edge = Setup::default().edge("shutdown_grace_seconds = 3600").start();
    let mut old = edge;
    let mut open = old.connect();
    let mut silent = old.connect();
    assert_eq!(open.get("/v1/event/?_a=62515&_n=a", "").header("connection"), Some("keep-alive"));
    let next = old.upgrade();
    old.wait_log("the new process accepts");
    old.signal(Signal::QUIT);
    old.wait_log("stopping");
    let last = open.get("/v1/event/?_a=62515&_n=b", "");
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(open.is_closed());
    let last = silent.get("/page", "");
    assert_eq!((last.status, last.header("connection")), (404, Some("close")));
    drop(silent);
    assert_eq!(old.wait().code(), Some(0));
    assert_eq!(next.event("_a=62515&_n=c").status, 200);
}

#[test]
fn a_signal_that_comes_before_the_new_process_accepts_waits_for_it() {
    let mut edge = Edge::start();
    let mut open = edge.connect();
    let mut event = |what: &str| {
        let answer = open.get("/v1/event/?_a=62515&_n=a", "");
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("keep-alive")),
            "{what}"
        );
    };
    event("before");
    // A successor without a process: it takes the sockets and sends only the given bytes.
    let takes = |times: usize| {
        let socket = UnixStream::connect(edge.dir().join("upgrade.sock")).unwrap();
        let logged = "a new process has the listening sockets";
        wait_for(logged, || edge.log().matches(logged).count() == times);
        edge.signal(Signal::QUIT);
        let waits = "waiting for the new process to accept";
        wait_for(waits, || edge.log().matches(waits).count() == times);
        socket
    };
    let fails = takes(1);
    event("while the new process starts");
    drop(fails);
    edge.wait_log("the new process failed to start: this one continues");
    event("after it failed");
    let mut accepts = takes(2);
    event("while the next one starts");
    accepts.write_all(b"A").unwrap();
    edge.wait_log("stopping");
    let last = open.get("/v1/event/?_a=62515&_n=a", "");
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    drop(open);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let edge = Edge::start();
    let path = edge.dir().join("edge.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("portals.toml", "missing.toml")).unwrap();
    let output = command(&path, &["run", "--upgrade"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    edge.wait_log("the new process has ended");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);

    std::fs::write(&path, good).unwrap();
    let next = edge.upgrade();
    edge.wait_log("the new process accepts");
    let address = edge.address;
    let _dir = edge.stop();
    assert_eq!(Connection::open(address).get("/v1/event/?_a=62515&_n=b", "").status, 200);
    next.stop();
}

#[test]
fn an_upgrade_of_nothing_is_a_start() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(dir.path());
    let first = Edge::start_in(Arc::clone(&dir));
    // The socket that a crash left behind offers no sockets.
    first.kill();
    assert!(dir.path().join("upgrade.sock").exists());
    let edge = Edge::start_successor(dir);
    edge.wait_log("no running edge offers its sockets here");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
}

/// Whether the edge shows the fault `state_dir` of its Unix socket for upgrades.
fn has_no_socket(edge: &Edge) -> bool {
    shows_fault(edge, "state_dir", "upgrade.sock")
}

#[test]
fn without_its_socket_an_edge_names_a_fault_and_makes_the_socket_when_it_can() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(dir.path());
    let socket = dir.path().join("upgrade.sock");
    std::fs::create_dir(&socket).unwrap();
    let edge = Edge::start_in(Arc::clone(&dir));
    wait_for("the fault", || has_no_socket(&edge));
    assert_eq!(edge.admin("/readyz").status, 200);
    let metrics = String::from_utf8(edge.admin("/metrics").body).unwrap();
    assert!(metrics.contains("pixelgate_faults{what=\"state_dir\"} 1"), "{metrics}");
    std::fs::remove_dir(&socket).unwrap();
    wait_for("the fault to end", || !has_no_socket(&edge));
    edge.wait_log("an upgrade is possible from now on");
    // A cleaner of temporary folders removes the socket.
    std::fs::remove_file(&socket).unwrap();
    wait_for("the socket", || socket.exists());
    let next = edge.upgrade();
    edge.wait_log("the new process accepts");
    edge.stop();
    assert_eq!(next.event("_a=62515&_n=a").status, 200);
}

#[test]
fn after_a_new_process_was_killed_the_old_one_can_be_upgraded_again() {
    let edge = Edge::start();
    let made = || std::fs::metadata(edge.dir().join("upgrade.sock")).map(|file| file.ino()).ok();
    let own = made();
    let killed = edge.upgrade();
    edge.wait_log("the new process accepts");
    wait_for("the socket of the new process", || made() != own);
    let of_killed = made();
    killed.kill();
    edge.wait_log("the new process has ended");
    wait_for("a socket of the old process", || made() != of_killed);
    let next = edge.upgrade();
    wait_for("the next process", || edge.log().matches("the new process accepts").count() == 2);
    edge.stop();
    assert_eq!(next.event("_a=62515&_n=a").status, 200);
}

#[test]
fn two_edges_with_one_state_folder_do_not_replace_each_others_socket() {
    let first = Edge::start();
    let socket = first.dir().join("upgrade.sock");
    let made = || std::fs::metadata(&socket).unwrap().ino();
    let own = made();
    let other = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(other.path());
    let state = first.dir().display().to_string();
    let second = Edge::start_with(other, &[("PIXELGATE__EDGE__STATE_DIR", &state)]);
    wait_for("the fault", || has_no_socket(&second));
    let fault = second.status()["faults"][0]["text"].to_string();
    assert!(fault.contains("another edge offers its sockets here"), "{fault}");
    assert!(!has_no_socket(&first) && made() == own);
    assert!(!first.log().contains("a new process"), "{}", first.log());
    let _dir = first.stop();
    wait_for("the fault to end", || !has_no_socket(&second));
    assert_ne!(made(), own);
}

#[test]
fn a_listener_that_is_new_is_opened_and_one_that_is_gone_is_closed() {
    let old = Setup::default().start();
    let path = old.dir().join("edge.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let socket = old.dir().join("new.sock");
    let listen = format!("listen = [\"unix:{}\"]", socket.display());
    std::fs::write(&path, text.replacen("listen = [\"127.0.0.1:0\"]", &listen, 1)).unwrap();
    let mut next = command(&path, &["run", "--upgrade"]).spawn().unwrap();
    old.wait_log("the new process accepts");
    let address = old.address;
    let _dir = old.stop();
    assert!(TcpStream::connect(address).is_err(), "the listener is closed");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    crate::harness::kill(&next, Signal::TERM);
    assert!(next.wait().unwrap().success());
}
