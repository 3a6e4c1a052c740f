//! Writes the files of one folder, with an order of writes, syncs and renames that keeps them
//! whole.
//!
//! It guarantees:
//! - A finished file (`*.ndjson`) holds whole lines only and never changes.
//! - A line is on disk, in a file that is still under its name, when [`Writer::sync`] has returned
//!   `Ok` after the [`Writer::append`] of the line.
//! - An open file (`*.ndjson.part`) is locked by its process. An open file without a lock is a
//!   leftover of a crash or of a failing disk: the process that opens the next file removes its
//!   torn last line and renames it. A line that is removed or repeated there was never synced, so
//!   its event is delivered again.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock, timestamp};
use crate::disk_error::is_of_path;
use crate::file_lock;

/// The suffix of an open file, after its final name.
const PART: &str = ".part";
/// The lock file of the folder. It is locked while a file is created and locked, and while
/// leftovers are searched: otherwise a file that is created but not locked yet would look like a
/// leftover.
const LOCK: &str = ".lock";
/// The block size of the backward search for the last line feed of a leftover, in bytes.
const TAIL_BYTES: u64 = 64 << 10;
/// The longest wait for a request while no file is open. After it, the thread waits again.
const IDLE: Duration = Duration::from_secs(3600);
/// The mode of files. The owner writes and the group reads; no others may, because events hold
/// personal data.
const FILE_MODE: u32 = 0o640;

/// Writes lines to one file after another.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    rotate_bytes: u64,
    rotate_after: Duration,
    open: Option<Open>,
    /// The time in the last file name, in milliseconds since 1970, so that names sort even if the
    /// clock goes back.
    last_ms: u64,
    /// Whether lines that were appended since the last [`Writer::sync`] may be missing on disk.
    lost: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    part: PathBuf,
    since: Instant,
    /// The bytes of whole batches in the file.
    bytes: u64,
    /// The number of these bytes that are synced.
    synced: u64,
}

impl Writer {
    /// Creates the folder and finishes files that a crash left open. If the condition of the disk
    /// does not allow this, the first event tries it again.
    ///
    /// # Errors
    ///
    /// The path of the folder is a mistake ([`is_of_path`]).
    pub fn open(dir: &Path, rotate_bytes: u64, rotate_after: Duration) -> io::Result<Writer> {
        let dir = dir.to_path_buf();
        let writer =
            Writer { dir, rotate_bytes, rotate_after, open: None, last_ms: 0, lost: false };
        match writer.prepare() {
            Err(e) if !is_of_path(&e) => {
                let dir = writer.dir.display();
                log::warn!("the folder {dir} cannot be written, and events wait until it can: {e}");
            }
            prepared => drop(prepared?),
        }
        Ok(writer)
    }

    /// Creates the folder, even if it was removed after the start, and finishes files that no
    /// process has open. Returns the lock of the folder.
    fn prepare(&self) -> io::Result<File> {
        make_dir(&self.dir)?;
        let lock = self.lock_dir()?;
        self.finish_leftovers()?;
        Ok(lock)
    }

    /// The time until the open file is due for rotation.
    pub fn until_rotation(&self) -> Duration {
        match &self.open {
            Some(open) => self.rotate_after.saturating_sub(open.since.elapsed()),
            None => IDLE,
        }
    }

    /// Finishes the open file if it is old enough.
    pub fn rotate_if_due(&mut self) {
        if self.until_rotation().is_zero() {
            self.finish();
        }
    }

    /// Appends whole lines. After an error, none of them is in the file.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let len = lines.len() as u64;
        if self.open.as_ref().is_some_and(|o| o.bytes > 0 && o.bytes + len > self.rotate_bytes) {
            self.finish();
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.create()?,
        };
        let written = open.file.write_all(lines);
        match written {
            Ok(()) => {
                open.bytes += len;
                self.open = Some(open);
            }
            // Removes the torn lines and goes on with the same file. If that fails, too, the file
            // is closed, and is finished later as a leftover.
            Err(_) if open.file.set_len(open.bytes).is_ok() => self.open = Some(open),
            Err(_) => self.lost |= open.synced < open.bytes,
        }
        written
    }

    /// Syncs all lines that were appended since the last call. After an error, all of these lines
    /// may be missing on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        let lost = std::mem::take(&mut self.lost);
        self.sync_open()?;
        if lost {
            return Err(io::Error::other("lines in a file that was closed before may be missing"));
        }
        Ok(())
    }

    /// Gives the open file its final name. If that fails, the file is finished later as a leftover.
    pub fn finish(&mut self) {
        if let Err(e) = self.sync_open() {
            self.lost = true;
            log::warn!("a file in {} cannot be synced: {e}", self.dir.display());
        }
        let Some(open) = self.open.take() else { return };
        if let Err(e) = open.check_place().and_then(|()| self.finish_part(&open.part)) {
            log::warn!("{} cannot be given its final name yet: {e}", open.part.display());
        }
    }

    /// Syncs the open file, and closes it after an error: after a failed sync, the next sync may
    /// succeed without writing the lost data. A file that was removed or replaced is an error, too,
    /// and its lines are written again into a new file.
    fn sync_open(&mut self) -> io::Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if open.synced < open.bytes {
            if let Err(e) = open.file.sync_data().and_then(|()| open.check_place()) {
                open.cut_unsynced();
                return Err(e);
            }
            open.synced = open.bytes;
        }
        self.open = Some(open);
        Ok(())
    }

    fn finish_part(&self, part: &Path) -> io::Result<()> {
        // The final name is free, because `create` checked it.
        fs::rename(part, part.with_extension(""))?;
        sync_dir(&self.dir)
    }

    fn create(&mut self) -> io::Result<Open> {
        let _lock = self.prepare()?;
        self.last_ms = SystemClock.unix_ms().max(self.last_ms + 1);
        let name = format!(
            "{}-{:08x}.ndjson{PART}",
            timestamp(self.last_ms).strftime("%Y%m%dT%H%M%S%.3fZ"),
            rand::random::<u32>(),
        );
        let part = self.dir.join(name);
        if part.with_extension("").exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(FILE_MODE).open(&part)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => e,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        // Without this sync, a power loss could remove the file with all its synced data.
        sync_dir(&self.dir)?;
        Ok(Open { file, part, since: Instant::now(), bytes: 0, synced: 0 })
    }

    fn lock_dir(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let path = self.dir.join(LOCK);
        let lock = options.write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
        file_lock::lock(&lock)?;
        Ok(lock)
    }

    /// Finishes open files that no process has locked. The caller holds the lock of the folder.
    fn finish_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let part = entry?.path();
            let ours = part.to_str().is_some_and(|p| p.ends_with(".ndjson.part"));
            if !ours || !part.is_file() {
                continue;
            }
            let mut file = OpenOptions::new().read(true).write(true).open(&part)?;
            if file.try_lock().is_err() {
                continue;
            }
            if cut_torn_line(&mut file, &part)? == 0 {
                fs::remove_file(&part)?;
                continue;
            }
            file.sync_all()?;
            self.finish_part(&part)?;
        }
        Ok(())
    }
}

impl Open {
    /// Checks that the open file is still the one under its name and holds all that was written.
    fn check_place(&self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(&self.part)?);
        let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        if same && ours.len() == self.bytes {
            return Ok(());
        }
        Err(io::Error::other("the open file was removed, replaced or truncated"))
    }

    /// Removes the lines that were not synced, because they are written again into another file.
    fn cut_unsynced(&self) {
        if self.file.metadata().is_ok_and(|ours| ours.len() > self.synced) {
            let _ = self.file.set_len(self.synced);
        }
    }
}

/// Creates the folder if it is missing, and syncs its parent so that the folder survives a power
/// loss.
fn make_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Truncates a file to the end of its last whole line. Returns its new length in bytes.
fn cut_torn_line(file: &mut File, path: &Path) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let whole = whole_lines(file, len)?;
    if whole < len {
        let (path, torn) = (path.display(), len - whole);
        log::warn!("{path}: cut {torn} bytes of a line torn by a crash; its event is sent again");
        file.set_len(whole)?;
    }
    Ok(whole)
}

/// The length of a file of `len` bytes up to and including its last line feed.
fn whole_lines(file: &mut File, len: u64) -> io::Result<u64> {
    let mut end = len;
    let mut tail = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        tail.clear();
        Read::take(&mut *file, end - start).read_to_end(&mut tail)?;
        if let Some(at) = memchr::memrchr(b'\n', &tail) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path) -> Writer {
        Writer::open(dir, 1 << 20, Duration::from_secs(60)).unwrap()
    }

    fn text_of_all(dir: &Path) -> String {
        let finished = |p: &PathBuf| p.extension().is_some_and(|e| e == "ndjson");
        let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.retain(finished);
        all.sort();
        all.iter().map(|p| fs::read_to_string(p).unwrap()).collect()
    }

    /// Puts a handle that can only read in the open file's place: writes fail, and so does
    /// cutting back.
    fn break_open_file(writer: &mut Writer) {
        let open = writer.open.as_mut().unwrap();
        open.file = File::open(&open.part).unwrap();
    }

    #[test]
    fn after_a_failed_write_nothing_of_the_same_group_counts_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        writer.append(b"1\n").unwrap();
        writer.sync().unwrap();
        writer.append(b"2\n").unwrap();
        break_open_file(&mut writer);
        writer.append(b"3\n").unwrap_err();
        writer.append(b"4\n").unwrap();
        writer.sync().unwrap_err();
        // All of the group comes again, and then counts.
        for line in [b"2\n", b"3\n", b"4\n"] {
            writer.append(line).unwrap();
        }
        writer.sync().unwrap();
        writer.finish();
        let text = text_of_all(dir.path());
        for line in ["1", "2", "3", "4"] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text:?}");
        }
    }

    #[test]
    fn a_failed_write_that_can_be_undone_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        writer.append(b"1\n").unwrap();
        // What a full disk leaves: the beginning of what should have been written.
        let open = writer.open.as_mut().unwrap();
        open.file.write_all(b"tor").unwrap();
        open.file.set_len(open.bytes).unwrap();
        writer.append(b"2\n").unwrap();
        writer.sync().unwrap();
        writer.finish();
        assert_eq!(text_of_all(dir.path()), "1\n2\n");
    }

    #[test]
    fn it_rotates_at_its_bounds_and_a_larger_batch_has_a_file_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), 4, Duration::from_secs(60)).unwrap();
        for lines in ["1\n", "2\n", "3\n", "4444444\n", "5\n"] {
            writer.append(lines.as_bytes()).unwrap();
        }
        writer.finish();
        let count = fs::read_dir(dir.path()).unwrap().count() - 1;
        assert_eq!(count, 4, "12, 3, 4444444 and 5, beside the lock");
        assert_eq!(text_of_all(dir.path()), "1\n2\n3\n4444444\n5\n");
    }

    #[test]
    fn nothing_is_due_without_an_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), 4, Duration::ZERO).unwrap();
        assert_eq!(writer.until_rotation(), IDLE);
        writer.append(b"1\n").unwrap();
        assert_eq!(writer.until_rotation(), Duration::ZERO);
        writer.rotate_if_due();
        assert_eq!(text_of_all(dir.path()), "1\n");
        assert_eq!(writer.until_rotation(), IDLE);
    }
}
