//! The exit codes of commands (SPEC 8), and the line on standard error that explains a failure.

use super::terminal::BAD;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit code of a command that answers no, or that failed.
pub const NO: u8 = 1;
/// The exit code for a command line or a configuration that cannot be used.
pub const UNUSABLE: u8 = 2;

/// Prints `why` on standard error and returns `code`.
pub fn fail(code: u8, why: impl Display) -> ExitCode {
    // If standard error cannot be written, only the exit code reports the failure.
    let _ = writeln!(anstream::stderr(), "{BAD}pixelgate:{BAD:#} {why}");
    ExitCode::from(code)
}

/// Returns the exit code of a command whose result could not be written to standard output. It is
/// success where the reader of a pipe has stopped early, as `head` does.
pub fn unwritten(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        _ => fail(NO, format!("standard output: {error}")),
    }
}
