//! The quarantine: damaged bytes are copied into a folder of their own and counted.
//!
//! It is for people who want to look at the damage. Nothing in the spool reads it, and a copy that
//! fails is logged and forgotten: the damage is counted all the same.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::spool::fs::{File, Fs, Open, is_absent, read_full, write_full};

/// Most bytes that are copied aside. Beyond it damage is counted but not kept.
pub const QUARANTINE_BYTES_MAX: u64 = 64 << 20;

/// The folder of damaged bytes: one file per bad spot, `<lane>-<segment>-<offset>.bin`.
pub struct Quarantine {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    // Spots that were counted: the readers of several upstreams come to the same one.
    seen: Mutex<HashSet<String>>,
    bytes: AtomicU64,
}

impl Quarantine {
    /// The quarantine of a spool. What is in it from before is counted.
    pub fn open(fs: Arc<dyn Fs>, root: &Path) -> Quarantine {
        let dir = root.join("quarantine");
        let entries = fs.list(&dir);
        if let Err(error) = &entries
            && !is_absent(&entries)
        {
            ::log::warn!("spool: the quarantine cannot be listed, its bytes count as 0: {error}");
        }
        let entries = entries.unwrap_or_default();
        let bytes = entries.iter().map(|entry| entry.bytes).sum();
        let seen = entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
        Quarantine { fs, dir, seen: Mutex::new(seen), bytes: AtomicU64::new(bytes) }
    }

    /// Damaged bytes so far, those of earlier processes included while their files are there.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Counts a bad spot and keeps its bytes if that works. Says whether it was a new one.
    pub fn keep(&self, lane: u64, number: u64, file: &dyn File, range: Range<u64>) -> bool {
        let name = format!("{lane}-{number}-{}.bin", range.start);
        if !self.seen.lock().insert(name.clone()) {
            return false;
        }
        let bytes = range.end - range.start;
        let before = self.bytes.fetch_add(bytes, Relaxed);
        ::log::error!(
            "spool: {bytes} damaged bytes in lane {lane}, segment {number}, at offset {}",
            range.start
        );
        if before.saturating_add(bytes) > QUARANTINE_BYTES_MAX {
            ::log::warn!("spool: the quarantine is full, the damaged bytes are not kept");
        } else if let Err(error) = self.copy(&name, file, range) {
            ::log::warn!("spool: the damaged bytes could not be kept: {error}");
        }
        true
    }

    /// Moves a whole file here that is not what its name says, and leaves an empty one in its
    /// place.
    pub fn take(&self, lane: u64, number: u64, path: &Path, bytes: u64) {
        ::log::error!("spool: lane {lane}, segment {number}, is not a segment of this lane");
        let moved = self
            .fs
            .create_dir_all(&self.dir)
            .and_then(|()| self.fs.rename(path, &self.dir.join(format!("{lane}-{number}.seg"))));
        match moved {
            Ok(()) => {
                self.bytes.fetch_add(bytes, Relaxed);
                if let Err(error) = self.fs.open(path, Open::Create) {
                    ::log::warn!("spool: {} cannot be made anew: {error}", path.display());
                }
            }
            Err(error) => {
                ::log::warn!("spool: {} cannot be moved aside: {error}", path.display());
            }
        }
    }

    fn copy(&self, name: &str, file: &dyn File, range: Range<u64>) -> io::Result<()> {
        self.fs.create_dir_all(&self.dir)?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let filled = read_full(file, &mut bytes, range.start)?;
        let copy = self.fs.open(&self.dir.join(name), Open::Create)?;
        write_full(&*copy, &bytes[..filled], 0)
    }
}
