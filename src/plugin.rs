//! The middleware: an event request in a Pingora session, judged, kept and answered.
//!
//! [`PixelGate`] is what a host puts into its own proxy. It has no trait for the host to
//! implement and no type parameters: the host calls [`PixelGate::handle`] first thing in
//! `request_filter` and returns what it says. A request that is not ours is left as it came; one
//! that is ours is answered here, its connection stays usable, and the verdict is returned for
//! the host to log. Delivery goes on behind, on threads of the gate's own.

use crate::answer::{Answer, Answers};
use crate::builder::{Builder, Config};
use crate::client::TrustedProxies;
use crate::event::{Context, Reason};
use crate::forward::Forwarder;
use crate::gate::{Gate, Hit, Judgement, Refusal, Verdict};
use crate::metrics::Metrics;
use crate::path::Reading;
use crate::spool::{CloseError, Commit, Overloaded, Spool};
use crate::target::Target;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::borrow::Cow;
use std::net::IpAddr;
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
    pub answers: Answers<Prebuilt>,
    pub trusted: TrustedProxies,
    pub delivery: crate::builder::Delivery,
}

/// An answer in the form in which Pingora sends it.
pub(crate) struct Prebuilt {
    header: ResponseHeader,
    body: Bytes,
}

/// What a hit is answered with.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Accepted,
    Head,
    Preflight,
    Refused(Refusal),
}

/// What the synchronous half of a hit leaves to do.
enum Step {
    /// Answer now.
    Answer(Reply),
    /// Wait for the disk, then answer.
    Wait(Commit),
}

impl Reply {
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
    /// Begins a gate with this configuration.
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }

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
        let target = Target::split(session.req_header().raw_path());
        let reading = self.shared.gate.read(target.path);
        if reading == Reading::Other {
            return Ok(None);
        }
        let reply = match self.step(session, reading) {
            Step::Answer(reply) => reply,
            Step::Wait(commit) => Reply::of_commit(commit.await),
        };
        let verdict = reply.verdict();
        self.count(verdict);
        drop_body(session).await?;
        self.answer(session, reply).await?;
        Ok(Some(verdict))
    }

    /// Everything that needs no waiting: judge, encode, enqueue.
    fn step(&self, session: &ServerSession, reading: Reading) -> Step {
        let shared = &*self.shared;
        let request = session.req_header();
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let hit = Hit {
            method: &request.method,
            reading,
            query: Target::split(request.raw_path()).query,
            context: context(&request.headers, peer, &shared.trusted),
        };
        let kept = match shared.gate.judge(hit) {
            Judgement::Keep(kept) => kept,
            Judgement::Refuse(refusal) => return Step::Answer(Reply::Refused(refusal)),
            Judgement::Preflight => return Step::Answer(Reply::Preflight),
            Judgement::Head => return Step::Answer(Reply::Head),
        };
        for (_, why) in &kept.ignored {
            shared.metrics.count_ignored(*why);
        }
        if let Some(reason) = kept.would_refuse {
            shared.metrics.count_dry_run_refusal(reason);
        }
        match shared.spool.append(|out| shared.gate.encode(&kept, out)) {
            Ok(commit) => Step::Wait(commit),
            Err(full) => Step::Answer(Reply::of_commit(Err(full))),
        }
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => self.shared.metrics.count_accepted(),
            Verdict::Rejected(reject) => self.shared.metrics.count_rejected(reject.reason),
            Verdict::NotJudged => self.shared.metrics.count_not_judged(),
        }
    }

    async fn answer(&self, session: &mut ServerSession, reply: Reply) -> pingora::Result<()> {
        let answers = &self.shared.answers;
        let prebuilt = match reply {
            Reply::Accepted | Reply::Head => answers.accepted(),
            Reply::Preflight => answers.preflight(),
            Reply::Refused(refusal) => {
                let accept = session.get_header(header::ACCEPT).map(|value| value.as_bytes());
                answers.rejected(refusal.reject, accept)
            }
        };
        let mut header = Box::new(prebuilt.header.clone());
        if let Reply::Refused(Refusal { retry_after_seconds: Some(seconds), .. }) = reply
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

    /// The judge, for a host that wants to explain a verdict. Nothing is recorded by asking it.
    pub fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// The gate's own numbers.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
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

/// `x-event-verdict` as `X-Event-Verdict`: the same to every client, but not to every reader.
pub(crate) fn title_case(name: &HeaderName) -> String {
    let mut begins = true;
    let title = |c: char| {
        let cased = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        cased
    };
    name.as_str().chars().map(title).collect()
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

/// What the request says beside its query.
pub(crate) fn context<'a>(
    headers: &'a HeaderMap,
    peer: Option<IpAddr>,
    trusted: &TrustedProxies,
) -> Context<'a> {
    Context {
        ip: peer.map(|peer| trusted.client(peer, headers)),
        user_agent: text(headers, header::USER_AGENT),
        referer: text(headers, header::REFERER),
        gpc: is(headers, "sec-gpc", b"1"),
        dnt: is(headers, "dnt", b"1"),
        prefetch: ["sec-purpose", "purpose", "x-purpose", "x-moz"]
            .iter()
            .any(|name| headers.get(*name).is_some_and(|value| is_prefetch(value.as_bytes()))),
    }
}

/// A header as text. What is not UTF-8 in it is replaced: a client's odd header must not cost its
/// event.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<Cow<'_, str>> {
    let text = String::from_utf8_lossy(headers.get(name)?.as_bytes());
    (!text.is_empty()).then_some(text)
}

fn is(headers: &HeaderMap, name: &str, expect: &[u8]) -> bool {
    headers.get(name).is_some_and(|value| value.as_bytes().trim_ascii() == expect)
}

/// `Sec-Purpose: prefetch;prerender`, `Purpose: prefetch`, `X-Moz: prefetch`, `preview`.
fn is_prefetch(value: &[u8]) -> bool {
    let first = value.split(|b| matches!(b, b';' | b',')).next().unwrap_or_default().trim_ascii();
    [&b"prefetch"[..], b"prerender", b"preview"].iter().any(|p| first.eq_ignore_ascii_case(p))
}
