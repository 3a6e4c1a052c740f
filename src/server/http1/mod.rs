//! One HTTP/1 connection: its requests, each read under one deadline, answered here or by Pingora.

pub mod header_check;

use super::connection::{Connection, Head};
use super::fast_path::request::{FastRequest, request_line};
use super::http2::frame::{PREFACE, PREFACE_HEAD_BYTES};
use super::read_buffer;
use super::service::Server;
use super::socket::Socket;
use crate::plugin::Step;
use crate::policy::gate::EventRequest;
use crate::request::path::Reading;
use crate::response::answer::wants_image;
use crate::telemetry::in_flight::{InFlight, InFlightGuard};
use crate::telemetry::metrics::Limit;
use bytes::{Buf, BytesMut};
use header_check::{HeaderError, check_header, without_upgrade};
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// How long a client is heard out before its connection closes, in seconds, and how many bytes: a
/// close with bytes unread would take the last answer back from it (RFC 9112, section 9.6).
const LINGER_SECONDS_MAX: u64 = 1;
const LINGER_BYTES_MAX: usize = 256 << 10;
/// Sent before closing where a request is not served.
const HEADER_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const HEADER_TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";
const HEADER_UNSOUND: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A plain event request that is judged, and waits for the disk at most.
struct JudgedRequest<'f> {
    /// Length of its header.
    length: usize,
    step: Step,
    image: bool,
    /// It is the connection's last one by its client's wish.
    closes: bool,
    _in_flight_guard: InFlightGuard<&'f InFlight>,
}

/// What a connection brings first when it was waited for.
enum Arrival<'f> {
    /// A plain event request, whole.
    Judged(JudgedRequest<'f>),
    /// Something else, which is in the connection's buffer.
    Bytes,
    /// Nothing, in time.
    Late,
    /// Nothing any more.
    Closed,
}

/// What Pingora makes of a request: the connection, if it can take another one.
type ReusedFuture<'a> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>>;

impl<SV> Server<SV> {
    /// Takes a connection's next bytes, if there are any. A plain event request that comes in one
    /// piece, as nearly all do, is judged where it was read.
    fn poll_arrival(&self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Arrival<'_>> {
        let Connection { stream, received, peer, .. } = connection;
        if !received.is_empty() {
            return Poll::Ready(Arrival::Bytes);
        }
        let read = read_buffer::poll_read(&mut **stream, cx, |bytes| {
            if let Some(judged) = self.judge_fast_path(bytes, *peer) {
                received.extend_from_slice(&bytes[judged.length..]);
                return Arrival::Judged(judged);
            }
            received.extend_from_slice(bytes);
            if bytes.is_empty() { Arrival::Closed } else { Arrival::Bytes }
        });
        read.map(|read| read.unwrap_or(Arrival::Closed))
    }

    /// Waits for a connection's next bytes, as long as it may, or until `stopped`.
    ///
    /// `alarm` is the connection's own. It is set anew only when it goes off too early, which is
    /// once in many requests: setting it for each costs more than judging an event.
    async fn wait(
        &self,
        connection: &mut Connection,
        mut alarm: Pin<&mut Sleep>,
        mut stopped: Pin<&mut impl Future>,
    ) -> Arrival<'_> {
        if connection.received.is_empty() {
            connection.received = BytesMut::new();
        }
        let until = Instant::now() + self.read_timeout(connection);
        if until < alarm.deadline() {
            alarm.as_mut().reset(until);
        }
        poll_fn(|cx| {
            if let Poll::Ready(arrival) = self.poll_arrival(connection, cx) {
                return Poll::Ready(arrival);
            }
            while alarm.as_mut().poll(cx).is_ready() {
                if alarm.deadline() >= until {
                    return Poll::Ready(Arrival::Late);
                }
                alarm.as_mut().reset(until);
            }
            stopped.as_mut().poll(cx).map(|_| Arrival::Closed)
        })
        .await
    }

    /// How long a connection's next bytes are waited for.
    fn read_timeout(&self, connection: &Connection) -> Duration {
        let limits = self.limits();
        if connection.requests == 0 { limits.header_timeout } else { limits.keepalive }
    }

    /// Judges the request at the beginning of `bytes` if it is whole, plain and ours.
    fn judge_fast_path(&self, bytes: &[u8], peer: Option<IpAddr>) -> Option<JudgedRequest<'_>> {
        let limits = self.limits();
        if !limits.answer_plain {
            return None;
        }
        let line = request_line(bytes)?;
        let target = line.target;
        let shared = self.gate.shared();
        let reading = shared.gate.read(target.path);
        if reading == Reading::Other {
            return None;
        }
        let request = FastRequest::parse(line)?;
        let length = request.length;
        if request.count > limits.header_lines_max || length > limits.header_bytes_max {
            return None;
        }
        let in_flight_guard = self.in_flight.enter_here();
        let ip = peer.map(|peer| shared.trusted.client(peer, &request));
        let (image, closes) = (wants_image(request.accept), request.closes);
        let step = self.gate.begin(EventRequest {
            method: &FastRequest::METHOD,
            reading,
            query: target.query,
            context: request.seen.context(ip),
        });
        Some(JudgedRequest { length, step, image, closes, _in_flight_guard: in_flight_guard })
    }

    /// Answers a request that was judged, once the disk has it. Whether the connection can take
    /// another one.
    async fn answer(
        &self,
        connection: &mut Connection,
        judged: JudgedRequest<'_>,
        shutdown: &ShutdownWatch,
    ) -> bool {
        let wishes_end = judged.closes;
        let keep = self.keeps(connection, shutdown) && !wishes_end;
        let reply = self.gate.finish(judged.step).await;
        let raw = reply.pick(&self.answers, judged.image);
        let stream = &mut connection.stream;
        let rest = raw.write(reply.retry_after_seconds(), keep, |answer| {
            // What is taken at once, as nearly all is, costs no copy.
            let sent =
                stream.as_any().downcast_ref().map_or(0, |wire: &Socket| wire.send_now(answer));
            (sent < answer.len()).then(|| answer[sent..].to_vec())
        });
        let sent = match rest {
            None => Some(Ok(())),
            Some(rest) => self.send(stream, &rest).await,
        };
        match sent {
            Some(Ok(())) if keep => true,
            Some(Ok(())) => {
                // A client that wishes the end and has sent nothing more has said all. TLS has a
                // goodbye of its own.
                let in_clear = connection.stream.get_ssl_digest().is_none();
                if !(wishes_end && in_clear && connection.received.is_empty()) {
                    Box::pin(lingering_close(&mut connection.stream)).await;
                }
                false
            }
            Some(Err(_)) => false,
            None => {
                self.admission.limit_reporter.tell(Limit::WriteTime);
                false
            }
        }
    }

    /// Sends all of `bytes`, unless the client takes too long to take them. What it takes at once
    /// costs no timer.
    async fn send(&self, stream: &mut Stream, bytes: &[u8]) -> Option<io::Result<()>> {
        let mut sending = pin!(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
            Poll::Ready(sent) => Some(sent),
            Poll::Pending => Box::pin(timeout(self.limits().write_timeout, sending)).await.ok(),
        }
    }

    /// Whether a connection may have one more request after the one that it is at.
    fn keeps(&self, connection: &Connection, shutdown: &ShutdownWatch) -> bool {
        let max = self.limits().requests_per_connection_max;
        let last = max > 0 && connection.requests >= max;
        if last {
            self.admission.limit_reporter.tell(Limit::Requests);
        }
        !last && !*shutdown.borrow()
    }

    /// Says why, hears the client out for a moment, and closes.
    async fn refuse(&self, mut connection: Connection, limit: Limit) {
        self.admission.limit_reporter.tell(limit);
        let answer = match limit {
            Limit::HeaderTime => HEADER_TIMEOUT,
            Limit::HeaderBytes | Limit::HeaderLines => HEADER_TOO_LARGE,
            _ => HEADER_UNSOUND,
        };
        let why = async {
            connection.stream.write_all(answer).await?;
            connection.stream.flush().await
        };
        // A client that does not listen is not waited for.
        if let Ok(Ok(())) = timeout(Duration::from_secs(LINGER_SECONDS_MAX), why).await {
            lingering_close(&mut connection.stream).await;
        }
    }
}

/// Closes a connection whose client was told so, and hears it out for a moment.
async fn lingering_close(stream: &mut Stream) {
    let goodbye = async {
        AsyncWriteExt::shutdown(stream).await?;
        let mut heard = 0;
        while heard < LINGER_BYTES_MAX {
            let more = poll_fn(|cx| read_buffer::poll_read(&mut **stream, cx, <[u8]>::len)).await?;
            if more == 0 {
                break;
            }
            heard += more;
        }
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_secs(LINGER_SECONDS_MAX), goodbye).await;
}

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Serves a connection to its end, in the version of HTTP that its TLS handshake agreed on.
    pub async fn serve_agreed(self: Arc<Self>, connection: Connection, shutdown: ShutdownWatch) {
        if connection.stream.selected_alpn_proto() == Some(ALPN::H2) {
            Box::pin(self.serve_h2(connection, shutdown)).await;
        } else {
            self.serve(connection, shutdown).await;
        }
    }

    /// Serves an HTTP/1 connection to its end.
    pub async fn serve(self: Arc<Self>, mut connection: Connection, shutdown: ShutdownWatch) {
        let mut stopping = shutdown.clone();
        let mut stopped = pin!(stopping.wait_for(|stop| *stop && self.in_flight.closes_idle()));
        let mut alarm = pin!(sleep(self.read_timeout(&connection)));
        loop {
            let arrival = self.wait(&mut connection, alarm.as_mut(), stopped.as_mut()).await;
            let first = connection.requests == 0;
            connection.requests = connection.requests.saturating_add(1);
            match arrival {
                Arrival::Judged(judged) => {
                    if !self.answer(&mut connection, judged, &shutdown).await {
                        return;
                    }
                }
                // Boxed, as all that is rare: its room would be held while nothing comes.
                Arrival::Bytes => match Box::pin(self.serve_bytes(connection, &shutdown)).await {
                    Some(kept) => connection = kept,
                    None => return,
                },
                Arrival::Late => {
                    let limit = if first { Limit::HeaderTime } else { Limit::IdleTime };
                    return self.admission.limit_reporter.tell(limit);
                }
                Arrival::Closed => return,
            }
        }
    }

    /// Serves a request whose first bytes are in the buffer.
    async fn serve_bytes(
        self: &Arc<Self>,
        mut connection: Connection,
        shutdown: &ShutdownWatch,
    ) -> Option<Connection> {
        let end = match connection.read_head(self.limits(), 0).await {
            Head::Complete(end) => end,
            Head::Closed => return None,
            Head::Refused(limit) => {
                Box::pin(self.refuse(connection, limit)).await;
                return None;
            }
        };
        let Connection { received, peer, requests, .. } = &mut connection;
        if let Some(judged) = self.judge_fast_path(&received[..end], *peer) {
            received.advance(judged.length);
            return self.answer(&mut connection, judged, shutdown).await.then_some(connection);
        }
        let first = *requests == 1;
        if first && end == PREFACE_HEAD_BYTES && PREFACE.starts_with(&received[..end]) {
            Box::pin(self.clone().serve_h2(connection, shutdown.clone())).await;
            return None;
        }
        let request = match take_request(received, end, self.limits().header_lines_max) {
            Ok(request) => request,
            Err(limit) => {
                Box::pin(self.refuse(connection, limit)).await;
                return None;
            }
        };
        let keep = self.keeps(&connection, shutdown);
        let reused = self.hand_over(connection.stream, request, keep, shutdown).await?;
        connection.stream = reused.consume().0;
        Some(connection)
    }

    /// Has Pingora serve the request that begins with `request`.
    fn hand_over<'a>(
        &'a self,
        stream: Stream,
        request: BytesMut,
        keep: bool,
        shutdown: &'a ShutdownWatch,
    ) -> ReusedFuture<'a> {
        let mut session = ServerSession::new_http1(stream);
        session.set_pipelined_prefix(request);
        session.set_write_timeout(Some(self.limits().write_timeout));
        if !keep {
            session.set_keepalive_reuses_remaining(Some(0));
        }
        self.proxy.process_new_http(session, shutdown)
    }
}

/// Takes a request's bytes out of the buffer for Pingora: its header alone, or all that may be
/// its body.
fn take_request(received: &mut BytesMut, end: usize, lines_max: usize) -> Result<BytesMut, Limit> {
    let framing = check_header(&received[..end], lines_max).map_err(|error| match error {
        HeaderError::Syntax => Limit::HeaderSyntax,
        HeaderError::Lines => Limit::HeaderLines,
    })?;
    let mut request = received.split_to(end);
    if framing.foreign_upgrade {
        request = without_upgrade(&request);
    }
    if framing.expects_more {
        request.unsplit(std::mem::take(received));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use pingora::Error;
    use pingora::prelude::{HttpPeer, Session};

    /// What an idle connection may hold in its task, in bytes. Its socket's buffer and what the
    /// runtime and Pingora keep of a socket come on top; `tests/security` measures the whole.
    const IDLE_BYTES_MAX: usize = 1088;

    struct Nobody;

    #[async_trait]
    impl ProxyHttp for Nobody {
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

    fn bytes_of<F>(_: fn(Arc<Server<Nobody>>, Connection, ShutdownWatch) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_holds_little() {
        let bytes = bytes_of(Server::<Nobody>::serve);
        assert!(bytes <= IDLE_BYTES_MAX, "{bytes} bytes");
    }
}
