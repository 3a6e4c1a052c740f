//! Maps an HTTP response, or a failed request, to the [`Outcome`] of a batch (SPEC 7).

use std::error::Error as _;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::outcome::{Failure, Outcome};
use crate::retry_after::retry_after;
use crate::tls_error::tls_words;

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
    use http::header;

    const NOW: &str = "2026-11-23T02:45:13.250Z";

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
}
