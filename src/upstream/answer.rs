//! Maps an HTTP response, or a failed request, to the [`Outcome`] of a batch (SPEC 7).

use std::error::Error as _;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::outcome::{Failure, Outcome};
use crate::tls_error::tls_words;

/// The longest wait that an upstream can ask for, in seconds. A longer `Retry-After` is reduced to
/// this limit, so that a wrong date does not stop delivery for a year.
pub const RETRY_AFTER_SECONDS_MAX: u64 = 3600;

/// The outcome of a batch, by the status of the response. `Retry-After` counts with every status
/// after which something is sent again (RFC 9110, 10.2.3 and 15.5.14), and not with one that is a
/// verdict on the events.
pub fn outcome(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Outcome {
    let verdict = || Failure::answered(status.as_u16());
    let failure = || Failure { after: retry_after(headers, now), ..verdict() };
    match status.as_u16() {
        200..=299 => Outcome::Delivered,
        408 | 425 | 429 | 500..=599 => Outcome::Retry(failure()),
        413 => Outcome::TooLarge(failure()),
        400 | 422 => Outcome::Rejected(verdict()),
        _ => Outcome::Fault(failure()),
    }
}

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

/// Describes a failed request for logs: the stage and the innermost cause. The URL is left out,
/// because it may hold an event's query or credentials. `proxy` is the host and port of the proxy
/// that the request went through.
pub fn describe(error: &reqwest::Error, proxy: Option<&str>) -> String {
    let through = proxy.map_or(String::new(), |proxy| format!(" through the proxy {proxy}"));
    let stage = match () {
        () if error.is_connect() && error.is_timeout() => {
            return format!("connecting{through} timed out");
        }
        () if error.is_timeout() => return "no answer in time".into(),
        () if error.is_connect() => format!("cannot connect{through}"),
        () => "connection failed".to_owned(),
    };
    if let Some(words) = tls_words(error) {
        return format!("{stage}: {words}");
    }
    let mut innermost = error.source();
    while let Some(cause) = innermost.and_then(|e| e.source()) {
        innermost = Some(cause);
    }
    let cause = innermost.map(ToString::to_string);
    match cause.as_deref().map(|cause| of_proxy(cause).unwrap_or(cause)) {
        Some(cause) => format!("{stage}: {cause}"),
        None => stage,
    }
}

/// Describes how a proxy answered `CONNECT`, in more words than the client's error has. `None` if
/// the error is not about a proxy.
fn of_proxy(cause: &str) -> Option<&'static str> {
    Some(match cause.strip_prefix("tunnel error: ")? {
        "proxy authorization required" => {
            "the proxy wants credentials (its answer to CONNECT is 407)"
        }
        "unexpected end of file" => "the proxy closed the connection instead of answering CONNECT",
        "proxy response headers too long" => "the proxy's answer to CONNECT is too long",
        _ => "the proxy refuses to connect to the upstream (its answer to CONNECT is not 200)",
    })
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
    fn every_status_has_the_outcome_of_the_contract() {
        for code in 100..=999_u16 {
            let status = StatusCode::from_u16(code).unwrap();
            let got = outcome(status, &HeaderMap::new(), NOW.parse().unwrap());
            let expect = match code {
                200..=299 => "delivered",
                408 | 425 | 429 | 500..=599 => "retry",
                413 => "too_large",
                400 | 422 => "rejected",
                _ => "fault",
            };
            assert_eq!(got.label(), expect, "{code}");
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, "7".parse().unwrap())]);
            let after = match outcome(status, &headers, NOW.parse().unwrap()) {
                Outcome::Retry(failure)
                | Outcome::TooLarge(failure)
                | Outcome::Rejected(failure)
                | Outcome::Fault(failure) => failure.after.map(|after| after.as_secs()),
                _ => None,
            };
            let waits = matches!(expect, "retry" | "too_large" | "fault");
            assert_eq!(after, waits.then_some(7), "{code}");
        }
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
