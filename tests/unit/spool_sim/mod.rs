//! A file system in memory that does what disks do on a bad day: it tears writes, fills up, fails
//! syncs, forgets what was not synced, and lets the process or the power go at any moment.
//!
//! Two states are kept of everything: what a running process sees, and what is on the platters.
//! A file's bytes reach the latter sector by sector with `sync_data`, names with `sync_dir`. A
//! power loss keeps any part of the unsynced sectors and a prefix of the unsynced names. A sync
//! that failed has dropped its sectors: the next one succeeds and does not bring them back, as
//! Linux does it.

#![allow(dead_code, reason = "each test uses a part of it")]

mod file;
pub mod rig;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use file::SimFile;
use pixelgate::internals::spool::fs::{Entry, File, Fs, Open};

pub const SECTOR_BYTES: usize = 512;

/// Calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write,
    Sync,
    Names,
    Read,
}

/// What goes wrong with the next call of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub op: Op,
    /// How many such calls still go well before.
    pub after: u32,
    /// How many fail then.
    pub times: u32,
    pub errno: i32,
    /// Of a failing write: how much of it was done, in 256ths.
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
}

/// The file system. A clone is the same one.
#[derive(Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    life: u64,
}

impl SimFs {
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
        disk.full = false;
        disk.free_bytes = u64::MAX;
    }

    pub fn set_full(&self, full: bool) {
        self.locked().full = full;
    }

    pub fn set_free_bytes(&self, bytes: u64) {
        self.locked().free_bytes = bytes;
    }

    /// While it is stalled, a sync neither ends nor fails.
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
        disk.names = disk.synced_names.clone();
        let mut ids: Vec<u64> = disk.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            disk.tear(id);
        }
    }

    /// The bytes of a file as a process sees them.
    pub fn bytes_of(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.locked();
        match disk.names.get(path)? {
            Node::Dir => None,
            Node::File(id) => Some(disk.inodes[id].seen.clone()),
        }
    }

    /// Changes a file behind everybody's back.
    pub fn damage(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.locked();
        let Some(Node::File(id)) = disk.names.get(path).cloned() else {
            panic!("no such file: {}", path.display())
        };
        let inode = disk.inodes.get_mut(&id).expect("named inodes are there");
        edit(&mut inode.seen);
        inode.platters = inode.seen.clone();
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
        // xorshift: a test's dice need a seed, not quality.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides.max(1)
    }

    fn tear(&mut self, id: u64) {
        let mood = self.roll(3);
        let Some(mut inode) = self.inodes.remove(&id) else { return };
        for sector in std::mem::take(&mut inode.dirty) {
            let keep = match mood {
                0 => true,
                1 => false,
                _ => self.roll(2) == 0,
            };
            if keep {
                inode.write_back(sector);
            }
        }
        inode.seen = inode.platters.clone();
        self.inodes.insert(id, inode);
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

    fn names_call(&mut self) -> io::Result<()> {
        self.call += 1;
        match self.fails(Op::Names) {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.errno)),
            None => Ok(()),
        }
    }
}

impl Inode {
    fn write_back(&mut self, sector: usize) {
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.seen.len());
        if from >= to {
            return;
        }
        if self.platters.len() < to {
            self.platters.resize(to, 0);
        }
        self.platters[from..to].copy_from_slice(&self.seen[from..to]);
    }

    fn resize(&mut self, bytes: usize) {
        // A size is metadata: here it is durable at once, with zeros where nothing was synced.
        self.seen.resize(bytes, 0);
        self.platters.resize(bytes, 0);
        self.dirty.retain(|sector| sector * SECTOR_BYTES < bytes);
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, op: &NameOp) {
    match op {
        // Nor does a name outlive its folder.
        NameOp::Set(path, _) if path.parent().is_some_and(|dir| !names.contains_key(dir)) => {}
        NameOp::Set(path, node) => _ = names.insert(path.clone(), node.clone()),
        // A folder that is durably gone was durably empty.
        NameOp::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Fs for SimFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.names_call()?;
        let mut ancestors: Vec<_> = dir.ancestors().collect();
        ancestors.reverse();
        for dir in ancestors {
            if !disk.names.contains_key(dir) {
                disk.name_op(NameOp::Set(dir.to_owned(), Node::Dir));
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let disk = self.alive()?;
        if !disk.names.contains_key(dir) {
            return Err(absent());
        }
        let inside = disk.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(inside
            .map(|(path, node)| Entry {
                name: path.file_name().map(OsString::from).unwrap_or_default(),
                is_dir: *node == Node::Dir,
                bytes: match node {
                    Node::Dir => 0,
                    Node::File(id) => disk.inodes[id].seen.len() as u64,
                },
            })
            .collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut disk = self.alive()?;
        let found = match disk.names.get(path) {
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(id)) => Some(*id),
            None => None,
        };
        let inode = match (found, how) {
            (None, Open::Read | Open::Write) => return Err(absent()),
            (Some(id), Open::Create) => {
                let inode = disk.inodes.get_mut(&id).expect("named inodes are there");
                inode.resize(0);
                id
            }
            (Some(id), _) => id,
            (None, Open::Create | Open::Ensure) => {
                disk.names_call()?;
                if path.parent().is_some_and(|dir| !disk.names.contains_key(dir)) {
                    return Err(absent());
                }
                let id = disk.next;
                disk.next += 1;
                disk.inodes.insert(id, Inode::default());
                disk.name_op(NameOp::Set(path.to_owned(), Node::File(id)));
                id
            }
        };
        disk.next += 1;
        let handle = (self.life << 32) | disk.next;
        Ok(Arc::new(SimFile { fs: self.clone(), inode, handle }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.alive()?;
        let node = disk.names.get(from).cloned().ok_or_else(absent)?;
        disk.names_call()?;
        disk.name_op(NameOp::Remove(from.to_owned()));
        disk.name_op(NameOp::Set(to.to_owned(), node));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.alive()?;
        if !matches!(disk.names.get(path), Some(Node::File(_))) {
            return Err(absent());
        }
        disk.names_call()?;
        disk.name_op(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.alive()?;
        if !disk.names.contains_key(dir) {
            return Err(absent());
        }
        if disk.names.keys().any(|path| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        disk.names_call()?;
        disk.name_op(NameOp::Remove(dir.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.names_call()?;
        let all: Vec<_> = disk.unsynced.drain(..).collect();
        // Its own name and those above come along, as on every journaling file system.
        for (call, op) in all {
            if op.path().parent() == Some(dir) || dir.starts_with(op.path()) {
                apply(&mut disk.synced_names, &op);
            } else {
                disk.unsynced.push((call, op));
            }
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.alive()?.free_bytes)
    }
}
