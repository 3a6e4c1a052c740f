//! What HubSpot's answers mean, beyond what the status means anywhere (SPEC 7).
//!
//! An answer's body is read for two things only: which inputs a `207 Multi-Status` speaks of, and
//! whether it holds one of a few well-known words that tell an operator what to do. Nothing else
//! of it is kept or shown.

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::upstream::answer;
use crate::upstream::outcome::{Failure, Outcome};

/// How long a portal is left alone where an answer asks for it and does not say how long: the
/// window over which HubSpot counts requests.
pub const PAUSE_SECONDS: u64 = 10;
/// How much of an answer's body is read. A hundred contacts with all their properties are a
/// fraction of it.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// Codes that say what is wrong with an input, as HubSpot spells them.
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

/// Sorts an answer about one portal's events. Whatever only this portal's token or limit is to
/// blame for says nothing about HubSpot, and stops no other portal.
pub fn outcome(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Outcome {
    let failure = || Failure::answered(status.as_u16());
    match status.as_u16() {
        401 | 403 => Outcome::Fault(failure().of_these_events()),
        // Limited; locked; being moved to another data centre.
        429 | 423 | 477 => {
            let after = answer::retry_after(headers, now);
            let after = after.unwrap_or(Duration::from_secs(PAUSE_SECONDS));
            Outcome::Retry(Failure { after: Some(after), ..failure() }.of_these_events())
        }
        // It has this already, or something else in its place: no attempt will change that.
        409 => Outcome::Rejected(failure()),
        _ => answer::outcome(status, headers, now),
    }
}

/// The best known of the words in a body that say what is wrong.
pub fn code(body: &[u8]) -> Option<&'static str> {
    let holds = |code: &&&str| memchr::memmem::find(body, code.as_bytes()).is_some();
    CODES.iter().find(holds).copied()
}

/// Which inputs a `207` refuses, by their index. `keys` are what the request called them; in the
/// answer a key stands under `name`, in what was taken and in the `context` of an error. `None`
/// where the answer leaves an input open.
pub fn refused(body: Option<&[u8]>, name: &str, keys: &[String]) -> Option<Vec<usize>> {
    let said: MultiStatus = serde_json::from_slice(body?).ok()?;
    let (mut refused, mut taken) = (HashSet::new(), HashSet::new());
    // An answer of 207 that names no error is no proof that there was none.
    let mut all_named = !said.errors.is_empty();
    for error in &said.errors {
        let before = refused.len();
        note(&error["context"][name], &mut refused);
        all_named &= refused.len() > before;
    }
    for result in &said.results {
        note(&result[name], &mut taken);
    }
    let is_known = |key: &String| all_named || refused.contains(&**key) || taken.contains(&**key);
    let is_refused = |index: &usize| refused.contains(&*keys[*index]);
    keys.iter().all(is_known).then(|| (0..keys.len()).filter(is_refused).collect())
}

/// Adds a text, or each text of a list.
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
