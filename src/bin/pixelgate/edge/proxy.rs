//! The Pingora proxy of the edge. The gate answers event requests; all other requests are passed on
//! to an origin (SPEC 1).

use super::config::Config;
use super::forwarded;
use super::origin::Origins;
use super::origin_set::Server;
use super::own_answers::OwnAnswers;
use super::response;
use super::routing_headers;
use super::trailers;
use super::upgrade::for_upgrade;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{HeaderName, HeaderValue, Version, header};
use log::{debug, error};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::proxy::{FailToProxy, ProxyWarnLogContext};
use pingora::{ErrorSource, ErrorType};
use pixelgate::custom::{AccessRecord, InFlight, InFlightGuard};
use pixelgate::http_server::Limit;
use pixelgate::{PixelGate, Verdict};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MAX_FORWARDS: HeaderName = HeaderName::from_static("max-forwards");

/// The longest wait for the end of a body with `Content-Length: 0`, in seconds.
const EMPTY_BODY_SECONDS_MAX: u64 = 10;

/// The proxy: a gate in front of the origins.
pub struct Edge {
    gate: PixelGate,
    origins: Origins,
    /// The section `[edge]` in force, for its timeouts.
    section: Arc<ArcSwap<Config>>,
    in_flight: InFlight,
    own_answers: OwnAnswers,
}

/// The state of one request.
pub struct Ctx {
    /// The verdict of the gate, if the request was an event request.
    verdict: Option<Verdict>,
    /// The server of the last attempt.
    server: Option<Arc<Server>>,
    /// The servers to which a new connection, or a request on a new connection, has failed.
    tried: Vec<Arc<Server>>,
    /// The record for the access log, if there is one.
    record: Option<Box<AccessRecord>>,
    /// When `server` was chosen, for the access log.
    chosen: Option<Instant>,
    /// The number of informational responses so far.
    informational: u32,
    /// Whether the response could not be sent whole.
    is_cut: bool,
    _guard: InFlightGuard,
}

impl Edge {
    /// Builds the proxy. Fails only if Pingora refuses a header of the prebuilt responses.
    pub fn new(
        gate: PixelGate,
        origins: Origins,
        section: Arc<ArcSwap<Config>>,
        in_flight: InFlight,
    ) -> Result<Self> {
        let own_answers = OwnAnswers::new()?;
        Ok(Self { gate, origins, section, in_flight, own_answers })
    }
}

impl Edge {
    /// Records that the request to the chosen server has failed, so that it is not tried again.
    fn give_up(&self, ctx: &mut Ctx, why: &str) {
        if let Some(server) = ctx.server.take() {
            server.failed(why);
            ctx.tried.push(server);
        }
    }
}

/// Restores the order in which the headers were received. When Pingora removes a header, the map of
/// headers moves its last entry into the gap.
fn restore_order(received: &RequestHeader, request: &mut RequestHeader) -> Result<()> {
    // In most requests no header was removed.
    if request.headers.keys().take(received.headers.keys_len()).eq(received.headers.keys()) {
        return Ok(());
    }
    let left = |name: &&HeaderName| request.headers.contains_key(*name);
    let whole: Vec<HeaderName> = received.headers.keys().filter(left).cloned().collect();
    let moved =
        whole.iter().zip(request.headers.keys()).position(|(expected, actual)| expected != actual);
    let Some(first) = moved else { return Ok(()) };
    let late = &whole[first..];
    let values = |name: &HeaderName| request.headers.get_all(name).iter().cloned().collect();
    let late: Vec<(&HeaderName, Vec<HeaderValue>)> =
        late.iter().map(|name| (name, values(name))).collect();
    for (name, _) in &late {
        request.remove_header(*name);
    }
    for (name, values) in late {
        // Keeps the spelling of the client. Over HTTP/2 it is lower case.
        let is_it = |spelled: &[u8]| spelled.eq_ignore_ascii_case(name.as_str().as_bytes());
        let mut spellings =
            received.case_header_iter().filter(|(spelled, _)| is_it(spelled.as_slice()));
        for value in values {
            match spellings.next() {
                Some((spelled, _)) => request.append_header(spelled.clone(), value)?,
                None => request.append_header(name, value)?,
            };
        }
    }
    Ok(())
}

/// Waits for the end of an HTTP/2 body with `Content-Length: 0`. A body that is not empty ends the
/// request here, before Pingora has passed its header on (RFC 9113, section 8.1.1).
async fn end_of_empty_body(session: &mut Session) -> Result<()> {
    let request = session.req_header();
    let is_empty = || request.headers.get(header::CONTENT_LENGTH).is_some_and(|n| n == "0");
    if request.version != Version::HTTP_2 || !is_empty() {
        return Ok(());
    }
    let limit = Duration::from_secs(EMPTY_BODY_SECONDS_MAX);
    let end = async {
        while session.read_request_body().await?.is_some() {}
        Ok(())
    };
    let late = |_| Err(Error::new_down(ErrorType::ReadTimedout));
    tokio::time::timeout(limit, end)
        .await
        .unwrap_or_else(late)
        .map_err(|e: Box<Error>| e.into_down())
}

/// Whether the error of a client came before the end of its body. Always false over HTTP/2, where
/// the stream is reset instead of answered.
fn fails_in_body(session: &mut Session) -> bool {
    let session = session.as_downstream_mut();
    session.req_header().version != Version::HTTP_2 && !session.is_body_done()
}

/// Whether the final response of a request has begun: an informational one may precede it.
fn has_begun(session: &Session) -> bool {
    session.response_written().is_some_and(|written| !response::is_informational(written))
}

/// Returns `Max-Forwards` of a `TRACE` or `OPTIONS` request (RFC 9110, section 7.6.2), or `None`
/// for other methods and for a value that is not a number. Such a value is passed on unchanged.
fn forwards_left(request: &RequestHeader) -> Option<u64> {
    if !matches!(request.method, http::Method::TRACE | http::Method::OPTIONS) {
        return None;
    }
    request.headers.get(MAX_FORWARDS)?.to_str().ok()?.parse().ok()
}

/// Names a timeout of an origin's stream (`OriginTimeouts`) as Pingora names its own. Pingora takes
/// it for an error of the system.
fn name_timeout(e: &mut Error) {
    let by_stream = |e: &io::Error| e.kind() == ErrorKind::TimedOut && e.raw_os_error().is_none();
    if e.root_cause().downcast_ref().is_some_and(by_stream) {
        e.etype = match e.etype {
            ErrorType::WriteError => ErrorType::WriteTimedout,
            _ => ErrorType::ReadTimedout,
        };
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx {
            verdict: None,
            server: None,
            tried: Vec::new(),
            record: None,
            chosen: None,
            informational: 0,
            is_cut: false,
            _guard: self.in_flight.enter(),
        }
    }

    // The default adds a compression module to every request; the edge changes no body.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        // Without a timeout an HTTP/2 client that never opens its window blocks a write for ever.
        let (write, keepalive) = {
            let section = self.section.load();
            (section.write_timeout_seconds, section.keepalive_seconds)
        };
        session.set_write_timeout(Some(Duration::from_secs(write)));
        // Without this timeout Pingora keeps an idle connection for ever after its first request.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(keepalive));
        }
        ctx.record = self.gate.begin_record();
        let downstream = session.as_downstream_mut();
        ctx.verdict = self.gate.handle_recorded(downstream, ctx.record.as_deref_mut()).await?;
        if ctx.verdict.is_some() {
            return Ok(true);
        }
        if self.origins.is_empty() {
            self.own_answers.not_found.send(session).await?;
            return Ok(true);
        }
        if forwards_left(session.req_header()) == Some(0) {
            // This hop is the last one, and the edge does not echo requests.
            self.own_answers.last_hop.send(session).await?;
            return Ok(true);
        }
        end_of_empty_body(session).await?;
        // HTTP/1.0 has no informational responses (RFC 9110, section 15.2).
        let is_old = session.req_header().version == Version::HTTP_10;
        session.as_downstream_mut().set_ignore_info_resp(is_old);
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        ctx.server = self.origins.choose(&ctx.tried);
        if ctx.server.is_none() {
            // Just after a start the first look-up may not have ended.
            self.origins.looked_up().await;
            ctx.server = self.origins.choose(&ctx.tried);
        }
        let Some(server) = &ctx.server else {
            // No name of an origin has an address. The look-up has logged this.
            return Err(Error::new_up(ErrorType::ConnectNoRoute));
        };
        if let Some(record) = &mut ctx.record {
            record.origin = Some(server.name.clone());
            record.origin_time = None;
            ctx.chosen = Some(Instant::now());
        }
        let mut peer = Box::new(self.origins.peer(server));
        if session.is_upgrade_req() {
            for_upgrade(&mut peer);
        }
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        // Origins get HTTP/1.1, which needs a `Host`. A request in HTTP/1.0 may have none.
        if let Some(server) = &ctx.server
            && !request.headers.contains_key(header::HOST)
        {
            request.insert_header(header::HOST, server.authority())?;
        }
        if let Some(left) = forwards_left(request) {
            request.insert_header(MAX_FORWARDS, left.saturating_sub(1).to_string())?;
        }
        let trusts_peer = self.gate.trusts_peer(forwarded::peer(session));
        if !trusts_peer {
            routing_headers::remove_from(request);
        }
        trailers::announce(session.req_header(), request)?;
        restore_order(session.req_header(), request)?;
        forwarded::add_to(request, session, trusts_peer)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        response::check_interim(session, response, &mut ctx.informational)?;
        if let (Some(record), Some(chosen)) = (&mut ctx.record, ctx.chosen) {
            record.origin_time = Some(chosen.elapsed());
        }
        response::end_hop(response);
        response::join_lengths(response)?;
        response::frame_no_body(response);
        // The version is that of this hop (RFC 9110, section 2.5). A client that got the version
        // HTTP/1.0 of an origin would take the lines of chunks for content.
        response.set_version(Version::HTTP_11);
        if let Some(server) = &ctx.server {
            server.answered();
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut Ctx,
    ) -> Result<()> {
        // HTTP/1.0 has no chunks: the end of the connection ends such a body (RFC 9112, section
        // 6.1).
        if session.req_header().version == Version::HTTP_10
            && response.remove_header(&header::TRANSFER_ENCODING).is_some()
        {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        // The text of this error may be logged: it holds no part of the request.
        self.give_up(ctx, &e.to_string());
        // Nothing was sent yet, so a request of any method may be sent to another server.
        e.set_retry(ctx.tried.len() < self.origins.servers());
        e
    }

    /// Retries a failed request only if its method is idempotent (RFC 9110, section 9.2.2) and no
    /// response has begun. If the failed connection was a reused one, the retry uses a new
    /// connection, else another server. A timeout is not retried, so that a client waits for only
    /// one timeout.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        name_timeout(&mut e);
        let is_upstream_error = *e.esource() == ErrorSource::Upstream;
        let timed_out = matches!(e.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        // The origin may be waiting for the rest of a body that the client does not send.
        let client_is_late = *e.etype() == ErrorType::ReadTimedout && !session.is_body_done();
        let has_answered = has_begun(session);
        if is_upstream_error && !reused && !client_is_late && !has_answered {
            self.give_up(ctx, e.etype().as_str());
        }
        let retry = is_upstream_error
            && !timed_out
            && session.req_header().method.is_idempotent()
            && !session.as_ref().retry_buffer_truncated()
            && session.response_written().is_none()
            && (reused || ctx.tried.len() < self.origins.servers());
        e.set_retry(retry);
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        // This stays true unless the edge sends a response of its own below.
        ctx.is_cut = true;
        let gone = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let answer = match (e.esource(), e.etype()) {
            (_, ErrorType::HTTPStatus(_)) => &self.own_answers.bad_request,
            (ErrorSource::Upstream, ErrorType::ConnectTimedout | ErrorType::ReadTimedout) => {
                &self.own_answers.timeout
            }
            (ErrorSource::Upstream, _) => &self.own_answers.bad_gateway,
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader) => {
                &self.own_answers.bad_request
            }
            // The client does not read or has closed, so no response can reach it.
            (ErrorSource::Downstream, ErrorType::WriteTimedout) => {
                self.gate.metrics().count_refused(Limit::WriteTime);
                return gone;
            }
            // The rest of the body has not come although the answer was sent.
            (ErrorSource::Downstream, ErrorType::ReadTimedout) if has_begun(session) => {
                self.gate.metrics().count_refused(Limit::BodySyntax);
                return gone;
            }
            // The body is malformed or not complete.
            (ErrorSource::Downstream, _) if fails_in_body(session) => {
                self.gate.metrics().count_refused(Limit::BodySyntax);
                &self.own_answers.bad_request
            }
            (ErrorSource::Downstream, _) => return gone,
            (ErrorSource::Internal | ErrorSource::Unset, _) => &self.own_answers.internal,
        };
        if *e.esource() == ErrorSource::Upstream {
            self.gate.metrics().origin_failures.inc();
        } else if *e.esource() != ErrorSource::Downstream {
            // Only the kind of the error, because its context may quote the request.
            error!("a request failed inside the edge: {}", e.etype().as_str());
        }
        if has_begun(session) {
            return gone;
        }
        // Pingora closes the connection after a failed request. This announces the close.
        session.set_keepalive(None);
        match answer.send(session).await {
            Ok(()) => {
                ctx.is_cut = false;
                FailToProxy { error_code: answer.status(), ..gone }
            }
            Err(e) => {
                debug!(
                    "a client closed before it received the error response: {}",
                    e.etype().as_str()
                );
                gone
            }
        }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Ctx) {
        if let Some(mut record) = ctx.record.take() {
            record.note_answer(session.as_downstream());
            record.is_whole = !ctx.is_cut;
        }
    }

    // The lines of Pingora quote the request with its query. `fail_to_proxy` logs without it.
    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Ctx,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, _ctx: &Ctx) -> String {
        session.req_header().method.to_string()
    }
}
