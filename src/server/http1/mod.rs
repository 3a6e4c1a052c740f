//! Serves an HTTP/1 connection: each request is read under one deadline, then answered by the fast
//! path or handed to Pingora.

pub(in crate::server) mod body;
mod date;
mod framing;
pub mod grammar;
pub mod header_check;
mod reason;
mod refusal;
mod request_stream;
pub mod target;
pub mod trailer_reader;
pub mod trailers;

use super::alarm::{WaitEnd, WaitLimits};
use super::connection::{Connection, Head};
use super::exchange;
use super::fast_path::request::{FastRequest, request_line};
use super::http2::frame::{PREFACE, PREFACE_HEAD_BYTES};
use super::in_force::InForce;
use super::limits::Limits;
use super::read_buffer;
use super::service::Server;
use super::socket::Socket;
use crate::plugin::access::{AccessLog, AccessRecord};
use crate::plugin::{NextStep, Settings, Verdict};
use crate::policy::gate::EventRequest;
use crate::request::path::Reading;
use crate::request::trace::trace_id;
use crate::response::accept::wants_image;
use crate::telemetry::in_flight::{InFlight, InFlightGuard};
use crate::telemetry::metrics::Limit;
use body::Body;
use bytes::{Buf, BytesMut};
use header_check::{HeaderError, Upgrade, check_header};
use http::{Method, StatusCode};
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use refusal::{lingering_close, lingering_close_of_upload};
use request_stream::RequestStream;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant as StdInstant};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

/// A fast-path event request that has its verdict and may still wait for the disk.
struct JudgedRequest<'f> {
    step: NextStep,
    image: bool,
    /// Whether the client sent `Connection: close`.
    closes: bool,
    /// The record for the access log. `None`: there is no access log.
    record: Option<Box<AccessRecord>>,
    _in_flight_guard: InFlightGuard<&'f InFlight>,
}

/// What the fast path has found in the first bytes of a request.
enum FastPath<'f> {
    /// A whole event request, which has its verdict, and the length of its header in bytes.
    Judged(JudgedRequest<'f>, usize),
    /// The whole header of a *plain* request: one that the fast path can parse, but no event
    /// request. The number is the length of the header in bytes.
    Plain(usize),
    /// The request is not plain, or its header is not whole.
    Unknown,
}

/// How a wait for the next request ended.
enum Arrival<'f> {
    /// A whole fast-path event request arrived; it has its verdict.
    Judged(JudgedRequest<'f>),
    /// Other bytes arrived; they are in the connection's `received`. They begin with the header of
    /// a plain request if its length is known.
    Bytes(Option<usize>),
    /// The read timeout passed.
    Late,
    /// The client closed the connection, or the server stops.
    Closed,
}

impl<SV> Server<SV> {
    /// Takes a connection's next bytes. A fast-path event request that arrives in one piece, as
    /// nearly all do, is judged in the read buffer without a copy.
    fn poll_arrival(&self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Arrival<'_>> {
        let Connection { stream, received, peer, in_force, .. } = connection;
        if !received.is_empty() {
            return Poll::Ready(Arrival::Bytes(None));
        }
        let read = read_buffer::poll_read(&mut **stream, cx, |bytes| {
            self.refresh(in_force);
            let plain = match self.take_fast_path(bytes, *peer, in_force) {
                FastPath::Judged(judged, length) => {
                    received.extend_from_slice(&bytes[length..]);
                    return Arrival::Judged(judged);
                }
                FastPath::Plain(length) => Some(length),
                FastPath::Unknown => None,
            };
            received.extend_from_slice(bytes);
            if bytes.is_empty() { Arrival::Closed } else { Arrival::Bytes(plain) }
        });
        read.map(|read| read.unwrap_or(Arrival::Closed))
    }

    /// Waits for a connection's next bytes until its read timeout or until the server stops.
    async fn wait(
        &self,
        connection: &mut Connection,
        limits: &mut WaitLimits<'_, impl Future>,
        shutdown: &ShutdownWatch,
    ) -> Arrival<'_> {
        if connection.received.is_empty() && connection.received.capacity() > 0 {
            connection.received = BytesMut::new();
        }
        let until = Instant::now() + self.read_timeout(connection);
        poll_fn(|cx| match self.poll_arrival(connection, cx) {
            Poll::Ready(arrival) => Poll::Ready(arrival),
            Poll::Pending => limits.poll(until, shutdown, cx).map(|end| match end {
                WaitEnd::Late => Arrival::Late,
                WaitEnd::Stopped => Arrival::Closed,
            }),
        })
        .await
    }

    /// How long to wait for the next bytes: the header deadline before the first request, the
    /// keep-alive time after it.
    fn read_timeout(&self, connection: &Connection) -> Duration {
        let limits = &connection.in_force.limits;
        if connection.requests == 0 { limits.header_timeout } else { limits.keepalive }
    }

    /// Judges the request at the beginning of `bytes` if it is a whole fast-path request for an
    /// event path.
    fn take_fast_path(
        &self,
        bytes: &[u8],
        peer: Option<IpAddr>,
        in_force: &InForce,
    ) -> FastPath<'_> {
        let (limits, settings) = (&in_force.limits, &in_force.settings);
        if !limits.answer_plain {
            return FastPath::Unknown;
        }
        let Some(line) = request_line(bytes) else { return FastPath::Unknown };
        let target = line.target;
        let reading = settings.gate.read(target.path);
        if reading == Reading::Other && !line.fits_pingora() {
            return FastPath::Unknown;
        }
        let Some(request) = FastRequest::parse(line) else { return FastPath::Unknown };
        let length = request.length;
        if request.count > limits.header_lines_max || length > limits.header_bytes_max {
            return FastPath::Unknown;
        }
        if reading == Reading::Other {
            return FastPath::Plain(length);
        }
        let in_flight_guard = self.in_flight.enter_here();
        let names = settings.gate.rules().context_names();
        let trusted = &settings.trusted;
        let (image, closes) = (wants_image(request.accept), request.closes);
        let context = || request.seen.context(&request, peer, trusted, names);
        let begin = |log: &AccessLog| begin_record(log, settings, &request);
        let mut record = in_force.access_log.as_ref().map(begin);
        let event_request =
            EventRequest { method: &FastRequest::METHOD, reading, query: target.query };
        let step = self.gate.judge(settings, event_request, context, record.as_deref_mut(), |_| {});
        let judged =
            JudgedRequest { step, image, closes, record, _in_flight_guard: in_flight_guard };
        FastPath::Judged(judged, length)
    }

    /// Answers a judged request once its event is on disk as configured. Returns whether the
    /// connection can take another request.
    async fn answer(
        &self,
        connection: &mut Connection,
        judged: &mut JudgedRequest<'_>,
        shutdown: &ShutdownWatch,
    ) -> bool {
        let client_closes = judged.closes;
        let keep = self.keeps(connection, shutdown) && !client_closes;
        let reply = self.gate.finish(&mut judged.step).await;
        let Connection { stream, in_force, .. } = connection;
        let settings = &in_force.settings;
        let prebuilt = &reply.pick(&settings.answers, judged.image).bytes;
        if let Some(record) = &mut judged.record {
            record.verdict = Some(Verdict::of(Some(reply)));
            (record.status, record.body_bytes) = (Some(prebuilt.status), prebuilt.body_bytes);
        }
        let own = reply.own_lines(settings.sends_event_id);
        let rest = prebuilt.write(&own, keep, |answer| {
            // Only the part that the socket does not take at once is copied; rarely is there any.
            let sent =
                stream.as_any().downcast_ref().map_or(0, |socket: &Socket| socket.send_now(answer));
            (sent < answer.len()).then(|| answer[sent..].to_vec())
        });
        let sent = match rest {
            None => Some(Ok(())),
            Some(rest) => send(stream, &rest, in_force.limits.write_timeout).await,
        };
        if let Some(mut record) = judged.record.take() {
            record.is_whole = matches!(sent, Some(Ok(())));
        }
        match sent {
            Some(Ok(())) if keep => true,
            Some(Ok(())) => {
                // Nothing is left to drain if the client asked to close and sent nothing more.
                // TLS still needs its close_notify, which the lingering close sends.
                let in_clear = connection.stream.get_ssl_digest().is_none();
                if !(client_closes && in_clear && connection.received.is_empty()) {
                    Box::pin(lingering_close(&mut connection.stream)).await;
                }
                false
            }
            Some(Err(_)) => false,
            None => {
                self.admission.limit_reporter.report(Limit::WriteTime);
                false
            }
        }
    }

    /// Whether the connection may have another request after the current one.
    fn keeps(&self, connection: &Connection, shutdown: &ShutdownWatch) -> bool {
        let max = connection.in_force.limits.requests_per_connection_max;
        let last = max > 0 && connection.requests >= max;
        if last {
            self.admission.limit_reporter.report(Limit::Requests);
        }
        !last && !*shutdown.borrow()
    }
}

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Serves a connection to its end, in the HTTP version that ALPN selected.
    pub(super) async fn serve_agreed(
        self: Arc<Self>,
        connection: Connection,
        shutdown: ShutdownWatch,
    ) {
        if connection.stream.selected_alpn_proto() == Some(ALPN::H2) {
            Box::pin(self.serve_h2(connection, shutdown)).await;
        } else {
            self.serve(connection, shutdown).await;
        }
    }

    /// Serves an HTTP/1 connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut connection: Connection,
        shutdown: ShutdownWatch,
    ) {
        let mut stopping = shutdown.clone();
        let mut limits = WaitLimits {
            timer: pin!(sleep(self.read_timeout(&connection))),
            stopped: pin!(stopping.wait_for(|stop| *stop && self.in_flight.closes_idle())),
            registered: None,
        };
        loop {
            let arrival = self.wait(&mut connection, &mut limits, &shutdown).await;
            let first = connection.requests == 0;
            connection.requests = connection.requests.saturating_add(1);
            match arrival {
                Arrival::Judged(mut judged) => {
                    if !self.answer(&mut connection, &mut judged, &shutdown).await {
                        return;
                    }
                }
                // Boxed, as this is rare: an idle connection's task would hold its memory.
                Arrival::Bytes(plain) => {
                    let served = Box::pin(self.serve_bytes(connection, plain, &shutdown)).await;
                    let Some(kept) = served else { return };
                    connection = kept;
                }
                Arrival::Late => {
                    let limit = if first { Limit::HeaderTime } else { Limit::IdleTime };
                    return self.admission.limit_reporter.report(limit);
                }
                Arrival::Closed => return,
            }
        }
    }

    /// Serves a request whose first bytes are in `received`: the header of a plain request if its
    /// length is known. `None`: the connection has ended.
    async fn serve_bytes(
        self: &Arc<Self>,
        mut connection: Connection,
        plain: Option<usize>,
        shutdown: &ShutdownWatch,
    ) -> Option<Connection> {
        if let Some(end) = plain {
            return self.pass_plain(connection, end, shutdown).await;
        }
        self.refresh(&mut connection.in_force);
        let in_force = connection.in_force.clone();
        let began = in_force.access_log.is_some().then(StdInstant::now);
        let end = match connection.read_head(&in_force.limits, 0).await {
            Head::Complete(end) => end,
            Head::Closed => {
                drop(self.record_of_refused(connection.peer, began));
                return None;
            }
            Head::Refused(limit) => {
                Box::pin(self.refuse(connection, limit, began)).await;
                return None;
            }
        };
        let Connection { stream, received, peer, requests, .. } = &mut connection;
        match self.take_fast_path(&received[..end], *peer, &in_force) {
            FastPath::Judged(mut judged, length) => {
                received.advance(length);
                let keeps = self.answer(&mut connection, &mut judged, shutdown).await;
                return keeps.then_some(connection);
            }
            FastPath::Plain(end) => return self.pass_plain(connection, end, shutdown).await,
            FastPath::Unknown => {}
        }
        // Over TLS, HTTP/2 is agreed on by ALPN alone (RFC 9113, section 3.2).
        let may_be_h2 = *requests == 1 && stream.get_ssl_digest().is_none();
        if may_be_h2 && end == PREFACE_HEAD_BYTES && PREFACE.starts_with(&received[..end]) {
            Box::pin(self.clone().serve_h2(connection, shutdown.clone())).await;
            return None;
        }
        let (head, body, upgrade) = match take_head(received, end, &in_force.limits) {
            Ok(taken) => taken,
            Err(limit) => {
                Box::pin(self.refuse(connection, limit, began)).await;
                return None;
            }
        };
        // Pingora would send the same answer, but report nothing to the access log.
        if head.starts_with(b"CONNECT ") {
            let mut record = self.record_of_refused(connection.peer, began);
            if let Some(record) = &mut record {
                record.method = Some(Method::CONNECT);
            }
            Box::pin(self.close_with(connection, StatusCode::METHOD_NOT_ALLOWED, record)).await;
            return None;
        }
        self.pass(connection, head, body, upgrade, shutdown).await
    }

    /// Passes on a plain request, whose header of `end` bytes is in `received`. The fast path has
    /// parsed the header, and takes only headers that the strict check would take unchanged.
    async fn pass_plain(
        &self,
        mut connection: Connection,
        end: usize,
        shutdown: &ShutdownWatch,
    ) -> Option<Connection> {
        let head = connection.received.split_to(end);
        self.pass(connection, head, Body::Length(0), Upgrade::None, shutdown).await
    }

    /// Lets Pingora serve the request with this header. `None`: the connection has ended.
    async fn pass(
        &self,
        connection: Connection,
        head: BytesMut,
        body: Body,
        upgrade: Upgrade,
        shutdown: &ShutdownWatch,
    ) -> Option<Connection> {
        let keep = self.keeps(&connection, shutdown);
        let Connection { stream, received, peer, requests, in_force, permit } = connection;
        let has_chunks = body == Body::CHUNKED;
        let (stream, back) =
            RequestStream::new(stream, received, body, upgrade, in_force.limits.header_lines_max);
        let mut session = ServerSession::new_http1(Box::new(stream));
        session.set_pipelined_prefix(head);
        session.set_write_timeout(Some(in_force.limits.write_timeout));
        if !keep {
            session.set_keepalive_reuses_remaining(Some(0));
        }
        let served = self.proxy.process_new_http(session, shutdown);
        let (buffered, piece) = (self.buffered_bytes.clone(), exchange::PIECE_BYTES_HTTP1);
        // Whether there may be another request. Pingora returns the stream in that case; it is
        // dropped here, so that `back` below receives the connection.
        let is_kept = exchange::scope(buffered, piece, has_chunks, served).await.is_some();
        // The stream sends the connection back when Pingora drops it. An error means that nothing
        // is left of the connection.
        let (mut stream, received, body) = back.await.ok()?;
        if !is_kept {
            match body.is_whole() {
                true => lingering_close(&mut stream).await,
                false => lingering_close_of_upload(&mut stream, shutdown).await,
            }
            return None;
        }
        Some(Connection { stream, received, peer, requests, in_force, permit })
    }
}

/// Begins the record of a fast-path request, without its visitor, which judging fills in.
fn begin_record(
    log: &AccessLog,
    settings: &Settings,
    request: &FastRequest<'_>,
) -> Box<AccessRecord> {
    let mut record = log.begin();
    record.method = Some(FastRequest::METHOD);
    record.path = Some(settings.path.clone());
    record.trace_id = trace_id(request);
    record
}

/// Sends all of `bytes`; `None` after `limit`. A timer is set only if the first write does not take
/// everything.
async fn send(stream: &mut Stream, bytes: &[u8], limit: Duration) -> Option<io::Result<()>> {
    let mut sending = pin!(async {
        stream.write_all(bytes).await?;
        stream.flush().await
    });
    match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
        Poll::Ready(sent) => Some(sent),
        Poll::Pending => Box::pin(timeout(limit, sending)).await.ok(),
    }
}

/// Checks a header of `end` bytes and takes it out of `received`, as Pingora gets it.
fn take_head(
    received: &mut BytesMut,
    end: usize,
    limits: &Limits,
) -> Result<(BytesMut, Body, Upgrade), Limit> {
    let checked = check_header(&received[..end], limits.header_lines_max);
    let checked = checked.map_err(|error| match error {
        HeaderError::Syntax => Limit::HeaderSyntax,
        HeaderError::Lines => Limit::HeaderLines,
    })?;
    let changed = checked.for_pingora(&received[..end]);
    let (body, upgrade) = (checked.body, checked.upgrade);
    let as_received = received.split_to(end);
    Ok((changed.unwrap_or(as_received), body, upgrade))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use pingora::Error;
    use pingora::prelude::{HttpPeer, Session};

    /// The most bytes in an idle connection's task. The socket's buffers and what the runtime and
    /// Pingora keep per socket come on top; `tests/security` measures the whole.
    const IDLE_BYTES_MAX: usize = 1120;

    struct NoUpstream;

    #[async_trait]
    impl ProxyHttp for NoUpstream {
        type CTX = ();

        fn new_ctx(&self) {}

        async fn upstream_peer(
            &self,
            _: &mut Session,
            _: &mut (),
        ) -> pingora::Result<Box<HttpPeer>> {
            Err(Error::new(pingora::ErrorType::ConnectNoRoute))
        }
    }

    fn bytes_of<F>(_: fn(Arc<Server<NoUpstream>>, Connection, ShutdownWatch) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_holds_little() {
        let bytes = bytes_of(Server::<NoUpstream>::serve);
        assert!(bytes <= IDLE_BYTES_MAX, "{bytes} bytes");
    }
}
