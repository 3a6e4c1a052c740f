//! The middleware: judges, stores and answers an event request in a Pingora session.
//!
//! A host puts a [`PixelGate`] into its own proxy. There is no trait to implement and no type
//! parameter: the host calls [`PixelGate::handle`] first thing in `request_filter` and acts on the
//! result. A request for another path is left untouched. An event request is answered here, its
//! connection stays usable, and the verdict is returned for the host to log. Delivery to upstreams
//! runs on threads of the gate's own; no request waits for it.

use crate::delivery::Forwarder;
use crate::delivery::threads::Delivery;
use crate::event::{Reason, Rejection};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate, Verdict};
use crate::request::client::TrustedProxies;
use crate::request::context::context;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::response::answers;
use crate::response::answers::{Answer, Answers, wants_image};
use crate::response::title_case::title_case;
use crate::server::InFlight;
use crate::spool::{CloseError, Commit, Overloaded, Spool};
use crate::telemetry::event_samples::{EventSamples, PendingSample};
use crate::telemetry::faults::Faults;
use crate::telemetry::metrics::Metrics;
use crate::upstream;
use bytes::Bytes;
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest body of an event request that is read (and dropped) to keep the connection usable, in
/// bytes. A larger one gets the same answer, and the connection closes after it.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long an event request's body may take to arrive, in seconds.
const BODY_SECONDS_MAX: u64 = 10;
/// Spare slots in each prebuilt header for the lines that the connection adds: `Date` and
/// `Connection`.
const SPARE_HEADERS: usize = 2;

/// The event gate as a Pingora middleware. Cheap to clone; all clones are one gate.
#[derive(Clone)]
pub struct PixelGate {
    state: Arc<GateState>,
}

/// Everything that the clones of a [`PixelGate`] share.
pub(crate) struct GateState {
    pub gate: Gate,
    pub spool: Spool,
    pub metrics: Metrics,
    /// Where every room raises its faults.
    pub faults: Faults,
    pub event_samples: EventSamples,
    pub answers: Answers<PrebuiltResponse>,
    /// The `[response]` section, from which `server` builds the same answers as bytes.
    pub response: answers::Config,
    /// The methods of `events.methods`, which those answers name.
    pub methods: Vec<String>,
    pub trusted: TrustedProxies,
    pub delivery: Delivery,
    /// In-flight counters. `None`: every group waits the full linger.
    pub in_flight: Option<InFlight>,
    /// The configured upstreams, for `explain`.
    pub upstreams: Vec<upstream::Config>,
}

/// An answer as the header and body that Pingora sends.
pub(crate) struct PrebuiltResponse {
    header: ResponseHeader,
    body: Bytes,
}

/// The answer to an event request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EventResponse {
    Accepted,
    Head,
    Preflight,
    Rejected(Rejection),
}

/// What is left to do after an event request was judged.
pub(crate) enum NextStep {
    /// Answer now.
    Respond(EventResponse),
    /// Wait until the event is on disk, then answer.
    AwaitCommit(Commit, PendingSample),
}

impl EventResponse {
    /// Selects the prebuilt answer.
    pub fn pick<T>(self, answers: &Answers<T>, as_image: bool) -> &T {
        match self {
            Self::Accepted | Self::Head => answers.accepted(),
            Self::Preflight => answers.preflight(),
            Self::Rejected(rejection) => answers.rejected(rejection, as_image),
        }
    }

    /// The `Retry-After` of this answer, in seconds. `None`: the prebuilt value stands.
    pub fn retry_after_seconds(self) -> Option<u32> {
        match self {
            Self::Rejected(rejection) => rejection.retry_after_seconds,
            _ => None,
        }
    }

    fn reason(self) -> Option<Reason> {
        match self {
            Self::Rejected(rejection) => Some(rejection.reason),
            _ => None,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Accepted => Verdict::Accepted,
            Self::Head | Self::Preflight => Verdict::NotJudged,
            Self::Rejected(rejection) => Verdict::Rejected(rejection),
        }
    }

    /// Accepted only if the commit succeeded, else `overloaded` (SPEC 6).
    fn of_commit(committed: Result<(), Overloaded>) -> Self {
        match committed {
            Ok(()) => Self::Accepted,
            Err(Overloaded) => Self::Rejected(Rejection::of(Reason::Overloaded)),
        }
    }
}

impl PixelGate {
    pub(crate) fn from_state(state: GateState) -> Self {
        Self { state: Arc::new(state) }
    }

    /// Judges and answers an event request. Call this first in `request_filter`:
    ///
    /// - `Ok(None)`: another path; the session is untouched. Return `Ok(false)` to proxy it.
    /// - `Ok(Some(verdict))`: an event request, and answered. Return `Ok(true)`.
    ///
    /// # Errors
    ///
    /// The client went away before the answer was written. An event that was accepted by then
    /// stays accepted.
    pub async fn handle(&self, session: &mut Session) -> pingora::Result<Option<Verdict>> {
        self.handle_downstream(session.as_downstream_mut()).await
    }

    /// As [`PixelGate::handle`], for a host that holds no proxy session.
    pub async fn handle_downstream(
        &self,
        session: &mut ServerSession,
    ) -> pingora::Result<Option<Verdict>> {
        let Some(step) = self.judge_session(session) else { return Ok(None) };
        let response = self.finish(step).await;
        drop_body(session).await?;
        self.answer(session, response).await?;
        Ok(Some(response.verdict()))
    }

    /// The part without waiting: judge, encode, enqueue. `None`: another path.
    fn judge_session(&self, session: &ServerSession) -> Option<NextStep> {
        let request = session.req_header();
        let target = Target::split(request.raw_path());
        let reading = self.state.gate.read(target.path);
        if reading == Reading::Other {
            return None;
        }
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        Some(self.judge(EventRequest {
            method: &request.method,
            reading,
            query: target.query,
            context: context(&request.headers, peer, &self.state.trusted),
        }))
    }

    /// Judges an event request, and enqueues an accepted event in the spool.
    pub(crate) fn judge(&self, request: EventRequest<'_>) -> NextStep {
        let state = &*self.state;
        let query = request.query;
        let reject = |rejection: Rejection| {
            state.event_samples.rejected(rejection.reason, query, state.gate.rules());
            NextStep::Respond(EventResponse::Rejected(rejection))
        };
        let mut accepted = AcceptedEvent::blank();
        match state.gate.judge(request, &mut accepted) {
            Decision::Accept => {}
            Decision::Reject(rejection) => return reject(rejection),
            Decision::Preflight => return NextStep::Respond(EventResponse::Preflight),
            Decision::Head => return NextStep::Respond(EventResponse::Head),
        }
        for (_, why) in &accepted.ignored {
            state.metrics.count_ignored(*why);
        }
        if let Some(reason) = accepted.would_reject {
            state.metrics.count_dry_run_refusal(reason);
        }
        match state.spool.append(|out| state.gate.encode(&accepted, out)) {
            Ok(commit) => {
                if state.in_flight.as_ref().is_some_and(InFlight::all_connections_wait) {
                    state.spool.flush_now();
                }
                NextStep::AwaitCommit(commit, state.event_samples.appended(&accepted.event))
            }
            Err(Overloaded) => reject(Rejection::of(Reason::Overloaded)),
        }
    }

    /// Waits until an accepted event is on disk, and counts the verdict.
    pub(crate) async fn finish(&self, step: NextStep) -> EventResponse {
        let response = match step {
            NextStep::Respond(response) => response,
            NextStep::AwaitCommit(commit, pending) => {
                let response = EventResponse::of_commit(commit.await);
                self.state.event_samples.committed(pending, response.reason());
                response
            }
        };
        self.count(response.verdict());
        response
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => self.state.metrics.count_accepted(),
            Verdict::Rejected(reject) => self.state.metrics.count_rejected(reject.reason),
            Verdict::NotJudged => self.state.metrics.count_not_judged(),
        }
    }

    async fn answer(
        &self,
        session: &mut ServerSession,
        response: EventResponse,
    ) -> pingora::Result<()> {
        let accept = session.get_header(header::ACCEPT).map(|value| value.as_bytes());
        let prebuilt = response.pick(&self.state.answers, wants_image(accept));
        let mut header = Box::new(if session.is_http2() {
            // HTTP/2 sends all names in lower case, so their HTTP/1 spelling is not copied.
            ResponseHeader::from(prebuilt.header.as_owned_parts())
        } else {
            prebuilt.header.clone()
        });
        if let Some(seconds) = response.retry_after_seconds()
            && header.headers.contains_key(header::RETRY_AFTER)
        {
            header.insert_header(header::RETRY_AFTER, seconds)?;
        }
        session.write_response_header(header).await?;
        if !prebuilt.body.is_empty() && session.req_header().method != Method::HEAD {
            session.write_response_body(prebuilt.body.clone(), true).await?;
        }
        Ok(())
    }

    pub(crate) fn state(&self) -> &GateState {
        &self.state
    }

    /// The judge, for a host that wants to explain a verdict. Asking it counts and stores nothing.
    pub fn gate(&self) -> &Gate {
        &self.state.gate
    }

    /// The gate's counters and gauges (SPEC 8).
    pub fn metrics(&self) -> &Metrics {
        &self.state.metrics
    }

    /// The conditions that last and need an operator.
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// Masked samples of single events, and the portals with the most events.
    pub fn event_samples(&self) -> &EventSamples {
        &self.state.event_samples
    }

    /// The queue on disk in which accepted events wait for their upstreams.
    pub fn spool(&self) -> &Spool {
        &self.state.spool
    }

    /// Delivery to the upstreams, with the state of each.
    pub fn delivery(&self) -> &Forwarder {
        self.state.delivery.forwarder()
    }

    /// Asks for the portal list to be read again now, as SIGHUP does. Does not wait for it.
    pub fn reload_portals(&self) {
        self.state.gate.portals().reload();
    }

    /// Stops delivery and makes every enqueued event durable, within `limit`: attempts under way
    /// may end in its first half. Call this once no request is in flight: later events are rejected
    /// as `overloaded`. Events that are not delivered yet are delivered after the next start. Must
    /// not be called from async code.
    ///
    /// # Errors
    ///
    /// The disk refused enqueued events, or took longer than `limit`. None of these events was
    /// answered 200 with durability `power` or `interval`.
    pub fn close(&self, limit: Duration) -> Result<(), CloseError> {
        // Three quarters are for the threads, two thirds of that for attempts under way.
        let until = Instant::now() + limit;
        self.state.delivery.stop(limit * 3 / 4);
        self.state.spool.close(until.saturating_duration_since(Instant::now()))
    }
}

impl PrebuiltResponse {
    /// Turns an answer into Pingora's form. Does not fail for an answer of [`Answers`]: their
    /// headers are valid by type and their statuses are literals.
    pub fn new(answer: Answer) -> pingora::Result<Self> {
        let size = answer.headers.len() + SPARE_HEADERS;
        let mut header = ResponseHeader::build(answer.status, Some(size))?;
        for (name, value) in answer.headers {
            header.insert_header(title_case(&name), value)?;
        }
        Ok(Self { header, body: answer.body })
    }
}

/// Reads and drops the request's body, so that the next request on this connection is found where
/// it begins. If the body is too long or too slow, the connection closes after the answer.
async fn drop_body(session: &mut ServerSession) -> pingora::Result<()> {
    if session.is_body_done() {
        return Ok(());
    }
    if session.get_header(header::EXPECT).is_some() {
        // The answer is final without the body, so a client that waits for 100 need not send it.
        session.set_keepalive(None);
        return Ok(());
    }
    let limit = Duration::from_secs(BODY_SECONDS_MAX);
    let whole = tokio::time::timeout(limit, read_body(session)).await.unwrap_or(Ok(false))?;
    if !whole {
        session.set_keepalive(None);
    }
    Ok(())
}

/// Reads to the body's end or past [`BODY_BYTES_MAX`]; returns whether the end was reached.
async fn read_body(session: &mut ServerSession) -> pingora::Result<bool> {
    let mut read = 0;
    while let Some(piece) = session.read_request_body().await? {
        read += piece.len();
        if read > BODY_BYTES_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}
