//! A connection's socket, as Pingora wants one.
//!
//! Pingora's own socket has a buffer for writes all its life, and reads the clock at each read.
//! Thousands of connections that wait should hold nothing for what they may say some day: here
//! room is made when there is something to write, and given back when it is sent.

use super::read_buffer::replay;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Writes are gathered up to so many bytes: an answer that is written in pieces, header and body,
/// leaves in one.
const WRITE_BUFFER_BYTES_MAX: usize = 2048;

#[derive(Debug)]
enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// See the module.
#[derive(Debug)]
pub struct Socket {
    wire: Wire,
    peer: Option<SocketAddr>,
    accepted_at: SystemTime,
    /// Made when Pingora asks for it.
    digest: OnceLock<Arc<SocketDigest>>,
    /// To be read once more, before all else.
    ahead: BytesMut,
    /// Written, and not sent yet.
    write_buffer: BytesMut,
}

impl Socket {
    /// A connection that was accepted from `peer`.
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> Socket {
        Socket::new(Wire::Tcp(stream), Some(peer))
    }

    /// A connection that was accepted from somebody on this machine.
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

    /// The address of whoever connected, where it has one.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer.map(|address| address.ip())
    }

    /// Has these bytes, which were read, be read once more.
    pub fn rewind(&mut self, ahead: BytesMut) {
        self.ahead = ahead;
    }

    /// Sends as much of `bytes` as can be sent at once, and says how much: an answer that is whole
    /// need not be gathered. Nothing where something was gathered before it, or sending fails.
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

    fn poll_wire(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Sends what was gathered.
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
        // Pingora drops a connection in the middle of an answer that it cannot finish. What was
        // written of it is sent, if it can be at once.
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
        match &mut this.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
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
        // A client that is gone already needs no goodbye.
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
            // One that was just made has no address yet.
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

    /// What has arrived, without waiting for more.
    fn arrived(far: &UnixStream) -> usize {
        let mut bytes = [0; 8192];
        far.try_read(&mut bytes).unwrap_or(0)
    }

    #[tokio::test]
    async fn writes_leave_together_and_their_room_is_given_back() {
        let (mut socket, far) = pair();
        socket.write_all(b"head").await.unwrap();
        socket.write_all(b"body").await.unwrap();
        assert_eq!((arrived(&far), socket.write_buffer.len()), (0, 8));
        socket.flush().await.unwrap();
        far.readable().await.unwrap();
        assert_eq!((arrived(&far), socket.write_buffer.capacity()), (8, 0));
    }

    #[tokio::test]
    async fn no_more_is_gathered_than_may_be() {
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
    async fn what_is_whole_is_sent_at_once_but_never_before_what_was_written() {
        let (mut socket, far) = pair();
        assert_eq!(socket.send_now(b"whole"), 5);
        far.readable().await.unwrap();
        assert_eq!(arrived(&far), 5);
        socket.write_all(b"head").await.unwrap();
        assert_eq!(socket.send_now(b"whole"), 0);
        socket.flush().await.unwrap();
        let much = vec![0; 8 << 20];
        let sent = socket.send_now(&much);
        assert!(sent > 0 && sent < much.len(), "as much as there is room for: {sent}");
        assert_eq!(socket.send_now(&much), 0);
        drop(far);
        assert_eq!(socket.send_now(b"gone"), 0);
    }

    #[tokio::test]
    async fn what_was_written_is_sent_by_a_drop() {
        let (mut socket, mut far) = pair();
        socket.write_all(b"half").await.unwrap();
        drop(socket);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"half");
    }

    #[tokio::test]
    async fn what_is_rewound_is_read_first_in_pieces_of_any_length() {
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
