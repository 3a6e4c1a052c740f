//! `pixelgate explain`: what would become of an event, and why, on standard output.

use crate::config::Config;
use pixelgate::tools::{NotAnEvent, explain as explained};
use pixelgate::{OpenError, PixelGate};
use std::io::Write;

/// Why there is no answer.
#[derive(Debug)]
pub enum ExplainError {
    /// The judge did not open.
    Open(OpenError),
    /// The address is no event's.
    NotAnEvent(NotAnEvent),
    /// The answer could not be printed.
    Print(std::io::Error),
}

impl std::fmt::Display for ExplainError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(e) => e.fmt(f),
            Self::NotAnEvent(e) => e.fmt(f),
            Self::Print(e) => write!(f, "cannot print: {e}"),
        }
    }
}

/// Explains one event on standard output; says whether it would be accepted.
pub fn explain(config: &Config, text: &str, as_json: bool) -> Result<bool, ExplainError> {
    let builder = PixelGate::builder(config.gate()).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(ExplainError::Open)?;
    let explanation = explained(&gate, &config.upstream, text).map_err(ExplainError::NotAnEvent)?;
    let answer = match as_json {
        true => explanation.to_json().map_err(|e| ExplainError::Print(e.into()))?,
        false => explanation.to_text(),
    };
    writeln!(std::io::stdout().lock(), "{answer}").map_err(ExplainError::Print)?;
    Ok(explanation.is_accepted())
}
