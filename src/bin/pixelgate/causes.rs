//! Writes an error and its causes as one line of text, for the log and for standard error.

use std::error::Error;

/// Returns `error` and all its causes in one line, separated by colons. A cause is left out if the
/// text of the error above it already ends with it.
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
