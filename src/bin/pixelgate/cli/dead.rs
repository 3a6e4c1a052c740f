//! `pixelgate dead`: the events that an upstream refused for good.

use super::exit::{NO, UNUSABLE, fail, with_causes};
use super::terminal::{Progress, Unit};
use crate::config::Config;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use pixelgate::config::{Batch, Upstream, UpstreamKind};
use pixelgate::tools::dead_letters::{self, Filter, Letter, Reason, Summary};
use pixelgate::tools::escape_hidden;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The exit code of a replay that a second signal ends.
const KILLED: i32 = 130;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the dead letters, one JSON object per line. Shows personal data.
    List(Filters),
    /// Send the dead letters again, with the ids they had.
    Replay(Filters),
    /// Remove the dead letters for good: all of them, or those that the options name.
    Drop(Filters),
}

/// Which dead letters; all conditions must hold.
#[derive(Debug, Args)]
pub struct Filters {
    /// Only those of this upstream, configured or not.
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Only events of this portal.
    #[arg(long, value_name = "PORTAL")]
    portal: Option<u64>,
    /// Only events of exactly this name.
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only events that became dead letters for this reason.
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<Reason>,
    /// Only events that became dead letters at this time or later: RFC 3339, or a date (00:00 UTC).
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    since: Option<i64>,
    /// Only events that became dead letters before this time: RFC 3339, or a date (00:00 UTC).
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    until: Option<i64>,
}

impl Filters {
    fn filter(&self) -> Filter {
        Filter {
            portal: self.portal,
            event: self.event.clone(),
            reason: self.reason,
            since_ms: self.since,
            until_ms: self.until,
        }
    }
}

/// Runs the command for every upstream. A failure of one does not stop the others.
pub fn run(config: &Config, command: &Command) -> ExitCode {
    let (Command::List(filters) | Command::Replay(filters) | Command::Drop(filters)) = command;
    let dir = config.gate.dead_dir();
    let names = match names(config, &dir, filters.upstream.as_deref()) {
        Ok(names) => names,
        Err(code) => return code,
    };
    let filter = filters.filter();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let done = match command {
            Command::List(_) => list(&dir, &name, &filter),
            Command::Replay(_) => replay(config, &name, &filter),
            Command::Drop(_) => drop_letters(&dir, &name, &filter),
        };
        if let Err(why) = done {
            code = fail(NO, format!("{name}: {why}"));
        }
    }
    code
}

/// The upstreams that are configured, then those that only have dead letters; or the one asked for.
fn names(config: &Config, dir: &Path, only: Option<&str>) -> Result<Vec<String>, ExitCode> {
    let found =
        dead_letters::upstreams(dir).map_err(|e| fail(NO, format!("{}: {e}", dir.display())))?;
    let mut names: Vec<String> = config.gate.upstreams().into_iter().map(|u| u.name).collect();
    let others: Vec<String> = found.into_iter().filter(|name| !names.contains(name)).collect();
    names.extend(others);
    let Some(only) = only else { return Ok(names) };
    if names.iter().any(|name| name == only) {
        return Ok(vec![only.to_owned()]);
    }
    let why = format!("--upstream: {only:?} is not configured and has no dead letters");
    Err(fail(UNUSABLE, why))
}

fn list(dir: &Path, upstream: &str, filter: &Filter) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let mut printed = Ok(());
    let show = |letter: &Letter| {
        if printed.is_ok() {
            printed = serde_json::to_string(letter)
                .map_err(std::io::Error::from)
                .and_then(|json| writeln!(out, "{}", escape_hidden(&json)));
        }
    };
    let summary = dead_letters::list(dir, upstream, filter, show).map_err(|e| with_causes(&e))?;
    match printed {
        // The reader of a pipe may stop early, as `head` does.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
        printed => printed.map_err(unprinted)?,
    }
    check_damaged(&summary)
}

fn unprinted(error: std::io::Error) -> String {
    format!("standard output: {error}")
}

/// Names the damaged lines, and fails if there are any.
fn check_damaged(summary: &Summary) -> Result<(), String> {
    for place in &summary.places {
        _ = fail(NO, format!("{place}: not a dead letter; the line stays in the file"));
    }
    match summary.damaged {
        0 => Ok(()),
        damaged => Err(format!("{damaged} lines are not dead letters")),
    }
}

fn drop_letters(dir: &Path, upstream: &str, filter: &Filter) -> Result<(), String> {
    let removed = dead_letters::remove(dir, upstream, filter).map_err(|e| with_causes(&e))?;
    writeln!(std::io::stdout(), "{upstream}: {removed} dropped").map_err(unprinted)
}

fn replay(config: &Config, name: &str, filter: &Filter) -> Result<(), String> {
    let gate = &config.gate;
    let dir = gate.dead_dir();
    // Counted first, for the bar and for an upstream that cannot be built.
    let found = dead_letters::list(&dir, name, filter, |_| {}).map_err(|e| with_causes(&e))?;
    let Some(upstream) = gate.upstreams().into_iter().find(|upstream| upstream.name == name) else {
        return match found.letters {
            0 => check_damaged(&found),
            n => Err(format!("{n} dead letters cannot be sent: the upstream is not configured")),
        };
    };
    let built = upstream.build().map_err(|e| with_causes(&e))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let stop = stop_on_signals(&runtime).map_err(|e| e.to_string())?;
    let batch = batches(&upstream, &gate.batch);
    let mut progress = Progress::new(format!("replaying for {name}"), Unit::Events);
    let show = |so_far: &dead_letters::Progress| {
        let ended = so_far.delivered + so_far.refused + so_far.undelivered;
        progress.update(ended, found.letters);
    };
    let replayed = runtime.block_on(async {
        let replayed = dead_letters::replay(&dir, name, &*built, &batch, filter, stop, show).await;
        built.close().await;
        replayed
    });
    drop(progress);
    let done = replayed.map_err(|e| with_causes(&e))?;
    let line = format!(
        "{name}: {} delivered, {} refused again, {} not delivered",
        done.delivered, done.refused, done.undelivered
    );
    writeln!(std::io::stdout(), "{line}").map_err(unprinted)?;
    check_damaged(&found)?;
    match done.gave_up {
        None => Ok(()),
        Some(why) => Err(why),
    }
}

/// The batches of a replay. A legacy backend counts an event that is sent twice as two, so each is
/// sent and marked alone: a replay that is killed repeats at most the one that was on its way.
fn batches(upstream: &Upstream, base: &Batch) -> Batch {
    let mut batch = upstream.batch.over(base);
    if matches!(upstream.kind, UpstreamKind::Legacy(_)) {
        batch.events_max = 1;
    }
    batch
}

/// Becomes true at the first SIGINT or SIGTERM, at which a replay ends after the attempt under way.
/// The second one ends the process.
fn stop_on_signals(runtime: &Runtime) -> std::io::Result<watch::Receiver<bool>> {
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopping) = watch::channel(false);
    runtime.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(KILLED);
            }
        }
    });
    Ok(stopping)
}

fn reasons() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)).map(|word| {
        let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word);
        // The parser lets no other word through.
        reason.unwrap_or(Reason::Unreadable)
    })
}

/// A time in milliseconds since 1970: RFC 3339, or a date, whose day begins at 00:00 UTC.
fn unix_ms(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let time = jiff::civil::Date::strptime("%Y-%m-%d", text).ok().and_then(|date| {
        date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
    });
    let time = time.ok_or("is neither a time such as 2026-11-23T02:45:13Z nor a date")?;
    Ok(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_date_in_utc() {
        let check = |text: &str, expect: Option<&str>| {
            let expect = expect.map(|time| time.parse::<jiff::Timestamp>().unwrap());
            assert_eq!(unix_ms(text).ok(), expect.map(|time| time.as_millisecond()), "{text}");
        };
        check("2026-11-23T02:45:13Z", Some("2026-11-23T02:45:13Z"));
        check("2026-11-23T02:45:13.123Z", Some("2026-11-23T02:45:13.123Z"));
        check("2026-11-23T02:45:13+02:00", Some("2026-11-23T00:45:13Z"));
        check("2026-11-23", Some("2026-11-23T00:00:00Z"));
        for bad in ["", "yesterday", "2026-13-01", "2026-11-23T02:45", "1795401913"] {
            check(bad, None);
        }
    }
}
