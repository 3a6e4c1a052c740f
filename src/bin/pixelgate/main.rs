//! The ready edge: read the configuration, do what the command line says.

#![forbid(unsafe_code)]

mod cli;
mod config;
mod edge;
mod logging;

use std::process::ExitCode;

// Judging and answering allocate little but often: under load the difference is measurable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(<cli::Cli as clap::Parser>::parse())
}
