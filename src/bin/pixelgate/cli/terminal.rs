//! The colours of commands, and the progress of long ones.
//!
//! Progress goes to standard error, so that standard output holds only the result. anstream removes
//! colours if the output is not a terminal or `NO_COLOR` is set. If standard error is not a
//! terminal, or `TERM` is `dumb`, a line is printed for each tenth instead of a bar.

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::time::Duration;

/// The style of failures.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// The style of success.
pub const GOOD: Style = AnsiColor::Green.on_default();

/// The pause between two frames of the spinner, in milliseconds.
const SPINNER_MS: u64 = 100;

/// The unit of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Events,
}

/// The progress of a long command. Dropping it erases the bar.
pub struct Progress {
    what: String,
    unit: Unit,
    bar: ProgressBar,
    /// The number of tenths that were printed as lines.
    printed: u64,
}

impl Progress {
    /// Returns a bar that shows `what` in front of its figures.
    pub fn new(what: impl Into<String>, unit: Unit) -> Progress {
        let what = what.into();
        let template = match unit {
            Unit::Bytes => "{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left",
            Unit::Events => "{msg} [{bar:30}] {pos} of {len}, {eta} left",
        };
        Progress { bar: bar(template, &what), what, unit, printed: 0 }
    }

    /// Returns a spinner for work of unknown length. Without a terminal it shows nothing.
    pub fn spinner(what: impl Into<String>) -> Progress {
        let what = what.into();
        let bar = bar("{spinner} {msg}", &what);
        // Draws at once: the first steady tick could come only after the end of short work.
        bar.tick();
        bar.enable_steady_tick(Duration::from_millis(SPINNER_MS));
        Progress { bar, what, unit: Unit::Events, printed: 0 }
    }

    /// Shows that `done` of `total` units are done.
    pub fn update(&mut self, done: u64, total: u64) {
        if !self.bar.is_hidden() {
            self.bar.set_length(total);
            self.bar.set_position(done.min(total));
        } else if let Some(tenths) = next_tenth(self.printed, done, total) {
            self.printed = tenths;
            let total = match self.unit {
                Unit::Bytes => ByteSize(total).to_string(),
                Unit::Events => format!("{total} events"),
            };
            // If standard error cannot be written, no progress is shown.
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
    // A test shows that all templates are valid; the default bar only avoids a panic.
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_message(what.to_owned())
}

/// Returns the number of done tenths, if it is more than `printed`. The last tenth is not printed,
/// because the result follows.
fn next_tenth(printed: u64, done: u64, total: u64) -> Option<u64> {
    let tenths = u128::from(done) * 10 / u128::from(total.max(1));
    let tenths = u64::try_from(tenths).unwrap_or(u64::MAX);
    (printed < tenths && tenths < 10).then_some(tenths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenth_is_printed_once_and_the_last_never() {
        let mut printed = 0;
        let mut lines = Vec::new();
        for done in 0..=1000 {
            if let Some(tenths) = next_tenth(printed, done, 1000) {
                printed = tenths;
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
