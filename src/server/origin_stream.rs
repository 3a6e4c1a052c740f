//! A connection to an origin that gives its bytes in pieces as [`exchange`] allows, and carries
//! trailers.
//!
//! Pingora reads nothing from an origin while it writes to it. An origin that sends and does not
//! read until it has sent would so wait for ever, as an echo through a WebSocket does. So a write
//! into a tunnel never waits: this stream stores what the origin does not take, sends it as it is
//! read, and no more is read from the client until all is sent.

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
}

impl OriginStream {
    pub fn new(stream: Stream) -> Self {
        let (request, response) = (TrailerWriter::new(Side::Request), TrailerReader::default());
        Self { stream: stream.take(0), exchange: 0, request, response, unsent: BytesMut::new() }
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
        self.request.poll_write(Pin::new(self.stream.get_mut()), cx, pieces)
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
        let Self { stream, response, .. } = this;
        let room = ready!(exchange::poll_room(cx));
        stream.set_limit(room as u64);
        let before = buf.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        exchange::origin_read(buf.filled().len() - before);
        response.read(&buf.filled()[before..]);
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
        flushed
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
    use super::super::buffered_bytes::BufferedBytes;
    use super::super::socket::Socket;
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn pieces_written_into_a_tunnel_count_whole_and_arrive_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut origin = OriginStream::new(Box::new(Socket::unix(near)));
        exchange::scope(BufferedBytes::new(1 << 20), 1 << 15, async {
            exchange::open_tunnel();
            let mut expect = Vec::new();
            // More than a socket takes: the rest is stored, and still counts as written.
            for round in 0..40_u8 {
                let (long, short) = (vec![round; 32 << 10], [round, b'-', round]);
                let pieces = [&long[..], b"", &short].map(io::IoSlice::new);
                let written = origin.write_vectored(&pieces).await.unwrap();
                let whole = [&long[..], &short].concat();
                assert!(written == whole.len() || !exchange::origin_waits(), "{round}: {written}");
                expect.extend_from_slice(&whole[..written]);
            }
            assert!(exchange::origin_waits());
            let mut all = vec![0; expect.len()];
            let (read, sent) = tokio::join!(far.read_exact(&mut all), async {
                std::future::poll_fn(|cx| origin.poll_send(cx)).await
            });
            sent.unwrap();
            read.unwrap();
            assert!(all == expect, "the bytes arrive as they were written");
        })
        .await;
    }
}
