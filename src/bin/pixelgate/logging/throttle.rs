//! Limits the rate of log lines that remote clients can trigger.
//!
//! Pingora and h2 log many client errors, so clients could fill a disk. Of their lines at most
//! [`LINES_MAX`] are written in each window; the counters of the server count all of the errors.

use log::{Log, Metadata, Record};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Most lines in one window that remote clients can trigger.
const LINES_MAX: u64 = 20;
/// Length of a window, in seconds.
const WINDOW_SECONDS: u64 = 10;
/// Targets whose lines remote clients can trigger, by prefix.
const TARGETS: [&str; 2] = ["pingora", "h2"];

/// A logger that limits the lines of [`TARGETS`].
pub struct Throttle<L> {
    inner: L,
    started: Instant,
    window: AtomicU64,
    lines: AtomicU64,
}

impl<L: Log> Throttle<L> {
    /// Wraps `inner`.
    pub fn new(inner: L) -> Self {
        let (window, lines) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { inner, started: Instant::now(), window, lines }
    }

    /// Whether one more line is allowed, `seconds` after the start.
    fn admits(&self, seconds: u64) -> bool {
        let window = seconds / WINDOW_SECONDS;
        if self.window.swap(window, Relaxed) != window {
            self.lines.store(0, Relaxed);
        }
        self.lines.fetch_add(1, Relaxed) < LINES_MAX
    }
}

impl<L: Log> Log for Throttle<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let limited = TARGETS.iter().any(|target| record.target().starts_with(target));
        if limited
            && self.inner.enabled(record.metadata())
            && !self.admits(self.started.elapsed().as_secs())
        {
            return;
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Log for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    #[test]
    fn lines_of_pingora_are_limited_and_ours_are_not() {
        let log = Throttle::new(Lines::default());
        let line = |target: &str, text: &str| {
            log.log(&Record::builder().target(target).args(format_args!("{text}")).build());
        };
        for _ in 0..1000 {
            line("pingora_proxy", "theirs");
            line("pixelgate::server", "ours");
        }
        let count = |text: &str| log.inner.0.lock().iter().filter(|l| *l == text).count();
        assert_eq!((count("theirs"), count("ours")), (LINES_MAX as usize, 1000));
        assert_eq!(log.inner.0.lock().len(), 1000 + LINES_MAX as usize);
    }

    #[test]
    fn a_new_window_has_room_again() {
        let log = Throttle::new(Lines::default());
        let admitted = |seconds: u64| (0..100).filter(|_| log.admits(seconds)).count() as u64;
        assert_eq!([admitted(0), admitted(9), admitted(10)], [LINES_MAX, 0, LINES_MAX]);
    }
}
