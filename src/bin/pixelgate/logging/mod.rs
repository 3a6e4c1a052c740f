//! The log: lines on standard error, as text or as JSON (SPEC section 8).
//!
//! One line for each change of state; a fault that comes again and again is told once, and counted
//! ([`quiet`]); what strangers can provoke is bounded before ([`discreet`]). No line holds what a
//! request brought: that is the business of who writes it, and `tests/edge/discretion.rs` watches.
//! The lines of other crates are kept to warnings whatever anybody asks for, because below that
//! they quote requests, and with them people's addresses.

mod discreet;
mod quiet;

use discreet::Discreet;
use env_logger::fmt::Formatter;
use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Record};
use pixelgate::admin_pages::SAMPLES_PER_SECOND_MAX;
use quiet::Quiet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Crates whose own lines may quote a request.
const OTHERS: [&str; 7] =
    ["pingora", "pingora_core", "pingora_proxy", "hyper", "h2", "reqwest", "rustls"];

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
    fn filter(self) -> LevelFilter {
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

/// Begins to log. A command that is over at once (`running` is false) tells faults only, to the
/// person who called it.
pub fn start(config: &Config, running: bool) {
    let level = config.level.filter();
    let mut log = env_logger::Builder::new();
    log.filter_level(if running { level } else { level.min(LevelFilter::Warn) });
    if let Ok(wish) = std::env::var("RUST_LOG") {
        log.parse_filters(&wish);
    }
    for target in OTHERS {
        log.filter_module(target, LevelFilter::Warn.min(level));
    }
    // What it says of an origin's health is said in our own words.
    log.filter_module("pingora_load_balancing", LevelFilter::Off);
    if running && config.format == Format::Json {
        log.format(write_json);
    }
    let log = log.build();
    let most = log.filter();
    // Only a second call could fail, and it changes nothing.
    if log::set_boxed_logger(Box::new(Discreet::new(Quiet::new(log)))).is_ok() {
        log::set_max_level(most);
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: String,
    target: &'a str,
    message: String,
    #[serde(flatten)]
    fields: Fields,
}

#[derive(Default, Serialize)]
struct Fields(BTreeMap<String, String>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

fn write_json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut fields = Fields::default();
    // `Fields` takes every pair.
    let _ = record.key_values().visit(&mut fields);
    let line = Line {
        time: format!("{:.3}", jiff::Timestamp::now()),
        level: record.level().as_str().to_ascii_lowercase(),
        target: record.target(),
        message: record.args().to_string(),
        fields,
    };
    let line = serde_json::to_string(&line)?;
    writeln!(out, "{line}")
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
