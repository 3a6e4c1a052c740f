//! A logger that writes a repeated line once and then counts it, so that a fault that lasts does
//! not fill the disk (SPEC 8).
//!
//! A warning or error that repeats within [`WINDOW`] is not written. At the end of the window one
//! line reports how often it occurred. The number of different lines from one place in the code is
//! limited in the same way. Two kinds of line are not limited here: single verdicts, which repeat
//! by nature and have another limit (`log.verdicts`), and lines less severe than info.

use crate::plural::counted;
use log::{Level, Log, Metadata, Record};
use parking_lot::Mutex;
use pixelgate::admin_pages::VERDICT_TARGET;
use pixelgate::tools::LogThrottle;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long repetitions of a line are not written but counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The most lines from one place in the code in one window.
pub const LINES_FROM_ONE_PLACE_MAX: u64 = 60;
/// The most lines and places that are remembered. Above it every new line is written.
pub const TRACKED_MAX: usize = 512;

/// A logger that passes lines that are not repetitions on to `L`.
pub struct Dedup<L> {
    inner: L,
    seen: Mutex<Seen>,
}

/// What two lines have in common if the later one is a repetition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// The same level, target and text.
    Text(Level, String, String),
    /// The same level, target and line of the source, with any text.
    Place(Level, String, u32),
}

/// The lines of one kind.
#[derive(Debug)]
struct Window {
    throttle: LogThrottle,
    /// The number of lines not written in earlier windows, for the next flush to report.
    unreported: u64,
}

#[derive(Debug, Default)]
struct Seen(HashMap<Kind, Window>);

impl<L: Log> Dedup<L> {
    /// Wraps `inner`, whose `flush` must not log.
    pub fn new(inner: L) -> Self {
        Self { inner, seen: Mutex::default() }
    }

    fn is_admitted(&self, record: &Record<'_>) -> bool {
        if record.level() > Level::Info || record.target() == VERDICT_TARGET {
            return true;
        }
        let (level, target) = (record.level(), record.target().to_owned());
        let place = Kind::Place(level, target.clone(), record.line().unwrap_or(0));
        let text = Kind::Text(level, target, record.args().to_string());
        let now = Instant::now();
        self.with_seen(|seen| {
            // An info line is a change of state, so each one is written.
            let is_new = level == Level::Info || seen.admit(text, 1, now);
            is_new && seen.admit(place, LINES_FROM_ONE_PLACE_MAX, now)
        })
    }

    fn report(&self, kind: &Kind, count: u64) {
        let seconds = WINDOW.as_secs();
        let (level, target, message) = match kind {
            Kind::Text(level, target, text) => {
                let times = counted(count, "more time");
                (*level, target, format!("{text} ({times} in {seconds} s)"))
            }
            Kind::Place(level, target, line) => {
                let lines = counted(count, "more line");
                let what = format!("{lines} from line {line} of this module in {seconds} s");
                (*level, target, what)
            }
        };
        let mut record = Record::builder();
        record.level(level).target(target);
        self.inner.log(&record.args(format_args!("{message}")).build());
    }

    fn with_seen<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        act(&mut self.seen.lock())
    }
}

impl<L: Log> Log for Dedup<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && self.is_admitted(record) {
            self.inner.log(record);
        }
    }

    /// Reports the lines that were not written in windows that are over.
    fn flush(&self) {
        for (kind, count) in self.with_seen(|seen| seen.due(Instant::now())) {
            self.report(&kind, count);
        }
        self.inner.flush();
    }
}

impl Seen {
    /// Returns whether one more line of this kind is written. A window allows `most` of them.
    fn admit(&mut self, kind: Kind, most: u64, now: Instant) -> bool {
        if self.0.len() >= TRACKED_MAX && !self.0.contains_key(&kind) {
            return true;
        }
        let new = || Window { throttle: LogThrottle::new(most, WINDOW), unreported: 0 };
        let window = self.0.entry(kind).or_insert_with(new);
        window.unreported += window.throttle.report(now).unwrap_or(0);
        window.throttle.admit(now).is_some()
    }

    /// Returns the number of lines that were not written in windows that are over, by kind. Such a
    /// window begins again, so that a fault that lasts is reported once in each window.
    fn due(&mut self, now: Instant) -> Vec<(Kind, u64)> {
        let mut due = Vec::new();
        self.0.retain(|kind, window| {
            let held_back = window.unreported + window.throttle.report(now).unwrap_or(0);
            window.unreported = 0;
            if held_back > 0 {
                due.push((kind.clone(), held_back));
            }
            !window.throttle.is_idle(now)
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Log for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().push(format!("{} {}", record.level(), record.args()));
        }

        fn flush(&self) {}
    }

    fn text(text: &str) -> Kind {
        Kind::Text(Level::Error, "a".to_owned(), text.to_owned())
    }

    #[test]
    fn a_repetition_is_counted_and_reported_after_its_window() {
        let mut seen = Seen::default();
        let start = Instant::now();
        let almost = start + WINDOW - Duration::from_millis(1);
        assert!(seen.admit(text("disk"), 1, start));
        assert!(!seen.admit(text("disk"), 1, start));
        assert!(!seen.admit(text("disk"), 1, almost));
        assert!(seen.admit(text("other"), 1, almost), "another text is news");
        assert_eq!(seen.due(almost), []);
        assert_eq!(seen.due(start + WINDOW), [(text("disk"), 2)]);
        // The fault lasted until now, so it is not new. After a window without it, it is.
        assert!(!seen.admit(text("disk"), 1, start + WINDOW));
        assert_eq!(seen.due(start + 2 * WINDOW), [(text("disk"), 1)]);
        assert_eq!(seen.due(start + 3 * WINDOW), []);
        assert!(seen.admit(text("disk"), 1, start + 3 * WINDOW));
    }

    #[test]
    fn without_a_flush_a_fault_is_new_again_after_a_quiet_window() {
        let mut seen = Seen::default();
        let start = Instant::now();
        assert!(seen.admit(text("disk"), 1, start));
        assert!(seen.admit(text("disk"), 1, start + WINDOW));
    }

    #[test]
    fn what_is_tracked_is_limited() {
        let mut seen = Seen::default();
        let now = Instant::now();
        for number in 0..2 * TRACKED_MAX {
            assert!(seen.admit(text(&number.to_string()), 1, now));
        }
        assert_eq!(seen.0.len(), TRACKED_MAX);
    }

    #[test]
    fn warnings_are_written_once_changes_each_time_and_one_place_has_a_limit() {
        let lines = Lines::default();
        let dedup = Dedup::new(lines.clone());
        let log = |level, target: &str, line: u32, text: &str| {
            let mut record = Record::builder();
            record.level(level).target(target).line(Some(line));
            dedup.log(&record.args(format_args!("{text}")).build());
        };
        let written = || std::mem::take(&mut *lines.0.lock());
        for _ in 0..3 {
            log(Level::Warn, "a", 1, "slow");
            log(Level::Info, "a", 2, "reloaded");
            log(Level::Info, VERDICT_TARGET, 3, "event");
        }
        let expect = ["WARN slow", "INFO reloaded", "INFO event"];
        let news = ["INFO reloaded", "INFO event"];
        assert_eq!(written(), [&expect[..], &news, &news].concat());
        for number in 0..2 * LINES_FROM_ONE_PLACE_MAX {
            log(Level::Error, "b", 9, &number.to_string());
        }
        assert_eq!(written().len() as u64, LINES_FROM_ONE_PLACE_MAX);
    }
}
