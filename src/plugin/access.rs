//! The record of one request for an access log (SPEC 8).
//!
//! A record is begun when a request is known, filled in while it is served, and reported when it is
//! dropped. So each request is reported once, however it ends: by its answer, by a client that goes
//! away, or by the end of its task. Without an access log no record exists and nothing here runs.
//!
//! A record holds as much of a visitor as `[privacy]` lets an event hold, and never a query. For an
//! event request it holds the configured path and not the received one, because a request below the
//! event path may carry parameters in its path.

use super::verdict::Verdict;
use crate::event::Context;
use crate::request::trace::TraceId;
use bytes::Bytes;
use http::{Method, Version};
use pingora::protocols::http::ServerSession;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Receives the record of each request. Cheap to clone; all clones report to the same function.
///
/// ```
/// use pixelgate::custom::AccessLog;
///
/// let log = AccessLog::new(|record| println!("{:?} {:?}", record.path, record.status));
/// let mut record = log.begin();
/// record.status = Some(204);
/// drop(record); // prints `None Some(204)`
/// ```
#[derive(Clone)]
pub struct AccessLog(Arc<dyn Fn(&AccessRecord) + Send + Sync>);

impl AccessLog {
    /// Calls `report` at the end of each request, on the thread that served it.
    pub fn new(report: impl Fn(&AccessRecord) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Begins the record of a request whose header has just arrived.
    pub fn begin(&self) -> Box<AccessRecord> {
        self.begin_at(Instant::now())
    }

    /// Begins the record of a request that began at `began`.
    pub(crate) fn begin_at(&self, began: Instant) -> Box<AccessRecord> {
        Box::new(AccessRecord {
            log: self.clone(),
            began,
            client: None,
            method: None,
            path: None,
            version: Version::HTTP_11,
            referer: None,
            user_agent: None,
            trace_id: None,
            verdict: None,
            status: None,
            body_bytes: 0,
            is_whole: false,
            origin: None,
            origin_time: None,
        })
    }
}

/// What is known of one request. It is reported to its [`AccessLog`] when it is dropped.
///
/// ```
/// use pixelgate::custom::AccessRecord;
///
/// fn line(record: &AccessRecord) -> String {
///     let verdict = record.verdict.as_ref().map(ToString::to_string);
///     format!("{:?} {} {:?}", record.status, verdict.unwrap_or_default(), record.began.elapsed())
/// }
/// ```
pub struct AccessRecord {
    log: AccessLog,
    /// When the header of the request arrived.
    pub began: Instant,
    /// The address of the client. `None`: it is not known, or `[privacy]` does not allow it.
    pub client: Option<IpAddr>,
    /// The method. `None`: the header could not be read.
    pub method: Option<Method>,
    /// The path without its query: the received one, or for an event request the configured one.
    /// `None`: the header could not be read.
    pub path: Option<Bytes>,
    /// The version of HTTP.
    pub version: Version,
    /// The `Referer` without its query, as far as `[privacy]` allows it.
    pub referer: Option<String>,
    /// The `User-Agent` without hidden characters.
    pub user_agent: Option<String>,
    /// The trace id in a valid `traceparent` header.
    pub trace_id: Option<TraceId>,
    /// The verdict on an event request, without the name of the event and the time of the commit.
    /// `None`: the request is for another path, or ended before it was judged.
    pub verdict: Option<Verdict>,
    /// The status of the response. `None`: no response was sent.
    pub status: Option<u16>,
    /// The bytes of the response body that were sent.
    pub body_bytes: u64,
    /// Whether the whole response was sent.
    pub is_whole: bool,
    /// The name of the origin to which the request was sent last.
    pub origin: Option<String>,
    /// The time from the choice of that origin to the header of its response.
    pub origin_time: Option<Duration>,
}

impl AccessRecord {
    /// Fills in the visitor from a context that `[privacy]` has reduced.
    pub(crate) fn note_visitor(&mut self, context: &Context<'_>) {
        self.client = context.ip;
        self.user_agent = context.user_agent.as_deref().map(str::to_owned);
        let without_query = |referer: &str| {
            let end = memchr::memchr(b'?', referer.as_bytes()).unwrap_or(referer.len());
            referer[..end].to_owned()
        };
        self.referer = context.referer.as_deref().map(without_query);
    }

    /// Fills in the status and the length of the response that `session` has sent so far.
    pub fn note_answer(&mut self, session: &ServerSession) {
        self.status = session.response_written().map(|response| response.status.as_u16());
        self.body_bytes = session.body_bytes_sent() as u64;
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        (self.log.0)(self);
    }
}
