//! Formats times for `/status`.

use crate::clock::timestamp;

/// Formats milliseconds since 1970 as a time in UTC with milliseconds (RFC 3339).
pub fn rfc3339(unix_ms: u64) -> String {
    format!("{:.3}", timestamp(unix_ms))
}
