//! Latency of events during 100 reloads of a portal list with a million ids.
//!
//! ```text
//! cargo bench --bench reload
//! ```
//!
//! The release build takes events at a constant rate, far below what it could take: for a while
//! with nothing else to do, then while one reload follows the other without a pause, in turn and
//! several rounds, so that what else the machine does disturbs both. Once with all cores, and once
//! on one core alone, where reading a list takes CPU time from answering.
//!
//! A latency counts from when the event was due, so that a standstill is seen by all the events
//! that it keeps waiting. Durability is `memory`: the disk's own pauses would hide what is looked
//! for. Every answer must be a pixel: one refused event fails the benchmark.

use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const IDS: u64 = 1_000_000;
const ROUNDS: u32 = 10;
/// Reloads in each round.
const RELOADS: u32 = 10;
const CONNECTIONS: u32 = 32;
/// Time between two events of one connection; 2,000 events a second on all connections.
const PERIOD: Duration = Duration::from_millis(16);
/// How long the load goes on before the reloads of each round.
const BEFORE: Duration = Duration::from_secs(2);
/// The longest wait, so that a benchmark that would wait for ever fails.
const PATIENCE: Duration = Duration::from_secs(60);

const REQUEST: &str = "GET /v1/event/?_a=62515&_n=000000001625&email=person@company.com \
    HTTP/1.1\r\nHost: track.example.com\r\nUser-Agent: Mozilla/5.0\r\nAccept: image/*\r\n\r\n";
/// The pixel's bytes.
const BODY_BYTES: usize = 43;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing is measured without --bench");
        return;
    }
    let all = ROUNDS * RELOADS;
    println!("{IDS} ids, {all} reloads; CPU is the server's; latencies in microseconds");
    for (name, core) in [("all cores", None), ("one core", Some("0"))] {
        let edge = Edge::start(core);
        edge.load(|| std::thread::sleep(BEFORE)); // Warms up.
        let peak = edge.peak_mib();
        let (mut before, mut during) = (Figures::default(), Figures::default());
        for round in 0..ROUNDS {
            before.add(edge.load(|| std::thread::sleep(BEFORE)));
            let reloads = round * RELOADS..(round + 1) * RELOADS;
            during.add(edge.load(|| reloads.for_each(|n| edge.reload(n))));
        }
        println!(
            "\n{name:<18} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7}",
            "events", "events/s", "CPU %", "p50", "p99", "p999", "max"
        );
        before.print("before");
        during.print("during");
        let cpu = during.cpu_seconds - before.cpu_seconds / before.seconds * during.seconds;
        println!(
            "a reload: {:.0} ms, {:.0} ms of CPU; peak memory {peak:.0} MiB, then {:.0} MiB",
            during.seconds / f64::from(all) * 1e3,
            cpu / f64::from(all) * 1e3,
            edge.peak_mib(),
        );
    }
}

/// The results of a load.
#[derive(Default)]
struct Figures {
    seconds: f64,
    cpu_seconds: f64,
    /// In microseconds, sorted.
    latencies: Vec<u32>,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
    }

    fn at(&self, share: f64) -> u32 {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * share) as usize]
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<18} {:>8} {:>9.0} {:>7.1} {:>7} {:>7} {:>7} {:>7}",
            self.latencies.len(),
            self.latencies.len() as f64 / self.seconds,
            self.cpu_seconds / self.seconds * 100.0,
            self.at(0.5),
            self.at(0.99),
            self.at(0.999),
            self.at(1.0),
        );
    }
}

/// A running edge with two lists of a million ids to choose from.
struct Edge {
    child: Child,
    address: SocketAddr,
    /// Gets a message for each list that was put into force.
    swaps: Receiver<()>,
    dir: tempfile::TempDir,
}

impl Edge {
    /// Starts an edge, on `core` alone if one is given.
    fn start(core: Option<&str>) -> Edge {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for list in 0..2 {
            write_list(&named(dir.path(), list), list);
        }
        fs::hard_link(named(dir.path(), 0), dir.path().join("portals.toml")).unwrap();
        let at = dir.path().display();
        let config = format!(
            "[edge]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"{at}\"\n\
             [portals]\nsource = \"{at}/portals.toml\"\nrefresh_seconds = 86400\n\
             [spool]\ndir = \"{at}/spool\"\ndurability = \"memory\"\n[admin]\nlisten = \"\"\n\
             [[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n"
        );
        let path = dir.path().join("edge.toml");
        fs::write(&path, config).unwrap();
        let edge = env!("CARGO_BIN_EXE_pixelgate");
        let mut command = Command::new(if core.is_some() { "taskset" } else { edge });
        if let Some(core) = core {
            command.args(["-c", core, edge]);
        }
        command.args(["run", "--config"]).arg(&path).env_remove("RUST_LOG");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("taskset is installed");
        let log = BufReader::new(child.stderr.take().unwrap());
        let (listens, listening) = mpsc::channel();
        let (swapped, swaps) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                // A send fails only after its receiver was dropped, which ends the benchmark.
                if line.contains("in the new list") {
                    let _ = swapped.send(());
                } else if line.contains("(events and pass-through)") {
                    let _ = listens.send(line);
                } else if line.contains("ERROR") || line.contains("WARN") {
                    eprintln!("{line}");
                }
            }
        });
        let line = listening.recv_timeout(PATIENCE).expect("the edge starts");
        let address = line.split("://").nth(1).and_then(|url| url.split(' ').next()?.parse().ok());
        Edge { child, address: address.unwrap(), swaps, dir }
    }

    /// Puts the other list into the place of the one in force, and waits for it.
    fn reload(&self, number: u32) {
        let beside = self.dir.path().join("portals.new");
        fs::hard_link(named(self.dir.path(), u64::from(number + 1) % 2), &beside).unwrap();
        fs::rename(&beside, self.dir.path().join("portals.toml")).unwrap();
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
        self.swaps.recv_timeout(PATIENCE).expect("a new list");
    }

    /// Loads it while `work` is done.
    fn load(&self, work: impl FnOnce()) -> Figures {
        let ended = Arc::<AtomicBool>::default();
        let (address, end) = (self.address, Arc::clone(&ended));
        let (began, cpu) = (Instant::now(), self.cpu_seconds());
        let load = std::thread::spawn(move || ask_all(address, &end));
        work();
        ended.store(true, Relaxed);
        let latencies = load.join().expect("no event is refused");
        let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), self.cpu_seconds() - cpu);
        Figures { seconds, cpu_seconds, latencies }
    }

    /// CPU used so far, user and system.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name in parentheses may hold anything; the fields begin behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        // The kernel's unit for user space is 100 a second on every Linux.
        ticks as f64 / 100.0
    }

    fn peak_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named(dir: &Path, list: u64) -> PathBuf {
    dir.join(format!("list_{list}"))
}

/// Both lists hold the load's portal, and differ in one; the ids are in no order.
fn write_list(path: &Path, list: u64) {
    // A prime, so that no multiple of another number is twice the same.
    const PRIME: u64 = 1_000_000_000_039;
    let mut text = "portals = [\n".to_owned();
    for id in (1..IDS - 1).map(|n| n * 618_033_988_749 % PRIME).chain([62_515, PRIME + list]) {
        writeln!(text, "  {id},").unwrap();
    }
    text.push_str("]\n");
    fs::write(path, text).unwrap();
}

/// Asks on every connection until the end, and gives all latencies.
fn ask_all(address: SocketAddr, ended: &Arc<AtomicBool>) -> Vec<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begin = Instant::now();
        let ask = |n: u32| {
            let first = begin + PERIOD / CONNECTIONS * n;
            tokio::spawn(ask(address, first, Arc::clone(ended)))
        };
        let mut latencies = Vec::new();
        for connection in (0..CONNECTIONS).map(ask).collect::<Vec<_>>() {
            latencies.extend(connection.await.unwrap());
        }
        latencies
    })
}

async fn ask(address: SocketAddr, first: Instant, ended: Arc<AtomicBool>) -> Vec<u32> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut latencies, mut due) = (Vec::new(), first);
    let mut buffer = vec![0; 4096];
    while !ended.load(Relaxed) {
        // A timer that fires late is this side's fault; a due time that has passed is not.
        let asked = match Instant::now() < due {
            true => {
                tokio::time::sleep_until(due.into()).await;
                Instant::now()
            }
            false => due,
        };
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        read_pixel(&mut stream, &mut buffer).await;
        latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        due += PERIOD;
    }
    latencies
}

async fn read_pixel(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut length = 0;
    loop {
        let read = stream.read(&mut buffer[length..]).await.unwrap();
        assert!(read > 0, "the edge closed in the middle of an answer");
        length += read;
        assert!(buffer[..length].starts_with(&b"HTTP/1.1 200 "[..length.min(13)]), "refused");
        let head = buffer[..length].windows(4).position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| length >= head + 4 + BODY_BYTES) {
            return;
        }
    }
}
