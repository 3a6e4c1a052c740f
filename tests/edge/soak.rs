//! A long run: steady events, random faults, and at the end every answered event has arrived.
//!
//! `make soak SECONDS=3600` runs it; it is no part of `make test`. Each fault is drawn from a seed:
//! a kill, an upgrade, a stopped process, a backend that is away, a disk that is full under the
//! edge or before its start, a spool folder that is moved away and back. Once a second memory, open
//! files and the size of the spool's folder are measured, and their maxima in both halves of the
//! run are compared. Needs root and `mount`.

use crate::disk::{Disk, or_skip};
use crate::disk_start::{Out, fill};
use crate::harness::{Edge, Setup, wait_for};
use crate::http::Connection;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections that send.
const SENDERS: u64 = 8;
/// Events that each of them offers in a second.
const EVENTS_PER_SECOND: u64 = 250;
/// By how much the maximum in the second half of a run may exceed that in the first half.
const GROWTH_MAX: f64 = 1.3;
/// Size of a segment in this run.
const SEGMENT_KIB: u64 = 4096;

/// Seconds of the run: `PIXELGATE_SOAK_SECONDS`, else 60.
fn seconds() -> u64 {
    let set = std::env::var("PIXELGATE_SOAK_SECONDS").ok();
    set.map_or(60, |seconds| seconds.parse().expect("PIXELGATE_SOAK_SECONDS is a number"))
}

/// A set of small numbers, one bit for each.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Returns whether it was there already.
    fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let was = self.0[word] & bit != 0;
        self.0[word] |= bit;
        was
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many numbers are here and not in `other`.
    fn missing_in(&self, other: &Bits) -> u64 {
        let word = |at: usize| other.0.get(at).copied().unwrap_or(0);
        let missing = |(at, here): (usize, &u64)| u64::from((here & !word(at)).count_ones());
        self.0.iter().enumerate().map(missing).sum()
    }
}

/// What the senders and the backend know.
#[derive(Default)]
struct Tally {
    address: Mutex<Option<SocketAddr>>,
    over: AtomicBool,
    next: AtomicU64,
    refused: AtomicU64,
    answered: Mutex<Bits>,
    arrived: Mutex<Bits>,
    repeated: AtomicU64,
    /// The backend answers 503.
    is_away: AtomicBool,
}

/// A backend that keeps the numbers of events and nothing else.
fn start_backend(tally: &Arc<Tally>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tally = Arc::clone(tally);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tally = Arc::clone(&tally);
            // An error is the end of the connection, when the edge is killed.
            std::thread::spawn(move || _ = take_batches(&stream, &tally));
        }
    });
    address
}

fn take_batches(stream: &TcpStream, tally: &Tally) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut bytes = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(length) = line.strip_prefix("content-length: ") {
                bytes = length.parse().unwrap();
            }
        }
        let mut body = vec![0; bytes];
        reader.read_exact(&mut body)?;
        let status = match tally.is_away.load(Relaxed) {
            true => "503 Service Unavailable",
            false => {
                note(&body, tally);
                "204 No Content"
            }
        };
        write!(writer, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn note(body: &[u8], tally: &Tally) {
    let events: Vec<serde_json::Value> = serde_json::from_slice(body).unwrap();
    let mut arrived = tally.arrived.lock().unwrap();
    for event in events {
        let number = event["external_id"].as_str().unwrap().parse().unwrap();
        assert!(number < tally.next.load(Relaxed), "event {number} was not sent");
        tally.repeated.fetch_add(u64::from(arrived.insert(number)), Relaxed);
    }
}

/// Sends at its rate until the run is over; events that are overdue are sent at once.
fn send(tally: &Tally) {
    let began = Instant::now();
    let mut sent = 0;
    let mut connection: Option<Connection> = None;
    while !tally.over.load(Relaxed) {
        let due = Duration::from_micros(sent * 1_000_000 / EVENTS_PER_SECOND);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        sent += 1;
        let address = *tally.address.lock().unwrap();
        if connection.is_none() {
            connection = address.and_then(|at| TcpStream::connect(at).ok()).map(Connection::of);
        }
        let Some(open) = &mut connection else { continue };
        let number = tally.next.fetch_add(1, Relaxed);
        let target = format!("/v1/event/?_a=62515&_n=soak&id={number}");
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = open.try_send(head.as_bytes()).and_then(|()| open.read_one("GET"));
        match answer.map(|answer| (answer.status, answer.header("connection") == Some("close"))) {
            Ok((status, is_last)) => {
                match status {
                    200 => _ = tally.answered.lock().unwrap().insert(number),
                    503 => _ = tally.refused.fetch_add(1, Relaxed),
                    other => panic!("answered {other}"),
                }
                if is_last {
                    connection = None;
                }
            }
            Err(_) => connection = None,
        }
    }
}

/// One measurement: memory in KiB, number of open files, size of the spool's folder in KiB.
type Sample = [u64; 3];

struct Soak {
    edge: Option<Edge>,
    dir: Arc<tempfile::TempDir>,
    disk: PathBuf,
    tally: Arc<Tally>,
    dice: u64,
    kinds: BTreeSet<&'static str>,
    faults: u64,
}

impl Soak {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    fn edge(&self) -> &Edge {
        self.edge.as_ref().unwrap()
    }

    fn start(&mut self) {
        let edge = Edge::start_in(Arc::clone(&self.dir));
        *self.tally.address.lock().unwrap() = Some(edge.address);
        self.edge = Some(edge);
    }

    fn kill(&mut self) {
        *self.tally.address.lock().unwrap() = None;
        self.edge.take().unwrap().kill();
    }

    fn fill(&mut self) -> PathBuf {
        let out = if self.roll(2) == 0 { Out::OfBytes } else { Out::OfInodes };
        fill(&self.disk, out)
    }

    fn fault(&mut self) {
        let moment = Duration::from_millis(500 + self.roll(2_500));
        let kind = match self.roll(7) {
            0 => {
                self.kill();
                self.start();
                "kill"
            }
            1 => {
                let mut old = self.edge.take().unwrap();
                let mut new = old.upgrade();
                new.address = old.address;
                old.signal(Signal::QUIT);
                old.wait();
                self.edge = Some(new);
                "upgrade"
            }
            2 => {
                self.edge().signal(Signal::STOP);
                std::thread::sleep(moment);
                self.edge().signal(Signal::CONT);
                "stopped process"
            }
            3 => {
                self.tally.is_away.store(true, Relaxed);
                std::thread::sleep(moment);
                self.tally.is_away.store(false, Relaxed);
                "backend away"
            }
            4 => {
                let ballast = self.fill();
                std::thread::sleep(moment);
                std::fs::remove_dir_all(ballast).unwrap();
                "full disk"
            }
            5 => {
                self.kill();
                let ballast = self.fill();
                self.start();
                std::thread::sleep(moment);
                std::fs::remove_dir_all(ballast).unwrap();
                "start on a full disk"
            }
            _ => {
                let (spool, away) = (self.disk.join("spool"), self.disk.join("away"));
                std::fs::rename(&spool, &away).unwrap();
                std::thread::sleep(moment);
                std::fs::rename(&away, &spool).unwrap();
                "moved folder"
            }
        };
        self.kinds.insert(kind);
        self.faults += 1;
        println!("{kind}");
        wait_for("the edge to be ready again", || self.edge().admin("/readyz").status == 200);
    }

    fn sample(&self) -> Sample {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.edge().pid())).unwrap().count();
        [self.edge().resident_kib(), files as u64, kib_below(&self.disk.join("spool"))]
    }
}

/// Room that the files below a folder take on the disk. Files may be removed meanwhile.
fn kib_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let metadata = std::fs::metadata(&path).ok()?;
        Some(if metadata.is_dir() { kib_below(&path) } else { metadata.blocks() / 2 })
    };
    entries.filter_map(size).sum()
}

fn maxima(samples: &[Sample]) -> Sample {
    [0, 1, 2].map(|at| samples.iter().map(|sample| sample[at]).max().unwrap_or(0))
}

#[test]
#[ignore = "it takes as long as it is asked to: `make soak SECONDS=3600`"]
fn nothing_answered_is_missing_after_a_long_run_of_faults() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let disk = dir.path().join("disk");
    let options = ["-t", "tmpfs", "-o", "size=256m,nr_inodes=2000", "tmpfs"];
    let Some(_mounted) = or_skip(Disk::mount(&options, &disk)) else { return };
    let tally = Arc::new(Tally::default());
    let backend = start_backend(&tally);
    let upstream = format!(
        "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"http://{backend}/\"\n\
         compression = \"none\"\n[upstream.batch]\nlinger_ms = 50\n"
    );
    let spool = "segment_bytes = \"4MiB\"\nfree_bytes_min = \"0\"";
    let config = Setup::default().spool(spool).upstreams(&upstream).write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("/spool\"", "/disk/spool\"")).unwrap();
    let (kinds, dice) = (BTreeSet::new(), 0x5EED);
    let mut soak =
        Soak { edge: None, dir, disk, tally: Arc::clone(&tally), dice, kinds, faults: 0 };
    soak.start();
    let send = || {
        let tally = Arc::clone(&tally);
        std::thread::spawn(move || send(&tally))
    };
    let senders: Vec<_> = (0..SENDERS).map(|_| send()).collect();
    let (began, whole) = (Instant::now(), Duration::from_secs(seconds()));
    let mut samples = Vec::new();
    while began.elapsed() < whole {
        for _ in 0..3 + soak.roll(5) {
            std::thread::sleep(Duration::from_secs(1));
            samples.push(soak.sample());
        }
        soak.fault();
    }
    tally.over.store(true, Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let row = soak.edge().wait_delivered("collector");
    report(&soak, &samples, &row);
}

/// Prints what happened, and checks it.
fn report(soak: &Soak, samples: &[Sample], row: &serde_json::Value) {
    let tally = &soak.tally;
    let (answered, arrived) = (tally.answered.lock().unwrap(), tally.arrived.lock().unwrap());
    let (offered, refused) = (tally.next.load(Relaxed), tally.refused.load(Relaxed));
    let (early, late) = samples.split_at(samples.len() / 2);
    let (early, late) = (maxima(early), maxima(late));
    println!("{} faults: {:?}", soak.faults, soak.kinds);
    println!("{offered} events sent, {} answered 200, {refused} answered 503", answered.len());
    println!("{} arrived, {} of them again", arrived.len(), tally.repeated.load(Relaxed));
    for (at, what) in ["KiB of memory", "open files", "KiB of the folder"].iter().enumerate() {
        println!("{what}, at most: {} in the first half, {} in the second", early[at], late[at]);
    }
    assert_eq!(answered.missing_in(&arrived), 0, "answered and not delivered: {row}");
    assert_eq!(row["lost"], 0, "{row}");
    assert_eq!(row["accepted"], row["delivered"], "{row}");
    assert!(row["accepted"].as_u64() >= Some(arrived.len()), "{row}, {} arrived", arrived.len());
    // The folder grows by whole segments.
    let least = [0, 0, SEGMENT_KIB];
    for at in 0..3 {
        let most = GROWTH_MAX * early[at] as f64 + least[at] as f64;
        assert!(late[at] as f64 <= most, "{early:?}, then {late:?}");
    }
}
