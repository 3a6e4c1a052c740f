//! A logger that does not repeat itself.
//!
//! The same warning or error within [`WINDOW`] is held back and counted; when the window is over
//! one line says how often it came. Lines that differ, but come from one place of the code, are
//! bounded in the same way, whatever they are about. Single verdicts are exempt: they repeat by
//! nature, and have a bound of their own (`log.verdicts`), and so is what only a debugger asks for.

use log::{Level, Log, Metadata, Record};
use pixelgate::admin_pages::VERDICT_TARGET;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long a line stands for its repetitions.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Most lines from one place of the code in one window.
pub const LINES_FROM_ONE_PLACE_MAX: u64 = 60;
/// Most different lines and places that are remembered; when there are more, all are told.
pub const REMEMBERED_MAX: usize = 512;

/// See the module.
pub struct Quiet<L> {
    inner: L,
    memory: Mutex<Memory>,
}

/// What repeats.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// A text.
    Text(Level, String, String),
    /// Different texts from one place: level, target, line.
    Place(Level, String, u32),
}

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u64,
    held_back: u64,
}

#[derive(Debug, Default)]
struct Memory(HashMap<Kind, Told>);

impl<L: Log> Quiet<L> {
    /// Around `inner`, whose `flush` must not log.
    pub fn new(inner: L) -> Self {
        Self { inner, memory: Mutex::default() }
    }

    fn is_told(&self, record: &Record<'_>) -> bool {
        if record.level() > Level::Info || record.target() == VERDICT_TARGET {
            return true;
        }
        let (level, target) = (record.level(), record.target().to_owned());
        let place = Kind::Place(level, target.clone(), record.line().unwrap_or(0));
        let text = Kind::Text(level, target, record.args().to_string());
        let now = Instant::now();
        self.with_memory(|memory| {
            // An info line is a change of state: it is news each time.
            let is_news = level == Level::Info || memory.admit(text, 1, now);
            is_news && memory.admit(place, LINES_FROM_ONE_PLACE_MAX, now)
        })
    }

    fn tell(&self, kind: &Kind, count: u64) {
        let seconds = WINDOW.as_secs();
        let (level, target, message) = match kind {
            Kind::Text(level, target, text) => {
                (*level, target, format!("{text} ({count} times more in {seconds} s)"))
            }
            Kind::Place(level, target, line) => {
                let what =
                    format!("{count} lines like those before, of line {line}, in {seconds} s");
                (*level, target, what)
            }
        };
        let mut record = Record::builder();
        record.level(level).target(target);
        self.inner.log(&record.args(format_args!("{message}")).build());
    }

    fn with_memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        // Nothing panics while it is held.
        act(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<L: Log> Log for Quiet<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && self.is_told(record) {
            self.inner.log(record);
        }
    }

    /// Tells what was held back, where the time for it has come.
    fn flush(&self) {
        for (kind, count) in self.with_memory(|memory| memory.due(Instant::now())) {
            self.tell(&kind, count);
        }
        self.inner.flush();
    }
}

impl Memory {
    /// Whether one more of this kind is told, of which `most` are in a window.
    fn admit(&mut self, kind: Kind, most: u64, now: Instant) -> bool {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&kind) {
            return true;
        }
        let told = self.0.entry(kind).or_insert(Told { since: now, lines: 0, held_back: 0 });
        if now.duration_since(told.since) >= WINDOW && told.held_back == 0 {
            *told = Told { since: now, lines: 0, held_back: 0 };
        }
        let admitted = told.lines < most;
        told.lines += u64::from(admitted);
        told.held_back += u64::from(!admitted);
        admitted
    }

    /// What was held back in windows that are over. One that held something back begins again: as
    /// long as a fault lasts it is told once a window.
    fn due(&mut self, now: Instant) -> Vec<(Kind, u64)> {
        let mut due = Vec::new();
        self.0.retain(|kind, told| {
            if now.duration_since(told.since) < WINDOW {
                return true;
            }
            let held_back = std::mem::take(&mut told.held_back);
            if held_back > 0 {
                due.push((kind.clone(), held_back));
            }
            told.since = now;
            held_back > 0
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
            self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }

        fn flush(&self) {}
    }

    fn text(text: &str) -> Kind {
        Kind::Text(Level::Error, "a".to_owned(), text.to_owned())
    }

    #[test]
    fn a_repetition_is_counted_and_told_when_the_window_is_over() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let almost = start + WINDOW - Duration::from_millis(1);
        assert!(memory.admit(text("disk"), 1, start));
        assert!(!memory.admit(text("disk"), 1, start));
        assert!(!memory.admit(text("disk"), 1, almost));
        assert!(memory.admit(text("other"), 1, almost), "another text is news");
        assert_eq!(memory.due(almost), []);
        assert_eq!(memory.due(start + WINDOW), [(text("disk"), 2)]);
        // It lasted until now, so it is not news yet; after a quiet window it is.
        assert!(!memory.admit(text("disk"), 1, start + WINDOW));
        assert_eq!(memory.due(start + 2 * WINDOW), [(text("disk"), 1)]);
        assert_eq!(memory.due(start + 3 * WINDOW), []);
        assert!(memory.admit(text("disk"), 1, start + 3 * WINDOW));
    }

    #[test]
    fn without_a_flush_a_fault_is_news_again_after_a_quiet_window() {
        let mut memory = Memory::default();
        let start = Instant::now();
        assert!(memory.admit(text("disk"), 1, start));
        assert!(memory.admit(text("disk"), 1, start + WINDOW));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for number in 0..2 * REMEMBERED_MAX {
            assert!(memory.admit(text(&number.to_string()), 1, now));
        }
        assert_eq!(memory.0.len(), REMEMBERED_MAX);
    }

    #[test]
    fn warnings_are_told_once_changes_each_time_and_one_place_has_a_bound() {
        let lines = Lines::default();
        let quiet = Quiet::new(lines.clone());
        let log = |level, target: &str, line: u32, text: &str| {
            let mut record = Record::builder();
            record.level(level).target(target).line(Some(line));
            quiet.log(&record.args(format_args!("{text}")).build());
        };
        let told = || std::mem::take(&mut *lines.0.lock().unwrap());
        for _ in 0..3 {
            log(Level::Warn, "a", 1, "slow");
            log(Level::Info, "a", 2, "reloaded");
            log(Level::Info, VERDICT_TARGET, 3, "event");
        }
        let expect = ["WARN slow", "INFO reloaded", "INFO event"];
        let news = ["INFO reloaded", "INFO event"];
        assert_eq!(told(), [&expect[..], &news, &news].concat());
        for number in 0..2 * LINES_FROM_ONE_PLACE_MAX {
            log(Level::Error, "b", 9, &number.to_string());
        }
        assert_eq!(told().len() as u64, LINES_FROM_ONE_PLACE_MAX);
    }
}
