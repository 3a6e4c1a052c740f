//! What a million portals cost: time and memory to load each format, a lookup, and a reload.
//!
//! `cargo bench --bench portals`. Memory is what the kernel says of a process that does nothing
//! else, so each format is loaded in a process of its own: this program, started again. Figures
//! depend on the machine; that the answers are right does not, and is asserted.

use std::{
    fs,
    hint::black_box,
    io::{BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pixelgate::internals::clock::SystemClock;
use pixelgate::internals::policy::portals::{
    Config, PortalVerdict, Portals, RefreshMode, Refreshed,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PORTALS: u64 = 1_000_000;
const RELOADS: u64 = 100;
/// Rounds of lookups: other programs disturb some of them.
const ROUNDS: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", format] => load(format),
        // What Cargo passes; without it this is `cargo test`, which has nothing to measure.
        _ if arguments.iter().any(|argument| argument == "--bench") => bench(),
        _ => println!("nothing is measured without --bench"),
    }
}

fn bench() {
    for format in ["toml", "json", "txt"] {
        let own = std::env::current_exe().expect("this program");
        let status = Command::new(own).arg("load").arg(format).status();
        assert!(status.expect("a process").success());
    }
    let dir = tempfile::tempdir().expect("a folder");
    lookups(&open(&write(dir.path(), "toml", 0..PORTALS)));
    rules(dir.path());
    reloads(dir.path());
}

/// The nth id of the list: up to 15 digits, in no order, never twice.
fn id(n: u64) -> u64 {
    // The factor is neither even nor a multiple of 5, so this only permutes what is below 10^14.
    let product = u128::from(n) * 61_803_398_874_989;
    (product % 100_000_000_000_000) as u64 * 9 + 1
}

/// Writes a list as it should be written: beside, and renamed.
fn write(dir: &Path, format: &str, ns: Range<u64>) -> PathBuf {
    let (open, between, close) = match format {
        "toml" => ("portals = [\n", ",\n", "\n]\n"),
        "json" => ("{\"portals\": [", ", ", "]}\n"),
        _ => ("", "\n", "\n"),
    };
    let (path, new) = (dir.join("list").with_extension(format), dir.join("new"));
    let mut file = BufWriter::new(fs::File::create(&new).expect("a file"));
    let mut before = open;
    for n in ns {
        write!(file, "{before}{}", id(n)).expect("room on the disk");
        before = between;
    }
    file.write_all(close.as_bytes()).and_then(|()| file.flush()).expect("room on the disk");
    fs::rename(&new, &path).expect("a list in place");
    path
}

fn open(source: &Path) -> Portals {
    let source = source.to_str().expect("a plain path").to_owned();
    let config = Config { source, ..Config::default() };
    Portals::open(
        &config.validate().expect("a good section"),
        Path::new("unused"),
        Arc::new(SystemClock),
    )
    .expect("a good list")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// Loads a list and then another over it, in a process that has done nothing else.
fn load(format: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let source = write(dir.path(), format, 0..PORTALS);
    let runtime = runtime();
    let base = mib("VmRSS");
    let begin = Instant::now();
    let portals = open(&source);
    let loaded = begin.elapsed();
    assert_eq!(portals.status().count as u64, PORTALS);
    let (resident, peak) = (mib("VmRSS") - base, mib("VmHWM") - base);

    write(dir.path(), format, 1..PORTALS + 1);
    let begin = Instant::now();
    assert_eq!(runtime.block_on(portals.refresh(RefreshMode::AtOnce)), Refreshed::Swapped);
    let swapped = begin.elapsed();
    assert_eq!(portals.judge(id(PORTALS), "e").verdict, PortalVerdict::Allowed);
    assert_ne!(portals.judge(id(0), "e").verdict, PortalVerdict::Allowed);
    println!(
        "load {format:4}  {:.1} MB of text in {loaded:.0?}, {resident:.1} MiB, at the peak \
         {peak:.1}; another in {swapped:.0?}, at the peak {:.1} MiB",
        fs::metadata(&source).expect("the list").len() as f64 / 1e6,
        mib("VmHWM") - base,
    );
}

/// A field of `/proc/self/status`, which gives KiB, in MiB.
fn mib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a known field");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    kib.expect("a number") / 1024.0
}

fn lookups(portals: &Portals) {
    // Every listed id once, in an order that no cache foresees, and as many unlisted ids.
    let order = |n: u64| n * 777_767_777 % PORTALS;
    let listed: Vec<u64> = (0..PORTALS).map(|n| id(order(n))).collect();
    let unlisted: Vec<u64> = (0..PORTALS).map(|n| id(PORTALS + order(n))).collect();
    let few: Vec<u64> = listed.iter().copied().cycle().take(1000).collect();
    for (what, ids, allowed) in [("listed", &listed, PORTALS), ("unlisted", &unlisted, 0)] {
        let rounds = (0..ROUNDS).map(|_| {
            let begin = Instant::now();
            let count = ids.iter().filter(|&&id| allows(portals, id)).count() as u64;
            assert_eq!(count, allowed);
            begin.elapsed() / ids.len() as u32
        });
        let (best, worst) = rounds.fold((Duration::MAX, Duration::ZERO), |(best, worst), round| {
            (best.min(round), worst.max(round))
        });
        println!("judge, a million portals in turn, each a {what}: {best:.0?} to {worst:.0?}");
    }
    let begin = Instant::now();
    for _ in 0..1000 {
        assert!(few.iter().all(|&id| allows(portals, id)));
    }
    println!("judge, one of a thousand that are always asked: {:.0?}", begin.elapsed() / 1_000_000);
}

fn allows(portals: &Portals, id: u64) -> bool {
    portals.judge(black_box(id), black_box("000000001625")).verdict == PortalVerdict::Allowed
}

/// A portal with every rule.
fn rules(dir: &Path) {
    let path = dir.join("ruled.toml");
    let list = "[[portal]]\nid = 5\nevents = [\"000000001625\", \"a*b\", \"signup*\"]\n\
                expires = 2100-01-01\nrate = { per_second = 1000000, burst = 1000000 }\n";
    fs::write(&path, list).expect("a list");
    let portals = open(&path);
    let begin = Instant::now();
    for _ in 0..1_000_000 {
        assert_eq!(
            portals.judge(black_box(5), black_box("signup done")).verdict,
            PortalVerdict::Allowed
        );
    }
    println!("judge, with events and expires: {:.0?}", begin.elapsed() / 1_000_000);
    let policy = portals.judge(5, "signup").policy;
    let begin = Instant::now();
    let taken = (0..1_000_000).filter(|_| policy.take_rate().is_ok()).count();
    println!("take_rate: {:.0?}", begin.elapsed() / 1_000_000);
    assert!(taken > 0);
}

/// How long judging takes while nothing happens, and while lists of a million are reloaded.
fn reloads(dir: &Path) {
    let portals = open(&write(dir, "toml", 0..PORTALS));
    let quiet = measure(&portals, || std::thread::sleep(Duration::from_secs(2)));
    let runtime = runtime();
    let mut took = Duration::ZERO;
    let busy = measure(&portals, || {
        for nth in 1..=RELOADS {
            // Each list holds the portals that are asked for.
            write(dir, "toml", 0..PORTALS - nth);
            let begin = Instant::now();
            assert_eq!(runtime.block_on(portals.refresh(RefreshMode::AtOnce)), Refreshed::Swapped);
            took += begin.elapsed();
        }
    });
    println!("{RELOADS} reloads: {:.0?} each", took / RELOADS as u32);
    println!("judge, nothing else going on: {quiet}");
    println!("judge, during the reloads:    {busy}");
}

/// Asks without a pause, on a thread of its own, while something else is done.
fn measure(portals: &Portals, meanwhile: impl FnOnce()) -> String {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            // Counts of lookups by their nanoseconds, up to a millisecond.
            let mut histogram = vec![0_u64; 1_000_001];
            let (mut asked, mut longest) = (0_u64, 0);
            while !done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let allowed = allows(portals, id(asked % 1000));
                let ns = begin.elapsed().as_nanos() as usize;
                assert!(allowed, "refused by a reload");
                histogram[ns.min(1_000_000)] += 1;
                longest = longest.max(ns);
                asked += 1;
            }
            let at = |share: f64| {
                let mut left = (asked as f64 * share) as u64;
                histogram.iter().position(|&count| {
                    let found = left <= count;
                    left = left.saturating_sub(count);
                    found
                })
            };
            format!(
                "{asked} answers, p50 {:?} ns, p99 {:?} ns, p99.99 {:?} ns, longest {longest} ns",
                at(0.5).unwrap_or_default(),
                at(0.99).unwrap_or_default(),
                at(0.9999).unwrap_or_default(),
            )
        });
        meanwhile();
        done.store(true, Ordering::Relaxed);
        asking.join().expect("every answer right")
    })
}
