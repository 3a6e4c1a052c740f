//! A file system in memory that does what disks do on a bad day: it tears writes, fills up, fails
//! syncs, forgets what was not synced, and lets the process or the power go at any moment.
//!
//! Two states are kept of everything: what a running process sees, and what is on the platters.
//! A file's bytes reach the latter sector by sector with `sync_data`, names with `sync_dir`. A
//! power loss keeps any part of the unsynced sectors, now and then a part of a sector, and a prefix
//! of the unsynced names. A sync that failed has dropped its sectors: the next one succeeds and
//! does not bring them back, as on Linux.
//!
//! A write to a file opened with `Open::Direct` must be of whole sectors, and syncs those that it
//! writes before it returns. Where it fails, a process sees of them what is on the platters.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod calls;
mod file;
mod names;
pub mod rig;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use calls::Calls;
use pixelgate::internals::spool::fs::{Fs, Open};

pub const SECTOR_BYTES: usize = 512;

/// Calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write,
    Sync,
    Names,
    /// Making a file or a folder.
    Make,
    /// Opening a file, in any way.
    Open,
    Read,
}

/// What goes wrong with the next call of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub op: Op,
    /// How many calls of the kind succeed before.
    pub after: u32,
    /// How many calls fail then.
    pub times: u32,
    pub errno: i32,
    /// How much of a failing write is done, in 256ths.
    pub part: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    platters: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Sectors that have a place on the disk: only these can be written when it is full.
    reserved: BTreeSet<usize>,
    locked_by: Option<u64>,
}

#[derive(Debug, Clone)]
enum NameOp {
    Set(PathBuf, Node),
    Remove(PathBuf),
}

impl NameOp {
    fn path(&self) -> &Path {
        match self {
            NameOp::Set(path, _) | NameOp::Remove(path) => path,
        }
    }
}

struct Disk {
    names: BTreeMap<PathBuf, Node>,
    synced_names: BTreeMap<PathBuf, Node>,
    unsynced: Vec<(u64, NameOp)>,
    // Changes of one call, such as the two of a rename, share a number: they go together.
    call: u64,
    inodes: HashMap<u64, Inode>,
    next: u64,
    /// Handles of earlier lives are dead.
    life: u64,
    dice: u64,
    pub faults: Vec<Fault>,
    pub full: bool,
    pub free_bytes: u64,
    stalled: bool,
    /// Bytes of inodes that cannot be read.
    unreadable: Vec<(u64, std::ops::Range<u64>)>,
    unwritable: BTreeSet<u64>,
    refuses_direct: bool,
    open_files: usize,
    /// Syncs of segments that began, and the latest of them that succeeded.
    syncs_begun: u64,
    syncs_ended: u64,
    /// Unsynced sectors that losses of power have dropped.
    dropped: u64,
    bytes_read: u64,
    pub calls: Calls,
}

/// The file system. A clone is the same one.
#[derive(Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    life: u64,
}

impl SimFs {
    /// An empty disk. One seed in four makes a file system without writes around its cache.
    pub fn new(seed: u64) -> SimFs {
        let disk = Disk {
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            unsynced: Vec::new(),
            call: 0,
            inodes: HashMap::new(),
            next: 1,
            life: 0,
            dice: seed | 1,
            faults: Vec::new(),
            full: false,
            free_bytes: u64::MAX,
            stalled: false,
            unreadable: Vec::new(),
            unwritable: BTreeSet::new(),
            refuses_direct: seed.is_multiple_of(4),
            open_files: 0,
            syncs_begun: 0,
            syncs_ended: 0,
            dropped: 0,
            bytes_read: 0,
            calls: Calls::default(),
        };
        SimFs { disk: Arc::new(Mutex::new(disk)), life: 0 }
    }

    /// The same disk, for another process: its life goes on when this one's ends.
    pub fn process(&self) -> SimFs {
        let mut disk = self.locked();
        disk.life += 1;
        SimFs { disk: Arc::clone(&self.disk), life: disk.life }
    }

    fn locked(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("a test's own lock")
    }

    pub fn fault(&self, fault: Fault) {
        self.locked().faults.push(fault);
    }

    pub fn heal(&self) {
        let mut disk = self.locked();
        disk.faults.clear();
        disk.unreadable.clear();
        disk.unwritable.clear();
        disk.full = false;
        disk.free_bytes = u64::MAX;
    }

    pub fn set_full(&self, full: bool) {
        self.locked().full = full;
    }

    pub fn set_free_bytes(&self, bytes: u64) {
        self.locked().free_bytes = bytes;
    }

    /// From now on the file system refuses writes around its cache.
    pub fn refuse_direct(&self) {
        self.locked().refuses_direct = true;
    }

    /// While it is stalled, a sync neither ends nor fails, and a write that syncs does not end.
    pub fn stall_syncs(&self, stalled: bool) {
        self.locked().stalled = stalled;
    }

    /// This process is killed: its calls fail from now on, its locks are free.
    pub fn kill(&self, process: &SimFs) {
        let mut disk = self.locked();
        disk.kill(process.life);
    }

    /// All processes are gone, and with them what was not synced.
    pub fn lose_power(&self) {
        let mut disk = self.locked();
        for life in 0..=disk.life {
            disk.kill(life);
        }
        let sides = disk.unsynced.len() as u64 + 1;
        let keep = disk.roll(sides) as usize;
        let last = keep.checked_sub(1).map(|at| disk.unsynced[at].0);
        let ops: Vec<_> = disk.unsynced.drain(..).collect();
        for (call, op) in ops {
            if last.is_some_and(|last| call <= last) {
                apply(&mut disk.synced_names, &op);
            }
        }
        // A name whose folder has no durable name is not found.
        let synced = std::mem::take(&mut disk.synced_names);
        let is_found = |path: &Path| {
            path.ancestors().skip(1).all(|dir| dir == Path::new("/") || synced.contains_key(dir))
        };
        let found = synced.iter().filter(|(path, _)| is_found(path));
        disk.synced_names = found.map(|(path, node)| (path.clone(), node.clone())).collect();
        disk.names = disk.synced_names.clone();
        let mut ids: Vec<u64> = disk.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            disk.tear(id);
        }
    }

    /// The bytes that were read from files.
    pub fn bytes_read(&self) -> u64 {
        self.locked().bytes_read
    }

    /// How many syncs of segments have begun.
    pub fn syncs_begun(&self) -> u64 {
        self.locked().syncs_begun
    }

    /// The number of the latest of these syncs that has succeeded.
    pub fn syncs_ended(&self) -> u64 {
        self.locked().syncs_ended
    }

    /// How many unsynced sectors were dropped when the power went, or kept in part.
    pub fn dropped(&self) -> u64 {
        self.locked().dropped
    }

    /// The bytes of a file as a process sees them.
    pub fn bytes_of(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.locked();
        match disk.names.get(path)? {
            Node::Dir => None,
            Node::File(id) => Some(disk.inodes[id].seen.clone()),
        }
    }

    /// Changes the bytes of a file as damage does: no process is involved.
    pub fn damage(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.locked();
        let id = disk.inode(path);
        let inode = disk.inodes.get_mut(&id).expect("named inodes are there");
        edit(&mut inode.seen);
        inode.platters = inode.seen.clone();
    }

    /// The device refuses to read these bytes of a file.
    pub fn make_unreadable(&self, path: &Path, bytes: std::ops::Range<u64>) {
        let mut disk = self.locked();
        let id = disk.inode(path);
        disk.unreadable.push((id, bytes));
    }

    /// The device refuses to write this file.
    pub fn make_unwritable(&self, path: &Path) {
        let mut disk = self.locked();
        let id = disk.inode(path);
        disk.unwritable.insert(id);
    }

    /// Makes an empty file, as an operator does.
    pub fn create(&self, path: &Path) {
        self.process().open(path, Open::Create).expect("made");
    }

    /// How many files are open, of all processes.
    pub fn open_files(&self) -> usize {
        self.locked().open_files
    }

    /// Renames a file or a folder with all that is in it, as an operator does.
    pub fn move_away(&self, from: &Path, to: &Path) {
        let mut disk = self.locked();
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_owned(),
        };
        let (names, synced) =
            (std::mem::take(&mut disk.names), std::mem::take(&mut disk.synced_names));
        disk.names = names.into_iter().map(|(path, node)| (moved(&path), node)).collect();
        disk.synced_names = synced.into_iter().map(|(path, node)| (moved(&path), node)).collect();
    }

    /// All files, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        let disk = self.locked();
        let files = disk.names.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.locked();
        if disk.inodes.contains_key(&(u64::MAX - self.life)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(disk)
    }
}

impl Disk {
    /// An inode that no name leads to marks a life that ended.
    fn kill(&mut self, life: u64) {
        self.inodes.entry(u64::MAX - life).or_default();
        for inode in self.inodes.values_mut() {
            if inode.locked_by.is_some_and(|handle| handle >> 32 == life) {
                inode.locked_by = None;
            }
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift: a test's random numbers must be repeatable, not good.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides.max(1)
    }

    fn tear(&mut self, id: u64) {
        let mood = self.roll(3);
        let Some(mut inode) = self.inodes.remove(&id) else { return };
        for sector in std::mem::take(&mut inode.dirty) {
            let kept = match mood {
                0 => SECTOR_BYTES,
                1 => 0,
                _ => match self.roll(16) {
                    // A disk whose sectors are not written as a whole.
                    0 => self.roll(SECTOR_BYTES as u64) as usize,
                    even if even % 2 == 0 => SECTOR_BYTES,
                    _ => 0,
                },
            };
            inode.write_back_part(sector, kept);
            self.dropped += u64::from(kept < SECTOR_BYTES);
        }
        inode.seen = inode.platters.clone();
        self.inodes.insert(id, inode);
    }

    /// The number of a sync that begins now; `None` if the file is no segment.
    fn begin_sync(&mut self, inode: u64) -> Option<u64> {
        let is_segment = |(path, node): (&PathBuf, &Node)| {
            *node == Node::File(inode) && path.extension() == Some("seg".as_ref())
        };
        self.names.iter().any(is_segment).then(|| {
            self.syncs_begun += 1;
            self.syncs_begun
        })
    }

    fn inode(&self, path: &Path) -> u64 {
        match self.names.get(path) {
            Some(Node::File(id)) => *id,
            _ => panic!("no such file: {}", path.display()),
        }
    }

    fn is_unreadable(&self, inode: u64, offset: u64, bytes: usize) -> bool {
        let end = offset + bytes as u64;
        let meets = |bad: &std::ops::Range<u64>| bad.start < end && offset < bad.end;
        self.unreadable.iter().any(|(id, bad)| *id == inode && meets(bad))
    }

    fn fails(&mut self, op: Op) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| fault.op == op)?;
        let fault = &mut self.faults[at];
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times -= 1;
        let fault = *fault;
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }

    fn name_op(&mut self, op: NameOp) {
        apply(&mut self.names, &op);
        self.unsynced.push((self.call, op));
    }

    fn try_op(&mut self, op: Op) -> io::Result<()> {
        match self.fails(op) {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.errno)),
            None => Ok(()),
        }
    }

    fn names_call(&mut self) -> io::Result<()> {
        self.call += 1;
        self.try_op(Op::Names)
    }
}

impl Inode {
    fn write_back(&mut self, sector: usize) {
        self.write_back_part(sector, SECTOR_BYTES);
    }

    /// The first bytes of a sector reach the platters.
    fn write_back_part(&mut self, sector: usize, bytes: usize) {
        let from = sector * SECTOR_BYTES;
        let to = (from + bytes).min(self.seen.len());
        if from >= to {
            return;
        }
        if self.platters.len() < to {
            self.platters.resize(to, 0);
        }
        self.platters[from..to].copy_from_slice(&self.seen[from..to]);
    }

    fn read_back(&mut self, sector: usize) {
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.seen.len());
        for at in from..to {
            self.seen[at] = self.platters.get(at).copied().unwrap_or(0);
        }
    }

    /// How many bytes can be written at `offset` on a full disk.
    fn room(&self, offset: usize) -> usize {
        let first = offset / SECTOR_BYTES;
        let end = (first..).find(|sector| !self.reserved.contains(sector)).unwrap_or(first);
        (end * SECTOR_BYTES).saturating_sub(offset)
    }

    fn resize(&mut self, bytes: usize) {
        // A size is metadata: here it is durable at once, with zeros where nothing was synced.
        self.seen.resize(bytes, 0);
        self.platters.resize(bytes, 0);
        self.dirty.retain(|sector| sector * SECTOR_BYTES < bytes);
        self.reserved.retain(|sector| sector * SECTOR_BYTES < bytes);
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, op: &NameOp) {
    match op {
        NameOp::Set(path, node) => _ = names.insert(path.clone(), node.clone()),
        // A folder that is durably gone was durably empty.
        NameOp::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}
