//! How a command ends: its exit code, and one line about its failure on standard error.

use super::terminal::BAD;
use std::error::Error;
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

/// An error and all its causes in one line, separated by colons. A cause is left out only where
/// the error above it already ends with the same text.
pub fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut above = line.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if above != text && !above.ends_with(&format!(": {text}")) {
            line = format!("{line}: {text}");
        }
        above = text;
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn every_cause_is_printed_once() {
        let check = |layers: &[&'static str], expect: &str| {
            let nest = |below, text: &&'static str| Some(Box::new(Layer(text, below)));
            let error = layers.iter().rev().fold(None, nest).unwrap();
            assert_eq!(with_causes(&*error), expect);
        };
        check(&["spool"], "spool");
        check(&["spool", "folder", "not a directory"], "spool: folder: not a directory");
        check(&["spool: folder", "folder", "full"], "spool: folder: full");
        check(&["folder", "folder"], "folder");
        check(&["the folder", "folder"], "the folder: folder");
        check(&["a: c", "b", "c"], "a: c: b: c");
    }
}
