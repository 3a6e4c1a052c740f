//! The time of a line, formatted once a second for each thread.

use super::config::Format;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::cell::RefCell;

thread_local! {
    /// The last second that this thread has formatted, in which format, and its text.
    static LAST: RefCell<(i64, Format, String)> =
        const { RefCell::new((i64::MIN, Format::Json, String::new())) };
}

/// Passes the text of `now`, to the second and in UTC, to `take`.
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
