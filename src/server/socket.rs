//! A connection's TCP or Unix socket with the traits that Pingora requires.
//!
//! Pingora's own socket type keeps a write buffer as long as it lives and reads the clock at each
//! read. This one allocates a write buffer when there is something to write and frees it once that
//! is sent, so thousands of idle connections hold none.

use super::exchange;
use super::read_buffer::{self, READ_BUFFER_BYTES, replay};
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The most bytes in the write buffer. The header and the body of a small response, which are
/// written separately, leave in one system call.
const WRITE_BUFFER_BYTES_MAX: usize = 2048;

#[derive(Debug)]
enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket with a write buffer that is freed when empty.
///
/// ```
/// use pixelgate::http_server::Socket;
/// use tokio::net::TcpListener;
///
/// async fn accept(listener: &TcpListener) -> std::io::Result<Socket> {
///     let (stream, peer) = listener.accept().await?;
///     Ok(Socket::tcp(stream, peer))
/// }
/// ```
#[derive(Debug)]
pub struct Socket {
    wire: Wire,
    peer: Option<SocketAddr>,
    accepted_at: SystemTime,
    /// Created when Pingora asks for it.
    digest: OnceLock<Arc<SocketDigest>>,
    /// Bytes to read again before those of the socket.
    ahead: BytesMut,
    /// Bytes that are written but not sent yet.
    write_buffer: BytesMut,
}

impl Socket {
    /// A TCP connection accepted from `peer`.
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> Socket {
        Socket::new(Wire::Tcp(stream), Some(peer))
    }

    /// A connection accepted on a Unix socket; it has no peer address.
    pub fn unix(stream: UnixStream) -> Socket {
        Socket::new(Wire::Unix(stream), None)
    }

    fn new(wire: Wire, peer: Option<SocketAddr>) -> Socket {
        Socket {
            wire,
            peer,
            accepted_at: SystemTime::now(),
            digest: OnceLock::new(),
            ahead: BytesMut::new(),
            write_buffer: BytesMut::new(),
        }
    }

    /// The peer's IP address; `None` on a Unix socket.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer.map(|address| address.ip())
    }

    /// Puts back bytes that were read; the next reads return them first.
    pub fn rewind(&mut self, ahead: BytesMut) {
        self.ahead = ahead;
    }

    /// Sends as much of `bytes` as the kernel takes at once, past the write buffer, and returns how
    /// many bytes that is. Returns 0 if the write buffer is not empty or sending fails.
    pub fn send_now(&self, bytes: &[u8]) -> usize {
        if !self.write_buffer.is_empty() {
            return 0;
        }
        let sent = match &self.wire {
            Wire::Tcp(stream) => stream.try_write(bytes),
            Wire::Unix(stream) => stream.try_write(bytes),
        };
        sent.unwrap_or(0)
    }

    fn poll_wire_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    /// Reads as [`Socket::poll_wire_read`] does, but at most [`READ_BUFFER_BYTES`]. Pingora would
    /// read 64 KiB at once, and queue up to five such pieces of an upload while the origin takes
    /// none.
    #[inline(never)]
    fn poll_piece(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = |piece: &mut ReadBuf<'_>| self.poll_wire_read(cx, piece);
        read_buffer::poll_fill(read, |bytes| buf.put_slice(bytes))
    }

    fn poll_wire(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Does what [`Socket::poll_wire`] does, for several pieces.
    fn poll_wire_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Wire::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    /// Sends the write buffer and frees it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.write_buffer.has_remaining() {
            let write_buffer = std::mem::take(&mut self.write_buffer);
            let sent = self.poll_wire(cx, &write_buffer);
            self.write_buffer = write_buffer;
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.write_buffer.advance(sent),
            }
        }
        self.write_buffer = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.write_buffer.is_empty() {
            return;
        }
        // Pingora drops a connection in the middle of a response that it cannot finish. The part
        // already written is sent if the kernel takes it at once.
        let _ = match &self.wire {
            Wire::Tcp(stream) => stream.try_write(&self.write_buffer),
            Wire::Unix(stream) => stream.try_write(&self.write_buffer),
        };
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if replay(&mut this.ahead, buf) {
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() <= READ_BUFFER_BYTES || !exchange::is_current() {
            return this.poll_wire_read(cx, buf);
        }
        this.poll_piece(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_buffer.len() + bytes.len() > WRITE_BUFFER_BYTES_MAX {
            ready!(this.poll_send(cx))?;
        }
        if bytes.len() > WRITE_BUFFER_BYTES_MAX {
            return this.poll_wire(cx, bytes);
        }
        if this.write_buffer.is_empty() {
            this.write_buffer = BytesMut::from(bytes);
        } else {
            this.write_buffer.extend_from_slice(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Writes all pieces or waits: TLS passes its records as pieces, and an alert among them must
    /// not stay behind.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if this.write_buffer.len() + bytes > WRITE_BUFFER_BYTES_MAX {
            ready!(this.poll_send(cx))?;
        }
        if bytes > WRITE_BUFFER_BYTES_MAX {
            return this.poll_wire_vectored(cx, pieces);
        }
        this.write_buffer.reserve(bytes);
        pieces.iter().for_each(|piece| this.write_buffer.extend_from_slice(piece));
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[async_trait]
impl Shutdown for Socket {
    async fn shutdown(&mut self) {
        // An error means that the connection is already broken; there is nothing left to do.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Socket {
    fn id(&self) -> UniqueIDType {
        match &self.wire {
            Wire::Tcp(stream) => stream.as_raw_fd(),
            Wire::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl GetSocketDigest for Socket {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        let digest = self.digest.get_or_init(|| {
            let digest = SocketDigest::from_raw_fd(self.id());
            // `set` cannot fail: the digest was just created without an address.
            let _ = digest.peer_addr.set(self.peer.map(PeerAddress::Inet));
            Arc::new(digest)
        });
        Some(digest.clone())
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.digest = OnceLock::from(Arc::new(digest));
    }
}

impl GetTimingDigest for Socket {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.accepted_at, ..TimingDigest::default() })]
    }
}

impl GetProxyDigest for Socket {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl Ssl for Socket {}

impl Peek for Socket {}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn pair() -> (Socket, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Socket::unix(near), far)
    }

    /// How many bytes have arrived, without waiting for more.
    fn arrived(far: &UnixStream) -> usize {
        let mut bytes = [0; 8192];
        far.try_read(&mut bytes).unwrap_or(0)
    }

    #[tokio::test]
    async fn writes_leave_together_and_the_buffer_is_freed() {
        let (mut socket, far) = pair();
        socket.write_all(b"head").await.unwrap();
        socket.write_all(b"body").await.unwrap();
        assert_eq!((arrived(&far), socket.write_buffer.len()), (0, 8));
        socket.flush().await.unwrap();
        far.readable().await.unwrap();
        assert_eq!((arrived(&far), socket.write_buffer.capacity()), (8, 0));
    }

    #[tokio::test]
    async fn the_write_buffer_has_a_limit() {
        for (first, second, at_once) in [
            (0, WRITE_BUFFER_BYTES_MAX, 0),
            (0, WRITE_BUFFER_BYTES_MAX + 1, WRITE_BUFFER_BYTES_MAX + 1),
            (1, WRITE_BUFFER_BYTES_MAX - 1, 0),
            (1, WRITE_BUFFER_BYTES_MAX, 1),
            (1, WRITE_BUFFER_BYTES_MAX + 1, WRITE_BUFFER_BYTES_MAX + 2),
        ] {
            let (mut socket, mut far) = pair();
            socket.write_all(&vec![b'a'; first]).await.unwrap();
            socket.write_all(&vec![b'b'; second]).await.unwrap();
            assert_eq!(socket.write_buffer.len(), first + second - at_once, "{first} {second}");
            AsyncWriteExt::shutdown(&mut socket).await.unwrap();
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            let expect = [vec![b'a'; first], vec![b'b'; second]].concat();
            assert_eq!(all, expect, "{first} {second}");
        }
    }

    #[tokio::test]
    async fn pieces_leave_together_whatever_their_length() {
        for last in [1, WRITE_BUFFER_BYTES_MAX] {
            let (mut socket, mut far) = pair();
            socket.write_all(b"first").await.unwrap();
            let last = vec![b'z'; last];
            let pieces = [&b"a"[..], b"", b"bc", &last].map(IoSlice::new);
            let written = socket.write_vectored(&pieces).await.unwrap();
            assert_eq!(written, 3 + last.len());
            AsyncWriteExt::shutdown(&mut socket).await.unwrap();
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, [b"firstabc".to_vec(), last].concat());
        }
    }

    #[tokio::test]
    async fn send_now_sends_at_once_but_never_overtakes_the_write_buffer() {
        let (mut socket, far) = pair();
        assert_eq!(socket.send_now(b"whole"), 5);
        far.readable().await.unwrap();
        assert_eq!(arrived(&far), 5);
        socket.write_all(b"head").await.unwrap();
        assert_eq!(socket.send_now(b"whole"), 0);
        socket.flush().await.unwrap();
        let much = vec![0; 8 << 20];
        let sent = socket.send_now(&much);
        assert!(sent > 0 && sent < much.len(), "as much as the kernel buffers: {sent}");
        assert_eq!(socket.send_now(&much), 0);
        drop(far);
        assert_eq!(socket.send_now(b"gone"), 0);
    }

    #[tokio::test]
    async fn a_drop_sends_the_write_buffer() {
        let (mut socket, mut far) = pair();
        socket.write_all(b"half").await.unwrap();
        drop(socket);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"half");
    }

    #[tokio::test]
    async fn rewound_bytes_are_read_first_in_pieces_of_any_length() {
        let (mut socket, mut far) = pair();
        far.write_all(b"def").await.unwrap();
        socket.rewind(BytesMut::from(&b"abc"[..]));
        let mut two = [0; 2];
        socket.read_exact(&mut two).await.unwrap();
        let mut four = [0; 4];
        socket.read_exact(&mut four).await.unwrap();
        assert_eq!((&two, &four), (b"ab", b"cdef"));
    }
}
