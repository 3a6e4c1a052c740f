//! Limits the rate of log lines that remote clients can cause, and drops those lines of Pingora
//! that are of no use to an operator.
//!
//! Pingora and h2 log many errors of clients, so clients could fill a disk. At most [`LINES_MAX`]
//! of their lines are written in each window. The metrics of the server count all of the errors.

use log::{Log, Metadata, Record};
use parking_lot::Mutex;
use pixelgate::tools::LogThrottle;
use std::time::{Duration, Instant};

/// The most lines in one window that remote clients can cause.
const LINES_MAX: u64 = 20;
/// The length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// The beginnings of the targets whose lines remote clients can cause.
const TARGETS: [&str; 2] = ["pingora", "h2"];

/// The beginnings of lines that Pingora logs as errors although nothing is wrong.
const HARMLESS: [&str; 1] = [
    // Two requests wanted one idle connection to an origin, or that connection was closed
    // meanwhile. The request opens another connection.
    "failed to acquire reusable stream",
];

/// A logger that limits the lines of [`TARGETS`].
pub struct Throttle<L> {
    inner: L,
    throttle: Mutex<LogThrottle>,
}

impl<L: Log> Throttle<L> {
    /// Wraps `inner`.
    pub fn new(inner: L) -> Self {
        Self { inner, throttle: Mutex::new(LogThrottle::new(LINES_MAX, WINDOW)) }
    }

    /// Returns whether one more line is written at `now`.
    fn admits(&self, now: Instant) -> bool {
        self.throttle.lock().admit(now).is_some()
    }
}

impl<L: Log> Log for Throttle<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let limited = TARGETS.iter().any(|target| record.target().starts_with(target));
        if limited && record.args().as_str().is_some_and(|text| HARMLESS.contains(&text)) {
            return;
        }
        if limited && self.inner.enabled(record.metadata()) && !self.admits(Instant::now()) {
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
    fn what_needs_nobody_is_no_line() {
        let log = Throttle::new(Lines::default());
        for target in ["pingora_core::connectors", "pixelgate::server"] {
            let args = format_args!("failed to acquire reusable stream");
            log.log(&Record::builder().target(target).args(args).build());
        }
        assert_eq!(log.inner.0.lock().len(), 1, "that of pixelgate itself");
    }

    #[test]
    fn a_new_window_has_room_again() {
        let log = Throttle::new(Lines::default());
        let start = Instant::now();
        let admitted = |seconds| {
            let now = start + Duration::from_secs(seconds);
            (0..100).filter(|_| log.admits(now)).count() as u64
        };
        assert_eq!([admitted(0), admitted(9), admitted(10)], [LINES_MAX, 0, LINES_MAX]);
    }
}
