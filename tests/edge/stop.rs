//! A graceful stop loses no event and does not wait longer than needed (SPEC 8).

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, check_state_is_true, http_upstream};
use crate::harness::{Edge, Setup, wait_for};
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[test]
fn an_idle_edge_stops_at_once_on_each_signal() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut edge = Setup::default().edge("shutdown_grace_seconds = 3600").start();
        let mut kept = edge.connect();
        assert_eq!(kept.get("/v1/event/?_a=62515&_n=a", "").status, 200);
        edge.signal(signal);
        // The grace period is an hour: that it ends within the harness's patience is the proof
        // that it was not waited out.
        assert_eq!(edge.wait().code(), Some(0), "{signal:?}");
        assert!(kept.is_closed());
    }
}

#[test]
fn a_signal_that_means_something_to_another_server_leaves_the_edge_running() {
    let mut edge = Edge::start();
    let signals = [
        (Signal::USR1, "SIGUSR1 does nothing here: SIGHUP opens the access log again"),
        (Signal::USR2, "SIGUSR2 does nothing here: `pixelgate run --upgrade` replaces"),
        (Signal::ALARM, "SIGALRM does nothing here"),
    ];
    for (signal, told) in signals {
        edge.signal(signal);
        edge.wait_log(told);
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
        assert_eq!(edge.log().matches(told).count(), 1);
    }
    edge.signal(Signal::TERM);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn a_draining_edge_accepts_and_is_unready_until_its_time_or_a_second_signal() {
    let mut edge = Setup::default().edge("drain_seconds = 3600").start();
    let unready = |edge: &Edge| edge.admin("/readyz").status == 503;
    assert!(!unready(&edge));
    edge.signal(Signal::TERM);
    wait_for("the edge to be unready", || unready(&edge));
    let page = edge.admin("/readyz").body;
    assert_eq!(page, b"draining: this edge is about to stop\n");
    for _ in 0..3 {
        assert_eq!(edge.event("_a=62515&_n=a").status, 200, "on a new connection");
    }
    // The grace period of an hour is not waited out.
    edge.signal(Signal::TERM);
    assert_eq!(edge.wait().code(), Some(0));

    let mut edge = Setup::default().edge("drain_seconds = 1").start();
    edge.signal(Signal::TERM);
    edge.wait_log("unready, and accepting for 1 second more");
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn a_draining_edge_reloads_and_opens_its_access_log_again() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let log = dir.path().join("access.log");
    let section = format!("[access_log]\npath = \"{}\"", log.display());
    let setup = Setup::default().edge("drain_seconds = 3600").sections(&section);
    let path = setup.write(dir.path());
    let mut edge = Edge::start_in(dir);
    edge.signal(Signal::TERM);
    edge.wait_log("accepting for 3600 seconds more");
    std::fs::rename(&log, log.with_extension("1")).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + "[response]\nbody = \"empty\"\n").unwrap();
    edge.signal(Signal::HUP);
    edge.wait_log("in force from now on: response.body");
    wait_for("the new access log", || log.exists());
    assert!(edge.event("_a=62515&_n=a").body.is_empty());
    edge.signal(Signal::TERM);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn a_stop_while_an_upstream_is_dead_ends_and_loses_nothing() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let setup = Setup::default()
        .edge("shutdown_grace_seconds = 3600")
        .upstreams(&http_upstream(&backend, ""));
    let edge = setup.start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    wait_for("an attempt", || !backend.seen().is_empty());
    let dir = edge.stop();
    backend.script(|_| Act::Take);
    let edge = Edge::start_in(dir);
    edge.wait_delivered("collector");
    assert_eq!(backend.events().len(), 1);
}

#[test]
fn attempts_under_way_end_within_the_grace_period() {
    // Each attempt takes longer than the second that a stop once gave to attempts.
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Slow(Duration::from_secs(3))));
    let url = backend.url("/v1/event/");
    let upstream = format!(
        "[[upstream]]\nname = \"old\"\nkind = \"legacy\"\nurl = \"{url}\"\n\
         [upstream.batch]\nlinger_ms = 20\n"
    );
    let edge = Setup::default().upstreams(&upstream).start();
    for n in 0..3 {
        assert_eq!(edge.event(&format!("_a=62515&_n=buy&_m=20.5&id={n}")).status, 200);
    }
    wait_for("the orders to be sent", || backend.seen().len() == 3);
    let edge = Edge::start_in(edge.stop());
    let row = edge.wait_delivered("old");
    assert_eq!((&row["delivered"], &row["dead"]), (&json!(3), &json!(0)));
    assert_eq!(backend.taken().len(), 3, "no order is sent twice");
}

#[test]
fn whatever_hangs_the_process_ends() {
    // `a` refuses its event, whose dead letter waits for a lock that is held; `b` never answers;
    // `c` is well.
    let refusing = RUNTIME.block_on(Backend::start(|_| Act::Refuse(400)));
    let silent = RUNTIME.block_on(Backend::start(|_| Act::Hang));
    let healthy = RUNTIME.block_on(Backend::playing([]));
    let named = |name: &str, backend: &Backend| {
        let url = backend.url("/take");
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{url}\"\n\
             timeout_seconds = 300\n[upstream.batch]\nlinger_ms = 20\n"
        )
    };
    let mut edge = Setup::default()
        .edge("shutdown_grace_seconds = 2")
        .upstreams(&named("a", &refusing))
        .upstreams(&named("b", &silent))
        .upstreams(&named("c", &healthy))
        .start();
    let dead = edge.dir().join("spool/dead");
    std::fs::create_dir_all(&dead).unwrap();
    let lock = std::fs::File::create(dead.join("a.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    wait_for("all to be asked", || !refusing.seen().is_empty() && !silent.seen().is_empty());
    for n in 0..20 {
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={n}")).status, 200);
    }
    edge.wait_delivered("c");
    ["a", "c"].iter().for_each(|name| check_state_is_true(&edge, name));
    wait_for("the state to say so", || edge.upstream("a")["state"] == "dead_letters_failing");
    edge.signal(Signal::TERM);
    // The exit code is not that of the last resort, 1 after twice the grace period.
    assert_eq!(edge.wait().code(), Some(0), "{}", edge.log());
    drop(lock);
    for backend in [&refusing, &silent] {
        backend.script(|_| Act::Take);
    }
    let edge = Edge::start_in(edge.folder());
    for name in ["a", "b"] {
        edge.wait_delivered(name);
    }
    assert_eq!(edge.upstream("a")["dead"], 0, "the event that waited for its letter came again");
}

#[test]
fn a_request_in_flight_is_answered_before_the_end() {
    // An origin that takes its time keeps one request in flight while the signal comes.
    let slow = RUNTIME.block_on(Backend::start(|_| Act::Slow(Duration::from_millis(300))));
    let mut edge = Setup::default().origin(slow.addr()).start();
    let mut connection = edge.connect();
    connection.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_for("the origin to be asked", || slow.connections() > 0);
    edge.signal(Signal::TERM);
    assert_eq!(connection.read("GET").status, 200);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn nothing_answered_is_lost_by_a_stop_under_load_whatever_the_durability() {
    for durability in ["power", "interval", "memory"] {
        let backend = RUNTIME.block_on(Backend::playing([]));
        let edge = Setup::default()
            .spool(&format!("durability = \"{durability}\""))
            .upstreams(&http_upstream(&backend, ""))
            .start();
        let address = edge.address;
        let next = Arc::new(AtomicU64::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let (next, stopped) = (Arc::clone(&next), Arc::clone(&stopped));
                std::thread::spawn(move || crate::stop::send(address, &next, &stopped))
            })
            .collect();
        wait_for("some hundred events", || next.load(Relaxed) > 500);
        let dir = edge.stop();
        stopped.store(true, Relaxed);
        let mut answered = BTreeSet::new();
        for sender in senders {
            answered.extend(sender.join().unwrap());
        }
        let edge = Edge::start_in(dir);
        edge.wait_delivered("collector");
        let delivered: BTreeSet<u64> = backend
            .events()
            .iter()
            .map(|event| event["external_id"].as_str().unwrap().parse().unwrap())
            .collect();
        let lost = answered.difference(&delivered).count();
        assert_eq!(lost, 0, "{durability}: {lost} of {} lost", answered.len());
    }
}

/// Sends events until the edge is gone; gives the ids answered 200.
fn send(address: std::net::SocketAddr, next: &AtomicU64, stopped: &AtomicBool) -> Vec<u64> {
    let mut kept = Vec::new();
    while !stopped.load(Relaxed) {
        let Ok(stream) = std::net::TcpStream::connect(address) else { break };
        let mut connection = crate::http::Connection::of(stream);
        loop {
            let id = next.fetch_add(1, Relaxed);
            let head = format!("GET /v1/event/?_a=62515&_n=a&id={id} HTTP/1.1\r\nHost: a\r\n\r\n");
            if connection.try_send(head.as_bytes()).is_err() {
                break;
            }
            match connection.read_one("GET") {
                Ok(response) if response.status == 200 => kept.push(id),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    kept
}

#[test]
fn a_second_edge_on_the_same_port_says_so_and_leaves_the_first_alone() {
    let first = Edge::start();
    let dir = tempfile::tempdir().unwrap();
    let path = Setup::default().write(dir.path());
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replacen("127.0.0.1:0", &first.address.to_string(), 1);
    std::fs::write(&path, text).unwrap();
    let began = Instant::now();
    let output = crate::harness::command(&path, &["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&first.address.to_string()), "{said}");
    assert!(began.elapsed() < crate::harness::PATIENCE);
    assert_eq!(first.event("_a=62515&_n=a").status, 200);
}
