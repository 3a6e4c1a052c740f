//! `pixelgate dead`: the events that an upstream refused for good.

use super::exit::{NO, fail, with_causes};
use super::terminal::{Progress, Unit};
use crate::config::Config;
use clap::Subcommand;
use pixelgate::tools::{dead_letters, escape_hidden};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the dead letters, one JSON object per line.
    List,
    /// Send the dead letters again, with the ids they had.
    Replay,
}

/// Runs the command for every upstream. A failure of one does not stop the others.
pub fn run(config: &Config, command: &Command) -> ExitCode {
    let gate = &config.gate;
    let dir = gate.dead_dir();
    let mut code = ExitCode::SUCCESS;
    for upstream in gate.upstreams() {
        let done = match command {
            Command::List => list(&dir, &upstream.name),
            Command::Replay => replay(config, &upstream),
        };
        if let Err(why) = done {
            code = fail(NO, format!("{}: {why}", upstream.name));
        }
    }
    code
}

fn list(dir: &Path, upstream: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let mut printed = Ok(());
    let show = |letter: &dead_letters::Letter| {
        if printed.is_ok() {
            printed = serde_json::to_string(letter)
                .map_err(std::io::Error::from)
                .and_then(|json| writeln!(out, "{}", escape_hidden(&json)));
        }
    };
    let summary = dead_letters::list(dir, upstream, show).map_err(|e| with_causes(&e))?;
    match printed {
        // The reader of a pipe may stop early, as `head` does.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
        printed => printed.map_err(|e| e.to_string())?,
    }
    match summary.damaged {
        0 => Ok(()),
        damaged => Err(format!("{damaged} lines are not dead letters")),
    }
}

fn replay(config: &Config, upstream: &pixelgate::config::Upstream) -> Result<(), String> {
    let gate = &config.gate;
    let built = upstream.build().map_err(|e| with_causes(&e))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let batch = upstream.batch.over(&gate.batch);
    let dir = gate.dead_dir();
    // Counted first, for the bar. Letters that the edge adds meanwhile are replayed as well.
    let total = dead_letters::list(&dir, &upstream.name, |_| {}).map_err(|e| with_causes(&e))?;
    let total = total.letters + total.damaged;
    let mut progress = Progress::new(format!("replaying for {}", upstream.name), Unit::Events);
    let show = |so_far: &dead_letters::Progress| {
        let ended = so_far.delivered + so_far.refused + so_far.put_back + so_far.damaged;
        progress.update(ended, total);
    };
    let replayed = runtime.block_on(async {
        let replayed = dead_letters::replay(&dir, &upstream.name, &*built, &batch, show).await;
        built.close().await;
        replayed
    });
    drop(progress);
    let done = replayed.map_err(|e| with_causes(&e))?;
    let line = format!(
        "{}: {} delivered, {} refused again, {} put back",
        upstream.name, done.delivered, done.refused, done.put_back
    );
    writeln!(std::io::stdout(), "{line}").map_err(|e| e.to_string())?;
    match done.gave_up {
        None => Ok(()),
        Some(why) => Err(why),
    }
}
