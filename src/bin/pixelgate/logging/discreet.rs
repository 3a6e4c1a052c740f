//! The log, as long as strangers write in it.
//!
//! Pingora has a line for much that a client does wrong, so clients could fill a disk with them.
//! Its lines are as many as help to understand what goes on; the front door's counters have all.

use log::{Log, Metadata, Record};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Lines of the proxy library in one window.
const LINES_MAX: u64 = 20;
/// Length of a window, in seconds.
const WINDOW_SECONDS: u64 = 10;
/// Who writes at a client's bidding.
const TARGETS: [&str; 2] = ["pingora", "h2"];

/// A log that is not to be flooded.
pub struct Discreet<L> {
    inner: L,
    started: Instant,
    window: AtomicU64,
    lines: AtomicU64,
}

impl<L: Log> Discreet<L> {
    /// Stands before `inner`.
    pub fn new(inner: L) -> Self {
        let (window, lines) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { inner, started: Instant::now(), window, lines }
    }

    /// Whether one more line fits into the window of this moment.
    fn fits(&self, seconds: u64) -> bool {
        let window = seconds / WINDOW_SECONDS;
        if self.window.swap(window, Relaxed) != window {
            self.lines.store(0, Relaxed);
        }
        self.lines.fetch_add(1, Relaxed) < LINES_MAX
    }
}

impl<L: Log> Log for Discreet<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let strange = TARGETS.iter().any(|target| record.target().starts_with(target));
        if strange
            && self.inner.enabled(record.metadata())
            && !self.fits(self.started.elapsed().as_secs())
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
    use std::sync::Mutex;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Log for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().unwrap().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    #[test]
    fn lines_of_the_proxy_are_as_many_as_may_be_and_ours_are_all_there() {
        let log = Discreet::new(Lines::default());
        let line = |target: &str, text: &str| {
            log.log(&Record::builder().target(target).args(format_args!("{text}")).build());
        };
        for _ in 0..1000 {
            line("pingora_proxy", "theirs");
            line("pixelgate::server", "ours");
        }
        let count = |text: &str| log.inner.0.lock().unwrap().iter().filter(|l| *l == text).count();
        assert_eq!((count("theirs"), count("ours")), (LINES_MAX as usize, 1000));
        assert_eq!(log.inner.0.lock().unwrap().len(), 1000 + LINES_MAX as usize);
    }

    #[test]
    fn a_new_window_has_room_again() {
        let log = Discreet::new(Lines::default());
        let fitting = |seconds: u64| (0..100).filter(|_| log.fits(seconds)).count() as u64;
        assert_eq!([fitting(0), fitting(9), fitting(10)], [LINES_MAX, 0, LINES_MAX]);
    }
}
