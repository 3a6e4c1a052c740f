//! The command line (SPEC section 8).
//!
//! Each command reads the configuration, does one thing through the library and says what came
//! of it by its exit code: 0 done, 1 the answer is no, 2 the configuration cannot be used.

mod dead;
mod explain;
mod spool;

use crate::config::Config;
use crate::edge;
use clap::{Args, Parser, Subcommand};
use log::LevelFilter;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The answer is no, or the command failed.
const NO: u8 = 1;
/// The configuration cannot be used.
const UNUSABLE: u8 = 2;
/// Where the configuration is looked for.
const CONFIG: &str = "config/pixelgate.toml";

/// An event-pixel gate in front of a tracking backend.
///
/// Judges GET /v1/event/?_a=PORTAL&_n=EVENT&... at the edge, keeps each accepted event on disk
/// before it answers the pixel, forwards events in batches and passes everything else through.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Debug, Clone, Args)]
struct ConfigFile {
    /// The configuration file (config/reference.toml lists every key).
    #[arg(long, value_name = "FILE", default_value = CONFIG, global = true)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the edge until SIGTERM, SIGINT or SIGQUIT (the default command).
    Run,
    /// Validate the configuration, the portal list and all they name; exit 0 or 2.
    Check,
    /// Say what would become of an event, and why; record nothing; exit 0 or 1.
    Explain {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// A whole URL, a path with a query, or a query.
        #[arg(value_name = "URL or query", allow_hyphen_values = true)]
        event: String,
    },
    /// Look into the spool, running or not; nothing is changed.
    #[command(subcommand)]
    Spool(spool::Command),
    /// List or replay the events that an upstream refused for good.
    #[command(subcommand)]
    Dead(dead::Command),
}

/// Does what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    let command = cli.command.unwrap_or(Command::Run);
    start_log(matches!(command, Command::Run));
    let config = match Config::load(&cli.file.config) {
        Ok(config) => config,
        Err(e) => return fail(UNUSABLE, e),
    };
    match command {
        Command::Run => match edge::server::run(&config.edge, config.gate(), &config.admin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(UNUSABLE, chain(&e)),
        },
        Command::Check => check(&config),
        Command::Explain { json, event } => match explain::explain(&config, &event, json) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(NO),
            Err(e) => fail(UNUSABLE, e),
        },
        Command::Spool(command) => spool::run(&config, &command),
        Command::Dead(command) => dead::run(&config, &command),
    }
}

fn fail(code: u8, why: impl Display) -> ExitCode {
    // Standard error is gone only if nobody listens.
    let _ = writeln!(std::io::stderr(), "pixelgate: {why}");
    ExitCode::from(code)
}

/// An error and all that it came from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        source = cause.source();
    }
    line
}

/// `RUST_LOG` sets the level. Pingora's own lines are kept to warnings whatever it says: below
/// that they quote requests, and with them people's addresses.
fn start_log(running: bool) {
    let level = if running { LevelFilter::Info } else { LevelFilter::Warn };
    let mut log = env_logger::Builder::new();
    log.filter_level(level);
    if let Ok(wish) = std::env::var("RUST_LOG") {
        log.parse_filters(&wish);
    }
    for target in ["pingora", "pingora_core", "pingora_proxy", "hyper", "h2", "reqwest", "rustls"] {
        log.filter_module(target, LevelFilter::Warn);
    }
    log.init();
}

fn check(config: &Config) -> ExitCode {
    if let Err(why) = edge::tls::Certificates::load_all(&config.edge.tls) {
        return fail(UNUSABLE, format!("edge.tls: {why}"));
    }
    match pixelgate::check(&config.gate(), &config.edge.state_dir) {
        Ok(summary) => {
            let _ = writeln!(std::io::stdout(), "{summary}");
            ExitCode::SUCCESS
        }
        Err(e) => fail(UNUSABLE, chain(&e)),
    }
}
