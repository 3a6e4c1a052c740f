//! The quarantine: copies damaged bytes into a folder of their own, and counts them.
//!
//! It is for people who want to look at the damage. The spool does not read it. A copy that fails
//! is logged and not tried again; the damage is counted in any case.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::spool::fs::{File, Fs, Open, is_absent, read_full, write_full};
use crate::spool::lane_files::QUARANTINE;

/// The most bytes that are copied. Beyond it, damage is counted and not copied.
pub const QUARANTINE_BYTES_MAX: u64 = 64 << 20;

/// The folder of damaged bytes. Each damaged stretch has a file `<lane>-<segment>-<offset>.bin`.
pub struct Quarantine {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    // The stretches that were counted: the readers of several upstreams find the same one.
    seen: Mutex<HashSet<String>>,
    bytes: AtomicU64,
}

impl Quarantine {
    /// The quarantine of a spool. Bytes that are in it already are counted.
    pub fn open(fs: Arc<dyn Fs>, root: &Path) -> Quarantine {
        let dir = root.join(QUARANTINE);
        let entries = fs.list(&dir);
        if let Err(error) = &entries
            && !is_absent(&entries)
        {
            let dir = dir.display();
            ::log::warn!("spool: {dir} cannot be listed, so its bytes count as 0: {error}");
        }
        let entries = entries.unwrap_or_default();
        let bytes = entries.iter().map(|entry| entry.bytes).sum();
        let seen = entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
        Quarantine { fs, dir, seen: Mutex::new(seen), bytes: AtomicU64::new(bytes) }
    }

    /// The damaged bytes so far, with those of earlier processes while their files exist.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Counts a damaged stretch and copies its bytes, if that is possible. Returns whether the
    /// stretch is a new one.
    pub fn keep(&self, lane: u64, number: u64, file: &dyn File, range: Range<u64>) -> bool {
        let name = format!("{lane}-{number}-{}.bin", range.start);
        if !self.seen.lock().insert(name.clone()) {
            return false;
        }
        let bytes = range.end.saturating_sub(range.start);
        let before = self.bytes.fetch_add(bytes, Relaxed);
        ::log::error!(
            "spool: {bytes} damaged bytes in lane {lane}, segment {number}, at offset {}",
            range.start
        );
        if before.saturating_add(bytes) > QUARANTINE_BYTES_MAX {
            let dir = self.dir.display();
            ::log::warn!("spool: {dir} holds 64 MiB, so the damaged bytes are not copied there");
        } else if let Err(error) = self.copy(&name, file, range) {
            let dir = self.dir.display();
            ::log::warn!("spool: the damaged bytes cannot be copied into {dir}: {error}");
        }
        true
    }

    /// Moves a file here whose content is not the segment that its name says, and leaves an empty
    /// file in its place.
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
                    ::log::warn!("spool: {} cannot be created again: {error}", path.display());
                }
            }
            Err(error) => {
                ::log::warn!("spool: {} cannot be moved to quarantine: {error}", path.display());
            }
        }
    }

    fn copy(&self, name: &str, file: &dyn File, range: Range<u64>) -> io::Result<()> {
        self.fs.create_dir_all(&self.dir)?;
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        let filled = read_full(file, &mut bytes, range.start)?;
        let copy = self.fs.open(&self.dir.join(name), Open::Create)?;
        write_full(&*copy, &bytes[..filled], 0)
    }
}
