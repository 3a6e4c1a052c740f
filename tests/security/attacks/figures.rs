//! What attacks cost, with nginx beside the edge: peak memory, CPU time, and the latency of honest
//! events meanwhile.
//!
//! `make attacks` prints the table of docs/security.md, of an optimized build. The other test runs
//! each attack for a moment and asserts the bound on memory alone.

use super::scenes::{Addresses, LARGE, SCENES, Scene};
use crate::harness::{Edge, Setup, kill, wait_for};
use crate::http::Connection;
use crate::nginx::Nginx;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long an attack goes on for the table.
const MEASURED: Duration = Duration::from_secs(4);
/// How long an attack goes on for the bound on memory.
const SHORT: Duration = Duration::from_millis(400);
/// Most memory that an attack of a moment may add, in KiB, in any build.
const GROWTH_KIB_MAX: u64 = 120 << 10;
/// The niceness of the attackers' threads, the lowest priority there is: an attack that keeps its
/// own clients busy must not make the honest ones wait for a core, because that says nothing about
/// the server. On Linux each thread has its own.
const ATTACKER_NICENESS: i32 = 19;
/// Pause between two honest events.
const PAUSE: Duration = Duration::from_millis(2);
const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.key");

/// A process and its children, as nginx has.
fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    std::iter::once(pid)
        .chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()))
        .collect()
}

fn resident_kib(pid: u32) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    family(pid).into_iter().filter_map(of).sum()
}

/// CPU time that a process and its children have used, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold spaces; the fields behind it do not.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    family(pid).into_iter().filter_map(of).sum()
}

/// What an attack cost.
struct Cost {
    before_kib: u64,
    peak_kib: u64,
    cpu_ticks: u64,
    latencies: Vec<Duration>,
}

impl Cost {
    /// The latency that 99 of 100 honest events did not exceed, in milliseconds.
    fn p99_ms(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 99 / 100).map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
    }
}

/// Honest events, one after the other, until `stop`.
fn honest(address: SocketAddr, stop: &AtomicBool) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut connection = Connection::open(address);
    while !stop.load(Relaxed) {
        let began = Instant::now();
        let answer = connection.get("/v1/event/?_a=62515&_n=honest", "");
        assert_eq!(answer.status, 200);
        latencies.push(began.elapsed());
        // nginx closes after 1,000 requests.
        if answer.header("connection") == Some("close") {
            connection = Connection::open(address);
        }
        std::thread::sleep(PAUSE);
    }
    latencies
}

fn measure(scene: &Scene, at: Addresses, pid: u32, time: Duration) -> Cost {
    let stop = AtomicBool::new(false);
    let peak = AtomicU64::new(0);
    let (before_kib, cpu_before) = (resident_kib(pid), cpu_ticks(pid));
    let latencies = std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(at.http1, &stop));
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                peak.fetch_max(resident_kib(pid), Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let until = Instant::now() + time;
        let attack = move || {
            rustix::process::setpriority_process(None, ATTACKER_NICENESS).unwrap();
            (scene.run)(at, until);
        };
        let attacks: Vec<_> = (0..scene.clients).map(|_| scope.spawn(attack)).collect();
        attacks.into_iter().for_each(|attack| attack.join().unwrap());
        stop.store(true, Relaxed);
        honest.join().unwrap()
    });
    let cpu_ticks = cpu_ticks(pid) - cpu_before;
    Cost { before_kib, peak_kib: peak.load(Relaxed), cpu_ticks, latencies }
}

/// The origin behind the edge and nginx, with its large page.
fn origin() -> Nginx {
    let origin = Nginx::start();
    std::fs::write(origin.files().join("large"), vec![7; 8_000_000]).unwrap();
    origin
}

fn edge(origin: &Nginx) -> (Edge, Addresses) {
    let tls = format!("tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = Setup::default().origin(origin.address).edge(&tls).start();
    let log = edge.log();
    let tls = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let at = Addresses { http1: edge.address, http2: edge.address, tls: tls.parse().unwrap() };
    (edge, at)
}

/// nginx with its own limits, a pixel, and the same origin.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        kill(&self.0, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn beside(dir: &Path, origin: SocketAddr) -> (Beside, Addresses) {
    // All are open at once, so that their ports differ.
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [http1, http2, tls] = listeners.map(|listener| listener.local_addr().unwrap());
    let at = dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {at}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; pid {at}/pid; worker_processes auto; worker_rlimit_nofile 16000;
         events {{ worker_connections 8000; }}
         http {{
             access_log off; {paths}
             upstream origin {{ server {origin}; keepalive 64; }}
             server {{
                 listen {http1}; listen {http2} http2; listen {tls} ssl http2;
                 ssl_certificate {CERT}; ssl_certificate_key {KEY};
                 location /v1/event/ {{ empty_gif; }}
                 location / {{
                     proxy_pass http://origin; proxy_http_version 1.1;
                     proxy_set_header Connection ''; proxy_max_temp_file_size 0;
                 }}
             }}
         }}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("log"));
    let child = Beside(command.spawn().expect("nginx is installed"));
    wait_for("nginx to listen", || TcpStream::connect(tls).is_ok());
    (child, Addresses { http1, http2, tls })
}

#[test]
fn an_attack_of_a_moment_has_its_bound_on_memory() {
    let origin = origin();
    for scene in SCENES {
        let (edge, at) = edge(&origin);
        assert_eq!(edge.get(LARGE).body.len(), 8_000_000);
        let cost = measure(scene, at, edge.pid(), SHORT);
        let grown = cost.peak_kib.saturating_sub(cost.before_kib);
        println!("{}: {grown} KiB", scene.name);
        assert!(grown <= GROWTH_KIB_MAX, "{}: {grown} KiB", scene.name);
        assert_eq!(edge.event("_a=62515&_n=after").status, 200);
        assert!(!edge.log().contains("ERROR"), "{}", edge.log());
    }
}

/// `make attacks`. Each attack meets a server that has just started.
#[test]
#[ignore = "measures an optimized build: make attacks"]
fn what_attacks_cost() {
    let origin = origin();
    println!("| attack | | memory, MiB: before, peak | CPU, s | honest events | p99, ms |");
    println!("|---|---|---|---|---|---|");
    let show = |name: &str, server: &str, cost: &Cost| {
        let [before, peak] = [cost.before_kib, cost.peak_kib].map(|kib| kib as f64 / 1024.0);
        let cpu = cost.cpu_ticks as f64 / 100.0;
        let (count, p99) = (cost.latencies.len(), cost.p99_ms());
        println!("| {name} | {server} | {before:.0}, {peak:.0} | {cpu:.1} | {count} | {p99:.1} |");
    };
    for scene in SCENES {
        let (edge, at) = edge(&origin);
        show(scene.name, "edge", &measure(scene, at, edge.pid(), MEASURED));
        drop(edge);
        let dir = tempfile::tempdir().unwrap();
        let (nginx, at) = beside(dir.path(), origin.address);
        show("", "nginx", &measure(scene, at, nginx.0.id(), MEASURED));
    }
}
