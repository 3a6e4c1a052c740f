//! Maps HubSpot's responses to outcomes, where they differ from `upstream::answer` (SPEC 7).
//!
//! The body of a response is read for two purposes only: to find the inputs that a
//! `207 Multi-Status` names, and a few known error codes that help an operator. No other part of it
//! is stored or shown.

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::retry_after::retry_after;
use crate::upstream::answer;
use crate::upstream::outcome::{Failure, Outcome};

/// The pause of a portal if the response names none, in seconds: the window over which HubSpot
/// counts requests.
pub const PAUSE_SECONDS: u64 = 10;
/// The longest body of a response that is read, in bytes. 100 contacts with all their properties
/// need a fraction of this.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// HubSpot's error codes for an input, the most specific first.
const CODES: &[&str] = &[
    "PROPERTY_DOESNT_EXIST",
    "INVALID_EMAIL",
    "INVALID_OPTION",
    "INVALID_INTEGER",
    "INVALID_DATE",
    "INVALID_LONG",
    "READ_ONLY_VALUE",
    "MISSING_SCOPES",
    "CONFLICT",
    "OBJECT_NOT_FOUND",
    "VALIDATION_ERROR",
];

#[derive(Default, Deserialize)]
#[serde(default)]
struct MultiStatus {
    results: Vec<Value>,
    errors: Vec<Value>,
}

/// The outcome of one portal's events, by the status of the response. A failure that this portal's
/// token or limit causes is local ([`Failure::local`]) and stops no other portal.
pub fn outcome(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Outcome {
    let failure = || Failure::answered(status.as_u16());
    match status.as_u16() {
        401 | 403 => {
            let after = retry_after(headers, now);
            Outcome::Fault(Failure { after, ..failure() }.of_these_events())
        }
        // 429: rate limited. 423: locked. 477: the portal is being moved to another data centre.
        429 | 423 | 477 => {
            let after = retry_after(headers, now);
            let after = after.unwrap_or(Duration::from_secs(PAUSE_SECONDS));
            Outcome::Retry(Failure { after: Some(after), ..failure() }.of_these_events())
        }
        // HubSpot already has these inputs, or conflicting ones, and a retry does not change that.
        409 => Outcome::Rejected(failure()),
        _ => answer::outcome(status, headers, now),
    }
}

/// The first of the known error codes that the body contains.
pub fn code(body: &[u8]) -> Option<&'static str> {
    let holds = |code: &&&str| memchr::memmem::find(body, code.as_bytes()).is_some();
    CODES.iter().find(holds).copied()
}

/// The indices of the inputs that a `207` rejects. `keys` are the inputs' ids in the request; the
/// response repeats an id under `name`, in a result or in the `context` of an error. `None` if the
/// response leaves an input's outcome open.
pub fn refused(body: Option<&[u8]>, name: &str, keys: &[String]) -> Option<Vec<usize>> {
    let answer: MultiStatus = serde_json::from_slice(body?).ok()?;
    let (mut refused, mut taken) = (HashSet::new(), HashSet::new());
    // A 207 without errors does not prove that every input was accepted.
    let mut all_named = !answer.errors.is_empty();
    for error in &answer.errors {
        let before = refused.len();
        note(&error["context"][name], &mut refused);
        all_named &= refused.len() > before;
    }
    for result in &answer.results {
        note(&result[name], &mut taken);
    }
    let is_known = |key: &String| all_named || refused.contains(&**key) || taken.contains(&**key);
    let is_refused = |index: &usize| refused.contains(&*keys[*index]);
    keys.iter().all(is_known).then(|| (0..keys.len()).filter(is_refused).collect())
}

/// Adds a string, or each string of a list.
fn note<'v>(value: &'v Value, to: &mut HashSet<&'v str>) {
    match value {
        Value::String(text) => _ = to.insert(text),
        Value::Array(all) => to.extend(all.iter().filter_map(Value::as_str)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, expect: Option<&[usize]>) {
        let keys = ["0", "1", "2"].map(String::from);
        let got = refused(Some(body.as_bytes()), "trace", &keys);
        assert_eq!(got.as_deref(), expect, "{body}");
    }

    #[test]
    fn an_error_that_names_its_input_is_about_that_input_alone() {
        check(r#"{"results":[],"errors":[{"context":{"trace":["1"]}}]}"#, Some(&[1]));
        let two = r#"{"errors":[{"context":{"trace":"0"}},{"context":{"trace":["2"]}}]}"#;
        check(two, Some(&[0, 2]));
        check(r#"{"errors":[{"context":{"trace":["0","1","2"]}}]}"#, Some(&[0, 1, 2]));
        check(r#"{"results":[{"trace":"0"},{"trace":"1"},{"trace":"2"}]}"#, Some(&[]));
        let all = r#"{"errors":[{},{"context":{"trace":["2"]}}],
                      "results":[{"trace":"0"},{"trace":"1"}]}"#;
        check(all, Some(&[2]));
    }

    #[test]
    fn what_an_answer_leaves_open_is_not_guessed() {
        check(r#"{"errors":[{"message":"no"}]}"#, None);
        check(r#"{"errors":[{}],"results":[{"trace":"1"}]}"#, None);
        check(r#"{"errors":[{"context":{"trace":["2"]}},{}]}"#, None);
        check(r#"{"errors":[{"context":7}]}"#, None);
        check("{}", None);
        check("[]", None);
        check("no JSON", None);
        assert_eq!(refused(None, "trace", &["0".into()]), None);
    }

    #[test]
    fn a_portals_own_trouble_is_told_from_hubspots() {
        let is_local = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            match outcome(status, &HeaderMap::new(), Timestamp::now()) {
                Outcome::Retry(s) | Outcome::Fault(s) => Some(s.local),
                _ => None,
            }
        };
        for local in [401, 403, 423, 429, 477] {
            assert_eq!(is_local(local), Some(true), "{local}");
        }
        for everybodys in [301, 404, 408, 500, 502, 503, 504, 521, 524] {
            assert_eq!(is_local(everybodys), Some(false), "{everybodys}");
        }
        for ends in [200, 204, 207, 400, 409, 413, 422] {
            assert_eq!(is_local(ends), None, "{ends}");
        }
    }

    #[test]
    fn only_words_that_are_known_are_taken_from_an_answer() {
        let body = br#"{"category":"VALIDATION_ERROR","errors":[{"code":"INVALID_EMAIL"}]}"#;
        assert_eq!(code(body), Some("INVALID_EMAIL"));
        assert_eq!(code(b"person@company.com is not valid"), None);
    }
}
