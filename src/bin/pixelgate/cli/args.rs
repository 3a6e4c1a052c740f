//! The command line as clap reads it (SPEC 8). The comments here are the texts of `--help`.

use super::{dead, help, probe, send, spool};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;

/// The default configuration file.
const CONFIG: &str = "config/pixelgate.toml";
/// The environment variable that names another configuration file.
const CONFIG_ENV: &str = "PIXELGATE_CONFIG";

/// An event-pixel gate in front of a tracking backend.
///
/// Judges GET /v1/event/?_a=PORTAL&_n=EVENT&... at the edge, keeps each accepted event on disk
/// before it answers the pixel, forwards events in batches and passes everything else through.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = help::ALL)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub file: ConfigFile,
}

#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// The configuration file (config/reference.toml lists every key).
    #[arg(long, value_name = "FILE", default_value = CONFIG, env = CONFIG_ENV, global = true)]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the edge until SIGTERM, SIGINT or SIGQUIT (the default command).
    #[command(after_long_help = help::RUN)]
    Run {
        /// Take the listening sockets of the edge that runs with the same edge.state_dir, so that
        /// no connection is refused; then send SIGQUIT to that one.
        #[arg(long)]
        upgrade: bool,
    },
    /// Validate the configuration, the portal list and all files they name; exit 0 or 2.
    #[command(after_long_help = help::CHECK)]
    Check {
        /// List each key whose value the running edge does not have, as hot or "needs an upgrade".
        #[arg(long)]
        diff: bool,
    },
    /// Print the configuration as a JSON Schema, for editors.
    #[command(after_long_help = help::SCHEMA)]
    Schema,
    /// Print the verdict on an event and its reasons; record nothing; exit 0 or 1.
    #[command(after_long_help = help::EXPLAIN)]
    Explain {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// A whole URL, a path with a query, or a query.
        #[arg(value_name = "URL or query", allow_hyphen_values = true)]
        event: OsString,
    },
    /// Read the spool, while the edge runs or not; forget an upstream that was removed.
    #[command(subcommand, after_long_help = help::SPOOL)]
    Spool(spool::Command),
    /// List, replay or drop the events that an upstream refused for good.
    #[command(subcommand, after_long_help = help::DEAD)]
    Dead(dead::Command),
    /// Send events from files to an upstream, with the ids that they have.
    #[command(after_long_help = help::SEND)]
    Send(send::Arguments),
    /// Ask the running edge whether it accepts events; exit 0 or 1.
    #[command(after_long_help = help::PROBE)]
    Probe {
        /// The page to request.
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
