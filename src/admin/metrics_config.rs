//! The `[metrics]` section of the configuration.

use serde::Deserialize;

/// The most portals with series of their own.
pub const PORTALS_MAX: usize = 1000;

/// The `[metrics]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The number of the busiest portals that have series of their own in `/metrics` and a row on
    /// the live page, at most 1000. All others are counted together. 0: no series by portal.
    /// Default: 20.
    pub portals_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { portals_max: 20 }
    }
}

impl Config {
    /// Checks the section. The error is a key of `[metrics]` and the reason why its value cannot be
    /// used.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        match self.portals_max <= PORTALS_MAX {
            true => Ok(()),
            false => Err(("portals_max", format!("must be at most {PORTALS_MAX}"))),
        }
    }
}
