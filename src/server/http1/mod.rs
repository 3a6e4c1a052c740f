//! One HTTP/1 connection: its requests, each read under one deadline, answered here or by Pingora.

pub(super) mod head;

use super::admission::Admitted;
use super::connection_limit::Permit;
use super::fast_path::request::{Plain, plain, request_line};
use super::socket::Socket;
use super::{InFlight, InFlightGuard, Server, http2, read_buffer};
use crate::plugin::NextStep;
use crate::policy::gate::EventRequest;
use crate::request::path::Reading;
use crate::response::answers::wants_image;
use crate::telemetry::metrics::Limit;
use bytes::{Buf, BytesMut};
use head::{Fault, end_of_head, examine};
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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// Room for one read of the rest of a header, in bytes.
const READ_BYTES: usize = 4096;
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

/// An HTTP/1 connection between two of its requests.
pub struct Connection {
    pub stream: Stream,
    /// What came and is not used yet. An idle connection holds no memory here.
    pub came: BytesMut,
    pub peer: Option<IpAddr>,
    /// How many it has had, the one that it is at included.
    pub requests: u32,
    /// Its place among the connections.
    pub place: Permit,
}

impl Connection {
    /// A connection that was let in, before its first request.
    pub fn new(stream: Stream, admitted: Admitted) -> Connection {
        let Admitted { place, client, ahead } = admitted;
        Connection { stream, came: ahead, peer: client, requests: 0, place }
    }
}

/// A plain event request that is judged, and waits for the disk at most.
struct Judged<'f> {
    /// Length of its header.
    length: usize,
    step: NextStep,
    image: bool,
    /// It is the connection's last one by its client's wish.
    closes: bool,
    _busy: InFlightGuard<&'f InFlight>,
}

/// What a connection brings first when it was waited for.
enum Arrival<'f> {
    /// A plain event request, whole.
    Judged(Judged<'f>),
    /// Something else, which is in the connection's buffer.
    Bytes,
    /// Nothing, in time.
    Late,
    /// Nothing any more.
    Closed,
}

/// How reading a header ended.
pub enum Head {
    /// It is in the buffer, this many bytes long.
    Complete(usize),
    /// It crosses a limit.
    Refused(Limit),
    /// The client left.
    Closed,
}

/// What Pingora makes of a request: the connection, if it can take another one.
type Handed<'a> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>>;

impl<SV> Server<SV> {
    /// Takes a connection's next bytes, if there are any. A plain event request that comes in one
    /// piece, as nearly all do, is judged where it was read.
    fn poll_arrival(&self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Arrival<'_>> {
        let Connection { stream, came, peer, .. } = connection;
        if !came.is_empty() {
            return Poll::Ready(Arrival::Bytes);
        }
        let read = read_buffer::poll_read(&mut **stream, cx, |bytes| {
            if let Some(judged) = self.judge_plain(bytes, *peer) {
                came.extend_from_slice(&bytes[judged.length..]);
                return Arrival::Judged(judged);
            }
            came.extend_from_slice(bytes);
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
        if connection.came.is_empty() {
            connection.came = BytesMut::new();
        }
        let until = Instant::now() + self.patience(connection);
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
    fn patience(&self, connection: &Connection) -> Duration {
        let limits = self.limits();
        if connection.requests == 0 { limits.header_timeout } else { limits.keepalive }
    }

    /// Reads until the buffer begins with a whole header, and holds at least `least` bytes.
    pub async fn read_head(&self, stream: &mut Stream, came: &mut BytesMut, least: usize) -> Head {
        let limits = self.limits();
        let mut searched = 0;
        let mut look = |came: &mut BytesMut| {
            // Empty lines before a request line are skipped (RFC 9112, section 2.2).
            if searched == 0 {
                came.advance(head::empty_lines(came));
            }
            match end_of_head(came, &mut searched) {
                Some(end) if end > limits.header_bytes_max => {
                    Some(Head::Refused(Limit::HeaderBytes))
                }
                Some(end) if came.len() >= least => Some(Head::Complete(end)),
                None if came.len() > limits.header_bytes_max => {
                    Some(Head::Refused(Limit::HeaderBytes))
                }
                _ => None,
            }
        };
        if let Some(head) = look(came) {
            return head;
        }
        let rest = async {
            loop {
                came.reserve(READ_BYTES);
                match stream.read_buf(came).await {
                    Ok(length) if length > 0 => {}
                    _ => return Head::Closed,
                }
                if let Some(head) = look(came) {
                    return head;
                }
            }
        };
        let rest = timeout(limits.header_timeout, rest).await;
        rest.unwrap_or(Head::Refused(Limit::HeaderTime))
    }

    /// Judges the request at the beginning of `bytes` if it is whole, plain and ours.
    fn judge_plain(&self, bytes: &[u8], peer: Option<IpAddr>) -> Option<Judged<'_>> {
        let limits = self.limits();
        if !limits.answer_plain {
            return None;
        }
        let line = request_line(bytes)?;
        let target = line.target;
        let state = self.gate.state();
        let reading = state.gate.read(target.path);
        if reading == Reading::Other {
            return None;
        }
        let request = plain(line)?;
        let length = request.length;
        if request.count > limits.header_lines_max || length > limits.header_bytes_max {
            return None;
        }
        let busy = self.in_flight.enter_here();
        let ip = peer.map(|peer| state.trusted.client(peer, &request));
        let (image, closes) = (wants_image(request.accept), request.closes);
        let step = self.gate.judge(EventRequest {
            method: &Plain::METHOD,
            reading,
            query: target.query,
            context: request.seen.context(ip),
        });
        Some(Judged { length, step, image, closes, _busy: busy })
    }

    /// Answers a request that was judged, once the disk has it. Whether the connection can take
    /// another one.
    async fn answer(
        &self,
        connection: &mut Connection,
        judged: Judged<'_>,
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
                if !(wishes_end && in_clear && connection.came.is_empty()) {
                    Box::pin(part(&mut connection.stream)).await;
                }
                false
            }
            Some(Err(_)) => false,
            None => {
                self.door.teller.tell(Limit::WriteTime);
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
            self.door.teller.tell(Limit::Requests);
        }
        !last && !*shutdown.borrow()
    }

    /// Says why, hears the client out for a moment, and closes.
    async fn refuse(&self, mut connection: Connection, limit: Limit) {
        self.door.teller.tell(limit);
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
            part(&mut connection.stream).await;
        }
    }
}

/// Closes a connection whose client was told so, and hears it out for a moment.
async fn part(stream: &mut Stream) {
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
        let mut alarm = pin!(sleep(self.patience(&connection)));
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
                    return self.door.teller.tell(limit);
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
        let Connection { stream, came, peer, requests, .. } = &mut connection;
        let end = match self.read_head(stream, came, 0).await {
            Head::Complete(end) => end,
            Head::Closed => return None,
            Head::Refused(limit) => {
                Box::pin(self.refuse(connection, limit)).await;
                return None;
            }
        };
        if let Some(judged) = self.judge_plain(&came[..end], *peer) {
            came.advance(judged.length);
            return self.answer(&mut connection, judged, shutdown).await.then_some(connection);
        }
        let first = *requests == 1;
        if first && end == http2::PREFACE_HEAD_BYTES && http2::PREFACE.starts_with(&came[..end]) {
            Box::pin(self.clone().serve_h2(connection, shutdown.clone())).await;
            return None;
        }
        let request = match sound(came, end, self.limits().header_lines_max) {
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
    ) -> Handed<'a> {
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
fn sound(came: &mut BytesMut, end: usize, lines_max: usize) -> Result<BytesMut, Limit> {
    let sound = examine(&came[..end], lines_max).map_err(|fault| match fault {
        Fault::Syntax => Limit::HeaderSyntax,
        Fault::Lines => Limit::HeaderLines,
    })?;
    let mut request = came.split_to(end);
    if sound.upgrades {
        request = head::without_upgrade(&request);
    }
    if sound.expects_more {
        request.unsplit(std::mem::take(came));
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
