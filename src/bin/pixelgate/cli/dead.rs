//! `pixelgate dead`: lists, sends again and removes dead letters, the events that an upstream
//! refused for good (SPEC 8).

use super::exit::{NO, UNUSABLE, fail};
use super::resend::{Session, unix_ms};
use super::terminal::{Progress, Unit};
use crate::causes::with_causes;
use crate::config::Config;
use crate::plural::counted;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use pixelgate::tools::dead_letters::{self, Filter, Letter, Reason, Summary};
use pixelgate::tools::escape_hidden;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the dead letters, one JSON object per line. Shows personal data.
    List(Filters),
    /// Send the dead letters again, with the ids they had.
    Replay(Filters),
    /// Remove the dead letters for good: all of them, or those that the options name.
    Drop(Filters),
}

/// The options that choose dead letters. Those that are given must all hold.
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

/// Runs the command for every upstream. A failure for one upstream does not end the command for the
/// others.
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

/// Returns the names of the configured upstreams, and then of those that are not configured but
/// have dead letters. With `only`, returns this name if it is one of them.
fn names(config: &Config, dir: &Path, only: Option<&str>) -> Result<Vec<String>, ExitCode> {
    let found =
        dead_letters::upstreams(dir).map_err(|e| fail(NO, format!("{}: {e}", dir.display())))?;
    let mut names: Vec<String> = config.gate.upstreams().iter().map(|u| u.name.clone()).collect();
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

/// Prints where the damaged lines are, and fails if there are any.
fn check_damaged(summary: &Summary) -> Result<(), String> {
    for place in &summary.places {
        _ = fail(NO, format!("{place}: not a dead letter; the line stays in the file"));
    }
    match summary.damaged {
        0 => Ok(()),
        1 => Err("1 line is not a dead letter".to_owned()),
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
    // The count is needed for the progress, and where the upstream is not configured.
    let found = dead_letters::list(&dir, name, filter, |_| {}).map_err(|e| with_causes(&e))?;
    let Some(upstream) = gate.upstreams().iter().find(|upstream| upstream.name == name) else {
        return match found.letters {
            0 => check_damaged(&found),
            n => Err(format!(
                "{} cannot be sent: the upstream is not configured",
                counted(n, "dead letter")
            )),
        };
    };
    let Session { runtime, built, batch, stop } = Session::open(upstream, &gate.batch)?;
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
    let tries = counted(done.undelivered, "dead letter");
    let left = done.gave_up.map(|why| format!("{why}; the next replay tries {tries} again"));
    match (left, check_damaged(&found)) {
        (Some(why), Err(damaged)) => Err(format!("{why}; {damaged}")),
        (Some(why), Ok(())) => Err(why),
        (None, checked) => checked,
    }
}

fn reasons() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)).map(|word| {
        let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word);
        // The parser has refused all other words, so the default is never used.
        reason.unwrap_or(Reason::Unreadable)
    })
}
