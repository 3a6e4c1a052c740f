//! How a command ends: its exit code, and one line about its failure on standard error.

use super::terminal::BAD;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit code: the answer is no, or the command failed.
pub const NO: u8 = 1;
/// Exit code: the command line or the configuration cannot be used.
pub const UNUSABLE: u8 = 2;

/// Prints `why` on standard error and returns `code`.
pub fn fail(code: u8, why: impl Display) -> ExitCode {
    // Without a standard error the exit code is all that can be reported.
    let _ = writeln!(anstream::stderr(), "{BAD}pixelgate:{BAD:#} {why}");
    ExitCode::from(code)
}

/// Ends a command whose result could not be written to standard output. The reader of a pipe may
/// stop early, as `head` does: that is success.
pub fn unwritten(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        _ => fail(NO, format!("standard output: {error}")),
    }
}
