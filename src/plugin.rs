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
mod operate;
mod settings;
mod verdict;

use crate::clock::Clock;
use crate::delivery::threads::Delivery;
use crate::event::{Context, Event, EventId, Reason, Rejection};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate};
use crate::request::context::context;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::request::trace::trace_id;
use crate::response::accept::wants_image;
use crate::spool::{Commit, Overloaded, Spool};
use crate::telemetry::event_samples::{EventSamples, PendingSample};
use crate::telemetry::faults::Faults;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::{Limit, Metrics};
use access::{AccessLog, AccessRecord};
use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use bytes::Bytes;
use http::{Method, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

pub(crate) use event_response::{AcceptedParts, EventResponse};
use settings::SPARE_HEADERS;
pub(crate) use settings::{PrebuiltResponse, ReloadState, Settings};
pub use verdict::Verdict;

/// The event gate as a Pingora middleware. Cheap to clone; all clones are one gate.
///
/// ```
/// # use pixelgate::{PixelGate, errors::CloseError};
/// # use std::time::Duration;
/// # fn main() {}
/// fn run(gate: &PixelGate) -> Result<(), CloseError> {
///     if let Ok(explanation) = gate.explain("_a=62515&_n=signup") {
///         println!("{}", explanation.verdict()); // as a request would be judged; counts nothing
///     }
///     gate.close(Duration::from_secs(5))
/// }
/// ```
#[derive(Clone)]
pub struct PixelGate {
    state: Arc<GateState>,
}

/// Everything that the clones of a [`PixelGate`] share.
pub(crate) struct GateState {
    pub settings: ArcSwap<Settings>,
    /// The number of reloads since the gate was opened.
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
    /// Receives the record of each request. Empty: no records are made.
    pub access_log: ArcSwapOption<AccessLog>,
    pub delivery: Delivery,
    /// In-flight counters. `None`: every group waits the full linger.
    pub in_flight: Option<InFlight>,
    /// What a reload builds on.
    pub reload: ReloadState,
}

/// The step that follows after an event request was judged.
pub(crate) enum NextStep {
    /// Answer now.
    Respond(EventResponse),
    /// Wait until the event is on disk, then answer.
    AwaitCommit(Commit, PendingSample, AcceptedParts),
}

/// What the gate did with a request.
pub(crate) enum Handled {
    /// Nothing, because the path is not the event path.
    Other,
    /// The body is broken or cut. The request was answered 400 and not judged.
    Broken,
    /// The request was judged and answered.
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
    /// ```
    /// # use pingora::prelude::*;
    /// # use pixelgate::PixelGate;
    /// # async fn filter(gate: &PixelGate, session: &mut Session) -> Result<bool> {
    /// let verdict = gate.handle(session).await?;
    /// Ok(verdict.is_some())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The client went away before the answer was written. An event that was accepted by then
    /// stays accepted.
    pub async fn handle(&self, session: &mut Session) -> pingora::Result<Option<Verdict>> {
        self.handle_downstream(session.as_downstream_mut()).await
    }

    /// Does what [`PixelGate::handle`] does, for a host that has a server session and no proxy
    /// session.
    ///
    /// ```
    /// # use pingora::protocols::http::ServerSession;
    /// # use pixelgate::PixelGate;
    /// # async fn serve(gate: &PixelGate, mut session: ServerSession) -> pingora::Result<()> {
    /// if gate.handle_downstream(&mut session).await?.is_none() {
    ///     session.respond_error(404).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn handle_downstream(
        &self,
        session: &mut ServerSession,
    ) -> pingora::Result<Option<Verdict>> {
        self.handle_recorded(session, None).await
    }

    /// Does what [`PixelGate::handle_downstream`] does, and fills in `record`: what is known of any
    /// request, and the verdict on an event request, even if the answer cannot be written. The host
    /// adds the status and the length of the answer with [`AccessRecord::note_answer`].
    ///
    /// ```
    /// # use pingora::protocols::http::ServerSession;
    /// # use pixelgate::{PixelGate, custom::AccessLog};
    /// # async fn serve(
    /// #     gate: &PixelGate, log: &AccessLog, session: &mut ServerSession,
    /// # ) -> pingora::Result<()> {
    /// let mut record = log.begin();
    /// gate.handle_recorded(session, Some(&mut *record)).await?;
    /// record.note_answer(session);
    /// # Ok(())
    /// # } // the record is reported when it is dropped
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`PixelGate::handle`].
    pub async fn handle_recorded(
        &self,
        session: &mut ServerSession,
        record: Option<&mut AccessRecord>,
    ) -> pingora::Result<Option<Verdict>> {
        let mut event_name = None;
        let note = |event: &Event<'_>| event_name = verdict::event_name(&event.name);
        let response = match self.answer_event(session, record, note).await? {
            Handled::Other => return Ok(None),
            Handled::Broken => None,
            Handled::Answered(response) => Some(response),
        };
        let is_committed =
            self.state.is_durable && matches!(response, Some(EventResponse::Accepted(_)));
        let committed_at_ms = is_committed.then(|| self.state.spool.last_commit_ms());
        Ok(Some(Verdict { response, event_name, committed_at_ms }))
    }

    /// Judges and answers an event request, and fills in `record` as
    /// [`PixelGate::handle_recorded`] does. `note` receives the event. Of a rejected event only the
    /// portal and the name are meaningful, and only if they are valid.
    pub(crate) async fn answer_event(
        &self,
        session: &mut ServerSession,
        mut record: Option<&mut AccessRecord>,
        note: impl FnOnce(&Event<'_>),
    ) -> pingora::Result<Handled> {
        let settings = self.state.settings.load();
        let target = Target::split(session.req_header().raw_path());
        let reading = settings.gate.read(target.path);
        if let Some(record) = record.as_deref_mut() {
            self.describe(&settings, session, reading, record);
        }
        if reading == Reading::Other {
            return Ok(Handled::Other);
        }
        // Only an event request, which may wait, counts as a user of the settings: the counter is
        // shared by all threads, and most requests are for other paths.
        let settings = Guard::into_inner(settings);
        // The body is read before the event is judged: an event counts only if its request is
        // whole.
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

    /// Judges the request of a session and stages an accepted event, without waiting. The
    /// parameters of `form` count as if they were appended to the query (SPEC 2).
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
        let joined;
        let query = match (query, form) {
            (query, []) => query,
            ([], form) => form,
            (query, form) => {
                joined = [query, b"&", form].concat();
                &joined
            }
        };
        let request = EventRequest { method: &request.method, reading, query };
        self.judge(settings, request, || self.context_of(settings, session), record, note)
    }

    fn context_of<'s>(&'s self, settings: &'s Settings, session: &'s ServerSession) -> Context<'s> {
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let names = settings.gate.rules().context_names();
        context(&session.req_header().headers, peer, &settings.trusted, names)
    }

    /// Fills in what is known of a request before it is judged or proxied. The visitor of an event
    /// request is filled in when it is judged; if the body is still to come, already here, because
    /// a broken body ends the request before that.
    fn describe(
        &self,
        settings: &Settings,
        session: &mut ServerSession,
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
        if reading == Reading::Other || !session.is_body_done() {
            let query = Target::split(session.req_header().raw_path()).query;
            let context = self.context_of(settings, session);
            record.note_visitor(&settings.gate.reduced_unjudged(reading, query, context));
        }
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
        // Fails if the client has closed the connection, which is likely after a body that was cut.
        let _ = sent.await;
    }

    /// Judges an event request, and stages an accepted event in the spool. `context` gives the
    /// data of its headers and of its connection, where they are needed. `note` receives the event
    /// as in [`PixelGate::answer_event`]. In `record` the visitor is filled in, as far as
    /// `[privacy]` allows.
    pub(crate) fn judge<'a>(
        &self,
        settings: &'a Settings,
        request: EventRequest<'a>,
        context: impl Fn() -> Context<'a>,
        record: Option<&mut AccessRecord>,
        note: impl FnOnce(&Event<'_>),
    ) -> NextStep {
        let (state, gate) = (&*self.state, &settings.gate);
        let query = request.query;
        let reject = |rejection: Rejection, portal: u64, is_listed: Option<bool>| {
            state.event_samples.rejected(rejection.reason, query, gate.rules());
            state.count_rejected(gate, portal, is_listed);
            NextStep::Respond(EventResponse::Rejected(rejection, portal))
        };
        let mut accepted = AcceptedEvent::blank();
        let decision = gate.judge(request, &context, &mut accepted);
        note(&accepted.event);
        let (portal, is_listed) = (accepted.event.portal, accepted.is_listed);
        if let Some(record) = record {
            // The context of an accepted event is reduced already.
            if decision != Decision::Accept {
                accepted.context = gate.reduced_for(portal, query, context());
            }
            record.note_visitor(&accepted.context);
        }
        match decision {
            Decision::Accept => {}
            Decision::Reject(rejection) => return reject(rejection, portal, is_listed),
            Decision::Preflight => return NextStep::Respond(EventResponse::Preflight),
            Decision::Head => return NextStep::Respond(EventResponse::Head),
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
            Err(Overloaded) => {
                gate.portals().give_back(portal);
                reject(Rejection::of(Reason::Overloaded), portal, is_listed)
            }
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
                        let gate = self.gate();
                        gate.portals().give_back(parts.portal);
                        self.state.count_rejected(&gate, parts.portal, None);
                        EventResponse::Rejected(Rejection::of(Reason::Overloaded), parts.portal)
                    }
                };
                let rejected = response.rejection().map(|rejection| rejection.reason);
                self.state.event_samples.committed(pending, rejected, parts.ignored_params);
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
}

impl GateState {
    /// Counts a rejected event in the totals of its portal. 0: it names no valid portal.
    /// `is_listed`: whether the portal is in the list, if that is known.
    fn count_rejected(&self, gate: &Gate, portal: u64, is_listed: Option<bool>) {
        if portal != 0 {
            let is_listed = || is_listed.unwrap_or_else(|| gate.portals().lists(portal));
            self.spool.count_rejected(portal, is_listed);
        }
    }
}

/// Sends the prebuilt answer.
async fn answer(
    settings: &Settings,
    session: &mut ServerSession,
    response: EventResponse,
) -> pingora::Result<()> {
    let accept = session.req_header().headers.get_all(header::ACCEPT);
    let accept = accept.iter().map(|value| value.as_bytes());
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
