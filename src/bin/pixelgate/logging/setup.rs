//! Builds the logger from `[log]` and `RUST_LOG`, and writes lines as JSON.

use super::config::{Config, Format};
use super::dedup::Dedup;
use super::throttle::Throttle;
use crate::now::now;
use arc_swap::ArcSwap;
use env_logger::fmt::Formatter;
use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

/// The crates whose lines may quote a request.
const OTHERS: [&str; 7] =
    ["pingora", "pingora_core", "pingora_proxy", "hyper", "h2", "reqwest", "rustls"];

/// The environment variable whose levels override `log.level`.
const LEVELS: &str = "RUST_LOG";

/// The logger in use, which a reload replaces.
struct InUse(ArcSwap<env_logger::Logger>);

static IN_USE: OnceLock<InUse> = OnceLock::new();

impl Log for &InUse {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.0.load().log(record);
    }

    fn flush(&self) {
        self.0.load().flush();
    }
}

/// Starts logging. `running` is whether an edge runs: every other command logs only warnings and
/// errors, as text.
pub fn start(config: &Config, running: bool) {
    let log = logger(config, running);
    let most = log.filter();
    let in_use = IN_USE.get_or_init(|| InUse(ArcSwap::from_pointee(log)));
    // Fails only in a second call, which then changes nothing.
    if log::set_boxed_logger(Box::new(Throttle::new(Dedup::new(in_use)))).is_ok() {
        log::set_max_level(most);
    }
}

/// Logs as `config` says from now on.
pub fn reload(config: &Config) {
    let Some(InUse(in_use)) = IN_USE.get() else { return };
    let log = logger(config, true);
    log::set_max_level(log.filter());
    in_use.store(Arc::new(log));
}

/// Whether `RUST_LOG` sets levels, so that `log.level` does not set all of them. The environment of
/// a process does not change.
pub fn is_overridden() -> bool {
    std::env::var(LEVELS).is_ok_and(|levels| !levels.is_empty())
}

fn logger(config: &Config, running: bool) -> env_logger::Logger {
    let level = config.level.filter();
    let mut log = env_logger::Builder::new();
    log.filter_level(if running { level } else { level.min(LevelFilter::Warn) });
    if let Ok(wish) = std::env::var(LEVELS) {
        log.parse_filters(&wish);
    }
    for target in OTHERS {
        log.filter_module(target, LevelFilter::Warn.min(level));
    }
    // `edge::origin_set` logs the health of origins, once for each change.
    log.filter_module("pingora_load_balancing", LevelFilter::Off);
    if running && config.format == Format::Json {
        log.format(write_json);
    }
    log.build()
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
        time: format!("{:.3}", now()),
        level: record.level().as_str().to_ascii_lowercase(),
        target: record.target(),
        message: record.args().to_string(),
        fields,
    };
    let line = serde_json::to_string(&line)?;
    writeln!(out, "{line}")
}
