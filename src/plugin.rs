//! The middleware: an event request in a Pingora session, judged, kept and answered.
//!
//! [`PixelGate`] is what a host puts into its own proxy. It has no trait for the host to
//! implement and no type parameters: the host calls [`PixelGate::handle`] first thing in
//! `request_filter` and returns what it says. A request that is not ours is left as it came; one
//! that is ours is answered here, its connection stays usable, and the verdict is returned for
//! the host to log. Delivery goes on behind, on threads of the gate's own.

use crate::delivery::Forwarder;
use crate::delivery::threads::Delivery;
use crate::event::Reason;
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate, Refusal, Verdict};
use crate::request::client::TrustedProxies;
use crate::request::context::context;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::response::answer;
use crate::response::answer::{Answer, Answers, wants_image};
use crate::response::title_case::title_case;
use crate::server::InFlight;
use crate::spool::{CloseError, Commit, Overloaded, Spool};
use crate::telemetry::event_samples::{EventSamples, Note};
use crate::telemetry::metrics::Metrics;
use crate::upstream;
use bytes::Bytes;
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::sync::Arc;
use std::time::Duration;

/// Largest body of an event request that is read (and dropped) to keep the connection usable, in
/// bytes. After a larger one the answer is the same and the connection closes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long an event request's body may take to arrive, in seconds.
const BODY_SECONDS_MAX: u64 = 10;
/// Places kept free in each prebuilt header for what the connection adds: `Date` and
/// `Connection`.
const SPARE_HEADERS: usize = 2;

/// The event gate as a Pingora middleware. Cheap to clone; all clones are one gate.
#[derive(Clone)]
pub struct PixelGate {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub gate: Gate,
    pub spool: Spool,
    pub metrics: Metrics,
    pub glimpses: EventSamples,
    pub answers: Answers<Prebuilt>,
    /// For whoever builds the answers in another form.
    pub response: answer::Config,
    pub methods: Vec<String>,
    pub trusted: TrustedProxies,
    pub delivery: Delivery,
    /// Who else may report an event; nobody knows where it is not said.
    pub company: Option<InFlight>,
    /// As configured, for whoever explains what they would be sent.
    pub upstreams: Vec<upstream::Config>,
}

/// An answer in the form in which Pingora sends it.
pub(crate) struct Prebuilt {
    header: ResponseHeader,
    body: Bytes,
}

/// What a hit is answered with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Accepted,
    Head,
    Preflight,
    Refused(Refusal),
}

/// What the synchronous half of a hit leaves to do.
pub(crate) enum Step {
    /// Answer now.
    Answer(Reply),
    /// Wait for the disk, then answer.
    Wait(Commit, Note),
}

impl Reply {
    /// Which of all answers it is.
    pub fn pick<T>(self, answers: &Answers<T>, as_image: bool) -> &T {
        match self {
            Self::Accepted | Self::Head => answers.accepted(),
            Self::Preflight => answers.preflight(),
            Self::Refused(refusal) => answers.rejected(refusal.reject, as_image),
        }
    }

    /// Says better than the prebuilt answer when to come back.
    pub fn retry_after_seconds(self) -> Option<u32> {
        match self {
            Self::Refused(refusal) => refusal.retry_after_seconds,
            _ => None,
        }
    }

    fn reason(self) -> Option<Reason> {
        match self {
            Self::Refused(refusal) => Some(refusal.reject.reason),
            _ => None,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Accepted => Verdict::Accepted,
            Self::Head | Self::Preflight => Verdict::NotJudged,
            Self::Refused(refusal) => Verdict::Rejected(refusal.reject),
        }
    }

    /// What a 200 promises, kept or not (SPEC 6).
    fn of_commit(durable: Result<(), Overloaded>) -> Self {
        match durable {
            Ok(()) => Self::Accepted,
            Err(Overloaded) => Self::Refused(Refusal::of(Reason::Overloaded)),
        }
    }
}

impl PixelGate {
    pub(crate) fn from_shared(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// Judges and answers a request for the event path. To be called first in `request_filter`:
    ///
    /// - `Ok(None)`: not ours; the session is untouched and may be proxied.
    /// - `Ok(Some(verdict))`: ours, and answered. Return `Ok(true)`.
    ///
    /// # Errors
    ///
    /// The client went away before it was answered. An event that was accepted by then stays
    /// accepted.
    pub async fn handle(&self, session: &mut Session) -> pingora::Result<Option<Verdict>> {
        self.handle_downstream(session.as_downstream_mut()).await
    }

    /// As [`PixelGate::handle`], for a host that holds no proxy session.
    pub async fn handle_downstream(
        &self,
        session: &mut ServerSession,
    ) -> pingora::Result<Option<Verdict>> {
        let Some(step) = self.step(session) else { return Ok(None) };
        let reply = self.finish(step).await;
        drop_body(session).await?;
        self.answer(session, reply).await?;
        Ok(Some(reply.verdict()))
    }

    /// Everything that needs no waiting: judge, encode, enqueue. `None` where it is not ours.
    fn step(&self, session: &ServerSession) -> Option<Step> {
        let request = session.req_header();
        let target = Target::split(request.raw_path());
        let reading = self.shared.gate.read(target.path);
        if reading == Reading::Other {
            return None;
        }
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        Some(self.begin(EventRequest {
            method: &request.method,
            reading,
            query: target.query,
            context: context(&request.headers, peer, &self.shared.trusted),
        }))
    }

    /// Judges a hit, and enqueues what is kept.
    pub(crate) fn begin(&self, hit: EventRequest<'_>) -> Step {
        let shared = &*self.shared;
        let query = hit.query;
        let refused = |refusal: Refusal| {
            shared.glimpses.rejected(refusal.reject.reason, query, shared.gate.rules());
            Step::Answer(Reply::Refused(refusal))
        };
        let mut kept = AcceptedEvent::blank();
        match shared.gate.judge(hit, &mut kept) {
            Decision::Keep => {}
            Decision::Refuse(refusal) => return refused(refusal),
            Decision::Preflight => return Step::Answer(Reply::Preflight),
            Decision::Head => return Step::Answer(Reply::Head),
        }
        for (_, why) in &kept.ignored {
            shared.metrics.count_ignored(*why);
        }
        if let Some(reason) = kept.would_refuse {
            shared.metrics.count_dry_run_refusal(reason);
        }
        match shared.spool.append(|out| shared.gate.encode(&kept, out)) {
            Ok(commit) => {
                if shared.company.as_ref().is_some_and(InFlight::all_connections_wait) {
                    shared.spool.flush_now();
                }
                Step::Wait(commit, shared.glimpses.kept(&kept.event))
            }
            Err(Overloaded) => refused(Refusal::of(Reason::Overloaded)),
        }
    }

    /// Waits for the disk where there is something to wait for, and counts what came of it.
    pub(crate) async fn finish(&self, step: Step) -> Reply {
        let reply = match step {
            Step::Answer(reply) => reply,
            Step::Wait(commit, note) => {
                let reply = Reply::of_commit(commit.await);
                self.shared.glimpses.settled(note, reply.reason());
                reply
            }
        };
        self.count(reply.verdict());
        reply
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => self.shared.metrics.count_accepted(),
            Verdict::Rejected(reject) => self.shared.metrics.count_rejected(reject.reason),
            Verdict::NotJudged => self.shared.metrics.count_not_judged(),
        }
    }

    async fn answer(&self, session: &mut ServerSession, reply: Reply) -> pingora::Result<()> {
        let accept = session.get_header(header::ACCEPT).map(|value| value.as_bytes());
        let prebuilt = reply.pick(&self.shared.answers, wants_image(accept));
        let mut header = Box::new(if session.is_http2() {
            // Where all names are in lower case, how they could be spelled is not copied along.
            ResponseHeader::from(prebuilt.header.as_owned_parts())
        } else {
            prebuilt.header.clone()
        });
        if let Some(seconds) = reply.retry_after_seconds()
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

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The judge, for a host that wants to explain a verdict. Nothing is recorded by asking it.
    pub fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// The gate's own numbers.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// What may be seen of single events.
    pub fn glimpses(&self) -> &EventSamples {
        &self.shared.glimpses
    }

    /// Where accepted events wait.
    pub fn spool(&self) -> &Spool {
        &self.shared.spool
    }

    /// How each upstream fares.
    pub fn forwarder(&self) -> &Forwarder {
        self.shared.delivery.forwarder()
    }

    /// Reads the portal list again now, as SIGHUP asks for.
    pub fn reload_portals(&self) {
        self.shared.gate.portals().reload();
    }

    /// Stops delivery and makes everything that was answered durable, within `limit`. To be
    /// called once no request is in flight; events that come later are `overloaded`. What was
    /// not delivered by then is delivered by the next start. Must not be called from async code.
    ///
    /// # Errors
    ///
    /// The disk refused what was enqueued, or took longer than `limit`. No event that was
    /// answered 200 with durability `power` or `interval` is among it.
    pub fn close(&self, limit: Duration) -> Result<(), CloseError> {
        self.shared.delivery.stop();
        self.shared.spool.close(limit)
    }
}

impl Prebuilt {
    /// Turns an answer into Pingora's form. Fails for no answer of [`Answers`]: their headers are
    /// valid by type and their statuses are literals.
    pub fn new(answer: Answer) -> pingora::Result<Self> {
        let size = answer.headers.len() + SPARE_HEADERS;
        let mut header = ResponseHeader::build(answer.status, Some(size))?;
        for (name, value) in answer.headers {
            header.insert_header(title_case(&name), value)?;
        }
        Ok(Self { header, body: answer.body })
    }
}

/// Reads a body that came along and drops it, so that the next request on this connection is
/// found where it begins. Gives up on one that is too long or too slow: the connection then
/// closes after the answer.
async fn drop_body(session: &mut ServerSession) -> pingora::Result<()> {
    if session.is_body_done() {
        return Ok(());
    }
    if session.get_header(header::EXPECT).is_some() {
        // Nobody needs this body: the answer is final, and a client that waits may keep it.
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

/// Reads to the body's end, or past [`BODY_BYTES_MAX`]; says whether the end came.
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
