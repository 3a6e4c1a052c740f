//! The `[log]` section: its keys, their defaults and limits (SPEC 9).

use log::LevelFilter;
use pixelgate::admin_pages::SAMPLES_PER_SECOND_MAX;
use serde::Deserialize;

/// The `[log]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The format of a line. Default: `text`.
    pub format: Format,
    /// The least severe level that is logged. `RUST_LOG` overrides it. Default: `info`.
    pub level: Level,
    /// The most accepted events that are logged in a second, and the most rejected ones. 0 (the
    /// default): none.
    pub verdicts: u32,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line: `time`, `level`, `target`, `message` and the line's own fields.
    Json,
}

/// The severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No lines.
    Off,
    /// The operator must act.
    Error,
    /// The operator may need to act.
    Warn,
    /// A change of state, such as a start or a reload.
    #[default]
    Info,
    /// Details for finding a fault.
    Debug,
    /// All lines.
    Trace,
}

impl Level {
    /// Returns the filter that lets lines of this level and of more severe ones pass.
    pub fn filter(self) -> LevelFilter {
        match self {
            Level::Off => LevelFilter::Off,
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        }
    }
}

impl Config {
    /// Checks the limits of every key.
    ///
    /// # Errors
    ///
    /// The first key that cannot be used, without `log.`, and the reason.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        match self.verdicts {
            0..=SAMPLES_PER_SECOND_MAX => Ok(()),
            _ => Err(("verdicts", format!("must be at most {SAMPLES_PER_SECOND_MAX} per second"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_verdicts_than_are_sampled_are_an_error() {
        let check = |verdicts| Config { verdicts, ..Config::default() }.validate();
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(SAMPLES_PER_SECOND_MAX), Ok(()));
        assert_eq!(check(SAMPLES_PER_SECOND_MAX + 1).unwrap_err().0, "verdicts");
    }
}
