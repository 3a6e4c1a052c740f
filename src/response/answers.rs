//! The HTTP answer to each verdict (SPEC 4).
//!
//! All answers to event requests are known before the first request: one for an accepted event, one
//! for `HEAD`, one for a preflight, two (pixel and problem document) for each rejection.
//! [`Answers`] builds them once, in the form that the host sends, and a request picks one.
//! [`OwnLines`] are the few header lines that differ from request to request. This module decides
//! no verdict and writes to no connection.

use super::pixel;
use crate::event::{EventId, Reason, Rejection};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use serde::Deserialize;

/// `Access-Control-Max-Age` of a preflight answer, in seconds: one day (SPEC 2).
const PREFLIGHT_MAX_AGE_SECONDS: &str = "86400";
/// `Retry-After` of `overloaded`, in seconds: long enough for the spool to check a full disk again,
/// and short enough for a retry in the same visit of a page.
const OVERLOADED_RETRY_SECONDS: &str = "5";
/// `Retry-After` of `rate_limited`, in seconds, if the rejection does not say more. It is the least
/// value of the header, and enough for every rate, which is at least one event per second.
const RATE_LIMITED_RETRY_SECONDS: &str = "1";
/// The parameter that a rejection names: none, or one of the reserved parameters.
const PARAMS: [Option<&str>; 6] =
    [None, Some("_a"), Some("_n"), Some("email"), Some("_m"), Some("id")];
/// The header with the verdict.
const VERDICT_HEADER: HeaderName = HeaderName::from_static("x-event-verdict");
/// The headers that a script of another web origin may read.
const EXPOSED_HEADERS: &str = "X-Event-Verdict, X-Event-Id, X-Event-Ignored, Retry-After";
/// The header that lets pages of every web origin load the pixel: all of them may send events.
const CORP_HEADER: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The `[response]` section.
///
/// ```
/// use pixelgate::config::{Rejections, Response, ResponseBody};
///
/// let mut response = Response::default();
/// response.body = ResponseBody::Empty;
/// response.rejections = Rejections::Pixel;
/// response.event_id = true;
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The body of an image answer. Default: the pixel.
    pub body: Body,
    /// The status of a rejection. Default: that of its reason.
    pub rejections: Rejections,
    /// Whether `X-Event-Verdict` is sent. Default: `true`.
    pub verdict_header: bool,
    /// Whether `X-Event-Id` is sent with the answer to an accepted event. Default: `false`.
    pub event_id: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body: Body::Gif,
            rejections: Rejections::Status,
            verdict_header: true,
            event_id: false,
        }
    }
}

/// `response.body`: what an answer holds that is shown as an image.
///
/// ```
/// use pixelgate::config::{Response, ResponseBody};
///
/// assert_eq!(Response::default().body, ResponseBody::Gif);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Body {
    /// The 43-byte transparent pixel.
    Gif,
    /// No data, as the legacy API's documentation describes.
    Empty,
}

/// `response.rejections`: the status of the answer to a rejected event.
///
/// ```
/// use pixelgate::config::{Rejections, Response};
///
/// assert_eq!(Response::default().rejections, Rejections::Status);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Rejections {
    /// The answer has the status of the reason.
    Status,
    /// The answer is 200 with the pixel, for every rejection but `overloaded`.
    Pixel,
}

/// One answer, without the connection's own headers (`Date`, `Connection`).
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Every header, with `Content-Length` if a body may follow.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body. The answer to a `HEAD` has the same headers and no body.
    pub body: Bytes,
}

/// All answers of one configuration, each in the form `T` that the host sends.
#[derive(Debug)]
pub struct Answers<T> {
    accepted: T,
    head: T,
    preflight: T,
    /// An image and a problem document for each rejection, by [`slot`].
    rejected: Vec<(T, T)>,
}

/// The header lines of one answer that are not prebuilt. The default has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnLines {
    /// How many parameters of an accepted event were dropped. 0: no `X-Event-Ignored`.
    pub ignored_params: usize,
    /// The id of an accepted event. `None`: no `X-Event-Id`.
    pub event_id: Option<EventId>,
    /// The seconds of `Retry-After`, in place of those in a prebuilt answer that has this header.
    pub retry_after_seconds: Option<u32>,
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
        let accepted = Answer::image(config, 200, Some("accepted".into()));
        let rejected = rejects().map(|reject| {
            let (image, document) = rejection_forms(config, reject, &allow);
            Ok((finish(image)?, finish(document)?))
        });
        Ok(Self {
            rejected: rejected.collect::<Result<_, E>>()?,
            accepted: finish(accepted)?,
            head: finish(Answer::image(config, 200, None))?,
            preflight: finish(preflight(&allow))?,
        })
    }

    /// The answer to an accepted event.
    pub fn accepted(&self) -> &T {
        &self.accepted
    }

    /// The answer to `HEAD`: the header of a 200 pixel, whose body is not sent. It has no verdict,
    /// because nothing was judged.
    pub fn head(&self) -> &T {
        &self.head
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

impl OwnLines {
    /// Passes the lines about an accepted event to `put`, as name and value.
    pub fn put_accepted(&self, mut put: impl FnMut(&'static str, &str)) {
        if self.ignored_params > 0 {
            put("X-Event-Ignored", itoa::Buffer::new().format(self.ignored_params));
        }
        if let Some(id) = self.event_id {
            put("X-Event-Id", id.encode(&mut [0; EventId::TEXT_BYTES]));
        }
    }
}

/// Every pair of a reason and a parameter, in the order of [`slot`]. The pairs that no check
/// produces cost a few kilobytes and spare a lookup table.
fn rejects() -> impl Iterator<Item = Rejection> {
    let every =
        |reason| PARAMS.into_iter().map(move |param| Rejection { param, ..Rejection::of(reason) });
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
        let pixel = Answer::image(config, 200, Some(verdict));
        return (pixel.clone(), pixel);
    }
    let status = reject.reason.status();
    let image = Answer::image(config, status, Some(verdict.clone()));
    let mut forms = [image, Answer::document(config, reject, verdict)];
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
    fn image(config: &Config, status: u16, verdict: Option<String>) -> Self {
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
        Self::with_body(config, status, Some(verdict), "application/problem+json", body)
    }

    fn with_body(
        config: &Config,
        status: u16,
        verdict: Option<String>,
        content_type: &'static str,
        body: Bytes,
    ) -> Self {
        let mut headers = common_headers();
        headers.push((header::CONTENT_TYPE, HeaderValue::from_static(content_type)));
        headers.push((header::CONTENT_LENGTH, HeaderValue::from(body.len())));
        if config.verdict_header
            && let Some(verdict) = verdict
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

/// The headers of every answer: no cache may store it, any page may load it and read its verdict.
fn common_headers() -> Vec<(HeaderName, HeaderValue)> {
    let no_store = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    vec![
        (header::CACHE_CONTROL, no_store),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS)),
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
    fn every_answer_carries_the_headers_of_the_contract_and_no_validator() {
        let all = answers(&Config::default());
        let rejected = rejects().flat_map(|r| [all.rejected(r, true), all.rejected(r, false)]);
        for answer in rejected.chain([all.accepted(), all.head(), all.preflight()]) {
            assert_eq!(value(answer, "cache-control"), Some("no-cache, no-store, must-revalidate"));
            assert_eq!(value(answer, "access-control-allow-origin"), Some("*"));
            assert_eq!(value(answer, "access-control-expose-headers"), Some(EXPOSED_HEADERS));
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

    #[test]
    fn head_is_the_accepted_answer_without_its_verdict() {
        let all = answers(&Config::default());
        let mut accepted = all.accepted().headers.clone();
        accepted.retain(|(name, _)| *name != VERDICT_HEADER);
        assert_eq!(all.head().headers, accepted);
        assert_eq!(value(all.preflight(), "x-event-verdict"), None);
    }

    #[test]
    fn own_lines_stand_only_where_there_is_something_to_say() {
        let check = |lines: OwnLines, expect: &[(&str, &str)]| {
            let mut found = Vec::new();
            lines.put_accepted(|name, value| found.push((name, value.to_owned())));
            let found: Vec<_> = found.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(found, expect);
        };
        check(OwnLines::default(), &[]);
        let id = EventId::from([1, 0x97, 1, 2, 3, 4, 0x75, 6, 0x87, 8, 9, 10, 11, 12, 13, 14]);
        let text = "01970102-0304-7506-8708-090a0b0c0d0e";
        let lines =
            OwnLines { ignored_params: 12, event_id: Some(id), retry_after_seconds: Some(3) };
        check(lines, &[("X-Event-Ignored", "12"), ("X-Event-Id", text)]);
    }
}
