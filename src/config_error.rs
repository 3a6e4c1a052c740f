//! The error of a configuration value that cannot be used, the same for every section.

use std::error::Error;

/// A key whose value cannot be used, and why. Displays as `key: reason` and never shows a value
/// that may be secret.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ConfigError {
    key: String,
    reason: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Lets [`crate::PixelGate::builder`] take a configuration that is checked already.
impl From<std::convert::Infallible> for ConfigError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl ConfigError {
    pub(crate) fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into(), source: None }
    }

    /// An error whose cause is another error, which `source()` returns.
    pub(crate) fn caused(
        key: impl Into<String>,
        reason: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { source: Some(Box::new(source)), ..Self::new(key, reason) }
    }

    /// The same error, with its key below `section`.
    pub(crate) fn within(mut self, section: &str) -> Self {
        self.key = format!("{section}.{}", self.key);
        self
    }

    /// The whole key, such as `events.query_bytes_max`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong with the value, as the rest of a sentence that begins with the key: `must be
    /// at most 1024`.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}
