//! Formats times for `/status`.
/// Formats milliseconds since 1970 as a time in UTC with milliseconds (RFC 3339). The text is empty
/// for a time after the year 9999.
pub fn rfc3339(unix_ms: u64) -> String {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}
