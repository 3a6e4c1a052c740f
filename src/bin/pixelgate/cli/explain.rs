//! `pixelgate explain`: prints on standard output whether an event would be accepted, and why
//! (SPEC 8).

use crate::config::Config;
use pixelgate::PixelGate;
use pixelgate::errors::{NotAnEvent, OpenError};
use pixelgate::tools::explain as explained;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

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
pub fn explain(config: Config, text: &OsStr, as_json: bool) -> Result<bool, ExplainError> {
    let upstreams = config.gate.upstream.clone();
    let builder = PixelGate::builder(config.gate).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(ExplainError::Open)?;
    let text = encoded(text);
    let explanation = explained(&gate, &upstreams, &text).map_err(ExplainError::NotAnEvent)?;
    let answer = match as_json {
        true => explanation.to_json().map_err(|e| ExplainError::Print(e.into()))?,
        false => explanation.to_text(),
    };
    writeln!(std::io::stdout().lock(), "{answer}").map_err(ExplainError::Print)?;
    Ok(explanation.is_accepted())
}

/// The text, percent-encoded where it is not UTF-8, as the edge judges such a request (SPEC 2).
fn encoded(text: &OsStr) -> Cow<'_, str> {
    let Some(text) = text.to_str() else {
        let encode = |byte: &u8| match byte.is_ascii() {
            true => char::from(*byte).to_string(),
            false => format!("%{byte:02X}"),
        };
        return text.as_bytes().iter().map(encode).collect();
    };
    text.into()
}
