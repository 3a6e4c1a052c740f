//! The limits of settings that several kinds share.

use crate::config_error::ConfigError;

/// Maximum of `timeout_seconds`; the minimum is 1.
#[cfg(any(feature = "http", feature = "kafka", feature = "nats"))]
pub const TIMEOUT_SECONDS_MAX: u64 = 300;
/// Maximum of `concurrency_max`: batches in flight to one upstream.
#[cfg(feature = "http")]
pub const CONCURRENCY_MAX: usize = 64;

/// Default of `connection_seconds_max`.
#[cfg(any(feature = "http", feature = "kafka", feature = "nats"))]
pub const CONNECTION_SECONDS_DEFAULT: u64 = 300;
/// Maximum of `connection_seconds_max`; the minimum is 1.
#[cfg(any(feature = "http", feature = "kafka", feature = "nats"))]
pub const CONNECTION_SECONDS_MAX: u64 = 86_400;

/// Checks `connection_seconds_max`.
#[cfg(any(feature = "http", feature = "kafka", feature = "nats"))]
pub fn check_connection_seconds(value: u64) -> Result<(), ConfigError> {
    check_within("connection_seconds_max", value, CONNECTION_SECONDS_MAX)
}

/// Checks that `1 <= value <= max`.
pub fn check_within(key: &str, value: u64, max: u64) -> Result<(), ConfigError> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("must be 1 to {max}")))
}
