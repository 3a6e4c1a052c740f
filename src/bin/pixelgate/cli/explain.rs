//! `pixelgate explain`: prints on standard output whether an event would be accepted, and why
//! (SPEC 8).

use crate::config::Config;
use pixelgate::PixelGate;
use pixelgate::errors::{NotAnEvent, OpenError};
use pixelgate::tools::explain as explained;
use std::io::Write;

/// Why an event cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The portal list cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// The URL is not that of an event request.
    #[error(transparent)]
    NotAnEvent(NotAnEvent),
    /// The answer could not be printed.
    #[error("standard output cannot be written")]
    Print(#[source] std::io::Error),
}

/// Explains the event in `text`, a URL, a path or a query, on standard output, as JSON if `as_json`
/// is true. Returns whether the event would be accepted.
pub fn explain(config: Config, text: &str, as_json: bool) -> Result<bool, ExplainError> {
    let upstreams = config.gate.upstream.clone();
    let builder = PixelGate::builder(config.gate).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(ExplainError::Open)?;
    let explanation = explained(&gate, &upstreams, text).map_err(ExplainError::NotAnEvent)?;
    let answer = match as_json {
        true => explanation.to_json().map_err(|e| ExplainError::Print(e.into()))?,
        false => explanation.to_text(),
    };
    writeln!(std::io::stdout().lock(), "{answer}").map_err(ExplainError::Print)?;
    Ok(explanation.is_accepted())
}
