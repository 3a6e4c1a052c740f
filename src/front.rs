//! The front door: a connection before its first request.
//!
//! Pingora's HTTP server has no deadline for a whole header, no bound on connections and keeps
//! one for ever once it has been used. [`Front`] stands in front of it: it counts connections,
//! reads each request's header itself under one deadline, and hands the connection over with
//! what it has read. It judges nothing and parses no more than where a header ends.
//!
//! HTTP/2 connections are handed over as they come: Pingora frames them itself.

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use log::warn;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::{HttpProxy, ProxyHttp};
use pingora::server::ShutdownWatch;
use pingora_timeout::timeout;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
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
}

/// Counts requests between their first judgement and the end of their answer.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// One request in flight; ends when dropped.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl InFlight {
    /// Counts one more, for as long as the answer lives.
    pub fn enter(&self) -> Busy {
        self.0.fetch_add(1, Relaxed);
        Busy(self.0.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A Pingora service's application: the front door of a proxy.
pub struct Front<SV> {
    proxy: Arc<HttpProxy<SV, ()>>,
    limits: Limits,
    census: Arc<Census>,
}

/// Who is connected.
#[derive(Default)]
struct Census {
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    full: AtomicBool,
}

/// One connection's place; given back when dropped.
struct Place {
    census: Arc<Census>,
    address: Option<IpAddr>,
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
    /// A front door for `proxy`.
    pub fn new(proxy: HttpProxy<SV, ()>, limits: Limits) -> Self {
        Self { proxy: Arc::new(proxy), limits, census: Arc::default() }
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
                _ = shutdown.wait_for(|stop| *stop) => return Head::Closed,
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
        let mut patience = self.limits.header_timeout;
        loop {
            match self.read_head(&mut stream, &mut buffer, patience, &mut stopping).await {
                Head::Complete(end) => {
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
        let digest = stream.get_socket_digest();
        let address = digest.as_ref().and_then(|d| d.peer_addr()).and_then(|a| a.as_inet());
        // No place: the connection closes unanswered, before anything is spent on it.
        let _place = self.census.admit(address.map(|a| a.ip().to_canonical()), &self.limits)?;
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

impl Census {
    fn admit(self: &Arc<Self>, address: Option<IpAddr>, limits: &Limits) -> Option<Place> {
        if self.all.fetch_add(1, Relaxed) >= limits.connections_max {
            self.all.fetch_sub(1, Relaxed);
            if !self.full.swap(true, Relaxed) {
                warn!("{} connections are open: more are closed", limits.connections_max);
            }
            return None;
        }
        self.full.store(false, Relaxed);
        let mut place = Place { census: self.clone(), address: None };
        if limits.connections_per_address_max > 0
            && let Some(address) = address
        {
            let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count >= limits.connections_per_address_max {
                drop(by_address);
                return None;
            }
            *count += 1;
            place.address = Some(address);
        }
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.census.all.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            let by_address = self.census.by_address.lock();
            let mut by_address = by_address.unwrap_or_else(PoisonError::into_inner);
            if let Entry::Occupied(mut entry) = by_address.entry(address) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }
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

/// Where the header ends: after its empty line, whose line ends may be bare LF as Pingora's
/// parser reads them. `searched` remembers how far earlier calls looked, so that a header that
/// comes byte by byte is looked at once.
fn end_of_head(buffer: &mut BytesMut, searched: &mut usize) -> Option<usize> {
    // Empty lines before a request line are skipped (RFC 9112, section 2.2).
    if *searched == 0 {
        let empty = buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        buffer.advance(empty);
    }
    let mut from = searched.saturating_sub(3);
    while let Some(at) = memchr::memchr(b'\n', &buffer[from..]) {
        let line_end = from + at + 1;
        match buffer[line_end..] {
            [b'\n', ..] => return Some(line_end + 1),
            [b'\r', b'\n', ..] => return Some(line_end + 2),
            _ => from = line_end,
        }
    }
    *searched = buffer.len();
    None
}

/// Whether bytes behind this header may belong to its request: then Pingora gets them all, and
/// decides by its own reading. Only the header of a request that cannot have a body is cut off
/// exactly, which keeps what a client sent ahead for the next round.
fn expects_more(head: &[u8]) -> bool {
    if !(head.starts_with(b"GET ") || head.starts_with(b"HEAD ")) {
        return true;
    }
    const FRAMING: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"upgrade", b"expect"];
    let mut lines = head.split(|&b| b == b'\n').skip(1);
    lines.any(|line| {
        FRAMING.iter().any(|name| {
            line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(bytes: &[u8]) -> Option<usize> {
        end_of_head(&mut BytesMut::from(bytes), &mut 0)
    }

    #[test]
    fn a_header_ends_with_its_empty_line() {
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(27));
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r\nGET "), Some(18));
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n"), Some(24));
        assert_eq!(end(b"\r\n\nGET / HTTP/1.1\r\n\r\n"), Some(18));
        for partial in [&b""[..], b"\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r"] {
            assert_eq!(end(partial), None);
        }
    }

    #[test]
    fn a_header_is_found_however_it_is_cut() {
        let whole = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX: \r y\r\n\r\n";
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::new();
            let mut searched = 0;
            buffer.extend_from_slice(&whole[..cut]);
            assert_eq!(end_of_head(&mut buffer, &mut searched), None, "cut at {cut}");
            buffer.extend_from_slice(&whole[cut..]);
            assert_eq!(end_of_head(&mut buffer, &mut searched), Some(whole.len()), "cut at {cut}");
        }
    }

    #[test]
    fn only_a_request_without_a_body_is_cut_off() {
        let check = |head: &str, expect: bool| {
            assert_eq!(expects_more(head.as_bytes()), expect, "{head:?}");
        };
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false);
        check("HEAD / HTTP/1.1\r\n\r\n", false);
        check("POST / HTTP/1.1\r\n\r\n", true);
        check("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", true);
        check("GET / HTTP/1.1\nTRANSFER-ENCODING: chunked\n\n", true);
        check("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", true);
        check("GET /?content-length HTTP/1.1\r\nHost: a\r\n\r\n", false);
    }

    #[test]
    fn places_are_counted_in_all_and_by_address() {
        let census = Arc::new(Census::default());
        let limits = Limits {
            header_timeout: Duration::from_secs(1),
            keepalive: Duration::from_secs(1),
            connections_max: 3,
            connections_per_address_max: 2,
        };
        let one = Some("203.0.113.1".parse().unwrap());
        let other = Some("203.0.113.2".parse().unwrap());
        let first = census.admit(one, &limits).unwrap();
        let _second = census.admit(one, &limits).unwrap();
        assert!(census.admit(one, &limits).is_none(), "a third from one address");
        let _third = census.admit(other, &limits).unwrap();
        assert!(census.admit(other, &limits).is_none(), "a fourth in all");
        drop(first);
        assert!(census.admit(one, &limits).is_some());
        assert_eq!(census.all.load(Relaxed), 2);
    }
}
