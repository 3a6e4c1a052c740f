//! What delivery costs: CPU per event, events per second, memory, bytes on the wire.
//!
//! Fills a spool and drains it into a receiver in another process, so that the figures are those of
//! the edge alone. Every run checks that each event arrived exactly once.
//!
//!     cargo bench --bench delivery                  # a million events for each compression
//!     PIXELGATE_BENCH_EVENTS=10000000 cargo bench --bench delivery
//!     cargo bench --bench delivery --features kafka,nats   # and into brokers, see `brokers.rs`
//!
//! CPU is the sum over all threads of the process while it drains: reading the spool, encoding
//! JSON, compressing, sending and acknowledging.

#[cfg(any(feature = "kafka", feature = "nats"))]
mod brokers;
#[cfg(feature = "nats")]
#[path = "../../tests/support/nats.rs"]
mod nats;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use pixelgate::internals::delivery;
use pixelgate::internals::delivery::{Options, Route};
use pixelgate::internals::event::{self, Context, Event, Revenue};
use pixelgate::internals::spool::{self, Durability, Env, Spool};
use pixelgate::internals::upstream::{BatchConfig, Config};
use uuid::Uuid;

// The binary's allocator, since the peak of the memory depends on the allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 1_000_000;
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
     Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) \
     Version/17.6 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like \
     Gecko) Version/17.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
];

fn main() {
    if std::env::args().any(|a| a == "--receive") {
        return receive();
    }
    #[cfg(feature = "kafka")]
    if std::env::args().any(|a| a == "--mock") {
        return brokers::mock();
    }
    let events = std::env::var("PIXELGATE_BENCH_EVENTS").ok().and_then(|v| v.parse().ok());
    let events = events.unwrap_or(EVENTS);
    println!("{events} events, batches of 500, one delivery thread");
    println!(
        "compression   events/s   us CPU/event   early MiB   peak MiB   plain B/event   \
         wire B/event   ratio"
    );
    for compression in ["none", "zstd", "gzip"] {
        post(events, compression);
    }
    #[cfg(any(feature = "kafka", feature = "nats"))]
    brokers::run(events);
}

/// The cost of draining a spool.
struct Drained {
    wall: Duration,
    cpu_ns: u64,
    /// The peak of the memory after a tenth of the events, to be compared with the peak at the end.
    early_mib: u64,
    peak_mib: u64,
    /// The size of the events' JSON.
    plain_bytes: u64,
}

/// Drains a spool into a receiver and prints a line.
fn post(events: usize, compression: &str) {
    let mut receiver = Receiver::start();
    let kind =
        format!("kind = 'http'\nurl = 'http://{}/'\ncompression = '{compression}'", receiver.addr);
    let Drained { wall, cpu_ns, early_mib, peak_mib, plain_bytes } = drain(events, &kind);
    let (received, wire_bytes) = receiver.stop();
    assert_eq!(received, events, "each event arrives exactly once");
    let per = |n: u64| n as f64 / events as f64;
    println!(
        "{compression:<11} {:>10.0} {:>14.2} {early_mib:>11} {peak_mib:>10} {:>15.0} {:>14.0} \
         {:>7.1}",
        events as f64 / wall.as_secs_f64(),
        per(cpu_ns) / 1000.0,
        per(plain_bytes),
        per(wire_bytes),
        plain_bytes as f64 / wire_bytes as f64,
    );
}

/// Fills a spool, and drains it into an upstream of this kind.
fn drain(events: usize, kind: &str) -> Drained {
    let dir = tempfile::tempdir().unwrap();
    let config = spool::Config {
        dir: dir.path().join("spool"),
        durability: Durability::Memory,
        bytes_max: ByteSize::gib(16),
        ..spool::Config::default()
    };
    let spool = Spool::open(&config, &["out".to_owned()], Env::system()).unwrap();
    let plain_bytes = fill(&spool, events);
    let upstream = toml::from_str::<Config>(&format!("name = 'out'\n{kind}")).unwrap();
    let upstream = upstream.validate().unwrap().build().unwrap();
    let route = Route {
        name: "out".into(),
        upstream,
        batch: BatchConfig::default(),
        attempts_max: 12,
        reader: spool.reader("out").unwrap(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // As in `src/delivery/threads.rs`.
    let runtime = runtime.worker_threads(1).max_blocking_threads(4).enable_all().build().unwrap();
    // 5 resets the peak of the memory (proc(5)).
    let _ = fs::write("/proc/self/clear_refs", "5");
    let (start, cpu) = (Instant::now(), cpu_ns());
    let _guard = runtime.enter();
    let forwarder = delivery::start(vec![route], Options::new(dir.path().join("dead")));
    await_delivered(&spool, events / 10);
    let early_mib = peak_mib();
    await_delivered(&spool, events);
    let (wall, cpu_ns, peak_mib) = (start.elapsed(), cpu_ns() - cpu, peak_mib());
    runtime.block_on(forwarder.stop(Duration::from_secs(10)));
    Drained { wall, cpu_ns, early_mib, peak_mib, plain_bytes }
}

fn await_delivered(spool: &Spool, events: usize) {
    while spool.status().upstreams[0].delivered < events as u64 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Appends events like those of a busy site. Returns the size of their JSON in bytes.
fn fill(spool: &Spool, events: usize) -> u64 {
    let (mut json, mut bytes) = (Vec::new(), 0);
    for n in 0..events {
        let record = record(n);
        json.clear();
        event::Record::decode(&record).unwrap().write_json(&mut json, false);
        bytes += json.len() as u64 + 1;
        // With `memory` an append is refused while the disk is behind.
        while spool.append(|out| out.extend_from_slice(&record)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    bytes
}

fn record(n: usize) -> Vec<u8> {
    let mut record = Vec::new();
    let context = Context {
        ip: Some(std::net::Ipv4Addr::from((n as u32).wrapping_mul(2_654_435_761)).into()),
        user_agent: Some(AGENTS[n % AGENTS.len()].into()),
        referer: Some(format!("https://shop.example/item/{}", n % 5000).into()),
        ..Context::default()
    };
    let id = Uuid::now_v7();
    event::encode_record(&mut record, id.as_bytes(), now_ms(), &sample(n), &context);
    record
}

fn sample(n: usize) -> Event<'static> {
    let mut properties = event::Properties::new();
    properties.push(("favorite_color".into(), ["orange", "blue", "green"][n % 3].into()));
    properties.push(("plan".into(), format!("tier-{}", n % 7).into()));
    Event {
        portal: 62_000 + (n % 1000) as u64,
        name: "000000001625".into(),
        email: Some(format!("person{}@company{}.com", n % 100_003, n % 997).into()),
        revenue: n.is_multiple_of(10).then(|| Revenue::parse("20.5").unwrap()),
        external_id: n.is_multiple_of(4).then(|| format!("ext-{n}").into()),
        properties,
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis() as u64
}

/// CPU time of all threads of this process, ended threads included.
fn cpu_ns() -> u64 {
    // Fields 14 and 15 after the process's name in brackets, in hundredths of a second.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let rest = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10_000_000
}

fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// The receiver, as seen from the process that measures.
struct Receiver {
    child: Child,
    addr: String,
    out: BufReader<std::process::ChildStdout>,
}

impl Receiver {
    fn start() -> Receiver {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--receive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut addr = String::new();
        out.read_line(&mut addr).unwrap();
        Receiver { child, addr: addr.trim().to_owned(), out }
    }

    /// The number of received events, and of their bytes.
    fn stop(&mut self) -> (usize, u64) {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        self.child.wait().unwrap();
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap());
        (numbers.next().unwrap() as usize, numbers.next().unwrap())
    }
}

#[derive(Default)]
struct Received {
    keys: HashSet<String>,
    events: u64,
    bytes: u64,
}

/// The receiver's process: counts batches by their key until its input ends.
fn receive() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(Received::default()));
    let shared = Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve(stream, &shared));
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
    let received = received.lock().unwrap();
    println!("{} {}", received.events, received.bytes);
}

fn serve(stream: TcpStream, received: &Mutex<Received>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::with_capacity(1 << 17, stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut events, mut key) = (0_usize, 0_u64, String::new());
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            if let Some((name, value)) = line.trim_end().split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().ok()?,
                    "x-batch-events" => events = value.parse().ok()?,
                    "idempotency-key" => key = value.to_owned(),
                    _ => {}
                }
            }
            line.clear();
        }
        if length == 0 {
            return None;
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        let mut received = received.lock().unwrap();
        if received.keys.insert(key) {
            received.events += events;
            received.bytes += length as u64;
        }
        drop(received);
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}
