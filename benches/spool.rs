//! What an event costs on its way to the disk: CPU per event, wait until it is safe, bytes written
//! per byte of events; next to a plain `write` per record and to redb and fjall, in the same run.
//!
//!     cargo bench --bench spool [-- <folder> [<events>]]
//!
//! Every row checks that what it has written can be read back. CPU is that of the whole process,
//! so it includes the producers' own work and the committer's. Bytes written are those that reached
//! the disk below the folder, the file system's journal and all other writers on that disk
//! included: what the kernel charges the process with counts pages many times over that are written
//! piece by piece.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pixelgate::internals::spool::{Ack, Commit, Config, Durability, Env, Spool};

/// A payload as an event has it.
const PAYLOAD_BYTES: usize = 300;
const PACED_PER_SECOND: u64 = 100_000;
/// Six segments. Trimming leaves three, which is what a row needs.
const WRITTEN_BEFORE_BYTES: u64 = 6 * (64 << 20);
/// Waiting requests per producer, when it runs flat out.
const IN_FLIGHT: usize = 512;

/// Which files segments are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// New files: a start, or a spool that grows.
    New,
    /// Trimmed segments that are written again: a steady flow.
    WrittenBefore,
}

struct Row {
    name: String,
    events: u64,
    wall: Duration,
    cpu: Duration,
    written: u64,
    waits: Vec<u32>,
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let events = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(500_000);
    println!("{events} events of {PAYLOAD_BYTES} bytes, in {}", dir.display());
    println!("one fdatasync of 64 KiB takes {:?} (median of 101)\n", sync_time(&dir));
    println!(
        "{:<46} {:>10} {:>8} {:>8} {:>9} {:>9} {:>9}",
        "", "events/s", "CPU us", "written", "p50 ms", "p99 ms", "max ms"
    );
    for durability in [Durability::Power, Durability::Interval, Durability::Memory] {
        for producers in [1, 4] {
            show(spool(&dir, durability, producers, events, None, Files::New));
        }
    }
    show(harness(&dir, events, 1, None));
    for producers in [1, 4] {
        let paced = Some(PACED_PER_SECOND);
        for files in [Files::New, Files::WrittenBefore] {
            show(spool(&dir, Durability::Power, producers, events, paced, files));
        }
        show(harness(&dir, events, producers as u64, paced));
    }
    show(drained(&dir, events));
    show(plain(&dir, events / 5, false));
    show(plain(&dir, (events / 500).max(100), true));
    show(redb(&dir, events / 5, false));
    show(redb(&dir, events / 5, true));
    show(fjall(&dir, events / 5));
}

fn show(mut row: Row) {
    row.waits.sort_unstable();
    let at = |part: f64| {
        let index = ((row.waits.len() as f64 - 1.0) * part) as usize;
        row.waits.get(index).map_or("-".into(), |us| format!("{:.2}", f64::from(*us) / 1000.0))
    };
    println!(
        "{:<46} {:>10.0} {:>8.2} {:>7.2}x {:>9} {:>9} {:>9}",
        row.name,
        row.events as f64 / row.wall.as_secs_f64(),
        row.cpu.as_secs_f64() * 1e6 / row.events as f64,
        row.written as f64 / (row.events * PAYLOAD_BYTES as u64) as f64,
        at(0.5),
        at(0.99),
        at(1.0),
    );
}

fn payload(event: u64) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [b'x'; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&event.to_le_bytes());
    payload
}

fn measure(root: &Path, name: String, events: u64, work: impl FnOnce() -> Vec<u32>) -> Row {
    // Pages that earlier rows have left to be written must not count for this row.
    rustix::fs::sync();
    let (cpu, written, from) = (cpu_time(), bytes_written(root), Instant::now());
    let waits = work();
    let (wall, cpu) = (from.elapsed(), cpu_time() - cpu);
    rustix::fs::sync();
    let written = bytes_written(root).saturating_sub(written);
    Row { name, events, wall, cpu, written, waits }
}

fn open(dir: &Path, durability: Durability) -> Spool {
    let config = Config { dir: dir.to_owned(), durability, ..Config::default() };
    Spool::open(&config, &["bench".to_owned()], Env::system()).expect("opens")
}

/// One thread with one runtime per producer, as a proxy has them; each event is a task that waits.
fn spool(
    root: &Path,
    durability: Durability,
    producers: usize,
    events: u64,
    paced: Option<u64>,
    files: Files,
) -> Row {
    let dir = tempfile::tempdir_in(root).expect("a folder");
    let spool = open(dir.path(), durability);
    let mut before = 0;
    if files == Files::WrittenBefore {
        // Events enough for the spares of one row, all delivered.
        before = WRITTEN_BEFORE_BYTES / PAYLOAD_BYTES as u64;
        produce(Some(&spool), 0, before, None);
        assert_eq!(read_all(&spool), before);
        (0..3).for_each(|_| spool.checkpoint());
    }
    let rate = paced.map(|rate| rate / producers as u64);
    let pace = if paced.is_some() { ", 100,000/s" } else { ", flat out" };
    let used = if files == Files::WrittenBefore { ", steady" } else { "" };
    let name = format!("spool {durability:?}, {producers} producers{pace}{used}");
    let each = events / producers as u64;
    let row = measure(root, name, each * producers as u64, || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..producers as u64)
                .map(|producer| {
                    let spool = spool.clone();
                    scope.spawn(move || produce(Some(&spool), before + producer * each, each, rate))
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("ends")).collect()
        })
    });
    spool.close(Duration::from_secs(60)).expect("closes");
    drop(spool);
    let spool = open(dir.path(), durability);
    assert_eq!(read_all(&spool), row.events, "all that was answered is there");
    row
}

fn produce(spool: Option<&Spool>, first: u64, events: u64, rate: Option<u64>) -> Vec<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let waits = std::rc::Rc::new(std::cell::RefCell::new(Vec::with_capacity(events as usize)));
    let from = Instant::now();
    let seats = Arc::new(tokio::sync::Semaphore::new(IN_FLIGHT));
    local.block_on(&runtime, async {
        let mut sent = 0;
        while sent < events {
            let due = match rate {
                Some(rate) => (from.elapsed().as_secs_f64() * rate as f64) as u64,
                None => sent + 64,
            };
            for event in sent..due.min(events) {
                let seat = match rate {
                    Some(_) => None,
                    None => Some(Arc::clone(&seats).acquire_owned().await.expect("open")),
                };
                let began = Instant::now();
                let commit = match spool {
                    Some(spool) => Some(append(spool, first + event).await),
                    None => None,
                };
                let waits = std::rc::Rc::clone(&waits);
                tokio::task::spawn_local(async move {
                    match commit {
                        Some(commit) => commit.await.expect("committed"),
                        None => tokio::task::yield_now().await,
                    }
                    waits.borrow_mut().push(began.elapsed().as_micros() as u32);
                    drop(seat);
                });
            }
            sent = due.min(events);
            match rate {
                Some(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                None => tokio::task::yield_now().await,
            }
        }
    });
    runtime.block_on(local);
    std::rc::Rc::try_unwrap(waits).expect("all ended").into_inner()
}

async fn append(spool: &Spool, event: u64) -> Commit {
    loop {
        match spool.append(|out| out.extend_from_slice(&payload(event))) {
            Ok(commit) => return commit,
            // Memory is bounded: a producer that does not wait meets the bound.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// The CPU time that the tasks of the spool's rows take by themselves; it is subtracted from the
/// rows.
fn harness(root: &Path, events: u64, producers: u64, paced: Option<u64>) -> Row {
    let pace = if paced.is_some() { ", 100,000/s" } else { ", flat out" };
    let name = format!("  the tasks alone, {producers} producers{pace}");
    let (each, rate) = (events / producers, paced.map(|rate| rate / producers));
    measure(root, name, each * producers, || {
        std::thread::scope(|scope| {
            for _ in 0..producers {
                scope.spawn(move || produce(None, 0, each, rate));
            }
        });
        Vec::new()
    })
}

/// Reads and acknowledges everything; each event once.
fn read_all(spool: &Spool) -> u64 {
    let mut reader = spool.reader("bench").expect("configured");
    let acknowledger = reader.acknowledger();
    let mut seen = 0;
    loop {
        let entries = reader.try_read(500, 1 << 20);
        if entries.is_empty() {
            return seen;
        }
        seen += entries.len() as u64;
        let record_ids: Vec<_> = entries.iter().map(|entry| entry.record_id).collect();
        acknowledger.acknowledge(&record_ids, Ack::Delivered);
    }
}

/// The row for delivery: recovery, reading, acknowledging, trimming.
fn drained(root: &Path, events: u64) -> Row {
    let dir = tempfile::tempdir_in(root).expect("a folder");
    let spool = open(dir.path(), Durability::Memory);
    produce(Some(&spool), 0, events, None);
    spool.close(Duration::from_secs(60)).expect("closes");
    drop(spool);
    measure(root, "spool: open, read and acknowledge".to_owned(), events, || {
        let spool = open(dir.path(), Durability::Power);
        assert_eq!(read_all(&spool), events);
        spool.checkpoint();
        Vec::new()
    })
}

fn plain(root: &Path, events: u64, sync: bool) -> Row {
    let file = tempfile::NamedTempFile::new_in(root).expect("a file");
    let (mut out, path) = file.into_parts();
    let name = if sync { "write + fdatasync per record" } else { "write per record, no sync" };
    let row = measure(root, name.to_owned(), events, || {
        let mut waits = Vec::with_capacity(events as usize);
        for event in 0..events {
            let began = Instant::now();
            out.write_all(&payload(event)).expect("written");
            if sync {
                out.sync_data().expect("synced");
            }
            waits.push(began.elapsed().as_micros() as u32);
        }
        out.sync_data().expect("synced");
        waits
    });
    assert_eq!(path.metadata_len(), events * PAYLOAD_BYTES as u64);
    row
}

trait MetadataLen {
    fn metadata_len(&self) -> u64;
}

impl MetadataLen for tempfile::TempPath {
    fn metadata_len(&self) -> u64 {
        std::fs::metadata(self).expect("there").len()
    }
}

/// redb, a transaction per 200 events: what a 2 ms group has at 100,000/s.
fn redb(root: &Path, events: u64, durable: bool) -> Row {
    use redb::ReadableTableMetadata as _;
    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("events");
    let dir = tempfile::tempdir_in(root).expect("a folder");
    let base = redb::Database::create(dir.path().join("redb")).expect("opens");
    let name = format!("redb, {} per 200", if durable { "Immediate" } else { "Durability::None" });
    let row = measure(root, name, events, || {
        let mut waits = Vec::new();
        let mut event = 0;
        while event < events {
            let began = Instant::now();
            let mut write = base.begin_write().expect("begins");
            if !durable {
                write.set_durability(redb::Durability::None).expect("allowed");
            }
            {
                let mut table = write.open_table(TABLE).expect("opens");
                for event in event..(event + 200).min(events) {
                    table.insert(event, &payload(event)[..]).expect("inserted");
                }
            }
            write.commit().expect("commits");
            waits.push(began.elapsed().as_micros() as u32);
            event += 200;
        }
        waits
    });
    let read = redb::ReadableDatabase::begin_read(&base).expect("begins");
    assert_eq!(read.open_table(TABLE).expect("opens").len().expect("counts"), events);
    row
}

/// fjall, one insert an event and a sync of the journal per 200.
fn fjall(root: &Path, events: u64) -> Row {
    let dir = tempfile::tempdir_in(root).expect("a folder");
    let base = fjall::Database::builder(dir.path()).open().expect("opens");
    let keys = base.keyspace("events", fjall::KeyspaceCreateOptions::default).expect("opens");
    let row = measure(root, "fjall, SyncData per 200".to_owned(), events, || {
        let mut waits = Vec::new();
        let mut began = Instant::now();
        for event in 0..events {
            keys.insert(event.to_be_bytes(), payload(event)).expect("inserted");
            if event % 200 == 199 || event + 1 == events {
                base.persist(fjall::PersistMode::SyncData).expect("synced");
                waits.push(began.elapsed().as_micros() as u32);
                began = Instant::now();
            }
        }
        waits
    });
    assert_eq!(keys.len().expect("counts") as u64, events);
    row
}

fn sync_time(root: &Path) -> Duration {
    let (mut file, path) = tempfile::NamedTempFile::new_in(root).expect("a file").into_parts();
    let mut times: Vec<_> = (0..101)
        .map(|_| {
            file.write_all(&[7; 64 << 10]).expect("written");
            let began = Instant::now();
            file.sync_data().expect("synced");
            began.elapsed()
        })
        .collect();
    drop(path);
    times.sort_unstable();
    times[50]
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Bytes written to the disk on which this folder is, by all processes; 0 where there is no such
/// disk.
fn bytes_written(folder: &Path) -> u64 {
    let Ok(meta) = std::fs::metadata(folder) else { return 0 };
    let device = std::os::unix::fs::MetadataExt::dev(&meta);
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
    let stat = stat.unwrap_or_default();
    // The seventh field counts sectors of 512 bytes, independent of the disk's own sectors.
    stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or(0)
        * 512
}
