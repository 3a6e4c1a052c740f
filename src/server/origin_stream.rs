//! A connection to an origin that gives its bytes in pieces as [`exchange`] allows, and carries
//! trailers.
//!
//! Pingora reads nothing from an origin while it writes to it. An origin that sends and does not
//! read until it has sent would so wait for ever, as an echo through a WebSocket does. So a write
//! into a tunnel never waits: this stream stores what the origin does not take, sends it as it is
//! read, and no more is read from the client until all is sent.

use super::alarm::Alarm;
use super::exchange::{self, Side};
use super::http1::trailers::{TrailerReader, TrailerWriter};
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

/// How long a connection to an origin may be waited for. The timeouts of a Pingora peer do the
/// same, and register a timer for each wait, which costs a thirtieth of a small request.
///
/// A wait that lasts too long ends with [`io::ErrorKind::TimedOut`]. Pingora passes that on as the
/// cause of a `ReadError` or a `WriteError`, not as a `ReadTimedout` or a `WriteTimedout`.
///
/// ```
/// use pixelgate::http_server::OriginTimeouts;
/// use std::time::Duration;
///
/// let mut timeouts = OriginTimeouts::default();
/// timeouts.io = Some(Duration::from_secs(60));
/// timeouts.idle = Some(Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct OriginTimeouts {
    /// Longest wait for an origin to send some bytes, or to take some. `None`: no limit.
    pub io: Option<Duration>,
    /// Longest time that a connection stays open between two requests. `None`: no limit. It counts
    /// for each wait outside of the requests of a [`Server`](crate::Server).
    pub idle: Option<Duration>,
}

/// A connection to an origin.
#[derive(Debug)]
pub struct OriginStream {
    stream: Take<Stream>,
    /// Number of the exchange that it serves. A connection serves one request of an exchange only:
    /// Pingora makes a second attempt on another connection.
    exchange: u64,
    request: TrailerWriter,
    response: TrailerReader,
    /// Bytes of a tunnel that the origin has not taken: at most the few pieces that Pingora had
    /// read from the client before.
    unsent: BytesMut,
    timeouts: OriginTimeouts,
    alarm: Alarm,
    /// Whether the alarm limits a wait for the next request.
    is_idle: bool,
}

impl OriginStream {
    pub fn new(stream: Stream, timeouts: OriginTimeouts) -> Self {
        let (request, response) = (TrailerWriter::new(Side::Request), TrailerReader::default());
        Self {
            stream: stream.take(0),
            exchange: 0,
            request,
            response,
            unsent: BytesMut::new(),
            timeouts,
            alarm: Alarm::default(),
            is_idle: false,
        }
    }

    fn stream(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.get_mut())
    }

    fn poll_write_pieces(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(number) = exchange::number()
            && self.exchange != number
        {
            self.exchange = number;
            self.request = TrailerWriter::new(Side::Request);
            self.response = TrailerReader::new(pieces.first().map_or(&[], |head| head));
        }
        if exchange::is_tunnel() {
            return self.poll_write_tunnel(cx, pieces);
        }
        let written = self.request.poll_write(Pin::new(self.stream.get_mut()), cx, pieces);
        self.within_limit(written, cx)
    }

    /// `polled`, or an error if the origin has been waited for too long.
    fn within_limit<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.alarm.end_wait();
            return polled;
        }
        let is_idle = match exchange::number() {
            None => true,
            Some(number) if number == self.exchange => false,
            // Before it uses a connection again, Pingora looks whether that is closed.
            Some(_) => return polled,
        };
        if std::mem::replace(&mut self.is_idle, is_idle) != is_idle {
            self.alarm.end_wait();
        }
        let limit = if is_idle { self.timeouts.idle } else { self.timeouts.io };
        let Some(limit) = limit else { return polled };
        self.alarm.poll(limit, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes all of `pieces` that the origin takes, or stores all of them.
    fn poll_write_tunnel(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !exchange::origin_waits()
            && let Poll::Ready(written) = self.stream().poll_write_vectored(cx, pieces)
        {
            return Poll::Ready(written);
        }
        pieces.iter().for_each(|piece| self.unsent.extend_from_slice(piece));
        exchange::set_origin_waits(true);
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    /// Sends what was written into a tunnel and is not sent yet.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(self.stream.get_mut()).poll_write(cx, &self.unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(written);
        }
        self.stream().poll_flush(cx)
    }

    /// Sends what waits for the origin, and then lets the client be read again.
    fn send_waiting(&mut self, cx: &mut Context<'_>) {
        // After an error the next write meets it again; what the origin sent before is still read.
        if exchange::origin_waits() && self.poll_send(cx).is_ready() {
            self.unsent = BytesMut::new();
            exchange::set_origin_waits(false);
            cx.waker().wake_by_ref();
        }
    }
}

impl AsyncRead for OriginStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.send_waiting(cx);
        let room = ready!(exchange::poll_room(cx));
        this.stream.set_limit(room as u64);
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        ready!(this.within_limit(read, cx))?;
        exchange::origin_read(buf.filled().len() - before);
        this.response.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OriginStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = this.poll_send(cx);
        if flushed.is_pending() && exchange::is_tunnel() {
            exchange::set_origin_waits(true);
            return Poll::Ready(Ok(()));
        }
        this.within_limit(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.stream().poll_shutdown(cx)
    }
}

// The remaining traits are required by Pingora; they delegate to the stream.

#[async_trait]
impl Shutdown for OriginStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut **self.stream.get_mut()).await;
    }
}

impl UniqueID for OriginStream {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().id()
    }
}

impl Ssl for OriginStream {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ref().get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for OriginStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_ref().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_ref().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_ref().get_write_pending_time()
    }
}

impl GetProxyDigest for OriginStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for OriginStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_ref().get_socket_digest()
    }
}

impl Peek for OriginStream {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::buffered_bytes::BufferedBytes;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const TIMEOUTS: OriginTimeouts =
        OriginTimeouts { io: Some(Duration::from_secs(5)), idle: Some(Duration::from_secs(50)) };

    fn origin() -> (OriginStream, DuplexStream) {
        let (near, far) = duplex(1 << 10);
        (OriginStream::new(Box::new(near), TIMEOUTS), far)
    }

    async fn exchange<T>(test: impl Future<Output = T>) -> T {
        exchange::scope(BufferedBytes::new(0), exchange::AHEAD_BYTES_HTTP1, false, test).await
    }

    /// Asserts that `wait` ends with a timeout, after `limit`.
    async fn check<T>(wait: impl Future<Output = io::Result<T>>, limit: Option<Duration>) {
        let began = Instant::now();
        assert_eq!(wait.await.err().map(|e| e.kind()), Some(io::ErrorKind::TimedOut));
        let (waited, limit) = (began.elapsed(), limit.unwrap());
        assert!(waited >= limit && waited < limit + Duration::from_millis(2), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_for_an_origin_has_the_limit_of_what_is_waited_for() {
        let (mut stream, mut far) = origin();
        for _ in 0..2 {
            exchange(async {
                stream.write_all(HEAD).await.unwrap();
                // What arrives in time ends a wait, and the next one begins anew.
                for _ in 0..3 {
                    let answer = async {
                        sleep(Duration::from_secs(4)).await;
                        far.write_all(b"a").await
                    };
                    let (read, answered) = tokio::join!(stream.read_u8(), answer);
                    assert!(read.is_ok() && answered.is_ok());
                }
            })
            .await;
            check(stream.read_u8(), TIMEOUTS.idle).await;
        }
        exchange(async {
            stream.write_all(HEAD).await.unwrap();
            check(stream.read_u8(), TIMEOUTS.io).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_takes_nothing_is_waited_for_as_long() {
        let (mut stream, _far) = origin();
        exchange(async {
            stream.write_all(HEAD).await.unwrap();
            check(stream.write_all(&[0; 1 << 11]), TIMEOUTS.io).await;
        })
        .await;
    }
}
