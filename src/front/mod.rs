//! The front door: a connection before its first request.
//!
//! Pingora's HTTP server has no deadline for a whole header, no bound on connections and keeps
//! one for ever once it has been used. [`Front`] stands in front of it: it counts connections and
//! reads each request's header itself under one deadline. A plain event request it answers
//! directly, by the same judge, spool and answers as [`PixelGate::handle`] does; every other goes,
//! with the bytes that were read, down Pingora's own path. It decides nothing of its own: which
//! way a request takes shows in what it costs, and in nothing else.
//!
//! HTTP/2 connections are handed over as they come: Pingora frames them itself.

mod census;
mod head;
mod plain;
mod raw;

use crate::answer::{Answers, wants_image};
use crate::client::Headers;
use crate::context::context;
use crate::gate::Hit;
use crate::path::Reading;
use crate::plugin::{PixelGate, Step};
use crate::target::Target;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use census::Census;
use head::{end_of_head, expects_more};
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::{HttpProxy, ProxyHttp};
use pingora::server::ShutdownWatch;
use pingora_timeout::timeout;
use plain::{HEADERS_MAX, Plain, plain};
use raw::Raw;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Read and write buffer of a connection's socket, in bytes. Headers are read into a buffer that
/// lives only as long as they do; writes are gathered so that a pixel leaves in one piece.
pub const SOCKET_BUFFER_BYTES: (usize, usize) = (0, 2048);
/// Largest request header, in bytes. Pingora's own bound is higher and checked between reads.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Room for one read of a header, in bytes: a browser's request with cookies fits in it.
const READ_BYTES: usize = 4096;
/// How long a client may take to take an answer, in seconds.
const WRITE_SECONDS_MAX: u64 = 60;
/// Sent before closing where a request cannot be read in full.
const HEADER_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const HEADER_TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";

/// What the front door allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// From the end of one request to the first byte of the next.
    pub keepalive: Duration,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one address; 0: no limit.
    pub connections_per_address_max: usize,
    /// Whether plain event requests are answered here; if not, all take Pingora's path.
    pub answer_plain: bool,
}

/// Counts what a stop waits for: requests between their first judgement and the end of their
/// answer, and the connections on which they come.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    lingering: AtomicBool,
}

/// One request in flight; ends when dropped.
#[derive(Debug)]
pub struct Busy(InFlight);

/// One open connection; ends when dropped.
struct Connected(InFlight);

impl InFlight {
    /// Counts one more, for as long as the answer lives.
    pub fn enter(&self) -> Busy {
        self.0.requests.fetch_add(1, Relaxed);
        Busy(self.clone())
    }

    /// How many requests there are.
    pub fn count(&self) -> usize {
        self.0.requests.load(Relaxed)
    }

    /// How many connections there are, idle ones included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Has idle connections live on through a stop, each until it was told by the answer to one
    /// more request that it closes: whoever is just sending is then answered. To be called
    /// before the stop; how long the stop waits for them is its caller's choice.
    pub fn linger(&self) {
        self.0.lingering.store(true, Relaxed);
    }

    fn connect(&self) -> Connected {
        self.0.connections.fetch_add(1, Relaxed);
        Connected(self.clone())
    }

    /// Ends when an idle connection is to be closed.
    async fn closing(&self, shutdown: &mut ShutdownWatch) {
        // An error is a host that is gone without a word, which is a stop, too.
        let _ = shutdown.wait_for(|stop| *stop).await;
        if self.0.lingering.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Relaxed);
    }
}

/// A Pingora service's application: the front door of a proxy.
pub struct Front<SV> {
    proxy: Arc<HttpProxy<SV, ()>>,
    gate: PixelGate,
    answers: Answers<Raw>,
    in_flight: InFlight,
    limits: Limits,
    census: Arc<Census>,
}

/// How reading a header ended.
enum Head {
    /// It is in the buffer, this many bytes long.
    Complete(usize),
    /// Nothing came, or the client left.
    Closed,
    /// It took too long.
    Late,
    /// It is too large.
    Large,
}

impl<SV> Front<SV> {
    /// A front door for `proxy`, whose `request_filter` asks `gate` first. Requests that are
    /// answered here count as in flight in `in_flight`; the proxy counts its own.
    pub fn new(
        proxy: HttpProxy<SV, ()>,
        gate: PixelGate,
        in_flight: InFlight,
        limits: Limits,
    ) -> Self {
        let shared = gate.shared();
        let Ok(answers) = Answers::build(&shared.response, &shared.methods, Raw::new);
        Self { proxy: Arc::new(proxy), gate, answers, in_flight, limits, census: Arc::default() }
    }

    /// Reads until the buffer holds a whole header. Waits for its first byte as long as
    /// `patience`, and for the rest as long as a header may take.
    async fn read_head(
        &self,
        stream: &mut Stream,
        buffer: &mut BytesMut,
        patience: Duration,
        shutdown: &mut ShutdownWatch,
    ) -> Head {
        if buffer.is_empty() {
            buffer.reserve(READ_BYTES);
            let first = tokio::select! {
                biased;
                read = timeout(patience, stream.read_buf(buffer)) => read,
                () = self.in_flight.closing(shutdown) => return Head::Closed,
            };
            match first {
                Ok(Ok(length)) if length > 0 => {}
                _ => return Head::Closed,
            }
        }
        let mut searched = 0;
        if let Some(end) = end_of_head(buffer, &mut searched) {
            return Head::Complete(end);
        }
        let rest = async {
            loop {
                if buffer.len() > HEADER_BYTES_MAX {
                    return Head::Large;
                }
                buffer.reserve(READ_BYTES);
                match stream.read_buf(buffer).await {
                    Ok(length) if length > 0 => {}
                    _ => return Head::Closed,
                }
                if let Some(end) = end_of_head(buffer, &mut searched) {
                    return Head::Complete(end);
                }
            }
        };
        let rest = timeout(self.limits.header_timeout, rest).await;
        rest.unwrap_or(Head::Late)
    }

    /// Serves one HTTP/1 connection to its end.
    async fn serve(&self, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<()>
    where
        SV: ProxyHttp + Send + Sync + 'static,
        SV::CTX: Send + Sync,
    {
        let mut stopping = shutdown.clone();
        let mut buffer = BytesMut::new();
        let peer = peer(&stream);
        let mut patience = self.limits.header_timeout;
        loop {
            match self.read_head(&mut stream, &mut buffer, patience, &mut stopping).await {
                Head::Complete(end) => {
                    let keep = !*shutdown.borrow();
                    if let Some(answer) = self.answer_plain(&buffer[..end], peer, keep).await {
                        buffer.advance(end);
                        send(&mut stream, &answer).await?;
                        if !keep {
                            return part(stream).await;
                        }
                        patience = self.limits.keepalive;
                        continue;
                    }
                    let request = match expects_more(&buffer[..end]) {
                        true => std::mem::take(&mut buffer),
                        false => buffer.split_to(end),
                    };
                    stream = self.hand_over(stream, request, shutdown).await?;
                }
                Head::Closed => return None,
                Head::Late => return refuse(stream, HEADER_TIMEOUT).await,
                Head::Large => return refuse(stream, HEADER_TOO_LARGE).await,
            }
            if buffer.is_empty() {
                // An idle connection holds no buffer.
                buffer = BytesMut::new();
            }
            patience = self.limits.keepalive;
        }
    }

    /// Judges and answers a request that is plain and ours; `None` if it is not.
    async fn answer_plain(&self, head: &[u8], peer: Option<IpAddr>, keep: bool) -> Option<Vec<u8>> {
        let _busy = self.in_flight.enter();
        let (step, image) = self.begin_plain(head, peer)?;
        let reply = self.gate.finish(step).await;
        let raw = reply.pick(&self.answers, image);
        let mut answer = Vec::new();
        raw.write(&mut answer, reply.retry_after_seconds(), keep);
        Some(answer)
    }

    /// The part that waits for nothing; and whether a refusal is shown as an image. Apart, so
    /// that a connection which waits for the disk does not hold the room for its headers.
    fn begin_plain(&self, head: &[u8], peer: Option<IpAddr>) -> Option<(Step, bool)> {
        if !self.limits.answer_plain {
            return None;
        }
        let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let request = plain(head, &mut room)?;
        let target = Target::split(request.target);
        let shared = self.gate.shared();
        let reading = shared.gate.read(target.path);
        if reading == Reading::Other {
            return None;
        }
        let step = self.gate.begin(Hit {
            method: &Plain::METHOD,
            reading,
            query: target.query,
            context: context(&request, peer, &shared.trusted),
        });
        Some((step, wants_image(request.first("accept"))))
    }

    /// Has Pingora serve the request that begins with `request`. The connection comes back if
    /// it can take another one.
    async fn hand_over(
        &self,
        stream: Stream,
        request: BytesMut,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream>
    where
        SV: ProxyHttp + Send + Sync + 'static,
        SV::CTX: Send + Sync,
    {
        let mut session = ServerSession::new_http1(stream);
        session.set_pipelined_prefix(request);
        session.set_write_timeout(Some(Duration::from_secs(WRITE_SECONDS_MAX)));
        let reused = self.proxy.process_new_http(session, shutdown).await?;
        Some(reused.consume().0)
    }
}

#[async_trait]
impl<SV> ServerApp for Front<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let address = peer(&stream).map(|address| address.to_canonical());
        // No place: the connection closes unanswered, before anything is spent on it.
        let _place = self.census.admit(address, &self.limits)?;
        let _connected = self.in_flight.connect();
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            return self.proxy.process_new(stream, shutdown).await;
        }
        self.serve(stream, shutdown).await;
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

fn peer(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}

/// Sends an answer, for as long as the client takes it.
async fn send(stream: &mut Stream, answer: &[u8]) -> Option<()> {
    let sending = async {
        stream.write_all(answer).await.ok()?;
        stream.flush().await.ok()
    };
    timeout(Duration::from_secs(WRITE_SECONDS_MAX), sending).await.ok()?
}

/// Closes a connection whose client was told so. What it sent meanwhile is read and dropped: to
/// close on unread bytes resets the connection, and may take the answer with it (RFC 9112, 9.6).
async fn part(mut stream: Stream) -> Option<()> {
    let goodbye = async {
        let _ = stream.shutdown().await;
        let mut dropped = BytesMut::with_capacity(READ_BYTES);
        while stream.read_buf(&mut dropped).await.is_ok_and(|length| length > 0) {
            dropped.clear();
        }
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
    None
}

/// Says why, and closes. A client that does not listen is not waited for.
async fn refuse(mut stream: Stream, answer: &'static [u8]) -> Option<()> {
    let goodbye = async {
        stream.write_all(answer).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
    None
}
