//! Stores which lines of a file an upstream has acknowledged.
//!
//! There is one progress file for each upstream and file of events:
//! `<sent_dir>/<upstream>/<id of the first event>`. A file of events is known by the id of its
//! first event, so that it may be moved, compressed, appended to, or come through a pipe.
//!
//! A progress file has a slot of eight bytes for each line of events. The slot of line `n` is at
//! byte `8 × (n − 1)`. It is zero until the upstream has acknowledged the event in that line, or
//! has refused it for good; from then on it holds the last eight bytes of the event's id, which are
//! random and never zero in a UUIDv7. A slot counts only for the event whose id it holds, so
//! another file that begins with the same event, or a slot torn by a crash, can lead to a repeated
//! delivery and never to a lost event.
//!
//! The slots of a batch are written as zeros before its events are sent. So a full disk ends the
//! command before it sends what it could not note.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use uuid::Uuid;

/// The bytes of a slot.
const SLOT_BYTES: usize = 8;
/// The bytes of slots that are read at once.
const WINDOW_BYTES: usize = 64 << 10;
/// The mode of a progress file, which is that of a file of dead letters.
const FILE_MODE: u32 = 0o640;

/// Removes the progress of all files at an upstream. Returns whether there was any.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let sent_dir = dir.path();
/// use pixelgate::tools::backfill::forget;
///
/// assert!(!forget(sent_dir, "collector")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The errors of the file system. A missing folder is no error: it holds no progress.
pub fn forget(sent_dir: &Path, upstream: &str) -> io::Result<bool> {
    let entries = match fs::read_dir(sent_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    // The name is only made part of a path where a folder of that name was found.
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == upstream {
            return fs::remove_dir_all(entry.path()).map(|()| true);
        }
    }
    Ok(false)
}

/// The event of one line.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// The event's id.
    pub id: [u8; 16],
}

/// The progress of one file at one upstream.
#[derive(Debug)]
pub struct Progress {
    file: File,
    window: Vec<u8>,
    /// The offset in the file at which the window begins, in bytes.
    window_start: u64,
}

impl Line {
    fn offset(&self) -> u64 {
        (self.number - 1) * SLOT_BYTES as u64
    }

    fn slot(&self) -> [u8; SLOT_BYTES] {
        let [.., a, b, c, d, e, f, g, h] = self.id;
        [a, b, c, d, e, f, g, h]
    }
}

impl Progress {
    /// Opens the progress of the file that begins with the event `first`, for this process alone.
    /// `None` while another process has it.
    pub fn open(sent: &Path, upstream: &str, first: [u8; 16]) -> io::Result<Option<Progress>> {
        let dir = sent.join(upstream);
        fs::create_dir_all(&dir)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = options.open(dir.join(name(first)))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Without this, a power loss could remove the new file with all that is noted in it.
        for dir in [&dir, sent] {
            File::open(dir)?.sync_all()?;
        }
        Ok(Some(Progress::of(file)))
    }

    /// Opens the progress for reading. `None`: nothing was sent yet.
    pub fn look(sent: &Path, upstream: &str, first: [u8; 16]) -> io::Result<Option<Progress>> {
        match File::open(sent.join(upstream).join(name(first))) {
            Ok(file) => Ok(Some(Progress::of(file))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn of(file: File) -> Progress {
        Progress { file, window: Vec::new(), window_start: 0 }
    }

    /// Whether the event of this line has ended. Lines are asked about in rising order, and before
    /// they are marked.
    pub fn holds(&mut self, line: &Line) -> io::Result<bool> {
        let offset = line.offset();
        if !self.window_holds(offset) {
            self.window.resize(WINDOW_BYTES, 0);
            self.window_start = offset;
            let read = read_up_to(&self.file, &mut self.window, offset)?;
            // Slots behind the end of the file count as zero.
            self.window[read..].fill(0);
        }
        let start = usize::try_from(offset - self.window_start).unwrap_or(usize::MAX);
        let slot = self.window.get(start..).and_then(|rest| rest.first_chunk());
        Ok(slot == Some(&line.slot()))
    }

    fn window_holds(&self, offset: u64) -> bool {
        let end = self.window_start + self.window.len() as u64;
        (self.window_start..end).contains(&offset)
    }

    /// Makes sure that these lines can be marked later: their slots are on the disk, as zeros.
    pub fn reserve(&self, lines: &[Line]) -> io::Result<()> {
        self.write(lines, |_| [0; SLOT_BYTES])
    }

    /// Notes durably that the events of these lines have ended.
    pub fn mark(&self, lines: &[Line]) -> io::Result<()> {
        self.write(lines, Line::slot)
    }

    fn write(&self, lines: &[Line], slot: impl Fn(&Line) -> [u8; SLOT_BYTES]) -> io::Result<()> {
        let mut lines = lines.to_vec();
        lines.sort_unstable_by_key(|line| line.number);
        for run in lines.chunk_by(|a, b| a.number + 1 == b.number) {
            let slots: Vec<u8> = run.iter().flat_map(&slot).collect();
            self.file.write_all_at(&slots, run[0].offset())?;
        }
        self.file.sync_data()
    }
}

fn name(first: [u8; 16]) -> String {
    Uuid::from_bytes(first).to_string()
}

/// Fills the buffer from `offset`, as far as the file goes. Returns how many bytes it holds.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> Line {
        Line { number, id: *Uuid::now_v7().as_bytes() }
    }

    #[test]
    fn a_slot_counts_for_its_own_event_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Progress::open(dir.path(), "a", [7; 16]).unwrap();
        // Lines in several windows, and some that are never marked.
        let lines: Vec<Line> = (1..=20_000).map(line).collect();
        let is_marked = |line: &Line| !line.number.is_multiple_of(3);
        {
            let mut progress = open().unwrap();
            assert!(open().is_none(), "one process at a time");
            assert!(!progress.holds(&lines[0]).unwrap());
            let marked: Vec<Line> = lines.iter().filter(|line| is_marked(line)).copied().collect();
            marked.rchunks(700).for_each(|some| progress.mark(some).unwrap());
        }
        for mut progress in
            [open().unwrap(), Progress::look(dir.path(), "a", [7; 16]).unwrap().unwrap()]
        {
            for known in &lines {
                assert_eq!(progress.holds(known).unwrap(), is_marked(known), "{known:?}");
            }
            assert!(!progress.holds(&line(20_001)).unwrap());
        }
        let mut progress = open().unwrap();
        assert!(!progress.holds(&line(1)).unwrap(), "another event in the same line");
        assert!(Progress::look(dir.path(), "b", [7; 16]).unwrap().is_none());
    }
}
