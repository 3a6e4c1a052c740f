//! The middleware: judges, stores and answers an event request in a Pingora session.
//!
//! A host puts a [`PixelGate`] into its own proxy. There is no trait to implement and no type
//! parameter: the host calls [`PixelGate::handle`] first thing in `request_filter` and acts on the
//! result. A request for another path is left untouched. An event request is answered here, its
//! connection stays usable, and the verdict is returned for the host to log. Delivery to upstreams
//! runs on threads of the gate's own; no request waits for it.

pub(crate) mod access;
mod body;

use crate::delivery::Forwarder;
use crate::delivery::threads::Delivery;
use crate::event::{Context, Reason, Rejection};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate, Verdict};
use crate::request::client::TrustedProxies;
use crate::request::context::context;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::request::trace::trace_id;
use crate::response::answers;
use crate::response::answers::{Answer, Answers, OwnLines, wants_image};
use crate::response::title_case::title_case;
use crate::spool::{CloseError, Commit, Overloaded, Spool};
use crate::telemetry::event_samples::{EventSamples, PendingSample};
use crate::telemetry::faults::Faults;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::{Limit, Metrics};
use crate::upstream;
use access::AccessRecord;
use bytes::Bytes;
use http::{Method, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Spare slots in each prebuilt header for `Date` and `Connection`, which the connection adds, and
/// for the two lines about an accepted event.
const SPARE_HEADERS: usize = 4;

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
    /// The event path (`events.path`), for access logs.
    pub path: String,
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
    /// With the lines of this event's answer.
    Accepted(OwnLines),
    Head,
    Preflight,
    Rejected(Rejection),
}

/// What is left to do after an event request was judged.
pub(crate) enum NextStep {
    /// Answer now.
    Respond(EventResponse),
    /// Wait until the event is on disk, then answer, with these lines if it was accepted.
    AwaitCommit(Commit, PendingSample, OwnLines),
}

impl EventResponse {
    /// Selects the prebuilt answer.
    pub fn pick<T>(self, answers: &Answers<T>, as_image: bool) -> &T {
        match self {
            Self::Accepted(_) => answers.accepted(),
            Self::Head => answers.head(),
            Self::Preflight => answers.preflight(),
            Self::Rejected(rejection) => answers.rejected(rejection, as_image),
        }
    }

    /// The header lines of this answer that are not prebuilt.
    pub fn own_lines(self) -> OwnLines {
        match self {
            Self::Accepted(lines) => lines,
            Self::Rejected(Rejection { retry_after_seconds, .. }) => {
                OwnLines { retry_after_seconds, ..OwnLines::default() }
            }
            Self::Head | Self::Preflight => OwnLines::default(),
        }
    }

    fn reason(self) -> Option<Reason> {
        match self {
            Self::Rejected(rejection) => Some(rejection.reason),
            _ => None,
        }
    }

    /// The verdict that the host gets.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Accepted(_) => Verdict::Accepted,
            Self::Head | Self::Preflight => Verdict::NotJudged,
            Self::Rejected(rejection) => Verdict::Rejected(rejection),
        }
    }

    /// Accepted, with these lines, only if the commit succeeded, else `overloaded` (SPEC 6).
    fn of_commit(committed: Result<(), Overloaded>, lines: OwnLines) -> Self {
        match committed {
            Ok(()) => Self::Accepted(lines),
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
    /// - `Ok(Some(verdict))`: an event request, and answered. Return `Ok(true)`. The verdict is
    ///   [`Verdict::NotJudged`] if the request's body is broken or cut; the answer is 400 then.
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
        self.handle_recorded(session, None).await
    }

    /// As [`PixelGate::handle_downstream`]. Notes in `record` what is known of any request, and
    /// what becomes of an event request, also where writing the answer fails. Not noted are the
    /// status and the length of the answer, which the session knows.
    ///
    /// # Errors
    ///
    /// As for [`PixelGate::handle`].
    pub async fn handle_recorded(
        &self,
        session: &mut ServerSession,
        mut record: Option<&mut AccessRecord>,
    ) -> pingora::Result<Option<Verdict>> {
        let target = Target::split(session.req_header().raw_path());
        let reading = self.state.gate.read(target.path);
        if let Some(record) = record.as_deref_mut() {
            self.describe(session, reading, record);
        }
        if reading == Reading::Other {
            return Ok(None);
        }
        // Before the judging: an event counts only if its request is whole.
        let mut form = Vec::new();
        if !session.is_body_done() {
            let takes_form =
                self.state.gate.rules().judges_post() && body::is_form(session.req_header());
            let Ok(body) = body::read(session, takes_form).await else {
                self.refuse_body(session).await;
                note_verdict(&mut record, Verdict::NotJudged);
                return Ok(Some(Verdict::NotJudged));
            };
            if !body.is_whole {
                session.set_keepalive(None);
            }
            form = body.form;
        }
        let mut step = self.judge_session(session, reading, &form, record.as_deref_mut());
        let response = self.finish(&mut step).await;
        note_verdict(&mut record, response.verdict());
        self.answer(session, response).await?;
        Ok(Some(response.verdict()))
    }

    /// The part without waiting: judge, encode, enqueue. The parameters of a form are read after
    /// those of the query.
    fn judge_session(
        &self,
        session: &ServerSession,
        reading: Reading,
        form: &[u8],
        record: Option<&mut AccessRecord>,
    ) -> NextStep {
        let request = session.req_header();
        let query = Target::split(request.raw_path()).query;
        let joined = if form.is_empty() { Vec::new() } else { [query, b"&", form].concat() };
        let request = EventRequest {
            method: &request.method,
            reading,
            query: if form.is_empty() { query } else { &joined },
            context: self.context_of(session),
        };
        self.judge(request, record)
    }

    fn context_of<'s>(&'s self, session: &'s ServerSession) -> Context<'s> {
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let names = self.state.gate.rules().context_names();
        context(&session.req_header().headers, peer, &self.state.trusted, names)
    }

    /// Notes what is known of a request before it is judged or passed on.
    fn describe(&self, session: &ServerSession, reading: Reading, record: &mut AccessRecord) {
        let request = session.req_header();
        record.method = Some(request.method.clone());
        record.version = request.version;
        record.path = Some(match reading {
            Reading::Other => Target::split(request.raw_path()).path.to_vec(),
            Reading::Event | Reading::Unknown => self.state.path.clone().into_bytes(),
        });
        record.trace_id = trace_id(&request.headers);
        record.note_visitor(&self.state.gate.reduced(self.context_of(session)));
    }

    /// Answers 400 to a request whose body is broken or cut. The connection closes, because the end
    /// of the request is unknown.
    async fn refuse_body(&self, session: &mut ServerSession) {
        self.state.metrics.count_refused(Limit::BodySyntax);
        session.set_keepalive(None);
        let sent = async {
            let mut header = ResponseHeader::build(400, Some(1 + SPARE_HEADERS))?;
            header.insert_header(header::CONTENT_LENGTH, 0)?;
            session.write_response_header(Box::new(header)).await
        };
        // Fails if the client has gone, as it may have where its body is cut.
        let _ = sent.await;
    }

    /// Judges an event request, and enqueues an accepted event in the spool. Notes in `record` the
    /// portal and, of an accepted event, its id and what it holds of the visitor.
    pub(crate) fn judge(
        &self,
        request: EventRequest<'_>,
        mut record: Option<&mut AccessRecord>,
    ) -> NextStep {
        let state = &*self.state;
        let query = request.query;
        let reject = |rejection: Rejection| {
            state.event_samples.rejected(rejection.reason, query, state.gate.rules());
            NextStep::Respond(EventResponse::Rejected(rejection))
        };
        let mut accepted = AcceptedEvent::blank();
        let decision = state.gate.judge(request, &mut accepted);
        if let Some(record) = &mut record {
            record.portal = Some(accepted.event.portal).filter(|portal| *portal != 0);
        }
        match decision {
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
        let mut event_id = None;
        let encode = |out: &mut Vec<u8>| event_id = Some(state.gate.encode(&accepted, out));
        let appended = state.spool.append(encode);
        if let Some(record) = record {
            record.event_id = event_id;
            record.note_visitor(&accepted.context);
        }
        match appended {
            Ok(commit) => {
                if state.in_flight.as_ref().is_some_and(InFlight::all_connections_wait) {
                    state.spool.flush_now();
                }
                let lines = OwnLines {
                    ignored_params: accepted.ignored.len(),
                    event_id: event_id.filter(|_| state.response.event_id),
                    retry_after_seconds: None,
                };
                let pending = state.event_samples.appended(&accepted.event);
                NextStep::AwaitCommit(commit, pending, lines)
            }
            Err(Overloaded) => reject(Rejection::of(Reason::Overloaded)),
        }
    }

    /// Waits until an accepted event is on disk, and counts the verdict. Takes the step by
    /// reference, because each move of it would take space in the task of an idle connection.
    pub(crate) async fn finish(&self, step: &mut NextStep) -> EventResponse {
        let response = match step {
            NextStep::Respond(response) => *response,
            NextStep::AwaitCommit(commit, pending, lines) => {
                let response = EventResponse::of_commit(commit.await, *lines);
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
        let mut header = Box::new(if session.req_header().version == Version::HTTP_2 {
            // HTTP/2 sends all names in lower case, so their HTTP/1 spelling is not copied.
            ResponseHeader::from(prebuilt.header.as_owned_parts())
        } else {
            prebuilt.header.clone()
        });
        let own = response.own_lines();
        if let Some(seconds) = own.retry_after_seconds
            && header.headers.contains_key(header::RETRY_AFTER)
        {
            header.insert_header(header::RETRY_AFTER, seconds)?;
        }
        let mut added = Ok(());
        own.put_accepted(|name, value| {
            if added.is_ok() {
                added = header.insert_header(name, value);
            }
        });
        added?;
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

fn note_verdict(record: &mut Option<&mut AccessRecord>, verdict: Verdict) {
    if let Some(record) = record {
        record.verdict = Some(verdict);
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
