//! `legacy`: an existing backend without a batch API (SPEC 7).
use async_trait::async_trait;
use serde::Deserialize;

use super::{Batch, ConfigError, Outcome, Secret, Setback, Upstream};

/// The settings of an `[[upstream]]` of kind `legacy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where events are sent, the event path included.
    pub url: Secret,
    /// Requests under way at once, at most.
    pub concurrency_max: usize,
    /// Time for one event, in seconds.
    pub timeout_seconds: u64,
    /// What becomes of an event with revenue that may have counted.
    pub on_unknown: OnUnknown,
}

/// What becomes of an event with revenue of which nobody knows whether it counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// Send it again: it may count twice.
    Retry,
    /// Keep it as a dead letter.
    #[default]
    Dead,
}

/// See the module.
pub struct Legacy {}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::new(""),
            concurrency_max: 8,
            timeout_seconds: 10,
            on_unknown: OnUnknown::default(),
        }
    }
}

impl Config {
    /// Checks limits and the URL.
    pub fn validate(&self) -> Result<(), ConfigError> {
        super::http::parse_url(&self.url).map(drop)
    }

    /// Builds the upstream.
    pub fn build(&self) -> Result<Legacy, ConfigError> {
        self.validate()?;
        Ok(Legacy {})
    }
}

#[async_trait]
impl Upstream for Legacy {
    fn kind(&self) -> &'static str {
        "legacy"
    }

    async fn send(&self, _batch: &Batch) -> Outcome {
        Outcome::Retry(Setback::new("not there yet"))
    }
}
