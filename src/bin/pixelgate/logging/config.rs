//! The `[log]` section.

use log::LevelFilter;
use pixelgate::admin_pages::SAMPLES_PER_SECOND_MAX;
use serde::Deserialize;

/// The `[log]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What a line looks like.
    pub format: Format,
    /// The least important lines that are written. `RUST_LOG` overrides it.
    pub level: Level,
    /// Accepted events that are logged each second, and as many rejected ones; 0: none.
    pub verdicts: u32,
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object a line: `time`, `level`, `target`, `message` and the line's own fields.
    Json,
}

/// How important a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No lines.
    Off,
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What is good to know.
    #[default]
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The filter that lets this level and everything more important pass.
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
    /// Checks the section; the error is the key below `log.` and why.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        match self.verdicts {
            0..=SAMPLES_PER_SECOND_MAX => Ok(()),
            _ => Err(("verdicts", format!("is more than {SAMPLES_PER_SECOND_MAX} a second"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_verdicts_than_are_seen_cannot_be_asked_for() {
        let check = |verdicts| Config { verdicts, ..Config::default() }.validate();
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(SAMPLES_PER_SECOND_MAX), Ok(()));
        assert_eq!(check(SAMPLES_PER_SECOND_MAX + 1).unwrap_err().0, "verdicts");
    }
}
