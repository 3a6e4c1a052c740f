//! Serves the streams of an HTTP/2 connection: event requests here, all others by the proxy.
//!
//! Both ways use the same judge and the same responses. Answering here saves the state of about
//! 30 KiB that Pingora creates, and copies, for every request that it might have to proxy.

use super::frame_budget::FrameBudget;
use super::frame_counter::FrameCounter;
use super::options::{CONNECTION_WINDOW_BYTES, h2_options};
use super::request::{check, join_cookies};
use super::rewriter::Rewriter;
use super::session::Http2Session;
use super::uploads::{ListedUpload, Uploads};
use crate::event::Context;
use crate::plugin::Handled;
use crate::plugin::access::AccessRecord;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::server::buffered_bytes::Reservation;
use crate::server::exchange;
use crate::server::limits::Limits;
use crate::server::service::Server;
use crate::telemetry::metrics::Limit;
use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version, header};
use log::debug;
use pingora::ErrorType;
use pingora::apps::HttpServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::custom::server::Session;
use pingora::protocols::{Digest, Stream};
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The longest wait for a client to take the GOAWAY that ends an idle connection, in seconds.
const GOAWAY_SECONDS_MAX: u64 = 1;

/// What the streams of one connection share.
pub struct Streams<SV> {
    server: Arc<Server<SV>>,
    digest: Arc<Digest>,
    uploads: Arc<Uploads>,
    /// The number of streams that are being served.
    open: watch::Sender<usize>,
    shutdown: ShutdownWatch,
}

/// Counts a stream until dropped.
struct OpenStream<SV>(Arc<Streams<SV>>);

impl<SV> OpenStream<SV> {
    fn new(streams: &Arc<Streams<SV>>) -> Self {
        streams.open.send_modify(|open| *open += 1);
        Self(streams.clone())
    }
}

impl<SV> OpenStream<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Has the proxy serve the stream, until its client cancels it.
    async fn pass_on(&self, session: ServerSession, listed: Option<ListedUpload>) {
        let Self(streams) = &self;
        let server = &streams.server;
        let proxied = server.proxy.process_new_http(session, &streams.shutdown);
        let (buffered, piece) = (server.buffered_bytes.clone(), exchange::PIECE_BYTES_HTTP2);
        let served = exchange::scope(buffered, piece, listed.is_some(), proxied);
        let cancelled = async {
            match &listed {
                Some(listed) => listed.upload.cancelled().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = served => {}
            () = cancelled => {}
        }
    }
}

impl<SV> Drop for OpenStream<SV> {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// Whether a request is a `GET` without a body and without `Expect`.
fn is_simple_get(session: &mut ServerSession) -> bool {
    let request = session.req_header();
    let is_get = request.method == Method::GET && !request.headers.contains_key(header::EXPECT);
    is_get && session.is_body_done()
}

/// The limit that a client exceeded, if the `h2` crate ended the connection for that.
fn limit_of(error: &h2::Error) -> Option<Limit> {
    if !error.is_library() {
        return None;
    }
    match error.reason() {
        Some(Reason::NO_ERROR) | None => None,
        Some(Reason::ENHANCE_YOUR_CALM) => Some(Limit::Frames),
        Some(_) => Some(Limit::HeaderSyntax),
    }
}

impl<SV> Streams<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// The streams of `connection`, for [`Streams::serve`].
    pub fn new(
        server: Arc<Server<SV>>,
        connection: &Stream,
        uploads: Arc<Uploads>,
        shutdown: ShutdownWatch,
    ) -> Arc<Self> {
        let digest = Arc::new(Digest {
            ssl_digest: connection.get_ssl_digest(),
            timing_digest: connection.get_timing_digest(),
            proxy_digest: connection.get_proxy_digest(),
            socket_digest: connection.get_socket_digest(),
        });
        Arc::new(Self { server, digest, uploads, open: watch::Sender::new(0), shutdown })
    }

    /// The number of streams that are being served.
    pub fn open(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    /// Serves all streams until the connection ends: by the client, after the stop, or after the
    /// keep-alive time without a stream. Returns the limit at which it ended, if it
    /// did.
    pub async fn serve(
        self: Arc<Self>,
        io: FrameCounter,
        limits: &Limits,
        budget: &FrameBudget,
        mut stopping: watch::Receiver<bool>,
    ) -> Option<Limit> {
        let io = Rewriter::new(io, limits.header_bytes_max);
        let mut connection = match h2_options(limits).handshake(io).await {
            Ok(connection) => connection,
            Err(e) => return limit_of(&e),
        };
        let mut is_stopping = false;
        let mut window = None;
        let mut open = self.open.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stopping), if !is_stopping => {
                    is_stopping = true;
                    connection.graceful_shutdown();
                    continue;
                }
                accepted = connection.accept() => accepted,
                () = idle(&mut open, limits.keepalive), if !is_stopping => break,
            };
            match accepted {
                Some(Ok((request, mut respond))) => {
                    // An event counts whether its client waits for the response or not.
                    if budget.may_have_ended()
                        && is_reset(&mut respond)
                        && !self.is_event(request.uri())
                    {
                        continue;
                    }
                    if !request.body().is_end_stream() && window.is_none() {
                        window = self.widen(&mut connection);
                    }
                    self.start(request, respond);
                }
                Some(Err(e)) => return limit_of(&e),
                None => return None,
            }
        }
        connection.abrupt_shutdown(Reason::NO_ERROR);
        let end = poll_fn(|cx| connection.poll_closed(cx));
        // The connection ends here, whether the GOAWAY was sent in time or not.
        let _ = timeout(Duration::from_secs(GOAWAY_SECONDS_MAX), end).await;
        Some(Limit::IdleTime)
    }

    /// Widens the window of a connection that uploads, if `edge.buffered_bytes_max` leaves enough
    /// bytes for that. Returns the reservation of these bytes.
    fn widen(
        &self,
        connection: &mut Connection<Rewriter<FrameCounter>, Bytes>,
    ) -> Option<Reservation> {
        let reserved =
            self.server.buffered_bytes.reserve_window(CONNECTION_WINDOW_BYTES as usize)?;
        connection.set_target_window_size(CONNECTION_WINDOW_BYTES);
        Some(reserved)
    }

    fn is_event(&self, uri: &Uri) -> bool {
        let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
        let path = Target::split(target.as_bytes()).path;
        self.server.gate.gate().read(path) != Reading::Other
    }

    /// Starts the task of a stream.
    fn start(self: &Arc<Self>, request: http::Request<RecvStream>, respond: SendResponse<Bytes>) {
        let stream = OpenStream::new(self);
        let (parts, body) = request.into_parts();
        let is_upload = !body.is_end_stream();
        let listed = is_upload.then(|| self.uploads.list(respond.stream_id().as_u32()));
        let upload = listed.as_ref().map(|listed| listed.upload.clone());
        let digest = self.digest.clone();
        let session = Http2Session::new(parts.into(), body, respond, digest, upload);
        tokio::spawn(async move {
            let OpenStream(streams) = &stream;
            // Boxed, so that what judging an event takes is freed before a request is passed on.
            let judging = Box::pin(async {
                let session = streams.admit(session).await?;
                streams.answer(session).await
            });
            let unanswered = judging.await;
            if let Some(session) = unanswered {
                stream.pass_on(session, listed).await;
            }
        });
    }

    /// Checks a request. One that is malformed or asks for a tunnel is answered, and its stream
    /// ends.
    async fn admit(&self, mut session: Http2Session) -> Option<ServerSession> {
        let checked = {
            let limits = self.server.admission.limits();
            session.take_trailers(limits.header_lines_max);
            check(session.req_header(), &limits)
        };
        let checked = checked
            .and_then(|()| join_cookies(session.req_header_mut()).map_err(|_| Limit::HeaderSyntax));
        let status = match checked {
            // Pingora would send the same answer, but report nothing to the access log.
            Ok(()) if session.req_header().method == Method::CONNECT => 405,
            Ok(()) => return Some(ServerSession::new_custom(Box::new(session))),
            Err(limit) => {
                self.server.admission.limit_reporter.report(limit);
                if limit == Limit::HeaderLines { 431 } else { 400 }
            }
        };
        let mut record = self.record_of_refused(&session);
        if let Ok(mut header) = ResponseHeader::build_no_case(status, Some(2))
            && header.insert_header(header::CONTENT_LENGTH, 0).is_ok()
        {
            // An error means that the client has closed the stream.
            let sent = session.write_response_header(Box::new(header), true).await;
            if let Some(record) = &mut record {
                (record.status, record.is_whole) = (Some(status), sent.is_ok());
            }
        }
        None
    }

    /// The record of a request that is refused.
    fn record_of_refused(&self, session: &Http2Session) -> Option<Box<AccessRecord>> {
        let mut record = self.server.gate.begin_record()?;
        record.version = Version::HTTP_2;
        record.method = Some(session.req_header().method.clone());
        let ip = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let seen = Context { ip, ..Context::default() };
        let gate = self.server.gate.gate();
        let target = Target::split(session.req_header().raw_path());
        let reading = gate.read(target.path);
        record.note_visitor(&gate.reduced_unjudged(reading, target.query, seen));
        Some(record)
    }

    /// Begins the record of an event request.
    fn record_of_event(&self, session: &ServerSession) -> Option<Box<AccessRecord>> {
        let log = self.server.gate.access_log()?;
        let path = Target::split(session.req_header().raw_path()).path;
        let is_event = self.server.gate.gate().read(path) != Reading::Other;
        is_event.then(|| log.begin())
    }

    /// Answers an event request. Returns the session of any other request.
    async fn answer(&self, mut session: ServerSession) -> Option<ServerSession> {
        let server = &self.server;
        if !server.admission.limits().answer_plain || !is_simple_get(&mut session) {
            return Some(session);
        }
        let _in_flight_guard = server.in_flight.enter_here();
        // A client that never opens its stream window must not hold the response forever.
        session.set_write_timeout(Some(server.admission.limits().write_timeout));
        let mut record = self.record_of_event(&session);
        let answering = server.gate.answer_event(&mut session, record.as_deref_mut(), |_| {});
        let handled = answering.await;
        if let Some(record) = &mut record {
            record.note_answer(&session);
        }
        let answered = match handled {
            Ok(Handled::Other) => return Some(session),
            Ok(Handled::Broken | Handled::Answered(_)) => session.finish().await.map(drop),
            Err(e) => Err(e),
        };
        if let Some(mut record) = record {
            record.is_whole = answered.is_ok();
        }
        match answered {
            Err(e) if *e.etype() == ErrorType::WriteTimedout => {
                server.admission.limit_reporter.report(Limit::WriteTime);
            }
            Err(e) => debug!(
                "a client closed its stream before the response was sent: {}",
                e.etype().as_str()
            ),
            Ok(()) => {}
        }
        None
    }
}

/// Whether a stream that was just accepted was reset, by either side.
fn is_reset(respond: &mut SendResponse<Bytes>) -> bool {
    respond.poll_reset(&mut TaskContext::from_waker(Waker::noop())).is_ready()
}

/// Waits until the connection should take no more requests.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender lives as long as the connection.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Waits until no stream has been open for the keep-alive time.
async fn idle(open: &mut watch::Receiver<usize>, keepalive: Duration) {
    let _ = open.wait_for(|open| *open == 0).await;
    sleep(keepalive).await;
}
