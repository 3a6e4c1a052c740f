//! The buffer of the access log. The threads that serve requests add lines to it, and one thread
//! writes them to the file.
//!
//! A line that finds no room in the buffer is lost and counted, because a disk that is slow or full
//! must not delay a request. The writer wakes up when half of the buffer is full, or
//! `access_log.flush_seconds` after the first line.

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use std::time::{Duration, Instant};

/// Lines that wait to be written.
pub struct Buffer {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
    flush: Duration,
    lost_lines: IntCounter,
}

struct State {
    lines: Vec<u8>,
    reopen: bool,
    closing: bool,
}

/// What the writer must do beside writing.
pub struct Asked {
    /// Open the file again, after the waiting lines are written.
    pub reopen: bool,
    /// Write the waiting lines, and end.
    pub closing: bool,
}

impl Buffer {
    /// Returns an empty buffer for `bytes_max` bytes. `lost_lines` counts the lines that find no
    /// room. The system gives the memory only as lines fill it.
    pub fn new(bytes_max: usize, flush: Duration, lost_lines: IntCounter) -> Self {
        let state = State { lines: Vec::with_capacity(bytes_max), reopen: false, closing: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), bytes_max, flush, lost_lines }
    }

    /// Adds a line, or counts it as lost.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let before = state.lines.len();
        let after = before + line.len();
        if after > self.bytes_max {
            self.lost_lines.inc();
            return;
        }
        state.lines.extend_from_slice(line);
        drop(state);
        let half = self.bytes_max / 2;
        if before == 0 || before < half && after >= half {
            self.changed.notify_one();
        }
    }

    /// Counts lines that the writer could not write.
    pub fn count_lost(&self, lines: u64) {
        self.lost_lines.inc_by(lines);
    }

    /// The number of lines lost since the start of the process.
    pub fn lost(&self) -> u64 {
        self.lost_lines.get()
    }

    /// Asks the writer to open the file again.
    pub fn reopen(&self) {
        self.state.lock().reopen = true;
        self.changed.notify_one();
    }

    /// Asks the writer to write the waiting lines, and to end.
    pub fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    /// Waits until lines must be written or the writer is asked for something, for `limit` at
    /// most. With `is_stuck` the writer still holds lines that it could not write, so the lines
    /// here are not waited for.
    pub fn wait(&self, is_stuck: bool, limit: Option<Duration>) -> Asked {
        let mut until = limit.map(|limit| Instant::now() + limit);
        let mut state = self.state.lock();
        while !state.reopen && !state.closing {
            if !is_stuck && state.lines.len() >= self.bytes_max / 2 {
                break;
            }
            if !is_stuck && !state.lines.is_empty() && until.is_none() {
                until = Some(Instant::now() + self.flush);
            }
            match until {
                None => self.changed.wait(&mut state),
                Some(until) if self.changed.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
            }
        }
        Asked { reopen: std::mem::take(&mut state.reopen), closing: state.closing }
    }

    /// Exchanges the waiting lines for `empty`, whose memory then holds the next lines.
    pub fn take(&self, empty: &mut Vec<u8>) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut self.state.lock().lines, empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes_max: usize, flush: Duration) -> Buffer {
        Buffer::new(bytes_max, flush, IntCounter::new("lost", "lines").unwrap())
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_rest_stays_whole() {
        let buffer = buffer(16, Duration::from_secs(3600));
        for line in ["1234567\n", "too long for it\n", "abcdefg\n", "x\n"] {
            buffer.push(line.as_bytes());
        }
        let mut lines = Vec::new();
        buffer.take(&mut lines);
        assert_eq!((lines.as_slice(), buffer.lost()), (&b"1234567\nabcdefg\n"[..], 2));
        buffer.push(b"y\n");
        let mut lines = Vec::new();
        buffer.take(&mut lines);
        assert_eq!((lines.as_slice(), buffer.lost()), (&b"y\n"[..], 2));
    }

    #[test]
    fn half_a_buffer_a_flush_and_a_wish_end_the_wait() {
        let slow = buffer(16, Duration::from_secs(3600));
        slow.push(b"12345678");
        assert!(!slow.wait(false, None).closing, "half of it is taken");
        slow.reopen();
        assert!(slow.wait(true, None).reopen);
        slow.close();
        assert!(slow.wait(true, None).closing);
        let quick = buffer(16, Duration::from_millis(1));
        quick.push(b"1");
        assert!(!quick.wait(false, None).closing, "flush_seconds are over");
        assert!(!quick.wait(true, Some(Duration::from_millis(1))).closing, "the limit is over");
    }
}
