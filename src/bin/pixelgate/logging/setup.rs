//! Starts the logger and writes its lines.

use super::config::{Config, Format};
use super::dedup::Dedup;
use super::throttle::Throttle;
use env_logger::fmt::Formatter;
use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Crates whose own lines may quote a request.
const OTHERS: [&str; 7] =
    ["pingora", "pingora_core", "pingora_proxy", "hyper", "h2", "reqwest", "rustls"];

/// Starts logging. A short command (`running` is false) logs warnings and errors only, as text.
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
    // `edge::origin` logs the health of origins itself.
    log.filter_module("pingora_load_balancing", LevelFilter::Off);
    if running && config.format == Format::Json {
        log.format(write_json);
    }
    let log = log.build();
    let most = log.filter();
    // Fails only at a second call, which then changes nothing.
    if log::set_boxed_logger(Box::new(Throttle::new(Dedup::new(log)))).is_ok() {
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
