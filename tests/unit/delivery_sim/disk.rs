//! What happens to the segments of a running spool: records are damaged, and files are moved away
//! and come back.

use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::{ID_PREFIX, World};

/// Where an operator has put a segment.
const AWAY: &str = "/away";

/// The segments that are full, of the running process and of earlier ones.
fn full_segments(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|end| end == "seg");
    let segments: Vec<PathBuf> = files.iter().filter(is_segment).cloned().collect();
    // The last one of a lane may be written to.
    let has_next = |at: &usize| {
        segments.get(at + 1).is_some_and(|next| next.parent() == segments[*at].parent())
    };
    (0..segments.len()).filter(has_next).map(|at| segments[at].clone()).collect()
}

/// Where each event's record carries its id.
fn places(bytes: &[u8]) -> Vec<(usize, u64)> {
    let prefix = ID_PREFIX.to_be_bytes();
    let ids = memchr::memmem::find_iter(bytes, &prefix);
    let number = |at: usize| {
        let number = bytes.get(at + prefix.len()..at + 16)?;
        Some((at, u64::from_be_bytes(number.try_into().ok()?)))
    };
    ids.filter_map(number).collect()
}

impl World {
    /// Damages one record of a full segment, all of its records, or those of all full segments: a
    /// reader that slept after each loss would be woken once by the traffic.
    pub fn damage(&mut self) {
        match self.random.below(4) {
            0 | 1 => full_segments(self.disk.files()).iter().for_each(|path| self.damage_all(path)),
            2 => _ = self.pick_segment().map(|path| self.damage_all(&path)),
            _ => _ = self.pick_segment().map(|path| self.damage_one(&path)),
        }
    }

    fn damage_one(&mut self, path: &Path) {
        let places = self.disk.bytes_of(path).map_or(Vec::new(), |bytes| places(&bytes));
        let place = self.random.below(places.len().max(1) as u64) as usize;
        let Some((at, event)) = places.get(place) else { return };
        self.disk.damage(path, |bytes| bytes[*at] ^= 0xFF);
        self.damaged.insert(*event);
    }

    fn damage_all(&mut self, path: &Path) {
        let places = self.disk.bytes_of(path).map_or(Vec::new(), |bytes| places(&bytes));
        let (Some((first, _)), Some((last, _))) = (places.first(), places.last()) else { return };
        self.disk.damage(path, |bytes| bytes[*first..last + 16].fill(0xA5));
        self.damaged.extend(places.iter().map(|(_, event)| *event));
    }

    /// Moves a full segment away, or what was moved away back.
    pub fn move_segment(&mut self) {
        if self.bring_segment_back() {
            return;
        }
        let Some(path) = self.pick_segment() else { return };
        self.disk.move_away(&path, Path::new(AWAY));
        self.moved = Some(path);
    }

    /// Moves what was moved away back. Says whether anything was.
    pub fn bring_segment_back(&mut self) -> bool {
        let Some(path) = self.moved.take() else { return false };
        self.disk.move_away(Path::new(AWAY), &path);
        self.moved_at = Instant::now();
        true
    }

    /// One of the newest full segments: most older ones were read.
    fn pick_segment(&mut self) -> Option<PathBuf> {
        let full = full_segments(self.disk.files());
        let back = 1 + self.random.below(full.len().clamp(1, 6) as u64) as usize;
        full.get(full.len().checked_sub(back)?).cloned()
    }
}
