//! Reads `Retry-After`, by which an upstream or the server of a portal list asks for a wait (SPEC 5
//! and 7).

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::Timestamp;

/// The longest wait that a server can ask for, in seconds. A longer `Retry-After` is reduced to
/// this limit, so that a wrong date does not stop delivery, or keep an old portal list in force,
/// for a year.
pub const RETRY_AFTER_SECONDS_MAX: u64 = 3600;

/// The wait that `Retry-After` asks for: seconds, or a date in any of HTTP's three forms (RFC 9110,
/// 10.2.3 and 5.6.7); at most [`RETRY_AFTER_SECONDS_MAX`]. `None` if the header is absent or
/// malformed.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number that does not fit into `u64` is a long wait, not a malformed value.
        value.parse().unwrap_or(u64::MAX)
    } else {
        let date = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
        // Rounded up, so that the wait does not end just before the date.
        let millis = date.as_millisecond().saturating_sub(now.as_millisecond()).max(0);
        u64::try_from(millis).ok()?.div_ceil(1000)
    };
    Some(Duration::from_secs(seconds.min(RETRY_AFTER_SECONDS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23T02:45:13.250Z";

    fn wait(value: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers, NOW.parse().unwrap()).map(|d| d.as_secs())
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date_in_each_form() {
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("0"), Some(0));
        assert_eq!(wait("Monday, 23-Nov-26 02:46:13 GMT"), Some(60));
        assert_eq!(wait("Mon Nov 23 02:46:13 2026"), Some(60));
        assert_eq!(wait("Tue Dec  1 02:46:13 2026"), Some(RETRY_AFTER_SECONDS_MAX));
        assert_eq!(wait("Friday, 31-Dec-99 23:59:59 GMT"), Some(0), "a year of the last century");
        assert_eq!(wait("Mon, 23 Nov 2026 02:46:13 GMT"), Some(60));
        assert_eq!(wait("Mon, 23 Nov 2026 02:45:14 GMT"), Some(1));
        assert_eq!(wait("Mon, 23 Nov 2026 02:00:00 GMT"), Some(0));
    }

    #[test]
    fn retry_after_is_bounded_and_nonsense_is_as_good_as_absent() {
        assert_eq!(wait("3600"), Some(RETRY_AFTER_SECONDS_MAX));
        assert_eq!(wait("3601"), Some(RETRY_AFTER_SECONDS_MAX));
        assert_eq!(wait("99999999999999999999999999"), Some(RETRY_AFTER_SECONDS_MAX));
        assert_eq!(wait("Thu, 31 Dec 9998 23:59:59 GMT"), Some(RETRY_AFTER_SECONDS_MAX));
        for nonsense in ["", "soon", "-1", "1.5", "+3", "Mon, 23 Nov"] {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
    }
}
