//! What an access log says about one request (SPEC 8).
//!
//! A record is begun when a request is known, filled in while it is served, and reported when it is
//! dropped. So each request is reported once, however it ends: by its answer, by a client that goes
//! away, or by the end of its task. Without an access log no record exists and nothing here runs.
//!
//! A record holds of a visitor what an event may keep by `[privacy]`, and never a query. The path
//! of an event request is the configured one: a request below that path may have parameters in it.

use super::verdict::Verdict;
use crate::event::Context;
use crate::request::trace::TraceId;
use bytes::Bytes;
use http::{Method, Version};
use pingora::protocols::http::ServerSession;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the record of each request goes. Cheap to clone: all clones report to the same place.
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

    /// Begins the record of a request that is known now.
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
    /// When the request was known.
    pub began: Instant,
    /// The client's address. `None`: not known, or `[privacy]` does not allow it.
    pub client: Option<IpAddr>,
    /// `None`: the header could not be read.
    pub method: Option<Method>,
    /// The path, without its query, as received or, of an event request, as configured. `None`: as
    /// for the method.
    pub path: Option<Bytes>,
    /// The version of HTTP.
    pub version: Version,
    /// As far as `[privacy]` allows, and without its query.
    pub referer: Option<String>,
    /// Without hidden characters.
    pub user_agent: Option<String>,
    /// The id in a valid `traceparent`.
    pub trace_id: Option<TraceId>,
    /// What became of an event request, without the event's name and the commit's time. `None`:
    /// another request, or one that ended before it was judged.
    pub verdict: Option<Verdict>,
    /// The status of the response. `None`: none was sent.
    pub status: Option<u16>,
    /// Bytes of the response's body that were sent.
    pub body_bytes: u64,
    /// Whether the whole response was sent.
    pub is_whole: bool,
    /// The name of the origin that was asked last.
    pub origin: Option<String>,
    /// Time from the choice of that origin to the header of its response.
    pub origin_time: Option<Duration>,
}

impl AccessRecord {
    /// Notes what may be said of the visitor. `context` is what `[privacy]` has left.
    pub(crate) fn note_visitor(&mut self, context: &Context<'_>) {
        self.client = context.ip;
        self.user_agent = context.user_agent.as_deref().map(str::to_owned);
        let without_query = |referer: &str| referer.split('?').next().map(str::to_owned);
        self.referer = context.referer.as_deref().and_then(without_query);
    }

    /// Notes status and length of the response that `session` has sent so far.
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
