//! The HTTP answer to each verdict (SPEC 4).
//!
//! All answers to event requests are known before the first request: one for an accepted event, one
//! for a preflight, two (pixel and problem document) for each rejection. [`Answers`] builds them
//! once, in the form that the host sends, and a request picks one. This module decides no verdict
//! and writes to no connection.

use super::pixel;
use crate::event::{Reason, Rejection};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use serde::Deserialize;

/// `Access-Control-Max-Age` of a preflight answer, in seconds: the day that SPEC 2 asks for.
const PREFLIGHT_MAX_AGE_SECONDS: &str = "86400";
/// `Retry-After` of `overloaded`, in seconds: long enough for the spool to check a full disk again,
/// short enough for a browser's retry to succeed in the same visit.
const OVERLOADED_RETRY_SECONDS: &str = "5";
/// `Retry-After` of `rate_limited`, in seconds: the least value of the header; a rate limiter
/// of one event a second or more admits an event again by then.
const RATE_LIMITED_RETRY_SECONDS: &str = "1";
/// The parameter that a rejection names: none, or one of the reserved parameters.
const PARAMS: [Option<&str>; 6] =
    [None, Some("_a"), Some("_n"), Some("email"), Some("_m"), Some("id")];
/// The header with the verdict.
const VERDICT_HEADER: HeaderName = HeaderName::from_static("x-event-verdict");
/// Pages of any origin send events, so any page may load the pixel.
const CORP_HEADER: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The `[response]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The body of an image answer.
    pub body: Body,
    /// The status of a rejection.
    pub rejections: Rejections,
    /// Whether `X-Event-Verdict` is sent.
    pub verdict_header: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { body: Body::Gif, rejections: Rejections::Status, verdict_header: true }
    }
}

/// `response.body`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// The 43-byte transparent pixel.
    Gif,
    /// No data, as the legacy API's documentation describes.
    Empty,
}

/// `response.rejections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rejections {
    /// The status of the reason.
    Status,
    /// 200 and the pixel for every rejection but `overloaded`.
    Pixel,
}

/// One answer, without the connection's own headers (`Date`, `Connection`).
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Every header, `Content-Length` included where a body may follow.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body of a `GET`; a `HEAD` leaves it out and keeps the headers.
    pub body: Bytes,
}

/// All answers of one configuration, each in the form `T` that the host sends.
#[derive(Debug)]
pub struct Answers<T> {
    accepted: T,
    preflight: T,
    /// By `slot(reject)`, image and document.
    rejected: Vec<(T, T)>,
}

impl<T> Answers<T> {
    /// Builds every answer once. `methods` are the methods that are judged (`events.methods`);
    /// `HEAD` and `OPTIONS` are allowed beside them. `finish` turns each answer into a `T`;
    /// its first error is returned.
    pub fn build<E>(
        config: &Config,
        methods: &[String],
        finish: impl Fn(Answer) -> Result<T, E>,
    ) -> Result<Self, E> {
        let allow = allow(methods);
        let accepted = Answer::image(config, 200, "accepted".into());
        let rejected = rejects().map(|reject| {
            let (image, document) = rejection_forms(config, reject, &allow);
            Ok((finish(image)?, finish(document)?))
        });
        Ok(Self {
            rejected: rejected.collect::<Result<_, E>>()?,
            accepted: finish(accepted)?,
            preflight: finish(preflight(&allow))?,
        })
    }

    /// The answer to an accepted event, and to `HEAD`.
    pub fn accepted(&self) -> &T {
        &self.accepted
    }

    /// The answer to `OPTIONS`.
    pub fn preflight(&self) -> &T {
        &self.preflight
    }

    /// The answer to a rejected event, as an image or as a problem document.
    pub fn rejected(&self, reject: Rejection, as_image: bool) -> &T {
        let (image, document) = &self.rejected[slot(reject)];
        if as_image { image } else { document }
    }
}

/// Whether a rejection is answered with a pixel: the request's `Accept` is absent or names `image/`
/// (SPEC 4).
pub fn wants_image(accept: Option<&[u8]>) -> bool {
    accept.is_none_or(|value| {
        value.windows(b"image/".len()).any(|part| part.eq_ignore_ascii_case(b"image/"))
    })
}

/// Every (reason, parameter) pair, in the order of [`slot`]. Pairs that no check produces cost a
/// few unused kilobytes and spare a lookup table.
fn rejects() -> impl Iterator<Item = Rejection> {
    let every = |reason| {
        PARAMS.into_iter().map(move |param| Rejection { reason, param, retry_after_seconds: None })
    };
    Reason::ALL.into_iter().flat_map(every)
}

fn slot(reject: Rejection) -> usize {
    let param = PARAMS.iter().position(|param| *param == reject.param).unwrap_or(0);
    reject.reason as usize * PARAMS.len() + param
}

fn allow(methods: &[String]) -> HeaderValue {
    let mut all: Vec<&str> = vec!["GET", "HEAD", "OPTIONS"];
    all.extend(methods.iter().map(String::as_str).filter(|m| *m != "GET"));
    // Methods are checked to be `GET` or `POST` when the configuration is read.
    HeaderValue::from_str(&all.join(", ")).unwrap_or(HeaderValue::from_static("GET"))
}

fn preflight(allow: &HeaderValue) -> Answer {
    let mut headers = common_headers();
    headers.push((header::ACCESS_CONTROL_ALLOW_METHODS, allow.clone()));
    headers.push((header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*")));
    let max_age = HeaderValue::from_static(PREFLIGHT_MAX_AGE_SECONDS);
    headers.push((header::ACCESS_CONTROL_MAX_AGE, max_age));
    headers.push((header::ALLOW, allow.clone()));
    Answer { status: 204, headers, body: Bytes::new() }
}

/// The two forms of one rejection: an image and a problem document.
fn rejection_forms(config: &Config, reject: Rejection, allow: &HeaderValue) -> (Answer, Answer) {
    let verdict = format!("rejected; reason={}", reject.reason.as_str());
    let disguised = config.rejections == Rejections::Pixel && reject.reason != Reason::Overloaded;
    if disguised {
        let pixel = Answer::image(config, 200, verdict);
        return (pixel.clone(), pixel);
    }
    let status = reject.reason.status();
    let mut forms =
        [Answer::image(config, status, verdict.clone()), Answer::document(config, reject, verdict)];
    for answer in &mut forms {
        match reject.reason {
            Reason::MethodNotAllowed => answer.headers.push((header::ALLOW, allow.clone())),
            Reason::Overloaded => answer.retry_after(OVERLOADED_RETRY_SECONDS),
            Reason::RateLimited => answer.retry_after(RATE_LIMITED_RETRY_SECONDS),
            _ => {}
        }
    }
    let [image, document] = forms;
    (image, document)
}

impl Answer {
    fn image(config: &Config, status: u16, verdict: String) -> Self {
        let body = match config.body {
            Body::Gif => pixel::PIXEL.clone(),
            Body::Empty => Bytes::new(),
        };
        Self::with_body(config, status, verdict, "image/gif", body)
    }

    /// A problem document (RFC 9457). `detail` is one of a fixed set and repeats nothing of the
    /// request.
    fn document(config: &Config, reject: Rejection, verdict: String) -> Self {
        let mut problem = serde_json::json!({
            "type": "about:blank",
            "title": reject.reason.title(),
            "status": reject.reason.status(),
            "detail": reject.detail(),
            "reason": reject.reason.as_str(),
        });
        if let Some(param) = reject.param {
            problem["param"] = param.into();
        }
        let body = Bytes::from(problem.to_string());
        let status = reject.reason.status();
        Self::with_body(config, status, verdict, "application/problem+json", body)
    }

    fn with_body(
        config: &Config,
        status: u16,
        verdict: String,
        content_type: &'static str,
        body: Bytes,
    ) -> Self {
        let mut headers = common_headers();
        headers.push((header::CONTENT_TYPE, HeaderValue::from_static(content_type)));
        headers.push((header::CONTENT_LENGTH, HeaderValue::from(body.len())));
        if config.verdict_header
            && let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(verdict))
        {
            headers.push((VERDICT_HEADER, value));
        }
        Self { status, headers, body }
    }

    fn retry_after(&mut self, seconds: &'static str) {
        self.headers.push((header::RETRY_AFTER, HeaderValue::from_static(seconds)));
    }
}

/// The headers of every answer: no cache may store it, any page may load it.
fn common_headers() -> Vec<(HeaderName, HeaderValue)> {
    let no_store = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    vec![
        (header::CACHE_CONTROL, no_store),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
        (CORP_HEADER, HeaderValue::from_static("cross-origin")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(config: &Config) -> Answers<Answer> {
        let same = |answer| Ok::<_, std::convert::Infallible>(answer);
        Answers::build(config, &["GET".into(), "POST".into()], same).unwrap()
    }

    fn value<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        let found = answer.headers.iter().find(|(n, _)| n.as_str() == name);
        found.and_then(|(_, value)| value.to_str().ok())
    }

    #[test]
    fn every_pair_of_reason_and_param_has_its_own_slot() {
        for (index, reject) in rejects().enumerate() {
            assert_eq!(slot(reject), index);
        }
    }

    #[test]
    fn a_rejection_is_an_image_only_where_an_image_is_understood() {
        let check = |accept: Option<&str>, expect: bool| {
            assert_eq!(wants_image(accept.map(str::as_bytes)), expect, "{accept:?}");
        };
        check(None, true);
        check(Some("image/avif,image/webp,*/*;q=0.8"), true);
        check(Some("text/html, IMAGE/png"), true);
        check(Some("*/*"), false);
        check(Some("application/json"), false);
        check(Some(""), false);
    }

    #[test]
    fn every_answer_carries_the_headers_of_the_contract_and_no_validator() {
        let all = answers(&Config::default());
        let rejected = rejects().flat_map(|r| [all.rejected(r, true), all.rejected(r, false)]);
        for answer in rejected.chain([all.accepted(), all.preflight()]) {
            assert_eq!(value(answer, "cache-control"), Some("no-cache, no-store, must-revalidate"));
            assert_eq!(value(answer, "access-control-allow-origin"), Some("*"));
            assert_eq!(value(answer, "cross-origin-resource-policy"), Some("cross-origin"));
            assert_eq!(value(answer, "etag"), None);
            assert_eq!(value(answer, "last-modified"), None);
            let length = value(answer, "content-length").map_or(0, |v| v.parse().unwrap());
            assert_eq!(length, answer.body.len());
        }
    }

    #[test]
    fn a_problem_document_names_reason_param_and_remedy() {
        let all = answers(&Config::default());
        let reject = Rejection::of(Reason::InvalidEmail);
        let answer = all.rejected(reject, false);
        assert_eq!(answer.status, 400);
        assert_eq!(value(answer, "content-type"), Some("application/problem+json"));
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["reason"], "invalid_email");
        assert_eq!(problem["param"], "email");
        assert_eq!(problem["status"], 400);
        assert!(problem["detail"].as_str().unwrap().len() > 20);
        assert!(!problem["title"].as_str().unwrap().is_empty());
    }

    #[test]
    fn rejections_as_pixels_hide_every_reason_but_overloaded() {
        let config = Config { rejections: Rejections::Pixel, ..Config::default() };
        let all = answers(&config);
        for reject in rejects() {
            let answer = all.rejected(reject, false);
            let expect = if reject.reason == Reason::Overloaded { 503 } else { 200 };
            assert_eq!(answer.status, expect, "{reject:?}");
            let verdict = format!("rejected; reason={}", reject.reason.as_str());
            assert_eq!(value(answer, "x-event-verdict"), Some(verdict.as_str()));
        }
    }

    #[test]
    fn an_empty_body_says_so_and_a_switched_off_verdict_is_absent() {
        let config = Config { body: Body::Empty, verdict_header: false, ..Config::default() };
        let all = answers(&config);
        assert_eq!(value(all.accepted(), "content-length"), Some("0"));
        assert_eq!(value(all.accepted(), "content-type"), Some("image/gif"));
        assert_eq!(value(all.accepted(), "x-event-verdict"), None);
    }

    #[test]
    fn method_not_allowed_lists_the_methods_and_overload_says_when() {
        let all = answers(&Config::default());
        let method = Rejection::of(Reason::MethodNotAllowed);
        let allow = value(all.rejected(method, true), "allow");
        assert_eq!(allow, Some("GET, HEAD, OPTIONS, POST"));
        for reason in [Reason::Overloaded, Reason::RateLimited] {
            let answer = all.rejected(Rejection::of(reason), true);
            let seconds: u32 = value(answer, "retry-after").unwrap().parse().unwrap();
            assert!(seconds > 0);
        }
        assert_eq!(value(all.preflight(), "access-control-max-age"), Some("86400"));
    }
}
