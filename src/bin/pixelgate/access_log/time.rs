//! The time of a line. Each thread formats it only once a second, because that takes longer than
//! writing the rest of the line.

use super::config::Format;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::cell::RefCell;

thread_local! {
    /// The second that this thread formatted last, its format, and its text.
    static LAST: RefCell<(i64, Format, String)> =
        const { RefCell::new((i64::MIN, Format::Json, String::new())) };
}

/// Calls `take` with the text of `now` in UTC, without fractions of a second, and returns what
/// `take` returns.
pub fn with_second<T>(format: Format, now: Timestamp, take: impl FnOnce(&str) -> T) -> T {
    let second = now.as_second();
    LAST.with_borrow_mut(|(last, last_format, text)| {
        if (*last, *last_format) != (second, format) {
            let pattern = match format {
                Format::Json => "%Y-%m-%dT%H:%M:%S",
                Format::Combined => "%d/%b/%Y:%H:%M:%S +0000",
            };
            *text = now.to_zoned(TimeZone::UTC).strftime(pattern).to_string();
            (*last, *last_format) = (second, format);
        }
        take(text)
    })
}
