//! Why a portal policy cannot be opened.

use crate::config_error::ConfigError;

/// Why there is no policy to start with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A value in `[portals]` cannot be used.
    #[error("{0}")]
    Config(#[source] ConfigError),
    /// The file cannot be read or is not a list. Names the file and, if known, the line.
    #[error("portals.source: {0}")]
    Source(String),
}
