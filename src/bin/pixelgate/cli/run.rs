//! Runs the command that the command line names, and returns its exit code (SPEC 8).

use super::args::{Cli, Command};
use super::exit::{NO, UNUSABLE, fail, unwritten};
use super::{check, dead, explain, pages, probe, send, spool};
use crate::causes::with_causes;
use crate::config::Config;
use crate::edge::error::EdgeError;
use crate::edge::stop::Handlers;
use crate::edge::{file_limit, huge_pages, server};
use crate::logging;
use std::process::ExitCode;

/// Runs the command and returns the exit code of the process.
pub fn run(cli: Cli) -> ExitCode {
    huge_pages::decline();
    let command = cli.command.unwrap_or(Command::Run { upgrade: false });
    match &command {
        Command::Completions { shell } => return pages::completions(*shell),
        Command::Man { dir } => return pages::man(dir.as_deref()),
        Command::Schema => return pages::schema(),
        _ => {}
    }
    let config = match Config::load(&cli.file.config) {
        Ok(config) => config,
        Err(e) => return fail(UNUSABLE, e),
    };
    logging::start(&config.log, matches!(command, Command::Run { .. }));
    match command {
        Command::Run { upgrade } => {
            let handlers = match Handlers::install() {
                Ok(handlers) => handlers,
                Err(e) => return fail(UNUSABLE, format!("signals cannot be handled: {e}")),
            };
            // Must come before the spool opens, because the spool may open the files of many lanes.
            file_limit::raise();
            let places = config.places.clone();
            match server::run(&cli.file.config, config, upgrade, handlers) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) if e.is_of_configuration() => {
                    let why = with_causes(&e);
                    fail(UNUSABLE, format!("{}: {why}", places.of_message(&why)))
                }
                Err(e @ EdgeError::Close(_)) => fail(NO, with_causes(&e)),
                Err(e) => fail(UNUSABLE, with_causes(&e)),
            }
        }
        Command::Check { diff: false } => check::run(config),
        Command::Check { diff: true } => check::diff(&cli.file.config, config),
        Command::Explain { json, event } => match explain::explain(config, &event, json) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(NO),
            Err(explain::ExplainError::Print(e)) => unwritten(&e),
            Err(e) => fail(UNUSABLE, with_causes(&e)),
        },
        Command::Spool(command) => spool::run(&config, &command),
        Command::Dead(command) => dead::run(&config, &command),
        Command::Send(arguments) => send::run(config, &arguments),
        Command::Probe { page } => probe::run(&config.admin, page),
        // These need no configuration, so they have returned above.
        Command::Completions { .. } | Command::Man { .. } | Command::Schema => ExitCode::SUCCESS,
    }
}
