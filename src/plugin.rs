//! The middleware: judges, stores and answers an event request in a Pingora session.
//!
//! A host puts a [`PixelGate`] into its own proxy. There is no trait to implement and no type
//! parameter: the host calls [`PixelGate::handle`] first thing in `request_filter` and acts on the
//! result. A request for another path is left untouched. An event request is answered here, its
//! connection stays usable, and the verdict is returned for the host to log. Delivery to upstreams
//! runs on threads of the gate's own; no request waits for it.

pub(crate) mod access;
mod body;
mod event_response;
#[cfg(feature = "server")]
mod fast_response;
mod verdict;

use crate::clock::Clock;
use crate::delivery::Forwarder;
use crate::delivery::threads::Delivery;
use crate::event::{Context, Event, EventId, Reason, Rejection};
use crate::explain::{Explanation, NotAnEvent, explain};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate};
use crate::policy::inspect::Inspector;
use crate::policy::portals;
use crate::policy::portals::{Format, OpenError as PortalsError};
use crate::policy::privacy;
use crate::request::client::TrustedProxies;
use crate::request::context::context;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::request::trace::trace_id;
use crate::response::answers::{Answer, Answers, wants_image};
use crate::response::title_case::title_case;
use crate::spool::{CloseError, Commit, Overloaded, Spool};
use crate::telemetry::event_samples::{EventSamples, PendingSample};
use crate::telemetry::faults::Faults;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::{Limit, Metrics};
use crate::upstream;
use crate::upstream::Replaceable;
use access::AccessRecord;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Version, header};
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

#[cfg(feature = "server")]
use fast_response::FastResponse;

pub(crate) use event_response::{AcceptedParts, EventResponse};
pub use verdict::Verdict;

/// Spare slots in each prebuilt header for `Date` and `Connection`, which the connection adds, and
/// for the two lines about an accepted event.
const SPARE_HEADERS: usize = 4;

/// The event gate as a Pingora middleware. Cheap to clone; all clones are one gate.
#[derive(Clone)]
pub struct PixelGate {
    state: Arc<GateState>,
}

/// What a reload replaces, all at once: a request uses one of these from its first check to its
/// answer.
pub(crate) struct Settings {
    pub gate: Arc<Gate>,
    pub answers: Answers<PrebuiltResponse>,
    /// Whether `X-Event-Id` is sent (`response.event_id`).
    pub sends_event_id: bool,
    /// The event path (`events.path`), for access logs.
    pub path: Bytes,
    /// The configured upstreams, for `explain`.
    pub upstreams: Vec<upstream::Config>,
}

/// Everything that the clones of a [`PixelGate`] share.
pub(crate) struct GateState {
    pub settings: ArcSwap<Settings>,
    /// How often something was reloaded since the gate was opened.
    pub reloads: AtomicU64,
    /// Whether the host is about to stop.
    pub draining: AtomicBool,
    pub spool: Spool,
    /// Whether an accepted event is on disk before its answer: not with `memory`.
    pub is_durable: bool,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// Where every room raises its faults.
    pub faults: Faults,
    pub event_samples: EventSamples,
    pub trusted: TrustedProxies,
    pub delivery: Delivery,
    /// In-flight counters. `None`: every group waits the full linger.
    pub in_flight: Option<InFlight>,
    /// What a reload builds on.
    pub reload: ReloadState,
}

/// What a reload builds on: what it may not change, and the handles by which it changes the rest.
pub(crate) struct ReloadState {
    pub state_dir: PathBuf,
    pub inspector: Option<Inspector>,
    /// The `[portals]` in force, and the `[privacy]` that its rules fit. `None`: the host brings the
    /// list.
    pub portals: Mutex<Option<(portals::Config, privacy::Config)>>,
    /// The configured upstreams, running.
    pub upstreams: Vec<Replaceable>,
}

/// An answer as the header and body that Pingora sends, and as the bytes that the fast path sends.
pub(crate) struct PrebuiltResponse {
    header: ResponseHeader,
    body: Bytes,
    #[cfg(feature = "server")]
    pub bytes: FastResponse,
}

/// What is left to do after an event request was judged.
pub(crate) enum NextStep {
    /// Answer now.
    Respond(EventResponse),
    /// Wait until the event is on disk, then answer.
    AwaitCommit(Commit, PendingSample, AcceptedParts),
}

/// What the gate did with a request.
pub(crate) enum Handled {
    /// Nothing: its path is another one.
    Other,
    /// Its body is broken or cut, and it was answered 400 without being judged.
    Broken,
    /// It was judged and answered.
    Answered(EventResponse),
}

impl PixelGate {
    pub(crate) fn from_state(state: GateState) -> Self {
        Self { state: Arc::new(state) }
    }

    /// Judges and answers an event request. Call this first in `request_filter`:
    ///
    /// - `Ok(None)`: another path; the session is untouched. Return `Ok(false)` to proxy it.
    /// - `Ok(Some(verdict))`: an event request, and answered. Return `Ok(true)`. If the request's
    ///   body is broken or cut, the answer is 400 and nothing was judged.
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
        record: Option<&mut AccessRecord>,
    ) -> pingora::Result<Option<Verdict>> {
        let mut event_name = None;
        let note = |event: &Event<'_>| {
            event_name = (!event.name.is_empty()).then(|| event.name.as_ref().into());
        };
        let response = match self.answer_event(session, record, note).await? {
            Handled::Other => return Ok(None),
            Handled::Broken => None,
            Handled::Answered(response) => Some(response),
        };
        let is_committed =
            self.state.is_durable && matches!(response, Some(EventResponse::Accepted(_)));
        let committed_at_ms = is_committed.then(|| self.state.clock.unix_ms());
        Ok(Some(Verdict { response, event_name, committed_at_ms }))
    }

    /// Judges and answers an event request. `note` gets its event, of which only portal and name
    /// are meaningful, and these as far as they are valid, unless it is accepted. `record` is that
    /// of [`PixelGate::handle_recorded`].
    pub(crate) async fn answer_event(
        &self,
        session: &mut ServerSession,
        mut record: Option<&mut AccessRecord>,
        note: impl FnOnce(&Event<'_>),
    ) -> pingora::Result<Handled> {
        let settings = self.settings();
        let target = Target::split(session.req_header().raw_path());
        let reading = settings.gate.read(target.path);
        if let Some(record) = record.as_deref_mut() {
            self.describe(&settings, session, reading, record);
        }
        if reading == Reading::Other {
            return Ok(Handled::Other);
        }
        // Before the judging: an event counts only if its request is whole.
        let mut form = Vec::new();
        if !session.is_body_done() {
            let takes_form =
                settings.gate.rules().judges_post() && body::is_form(session.req_header());
            let Ok(body) = body::read(session, takes_form).await else {
                self.refuse_body(session).await;
                note_response(&mut record, None);
                return Ok(Handled::Broken);
            };
            if !body.is_whole {
                session.set_keepalive(None);
            }
            form = body.form;
        }
        let mut step =
            self.judge_session(&settings, session, reading, &form, record.as_deref_mut(), note);
        let response = self.finish(&mut step).await;
        note_response(&mut record, Some(response));
        answer(&settings, session, response).await?;
        Ok(Handled::Answered(response))
    }

    /// The part without waiting: judge, encode, enqueue. The parameters of a form are read after
    /// those of the query.
    fn judge_session(
        &self,
        settings: &Settings,
        session: &ServerSession,
        reading: Reading,
        form: &[u8],
        record: Option<&mut AccessRecord>,
        note: impl FnOnce(&Event<'_>),
    ) -> NextStep {
        let request = session.req_header();
        let query = Target::split(request.raw_path()).query;
        let joined = if form.is_empty() { Vec::new() } else { [query, b"&", form].concat() };
        let request = EventRequest {
            method: &request.method,
            reading,
            query: if form.is_empty() { query } else { &joined },
            context: self.context_of(settings, session),
        };
        self.judge(settings, request, record, note)
    }

    fn context_of<'s>(&'s self, settings: &'s Settings, session: &'s ServerSession) -> Context<'s> {
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let names = settings.gate.rules().context_names();
        context(&session.req_header().headers, peer, &self.state.trusted, names)
    }

    /// Notes what is known of a request before it is judged or passed on.
    fn describe(
        &self,
        settings: &Settings,
        session: &ServerSession,
        reading: Reading,
        record: &mut AccessRecord,
    ) {
        let request = session.req_header();
        record.method = Some(request.method.clone());
        record.version = request.version;
        record.path = Some(match reading {
            Reading::Other => Bytes::copy_from_slice(Target::split(request.raw_path()).path),
            Reading::Event | Reading::Unknown => settings.path.clone(),
        });
        record.trace_id = trace_id(&request.headers);
        record.note_visitor(&settings.gate.reduced(self.context_of(settings, session)));
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

    /// Judges an event request, and enqueues an accepted event in the spool. `note` gets the event
    /// as in [`PixelGate::answer_event`]; `record` takes what an accepted event holds of the
    /// visitor.
    pub(crate) fn judge(
        &self,
        settings: &Settings,
        request: EventRequest<'_>,
        record: Option<&mut AccessRecord>,
        note: impl FnOnce(&Event<'_>),
    ) -> NextStep {
        let (state, gate) = (&*self.state, &settings.gate);
        let query = request.query;
        let reject = |rejection: Rejection, portal: u64| {
            state.event_samples.rejected(rejection.reason, query, gate.rules());
            NextStep::Respond(EventResponse::Rejected(rejection, portal))
        };
        let mut accepted = AcceptedEvent::blank();
        let decision = gate.judge(request, &mut accepted);
        note(&accepted.event);
        let portal = accepted.event.portal;
        match decision {
            Decision::Accept => {}
            Decision::Reject(rejection) => return reject(rejection, portal),
            Decision::Preflight => return NextStep::Respond(EventResponse::Preflight),
            Decision::Head => return NextStep::Respond(EventResponse::Head),
        }
        if let Some(record) = record {
            record.note_visitor(&accepted.context);
        }
        for (_, why) in &accepted.ignored {
            state.metrics.count_ignored(*why);
        }
        if let Some(reason) = accepted.would_reject {
            state.metrics.count_dry_run_refusal(reason);
        }
        let mut event_id = EventId::default();
        let encode = |out: &mut Vec<u8>| event_id = gate.encode(&accepted, out);
        match state.spool.append(encode) {
            Ok(commit) => {
                if state.in_flight.as_ref().is_some_and(InFlight::all_connections_wait) {
                    state.spool.flush_now();
                }
                let ignored_params = accepted.ignored.len();
                let parts = AcceptedParts { id: event_id, portal, ignored_params };
                let pending = state.event_samples.appended(&accepted.event, event_id);
                NextStep::AwaitCommit(commit, pending, parts)
            }
            Err(Overloaded) => reject(Rejection::of(Reason::Overloaded), portal),
        }
    }

    /// Waits until an accepted event is on disk, and counts the verdict. Takes the step by
    /// reference, because each move of it would take space in the task of an idle connection.
    pub(crate) async fn finish(&self, step: &mut NextStep) -> EventResponse {
        let response = match step {
            NextStep::Respond(response) => *response,
            NextStep::AwaitCommit(commit, pending, parts) => {
                // Accepted only if the commit succeeded (SPEC 6).
                let response = match commit.await {
                    Ok(()) => EventResponse::Accepted(*parts),
                    Err(Overloaded) => {
                        EventResponse::Rejected(Rejection::of(Reason::Overloaded), parts.portal)
                    }
                };
                let rejected = response.rejection().map(|rejection| rejection.reason);
                self.state.event_samples.committed(pending, rejected);
                response
            }
        };
        match response {
            EventResponse::Accepted(_) => self.state.metrics.count_accepted(),
            EventResponse::Rejected(rejection, _) => {
                self.state.metrics.count_rejected(rejection.reason);
            }
            EventResponse::Head | EventResponse::Preflight => {
                self.state.metrics.count_not_judged();
            }
        }
        response
    }

    pub(crate) fn state(&self) -> &GateState {
        &self.state
    }

    /// Explains how the gate would judge an event: a whole URL, a path with a query, or a query
    /// alone. Nothing is counted or stored. The explanation holds what `text` does, personal data
    /// included.
    ///
    /// ```
    /// # fn show(gate: &pixelgate::PixelGate) {
    /// match gate.explain("https://track.example.com/v1/event/?_a=62515&_n=signup") {
    ///     Ok(explanation) => println!("{}", explanation.to_text()),
    ///     Err(not_an_event) => println!("{not_an_event}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The path is not below `events.path`.
    pub fn explain<'t>(&self, text: &'t str) -> Result<Explanation<'t>, NotAnEvent> {
        let settings = self.settings();
        explain(&settings.gate, &settings.upstreams, text)
    }

    /// The judge. Asking it counts and stores nothing.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.state.settings.load().gate)
    }

    /// What is in force for a request that begins now.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.state.settings.load_full()
    }

    /// How often something was reloaded since the gate was opened. Read it before what was
    /// reloaded.
    pub(crate) fn reloads(&self) -> u64 {
        self.state.reloads.load(Acquire)
    }

    /// Counts a reload. Call it after what was reloaded is in place.
    pub(crate) fn count_reload(&self) {
        self.state.reloads.fetch_add(1, Release);
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
    pub(crate) fn event_samples(&self) -> &EventSamples {
        &self.state.event_samples
    }

    /// The queue on disk in which accepted events wait for their upstreams. Public for the tests of
    /// this repository.
    #[doc(hidden)]
    pub fn spool(&self) -> &Spool {
        &self.state.spool
    }

    /// Delivery to the upstreams, with the state of each.
    pub(crate) fn delivery(&self) -> &Forwarder {
        self.state.delivery.forwarder()
    }

    /// Asks for the portal list to be read again now, as SIGHUP does. Does not wait for it.
    pub fn reload_portals(&self) {
        self.state.settings.load().gate.portals().reload();
    }

    /// Puts a host's portal list in force (see [`Builder::portals`](crate::Builder::portals)), as a
    /// whole; requests are neither refused nor delayed. Blocks while it reads the list: a million
    /// portals take under a second.
    ///
    /// # Errors
    ///
    /// The text is not a list of this format, which the status shows as a failed refresh, or the
    /// gate was opened without a list of the host's. The list in force stays.
    pub fn put_portals(&self, list: &str, format: Format) -> Result<(), PortalsError> {
        self.gate().portals().put(list, format)
    }

    /// Makes `/readyz` answer 503 from now on, because the host is about to stop: balancers then
    /// send their requests elsewhere. Events are accepted as before.
    pub fn drain(&self) {
        self.state.draining.store(true, Release);
    }

    /// Whether the host is about to stop: see [`PixelGate::drain`].
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Acquire)
    }

    /// Stops delivery and makes every enqueued event durable, within `limit`: attempts under way
    /// may end in its first half. Call this once no request is in flight: later events are rejected
    /// as `overloaded`. Events that are not delivered yet are delivered after the next start.
    /// Blocks, so async code calls [`PixelGate::close_async`].
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

    /// As [`PixelGate::close`], for async code, on any runtime. Closing goes on, on a thread of its
    /// own, if this is dropped.
    ///
    /// # Errors
    ///
    /// As [`PixelGate::close`]; also if no thread can be started.
    pub async fn close_async(&self, limit: Duration) -> Result<(), CloseError> {
        let (gate, (closed, closing)) = (self.clone(), oneshot::channel());
        let close = move || {
            let result = gate.close(limit);
            // The caller may hold the last clone now.
            drop(gate);
            // Fails where the caller has stopped waiting.
            let _ = closed.send(result);
        };
        let thread = std::thread::Builder::new().name("close".to_owned()).spawn(close);
        thread.map_err(CloseError::Io)?;
        // No answer means a panic, which its thread has reported.
        closing.await.unwrap_or(Err(CloseError::TimedOut))
    }
}

/// Sends the prebuilt answer.
async fn answer(
    settings: &Settings,
    session: &mut ServerSession,
    response: EventResponse,
) -> pingora::Result<()> {
    let accept = session.get_header(header::ACCEPT).map(|value| value.as_bytes());
    let prebuilt = response.pick(&settings.answers, wants_image(accept));
    let mut header = Box::new(if session.req_header().version == Version::HTTP_2 {
        // HTTP/2 sends all names in lower case, so their HTTP/1 spelling is not copied.
        ResponseHeader::from(prebuilt.header.as_owned_parts())
    } else {
        prebuilt.header.clone()
    });
    let own = response.own_lines(settings.sends_event_id);
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

fn note_response(record: &mut Option<&mut AccessRecord>, response: Option<EventResponse>) {
    if let Some(record) = record {
        record.verdict = Some(Verdict::of(response));
    }
}

impl PrebuiltResponse {
    /// Turns an answer into Pingora's form. Does not fail for an answer of [`Answers`]: their
    /// headers are valid by type and their statuses are literals.
    pub fn new(answer: Answer) -> pingora::Result<Self> {
        #[cfg(feature = "server")]
        let bytes = FastResponse::new(&answer);
        let size = answer.headers.len() + SPARE_HEADERS;
        let mut header = ResponseHeader::build(answer.status, Some(size))?;
        for (name, value) in answer.headers {
            header.insert_header(title_case(&name), value)?;
        }
        Ok(Self {
            header,
            body: answer.body,
            #[cfg(feature = "server")]
            bytes,
        })
    }
}
