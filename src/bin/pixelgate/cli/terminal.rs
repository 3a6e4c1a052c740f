//! What a terminal gets and a pipe does not: colours, and a bar that moves.
//!
//! Progress goes to standard error, so that standard output holds the answer and nothing else.
//! Colours are left away where output is no terminal or `NO_COLOR` is set (anstream decides), the
//! bar where standard error is no terminal or a dumb one: there a line tells of each tenth.

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::time::Duration;

/// Something is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// All is well.
pub const GOOD: Style = AnsiColor::Green.on_default();

/// Pause between two turns of the wheel, in milliseconds.
const TURN_MS: u64 = 100;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Events,
}

/// How far a long command is. Whatever was drawn is gone when it is dropped.
pub struct Progress {
    what: String,
    unit: Unit,
    bar: ProgressBar,
    /// Tenths that a line has told of.
    told: u64,
}

impl Progress {
    /// Of `what`, which a reader sees before the figures.
    pub fn new(what: impl Into<String>, unit: Unit) -> Progress {
        let what = what.into();
        let template = match unit {
            Unit::Bytes => "{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left",
            Unit::Events => "{msg} [{bar:30}] {pos} of {len}, {eta} left",
        };
        Progress { bar: bar(template, &what), what, unit, told: 0 }
    }

    /// Something that takes a while and cannot say how long: a wheel on a terminal, else nothing.
    pub fn wheel(what: impl Into<String>) -> Progress {
        let what = what.into();
        let bar = bar("{spinner} {msg}", &what);
        // Shown at once; the first turn of the steady one may come after the end.
        bar.tick();
        bar.enable_steady_tick(Duration::from_millis(TURN_MS));
        Progress { bar, what, unit: Unit::Events, told: 0 }
    }

    /// `done` of `total` is done.
    pub fn at(&mut self, done: u64, total: u64) {
        if !self.bar.is_hidden() {
            self.bar.set_length(total);
            self.bar.set_position(done.min(total));
        } else if let Some(tenths) = next_tenth(self.told, done, total) {
            self.told = tenths;
            let total = match self.unit {
                Unit::Bytes => ByteSize(total).to_string(),
                Unit::Events => format!("{total} events"),
            };
            // Standard error is gone only if nobody listens.
            let _ = writeln!(std::io::stderr(), "{}: {tenths}0 % of {total}", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bar(template: &str, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // A template that does not parse would be a mistake in this file; the crate's own is as good.
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_message(what.to_owned())
}

/// The tenths to tell of, where there are more than were told. The whole is told by the answer.
fn next_tenth(told: u64, done: u64, total: u64) -> Option<u64> {
    let tenths = u128::from(done) * 10 / u128::from(total.max(1));
    let tenths = u64::try_from(tenths).unwrap_or(u64::MAX);
    (told < tenths && tenths < 10).then_some(tenths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenth_is_told_once_and_the_whole_never() {
        let mut told = 0;
        let mut lines = Vec::new();
        for done in 0..=1000 {
            if let Some(tenths) = next_tenth(told, done, 1000) {
                told = tenths;
                lines.push((done, tenths));
            }
        }
        let all: Vec<(u64, u64)> = (1..10).map(|tenth| (tenth * 100, tenth)).collect();
        assert_eq!(lines, all);
        assert_eq!(next_tenth(0, 1, 1), None);
        assert_eq!(next_tenth(0, 0, 0), None);
        assert_eq!(next_tenth(2, u64::MAX / 2, u64::MAX), Some(4));
    }

    #[test]
    fn every_template_parses() {
        for template in ["{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left", "{spinner} {msg}"]
        {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
