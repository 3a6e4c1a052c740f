//! The command line (SPEC section 8).
//!
//! Each command reads the configuration, does one thing through the library and says what came
//! of it by its exit code: 0 done, 1 the answer is no, 2 the configuration cannot be used.

mod dead;
mod explain;
mod help;
mod pages;
mod probe;
mod spool;
mod terminal;

use crate::config::Config;
use crate::edge::{self, server};
use crate::logging;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use terminal::{BAD, GOOD, Progress};

/// The answer is no, or the command failed.
const NO: u8 = 1;
/// The configuration cannot be used.
const UNUSABLE: u8 = 2;
/// Where the configuration is looked for.
const CONFIG: &str = "config/pixelgate.toml";
/// Names another place.
const CONFIG_ENV: &str = "PIXELGATE_CONFIG";

/// An event-pixel gate in front of a tracking backend.
///
/// Judges GET /v1/event/?_a=PORTAL&_n=EVENT&... at the edge, keeps each accepted event on disk
/// before it answers the pixel, forwards events in batches and passes everything else through.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = help::ALL)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Debug, Clone, Args)]
struct ConfigFile {
    /// The configuration file (config/reference.toml lists every key).
    #[arg(long, value_name = "FILE", default_value = CONFIG, env = CONFIG_ENV, global = true)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the edge until SIGTERM, SIGINT or SIGQUIT (the default command).
    #[command(after_long_help = help::RUN)]
    Run {
        /// Take the listening sockets of the edge that runs with the same edge.state_dir, so that
        /// no connection is refused; then send SIGQUIT to that one.
        #[arg(long)]
        upgrade: bool,
    },
    /// Validate the configuration, the portal list and all they name; exit 0 or 2.
    #[command(after_long_help = help::CHECK)]
    Check,
    /// Say what would become of an event, and why; record nothing; exit 0 or 1.
    #[command(after_long_help = help::EXPLAIN)]
    Explain {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// A whole URL, a path with a query, or a query.
        #[arg(value_name = "URL or query", allow_hyphen_values = true)]
        event: String,
    },
    /// Look into the spool, running or not; nothing is changed.
    #[command(subcommand, after_long_help = help::SPOOL)]
    Spool(spool::Command),
    /// List or replay the events that an upstream refused for good.
    #[command(subcommand, after_long_help = help::DEAD)]
    Dead(dead::Command),
    /// Ask the running edge whether it takes events; exit 0 or 1.
    #[command(after_long_help = help::PROBE)]
    Probe {
        /// What is asked.
        #[arg(value_enum, default_value = "readyz")]
        page: probe::Page,
    },
    /// Print the completion script of a shell.
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_long_help = help::MAN)]
    Man {
        /// Write it and a page for each command into this folder instead.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Does what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    let command = cli.command.unwrap_or(Command::Run { upgrade: false });
    match &command {
        Command::Completions { shell } => return pages::completions(*shell),
        Command::Man { dir } => return pages::man(dir.as_deref()),
        _ => {}
    }
    let config = match Config::load(&cli.file.config) {
        Ok(config) => config,
        Err(e) => return fail(UNUSABLE, e),
    };
    logging::start(&config.log, matches!(command, Command::Run { .. }));
    match command {
        Command::Run { upgrade } => {
            let verdicts = config.log.verdicts;
            let (edge, admin) = (&config.edge, &config.admin);
            match server::run(edge, config.gate(), admin, verdicts, upgrade) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => fail(UNUSABLE, chain(&e)),
            }
        }
        Command::Check => check(&config),
        Command::Explain { json, event } => match explain::explain(&config, &event, json) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(NO),
            // Whoever reads less than there is has seen enough.
            Err(explain::ExplainError::Print(e)) if e.kind() == ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Err(e) => fail(UNUSABLE, e),
        },
        Command::Spool(command) => spool::run(&config, &command),
        Command::Dead(command) => dead::run(&config, &command),
        Command::Probe { page } => probe::run(&config.admin, page),
        // Done above: they need no configuration.
        Command::Completions { .. } | Command::Man { .. } => ExitCode::SUCCESS,
    }
}

fn fail(code: u8, why: impl Display) -> ExitCode {
    // Standard error is gone only if nobody listens.
    let _ = writeln!(anstream::stderr(), "{BAD}pixelgate:{BAD:#} {why}");
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

fn check(config: &Config) -> ExitCode {
    if let Err(why) = edge::tls::Certificates::load_all(&config.edge.tls) {
        return fail(UNUSABLE, format!("edge.tls: {why}"));
    }
    let origin_ca = config.edge.origin_ca.as_deref();
    if let Some(why) = origin_ca.and_then(|path| edge::server::check_trust_file(path).err()) {
        return fail(UNUSABLE, format!("edge.origin_ca: {why}"));
    }
    let wheel = Progress::wheel("reading the portal list");
    let checked = pixelgate::check(&config.gate(), &config.edge.state_dir);
    drop(wheel);
    match checked {
        Ok(summary) => {
            // Its last line is the verdict.
            let (body, verdict) = summary.rsplit_once('\n').unwrap_or(("", &summary));
            let _ = writeln!(anstream::stdout(), "{body}\n{GOOD}{verdict}{GOOD:#}");
            ExitCode::SUCCESS
        }
        Err(e) => fail(UNUSABLE, chain(&e)),
    }
}
