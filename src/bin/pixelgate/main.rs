//! The `pixelgate` binary: an HTTP edge around the gate, and commands that read and change its data
//! (SPEC 8). It uses the library through its public interface alone, as any other host does.

#![forbid(unsafe_code)]

mod access_log;
mod causes;
mod cli;
mod config;
mod edge;
mod logging;
mod now;
// Shared as a file, because the public interface of the library does not offer it.
#[path = "../../plural.rs"]
mod plural;
mod real_path;
mod writable;

use std::process::ExitCode;

// The request path often makes small allocations, for which mimalloc is measurably faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(<cli::Cli as clap::Parser>::parse())
}
