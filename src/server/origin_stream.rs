//! A connection to an origin that gives its bytes in pieces as [`exchange`] allows, and carries
//! trailers.

use super::exchange::{self, Side};
use super::http1::trailers::{TrailerReader, TrailerWriter};
use async_trait::async_trait;
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
}

impl OriginStream {
    pub fn new(stream: Stream) -> Self {
        let (request, response) = (TrailerWriter::new(Side::Request), TrailerReader::default());
        Self { stream: stream.take(0), exchange: 0, request, response }
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
        self.request.poll_write(Pin::new(self.stream.get_mut()), cx, pieces)
    }
}

impl AsyncRead for OriginStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, response, .. } = self.get_mut();
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
        self.get_mut().stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
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
