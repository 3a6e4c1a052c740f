//! Why a portal policy cannot be opened.

/// The file cannot be read or is not a list. Names the file and, if known, the line.
#[derive(Debug, thiserror::Error)]
#[error("portals.source: {0}")]
pub struct OpenError(pub(super) String);
