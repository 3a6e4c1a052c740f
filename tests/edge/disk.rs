//! SPEC 6 on real disks that fail: one that fills up, one that turns read-only, one that loses
//! its power.
//!
//! Needs root, `mount` and, for two of the tests, loop devices and `mkfs.ext4`. Where they are
//! missing, a test prints what is missing and passes without testing anything. A disk is mounted on
//! the spool's folder only, so no other file of the edge is affected.
//!
//! What no test here can show is a disk that acknowledges a flush and lies: what ext4 has handed
//! to the loop device before its power goes is kept.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, wait_for};
use crate::http::{Connection, Response};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Connections that send events at once.
const SENDERS: usize = 8;
/// How often a disk is lost in one test.
const ROUNDS: u64 = 5;

/// A disk that is mounted; unmounted when dropped.
pub struct Disk {
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Mounts with these arguments of `mount`, or says why that cannot be done here.
    pub fn mount(arguments: &[&str], at: &Path) -> Result<Disk, String> {
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mount").args(arguments).arg(at))?;
        Ok(Disk { at: at.to_owned(), mounted: true })
    }

    /// A disk that is mounted already.
    pub fn mounted(at: &Path) -> Disk {
        Disk { at: at.to_owned(), mounted: true }
    }

    /// A new ext4 of 64 MiB in a file, on a loop device.
    pub fn ext4(image: &Path, at: &Path) -> Result<Disk, String> {
        std::fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))?;
        Disk::mount(&["-o", "loop", image.to_str().unwrap()], at)
    }

    /// Changes options of the mount.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.at)).unwrap();
    }

    /// Freezes the disk until the returned value is dropped. `None`: there is no `fsfreeze` here.
    pub fn freeze(&self) -> Option<Frozen> {
        or_skip(run(Command::new("fsfreeze").arg("--freeze").arg(&self.at)))?;
        Some(Frozen(self.at.clone()))
    }

    /// Shuts the file system down as a loss of power does: nothing more reaches the disk, not even
    /// what is in the journal.
    fn lose_power(&self) {
        const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let folder = std::fs::File::open(&self.at).unwrap();
        // SAFETY: FS_IOC_SHUTDOWN (linux/fs.h, ext4.h) reads one u32 and writes nothing.
        let result = unsafe {
            let setter = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH);
            rustix::ioctl::ioctl(&folder, setter)
        };
        result.unwrap();
    }

    pub fn unmount(mut self) {
        // Another test may be starting a process, which holds this one's open files until its
        // `exec`.
        wait_for("the disk to be unmounted", || run(Command::new("umount").arg(&self.at)).is_ok());
        self.mounted = false;
    }
}

/// A disk that answers no write. Dropping it lets the disk answer, also after a failed test, whose
/// processes would hang otherwise.
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        _ = run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.0));
    }
}

/// Lines of `[spool]` for a disk that stalls: events are refused after a second, and segments fit
/// on the small disk of a test.
pub const REFUSES_SOON: &str =
    "commit_seconds_max = 1\nsegment_bytes = \"1MiB\"\nfree_bytes_min = \"0\"";

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
    }
}

/// Runs a command of the system; the error is what it says.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Err(error) => Err(format!("{name}: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// The disk, or the reason why the test cannot run here.
pub fn or_skip<T>(found: Result<T, String>) -> Option<T> {
    found.inspect_err(|reason| eprintln!("skipped, it is not to be had here: {reason}")).ok()
}

/// The events that were sent, and those that were answered with 200.
#[derive(Default)]
pub struct Ledger {
    next: AtomicU64,
    pub count: AtomicU64,
    answered: std::sync::Mutex<BTreeSet<u64>>,
}

impl Ledger {
    /// Sends one event. `None` where the connection broke.
    pub fn send(&self, connection: &mut Connection) -> Option<Response> {
        let id = self.next.fetch_add(1, Relaxed);
        let note = note(id);
        let head = format!(
            "GET /v1/event/?_a=62515&_n=disk&id={id}&note={note} HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        connection.try_send(head.as_bytes()).ok()?;
        let response = connection.read_one("GET").ok()?;
        if response.status == 200 {
            self.answered.lock().unwrap().insert(id);
            self.count.fetch_add(1, Relaxed);
        } else {
            assert_eq!((response.status, response.verdict()), (503, "overloaded"));
            let seconds = response.header("retry-after").expect("Retry-After");
            assert!(seconds.parse::<u32>().unwrap() >= 1);
        }
        Some(response)
    }

    /// Whether one event, on a connection of its own, is taken.
    pub fn accepts(&self, edge: &Edge) -> bool {
        self.send(&mut edge.connect()).expect("an answer").status == 200
    }

    /// Waits until events are refused, and the edge says of itself that they are.
    pub fn wait_refusing(&self, edge: &Edge) {
        wait_for("the edge to refuse events", || {
            !self.accepts(edge) && edge.admin("/readyz").status == 503 && !self.accepts(edge)
        });
    }

    /// Waits until events are taken again, and the edge says so.
    pub fn wait_accepting(&self, edge: &Edge) {
        wait_for("the edge to recover by itself", || {
            self.accepts(edge) && edge.admin("/readyz").status == 200
        });
    }

    /// What arrived is what was answered 200, all of it and unchanged. `exactly` where no answer
    /// was lost on its way: then it is also nothing else.
    pub fn check(&self, backend: &Backend, exactly: bool) {
        let answered = self.answered.lock().unwrap();
        let mut ids = std::collections::BTreeMap::new();
        for event in backend.events() {
            let sent: u64 = event["external_id"].as_str().unwrap().parse().unwrap();
            assert!(sent < self.next.load(Relaxed), "event {sent} was not sent");
            assert_eq!(event["properties"]["note"], note(sent), "{sent} is changed");
            let id = event["id"].as_str().unwrap().to_owned();
            assert_eq!(*ids.entry(id).or_insert(sent), sent, "two events share an id");
        }
        let delivered: BTreeSet<u64> = ids.values().copied().collect();
        assert_eq!(delivered.len(), ids.len(), "one event has two ids");
        let lost = answered.difference(&delivered).count();
        assert_eq!(lost, 0, "of {} answered events", answered.len());
        if exactly {
            let refused: Vec<_> = delivered.difference(&answered).collect();
            assert!(refused.is_empty(), "refused and delivered all the same: {refused:?}");
        }
    }
}

/// A long text that only the event of this id carries.
fn note(id: u64) -> String {
    format!("{:016x}", id.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(64)
}

/// Senders that go on until an event of theirs is refused or the edge is gone.
pub struct Load(Vec<std::thread::JoinHandle<()>>);

impl Load {
    pub fn start(address: SocketAddr, ledger: &Arc<Ledger>) -> Load {
        let sender = || {
            let ledger = Arc::clone(ledger);
            std::thread::spawn(move || {
                let Ok(stream) = TcpStream::connect(address) else { return };
                let mut connection = Connection::of(stream);
                while ledger.send(&mut connection).is_some_and(|answer| answer.status == 200) {}
            })
        };
        Load((0..SENDERS).map(|_| sender()).collect())
    }

    pub fn end(self) {
        self.0.into_iter().for_each(|sender| sender.join().unwrap());
    }
}

/// A folder with the edge's configuration: segments of this size, and no reserve, so that the
/// disk itself is what says no.
pub fn folder(backend: &Backend, segment_bytes: &str) -> Arc<tempfile::TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let spool = format!("segment_bytes = \"{segment_bytes}\"\nfree_bytes_min = \"0\"");
    Setup::default()
        .spool(&format!("durability = \"power\"\n{spool}"))
        .upstreams(&http_upstream(backend, ""))
        .write(dir.path());
    dir
}

#[test]
fn a_disk_that_fills_up_refuses_and_recovers_when_there_is_room() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "256KiB");
    let spool = dir.path().join("spool");
    let small = Disk::mount(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"], &spool);
    let Some(_disk) = or_skip(small) else { return };
    let ballast = spool.join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let edge = Edge::start_in(Arc::clone(&dir));
    let ledger = Arc::new(Ledger::default());

    Load::start(edge.address, &ledger).end();
    ledger.wait_refusing(&edge);
    let before = ledger.count.load(Relaxed);
    assert!(before > 500, "{before} events fill 2 MiB");

    // Gives the disk room again.
    std::fs::remove_file(&ballast).unwrap();
    ledger.wait_accepting(&edge);
    Load::start(edge.address, &ledger).end();
    ledger.wait_refusing(&edge);
    assert!(ledger.count.load(Relaxed) > before + 500);

    // The upstream comes back, and what it takes makes room.
    backend.script(|_| Act::Take);
    ledger.wait_accepting(&edge);
    let row = edge.wait_delivered("collector");
    assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{row}");
    ledger.check(&backend, true);
}

#[test]
fn a_spool_at_its_bound_refuses_says_so_and_recovers_when_events_are_delivered() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let spool = "bytes_max = \"1MiB\"\nfree_bytes_min = \"0\"";
    Setup::default().spool(spool).upstreams(&http_upstream(&backend, "")).write(dir.path());
    let edge = Edge::start_in(dir);
    let ledger = Arc::new(Ledger::default());
    Load::start(edge.address, &ledger).end();
    ledger.wait_refusing(&edge);
    let ready = edge.admin("/readyz");
    assert!(String::from_utf8_lossy(&ready.body).contains("bytes_max"), "{:?}", ready.body);
    wait_for("the log to say it", || edge.log().contains("spool: full, spool.bytes_max"));
    let faults = edge.status()["faults"].to_string();
    assert!(faults.contains("repair that upstream"), "{faults}");

    backend.script(|_| Act::Take);
    ledger.wait_accepting(&edge);
    wait_for("the log to say it", || edge.log().contains("spool: there is room again"));
    let row = edge.wait_delivered("collector");
    assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{row}");
    ledger.check(&backend, true);
}

#[test]
fn a_folder_that_turns_read_only_refuses_and_recovers_when_it_can_be_written() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let dir = folder(&backend, "256KiB");
    let (spool, view) = (dir.path().join("spool"), dir.path().join("view"));
    std::fs::create_dir_all(&spool).unwrap();
    // A mount with files open for writing does not turn read-only. So a read-only view of the
    // folder is laid over it: what is open can still be written, what is opened from then on not.
    let from = spool.to_str().unwrap();
    let Some(read_only) = or_skip(Disk::mount(&["--bind", from], &view)) else { return };
    read_only.remount("bind,ro");
    let turn_read_only = || Disk::mount(&["--bind", view.to_str().unwrap()], &spool).unwrap();

    let ledger = Arc::new(Ledger::default());
    let edge = Edge::start_in(Arc::clone(&dir));
    let mut layers = Vec::new();
    for _ in 0..ROUNDS {
        let load = Load::start(edge.address, &ledger);
        let moment = ledger.count.load(Relaxed) + 100;
        wait_for("answers", || ledger.count.load(Relaxed) >= moment);
        let layer = turn_read_only();
        load.end();
        ledger.wait_refusing(&edge);
        layer.remount("bind,rw");
        ledger.wait_accepting(&edge);
        layers.push(layer);
    }
    // Refusing once more when the process is killed: the next one finds all that was answered.
    layers.push(turn_read_only());
    Load::start(edge.address, &ledger).end();
    ledger.wait_refusing(&edge);
    edge.kill();
    layers.into_iter().rev().for_each(Disk::unmount);
    let edge = Edge::start_in(dir);
    backend.script(|_| Act::Take);
    let row = edge.wait_delivered("collector");
    assert_eq!(row["accepted"], ledger.count.load(Relaxed), "{row}");
    ledger.check(&backend, true);
    read_only.unmount();
}

/// The disk goes under load, again and again; each time the process is killed as well, and a new
/// one starts on what the disk has kept. The process outlives its disk for a moment, so every
/// answer counts, the last ones before it noticed included; which holds in segments whose blocks
/// have been written before (see the assumptions in the head of `src/spool/mod.rs`), and a lane
/// begins with one.
#[test]
fn every_answered_event_survives_a_loss_of_power() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = folder(&backend, "4MiB");
    let (image, spool) = (dir.path().join("image"), dir.path().join("spool"));
    let Some(mut disk) = or_skip(Disk::ext4(&image, &spool)) else { return };
    let ledger = Arc::new(Ledger::default());
    for round in 0..ROUNDS {
        let edge = Edge::start_in(Arc::clone(&dir));
        let load = Load::start(edge.address, &ledger);
        // A different moment each time, some segments apart.
        let moment = ledger.count.load(Relaxed) + 200 + 77 * round;
        wait_for("answers", || ledger.count.load(Relaxed) >= moment);
        disk.lose_power();
        load.end();
        ledger.wait_refusing(&edge);
        edge.kill();
        disk.unmount();
        disk = Disk::mount(&["-o", "loop", image.to_str().unwrap()], &spool).unwrap();
    }
    let edge = Edge::start_in(Arc::clone(&dir));
    edge.wait_delivered("collector");
    ledger.check(&backend, false);
    drop(edge);
    disk.unmount();
}
