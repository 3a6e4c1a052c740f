//! SPEC 6 on the real binary: each file that an edge leaves behind is damaged in turn, in each way.
//! The next edge starts, serves, loses no more than the damage took, and names what it cannot use.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::disk::{Disk, or_skip, run};
use crate::harness::{Edge, Setup, command, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Cases that are tried at once.
const WORKERS: usize = 4;
const DEAD: u64 = 2;
const DELIVERED: u64 = 20;
const EVENTS: u64 = 60;

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Emptied,
    OneByte,
    Noise,
    Removed,
    Folder,
    LinkToNothing,
    Fifo,
    ReadOnly,
    Forbidden,
}

impl Damage {
    const ALL: [Damage; 9] = [
        Damage::Emptied,
        Damage::OneByte,
        Damage::Noise,
        Damage::Removed,
        Damage::Folder,
        Damage::LinkToNothing,
        Damage::Fifo,
        Damage::ReadOnly,
        Damage::Forbidden,
    ];

    /// Whether the bytes of the file are gone.
    fn is_of_bytes(self) -> bool {
        matches!(self, Damage::Emptied | Damage::OneByte | Damage::Noise)
    }

    /// Damages a file. `None` where that cannot be done here. Damage by a mounted disk lasts until
    /// the returned disk is dropped.
    fn apply(self, file: &Path) -> Option<Option<Disk>> {
        let bytes = std::fs::read(file).unwrap_or_default();
        match self {
            Damage::Emptied => std::fs::write(file, "").unwrap(),
            Damage::OneByte => std::fs::write(file, &bytes[..bytes.len().min(1)]).unwrap(),
            Damage::Noise => std::fs::write(file, noise(bytes.len())).unwrap(),
            Damage::ReadOnly => {
                let path = file.to_str().unwrap();
                or_skip(run(Command::new("mount").args(["--bind", path, path])))?;
                let disk = Disk::mounted(file);
                disk.remount("bind,ro");
                return Some(Some(disk));
            }
            Damage::Forbidden => {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o000)).unwrap();
            }
            _ => std::fs::remove_file(file).unwrap(),
        }
        match self {
            Damage::Folder => std::fs::create_dir(file).unwrap(),
            Damage::LinkToNothing => std::os::unix::fs::symlink("/nowhere/at/all", file).unwrap(),
            Damage::Fifo => run(Command::new("mkfifo").arg(file)).unwrap(),
            _ => {}
        }
        Some(None)
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut dice = 88_172_645_463_325_252_u64;
    let mut next = || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice as u8
    };
    (0..len).map(|_| next()).collect()
}

fn setup(backend: &Backend) -> Setup {
    let spool = "segment_bytes = \"16KiB\"\nfree_bytes_min = \"0\"";
    Setup::default().spool(spool).upstreams(&http_upstream(backend, ""))
}

fn send(edge: &Edge, ids: std::ops::Range<u64>) {
    for id in ids {
        let note = format!("{id:04}").repeat(250);
        assert_eq!(edge.event(&format!("_a=62515&_n=a&id={id}&note={note}")).status, 200);
    }
}

fn ids(backend: &Backend) -> BTreeSet<u64> {
    let id = |event: Value| event["external_id"].as_str().unwrap().parse().unwrap();
    backend.events().into_iter().map(id).collect()
}

/// The folder of an edge that was killed: dead letters, delivered events, and events that wait.
fn killed_edge() -> (Arc<tempfile::TempDir>, BTreeSet<u64>) {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(422)));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    setup(&backend).write(dir.path());
    let edge = Edge::start_in(dir);
    send(&edge, 0..DEAD);
    assert_eq!(edge.wait_delivered("collector")["dead"], DEAD);
    backend.script(|_| Act::Take);
    send(&edge, DEAD..DEAD + DELIVERED);
    edge.wait_delivered("collector");
    backend.script(|_| Act::Refuse(503));
    send(&edge, DEAD + DELIVERED..EVENTS);
    // The cursor and the counts by portal are written each second.
    let stat = || command(&edge.dir().join("edge.toml"), &["spool", "stat"]).output().unwrap();
    wait_for("the totals", || {
        let printed = String::from_utf8(stat().stdout).unwrap();
        printed.contains(&format!("{EVENTS} accepted, 0 rejected, {DELIVERED} delivered"))
    });
    let mut done: BTreeSet<u64> = ids(&backend);
    done.extend(0..DEAD);
    (edge.kill(), done)
}

/// The files below a folder, by their paths in it.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(root).unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

/// The number of events in each segment.
fn events_in(root: &Path, segment: &Path) -> u64 {
    let bytes = std::fs::read(root.join(segment)).unwrap();
    let marks = (0..EVENTS).filter(|id| {
        let note = format!("{id:04}").repeat(250).into_bytes();
        bytes.windows(note.len()).any(|window| window == note)
    });
    marks.count() as u64
}

struct Template {
    dir: Arc<tempfile::TempDir>,
    done: BTreeSet<u64>,
    segments: BTreeMap<PathBuf, u64>,
}

fn check(template: &Template, file: &Path, damage: Damage) {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let from = format!("{}/.", template.dir.path().display());
    run(Command::new("cp").args(["-a", &from]).arg(dir.path())).unwrap();
    setup(&backend).write(dir.path());
    let path = dir.path().join(file);
    let is_file = std::fs::metadata(&path).unwrap().is_file();
    if damage.is_of_bytes() && !is_file {
        return;
    }
    let Some(_disk) = damage.apply(&path) else { return };
    let name = file.file_name().unwrap().to_str().unwrap();
    if name == "lock" && damage == Damage::Folder {
        // The one mistake of a path that stops a start.
        let output = command(&dir.path().join("edge.toml"), &["run"]).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{printed}");
        assert!(printed.contains("spool/lock: Is a directory"), "{printed}");
        return;
    }
    if name == "lock" && damage == Damage::Forbidden {
        return;
    }
    let edge = match damage {
        Damage::Forbidden => {
            run(Command::new("chown").args(["-R", "65534"]).arg(dir.path())).unwrap();
            let other = "exec setpriv --reuid 65534 --clear-groups \"$0\" run --config \"$1\"";
            Edge::start_under(Arc::clone(&dir), other)
        }
        _ => Edge::start_in(Arc::clone(&dir)),
    };
    let status = edge.event("_a=62515&_n=a&id=99").status;
    assert!(status == 200 || edge.admin("/readyz").status == 503, "{status}");
    let faults = || edge.status()["faults"].as_array().unwrap().clone();
    let row = || edge.upstream("collector");
    wait_for("the events or a fault", || row()["pending"] == 0 || !faults().is_empty());
    wait_for("what can be delivered", || {
        let row = row();
        let waits = faults().iter().any(|fault| {
            let what = fault["what"].as_str().unwrap();
            ["spool_segment", "spool_lane", "spool_start"].contains(&what)
        });
        row["pending"] == 0 || waits && row["pending"].as_u64().unwrap() <= EVENTS
    });
    let row = row();
    let [accepted, delivered, dead, lost, pending] =
        ["accepted", "delivered", "dead", "lost", "pending"].map(|key| row[key].as_u64().unwrap());
    assert_eq!(accepted, delivered + dead + lost + pending, "{row}");
    let least = template.segments.get(file).copied().unwrap_or(0);
    assert!(lost <= least, "{lost} lost, {least} were in the file: {row}");
    let arrived = ids(&backend);
    let missing: Vec<u64> =
        (0..EVENTS).filter(|id| !template.done.contains(id) && !arrived.contains(id)).collect();
    let told = format!("{}{}", edge.status(), edge.log());
    assert!(missing.is_empty() || lost > 0 || !faults().is_empty(), "{missing:?}: {told}");
    let is_needless = name.starts_with("acks-")
        || name.ends_with(".spare")
        || ["lock", "making", "pixelgate.pid", "upgrade.sock", "filling"].contains(&name)
        // Only commands read dead letters, and the lane's salt is in two more files.
        || file.starts_with("spool/dead")
        || name == "lane" && (damage.is_of_bytes() || damage == Damage::Removed)
        || name == "configuration.json"
        // Or each event of the segment was delivered before the kill.
        || template.segments.contains_key(file) && missing.is_empty();
    let is_named = told.contains(name) || lost > 0 || damage == Damage::ReadOnly;
    assert!(is_needless || is_named, "{name} is not named: {told}");
    assert!(!told.contains("panicked"), "{told}");
    edge.stop();
}

impl Template {
    fn new() -> Template {
        let (dir, done) = killed_edge();
        let is_segment = |file: &PathBuf| file.extension().is_some_and(|e| e == "seg");
        let segments = files(dir.path()).into_iter().filter(is_segment);
        let segments = segments.map(|file| (file.clone(), events_in(dir.path(), &file)));
        let segments = segments.collect();
        Template { dir, done, segments }
    }
}

#[test]
fn each_file_that_is_damaged_in_each_way_costs_at_most_itself() {
    let template = Template::new();
    let own = |file: &PathBuf| !["edge.toml", "portals.toml"].map(Path::new).contains(&&**file);
    let files: Vec<PathBuf> = files(template.dir.path()).into_iter().filter(own).collect();
    let cases: Vec<(&PathBuf, Damage)> =
        files.iter().flat_map(|file| Damage::ALL.map(|damage| (file, damage))).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((file, damage)) = cases.get(next.fetch_add(1, Relaxed)) {
                    let tried = catch_unwind(AssertUnwindSafe(|| check(&template, file, *damage)));
                    if tried.is_err() {
                        failed.lock().unwrap().push(format!("{} {damage:?}", file.display()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{} files, {} cases, {} failed", files.len(), cases.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}
