//! The thread that writes the lines of the access log to its file.
//!
//! Lines that cannot be written stay in the writer's own buffer, and the writer tries again each
//! second. Meanwhile the next lines wait in [`Buffer`], and lines that find no room there are lost.
//! While this lasts, `/status` shows a fault. The log gets one line when the fault begins and one
//! when it ends.
//!
//! The file is opened for appending, so that two processes can write to it during an upgrade, and
//! without blocking, so that a pipe without a reader does not delay a start.

use super::buffer::Buffer;
use super::config::Config;
use super::line;
use crate::now::now;
use log::{error, info, warn};
use pixelgate::PixelGate;
use pixelgate::custom::{AccessLog, AccessRecord, FaultKind, Faults};
use pixelgate::tools::is_of_path;
use rustix::fs::OFlags;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

/// Pause between two attempts after a failure, in seconds.
const RETRY_SECONDS: u64 = 1;
/// Permissions of a new file: it holds addresses of clients.
const FILE_MODE: u32 = 0o640;
/// The most bytes of one write to standard error. A pipe takes this many bytes in one piece, so no
/// line of the log can divide a line of the access log.
const STDERR_WRITE_BYTES_MAX: usize = 4096;
/// The advice that `/status` shows with the fault.
const ADVICE: &str = "Look at the disk and the permissions of access_log.path. Requests are served \
 all the same; further lines are lost while the buffer is full.";

/// An access log whose file is opened and whose writer is not started yet.
pub struct Opened {
    config: Config,
    /// An error if the disk does not let the file be opened now. The writer tries again.
    file: io::Result<File>,
}

/// A running access log.
pub struct AccessLogFile {
    log: AccessLog,
    writing: Writing,
}

/// A handle to the thread of the writer. The thread ends when the log is closed, or when no request
/// can add a line any more.
pub struct Writing {
    buffer: Arc<Buffer>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

/// Adds the lines of requests to the buffer, and closes the buffer when it is dropped, with the
/// last handle to the log.
struct Sink(Arc<Buffer>);

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Writer {
    buffer: Arc<Buffer>,
    /// `None`: the file could not be opened yet.
    file: Option<File>,
    /// The lines that are being written.
    lines: Vec<u8>,
    /// The number of bytes of `lines` that are written.
    written: usize,
    config: Config,
    faults: Faults,
    /// Why the file could not be opened, or opened again. The writer tries until it can be.
    reopen_error: Option<io::Error>,
    /// Whether `/status` shows the fault.
    is_failing: bool,
    /// The number of lost lines at the last report.
    lost_before: u64,
}

impl Opened {
    /// Opens the file. Returns `None` if no access log is configured. A disk that does not let the
    /// file be opened is not an error, because it must not prevent a start.
    ///
    /// # Errors
    ///
    /// The path is wrong, such as that of a folder, or leads to a file that another key names.
    pub fn open(config: &Config) -> io::Result<Option<Opened>> {
        if !config.is_on() {
            return Ok(None);
        }
        let file = match open(config) {
            Err(e) if is_of_path(&e) => return Err(e),
            opened => opened,
        };
        Ok(Some(Opened { file, config: config.clone() }))
    }

    /// An access log whose file could not be opened in time. The writer tries again.
    pub fn late(config: &Config, why: io::Error) -> Opened {
        Opened { file: Err(why), config: config.clone() }
    }

    /// Starts the thread of the writer.
    ///
    /// # Errors
    ///
    /// The system starts no thread.
    pub fn start(self, gate: &PixelGate) -> io::Result<AccessLogFile> {
        let Opened { config, file } = self;
        let lost = gate.metrics().access_log_lost_lines.clone();
        let buffer = Arc::new(Buffer::new(config.buffer_len(), config.flush(), lost));
        let (running, ended) = sync_channel(0);
        let format = config.format;
        let (file, reopen_error) = match file {
            Ok(file) => (Some(file), None),
            Err(e) => (None, Some(e)),
        };
        let writer = Writer {
            buffer: buffer.clone(),
            file,
            lines: Vec::with_capacity(config.buffer_len()),
            written: 0,
            config,
            faults: gate.faults().clone(),
            reopen_error,
            is_failing: false,
            lost_before: 0,
        };
        let run = move || {
            writer.run();
            drop(running);
        };
        std::thread::Builder::new().name("access log".to_owned()).spawn(run)?;
        let into = Sink(buffer.clone());
        let log = AccessLog::new(move |record: &AccessRecord| {
            thread_local! {
                static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
            }
            LINE.with_borrow_mut(|line| {
                line.clear();
                line::write(format, record, now(), line);
                into.0.push(line);
            });
        });
        Ok(AccessLogFile { log, writing: Writing { buffer, ended } })
    }
}

impl AccessLogFile {
    /// Returns what receives the records of requests, and the handle to the writer.
    pub fn into_parts(self) -> (AccessLog, Writing) {
        (self.log, self.writing)
    }
}

impl Writing {
    /// Whether the writer has ended: every line is written or lost.
    pub fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Asks the writer to open the file again, after the lines of all ended requests are in the
    /// old one. Returns at once.
    pub fn reopen(&self) {
        self.buffer.reopen();
    }

    /// Writes the waiting lines, and ends the writer. Waits for `limit` at most.
    pub fn close(&self, limit: Duration) {
        self.buffer.close();
        // No message is ever sent: the end of the writer disconnects the channel.
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            warn!("the last lines of the access log are lost: its disk does not answer");
        }
    }
}

impl Writer {
    fn run(mut self) {
        self.report(Ok(()));
        loop {
            let is_stuck = !self.lines.is_empty();
            let limit = self.is_failing.then(|| Duration::from_secs(RETRY_SECONDS));
            let asked = self.buffer.wait(is_stuck, limit);
            let mut written = self.write_next();
            if asked.reopen || self.reopen_error.is_some() {
                self.reopen();
                written = self.write();
            }
            if asked.closing {
                let written = written.and_then(|()| self.write_next());
                return self.give_up(written);
            }
            self.report(written);
        }
    }

    /// Writes the lines that could not be written last time, or, if there are none, those that
    /// wait in the buffer.
    fn write_next(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            self.buffer.take(&mut self.lines);
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.lines.len() {
            let rest = &self.lines[self.written..];
            let piece = if self.config.is_stderr() { whole_lines(rest) } else { rest };
            let Some(file) = &mut self.file else {
                return Err(io::Error::other("the file is not open"));
            };
            match file.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.lines.clear();
        self.written = 0;
        Ok(())
    }

    fn reopen(&mut self) {
        if self.config.is_stderr() {
            return;
        }
        match open(&self.config) {
            Ok(file) => {
                self.file = Some(file);
                self.reopen_error = None;
                self.skip_to_line();
            }
            Err(e) => self.reopen_error = Some(e),
        }
    }

    /// Leaves out the rest of a line whose beginning is in the old file.
    fn skip_to_line(&mut self) {
        let (done, rest) = self.lines.split_at(self.written);
        if done.last().is_some_and(|byte| *byte != b'\n') {
            let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
            self.written += end;
            self.buffer.count_lost(1);
        }
    }

    /// Raises or clears the fault, after a write with the result `written`.
    fn report(&mut self, written: io::Result<()>) {
        let lost = self.buffer.lost();
        let path = self.config.path.display();
        let condition = match (&written, &self.reopen_error) {
            (_, Some(e)) if self.file.is_none() => {
                Some(format!("the access log {path} cannot be opened: {e}"))
            }
            (Err(e), _) => Some(format!("the access log {path} cannot be written: {e}")),
            (Ok(()), Some(e)) => Some(format!("the access log {path} cannot be opened again: {e}")),
            (Ok(()), None) if lost > self.lost_before => {
                Some(format!("lines come faster than the access log {path} takes them"))
            }
            (Ok(()), None) => None,
        };
        self.lost_before = lost;
        let subject = path.to_string();
        match condition {
            Some(text) => {
                if !self.is_failing {
                    error!("{text}");
                }
                self.is_failing = true;
                let text = format!("{text}; lines lost since the start: {lost}");
                self.faults.raise(FaultKind::AccessLog, &subject, text, ADVICE);
            }
            None if self.is_failing => {
                info!("the access log {path} is written again; lines lost since the start: {lost}");
                self.is_failing = false;
                self.faults.clear(FaultKind::AccessLog, &subject);
            }
            None => {}
        }
    }

    /// Ends the writer after its last write had the result `written`. Lines that could not be
    /// written are lost.
    fn give_up(mut self, written: io::Result<()>) {
        self.faults.clear(FaultKind::AccessLog, &self.config.path.display().to_string());
        let Err(e) = written else { return };
        let rest = self.lines.split_off(self.written);
        self.lines.clear();
        self.buffer.take(&mut self.lines);
        let is_end = |byte: &&u8| **byte == b'\n';
        let lines = rest.iter().chain(&self.lines).filter(is_end).count();
        let path = self.config.path.display();
        warn!("the access log {path} cannot be written, lines lost at the stop: {lines}: {e}");
    }
}

fn open(config: &Config) -> io::Result<File> {
    if config.is_stderr() {
        return Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?));
    }
    // Before it is opened, because that may make the file.
    match config.conflict() {
        Some(why) => Err(io::Error::new(io::ErrorKind::InvalidInput, why)),
        None => open_file(&config.path),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    // Both crates use the system's own values of the flags.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE).custom_flags(flags).open(path)
}

/// Returns the lines at the beginning of `bytes` that fit into one write, but at least one line.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    if bytes.len() <= STDERR_WRITE_BYTES_MAX {
        return bytes;
    }
    let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let first = || bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    let length = end(&bytes[..STDERR_WRITE_BYTES_MAX]).or_else(first);
    &bytes[..length.unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_standard_error_ends_with_a_line() {
        let short = [b"a\n".repeat(9), b"b".to_vec()].concat();
        assert_eq!(whole_lines(&short), short);
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        assert_eq!(whole_lines(&line.repeat(9)), line.repeat(4));
        let long = [b"x".repeat(9999), b"\n".to_vec()].concat();
        assert_eq!(whole_lines(&long.repeat(2)), long);
    }
}
