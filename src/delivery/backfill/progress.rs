//! Stores which lines of a file an upstream has acknowledged.
//!
//! There is one progress file for each upstream and file of events:
//! `<sent_dir>/<upstream>/<id of the first event>`. A file of events is known by the id of its
//! first event, so that it may be moved, compressed, appended to, or come through a pipe. Files
//! that begin with the same event share a progress file, and a line for which it holds another
//! event is noted in a further one: `<id of the first event>.1`, `.2` and so on.
//!
//! A progress file has a slot of eight bytes for each line of events. The slot of line `n` is at
//! byte `8 × (n − 1)`. It is zero until the upstream has acknowledged the event in that line, or
//! has refused it for good; from then on it holds the last eight bytes of the event's id, which are
//! random and never zero in a UUIDv7. A slot counts only for the event whose id it holds, so one
//! that was torn by a crash leads to a repeated delivery and never to a lost event.
//!
//! The slots of a batch are written as zeros before its events are sent. So a full disk ends the
//! command before it sends what it could not note.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    dir: PathBuf,
    first: [u8; 16],
    /// The progress files. The first one is locked while events are sent.
    all: Vec<Slots>,
}

/// The slots of one progress file.
#[derive(Debug)]
struct Slots {
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
        let mut progress = Progress { dir: sent.join(upstream), first, all: Vec::new() };
        fs::create_dir_all(&progress.dir)?;
        let file = progress.make()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Without this, a power loss could remove the new file with all that is noted in it.
        for dir in [&progress.dir, sent] {
            File::open(dir)?.sync_all()?;
        }
        progress.all.push(Slots::of(file));
        progress.open_existing(OpenOptions::new().read(true).write(true))?;
        Ok(Some(progress))
    }

    /// Opens the progress for reading. `None`: nothing was sent yet.
    pub fn look(sent: &Path, upstream: &str, first: [u8; 16]) -> io::Result<Option<Progress>> {
        let mut progress = Progress { dir: sent.join(upstream), first, all: Vec::new() };
        progress.open_existing(OpenOptions::new().read(true))?;
        Ok((!progress.all.is_empty()).then_some(progress))
    }

    /// The path of the next progress file.
    fn next_path(&self) -> PathBuf {
        let name = Uuid::from_bytes(self.first).to_string();
        self.dir.join(match self.all.len() {
            0 => name,
            number => format!("{name}.{number}"),
        })
    }

    /// Makes the next progress file.
    fn make(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        options.open(self.next_path())
    }

    /// Opens the next progress files, as many as there are.
    fn open_existing(&mut self, options: &OpenOptions) -> io::Result<()> {
        loop {
            match options.open(self.next_path()) {
                Ok(file) => self.all.push(Slots::of(file)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether the event of this line has ended. Lines are asked about in rising order, and before
    /// they are marked.
    pub fn holds(&mut self, line: &Line) -> io::Result<bool> {
        for slots in &mut self.all {
            if slots.holds(line)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes sure that these lines can be marked later: their slots are on the disk, as zeros.
    pub fn reserve(&mut self, lines: &[Line]) -> io::Result<()> {
        self.write(lines, |_| [0; SLOT_BYTES])
    }

    /// Notes durably that the events of these lines have ended.
    pub fn mark(&mut self, lines: &[Line]) -> io::Result<()> {
        self.write(lines, Line::slot)
    }

    /// Writes the slot of each line into the first file in which it belongs to no other event.
    fn write(
        &mut self,
        lines: &[Line],
        slot: impl Fn(&Line) -> [u8; SLOT_BYTES],
    ) -> io::Result<()> {
        let mut lines = lines.to_vec();
        lines.sort_unstable_by_key(|line| line.number);
        let mut number = 0;
        while !lines.is_empty() {
            if number == self.all.len() {
                self.all.push(Slots::of(self.make()?));
                File::open(&self.dir)?.sync_all()?;
            }
            let slots = &self.all[number];
            let (own, others) = slots.sort(lines)?;
            slots.write(&own, &slot)?;
            (lines, number) = (others, number + 1);
        }
        Ok(())
    }
}

impl Slots {
    fn of(file: File) -> Slots {
        Slots { file, window: Vec::new(), window_start: 0 }
    }

    fn holds(&mut self, line: &Line) -> io::Result<bool> {
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

    /// The lines whose slots are free or hold their events, and those whose slots hold others.
    fn sort(&self, lines: Vec<Line>) -> io::Result<(Vec<Line>, Vec<Line>)> {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for line in lines {
            let mut slot = [0; SLOT_BYTES];
            read_up_to(&self.file, &mut slot, line.offset())?;
            match slot == [0; SLOT_BYTES] || slot == line.slot() {
                true => own.push(line),
                false => others.push(line),
            }
        }
        Ok((own, others))
    }

    /// Writes the slots of these lines, which are in rising order, and makes them durable.
    fn write(&self, lines: &[Line], slot: impl Fn(&Line) -> [u8; SLOT_BYTES]) -> io::Result<()> {
        for run in lines.chunk_by(|a, b| a.number + 1 == b.number) {
            let slots: Vec<u8> = run.iter().flat_map(&slot).collect();
            self.file.write_all_at(&slots, run[0].offset())?;
        }
        self.file.sync_data()
    }
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
        let other = line(1);
        assert!(!progress.holds(&other).unwrap(), "another event in the same line");
        progress.reserve(&[other, line(20_001)]).unwrap();
        progress.mark(&[other]).unwrap();
        drop(progress);
        for mut progress in
            [open().unwrap(), Progress::look(dir.path(), "a", [7; 16]).unwrap().unwrap()]
        {
            assert!(progress.holds(&other).unwrap() && progress.holds(&lines[0]).unwrap());
        }
        assert!(Progress::look(dir.path(), "b", [7; 16]).unwrap().is_none());
    }
}
