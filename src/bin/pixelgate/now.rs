//! The date of the machine, for the logs.

use jiff::Timestamp;
use pixelgate::custom::{Clock, SystemClock};

/// The date, to the millisecond. `Timestamp::now` panics beyond the year 9999, and writes a date
/// before 1970; the library's clock gives neither.
pub fn now() -> Timestamp {
    let unix_ms = i64::try_from(SystemClock.unix_ms()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::MAX)
}
