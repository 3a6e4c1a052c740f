//! Connections to an origin for requests that ask for an upgrade, such as WebSocket.
//!
//! Pingora 0.9.1 sends the end of a request's empty body to its own origin side as a message. If
//! that side reads the origin's 101 first, it takes the message for the end of the tunnel and
//! closes. An origin that answers within microseconds wins this race every hundredth time or so. So
//! the first read after a write waits here for one round of the scheduler, in which the message is
//! handled. `tests/edge/duplex.rs` shows when a newer Pingora needs this no longer.
//!
//! Such a connection is never used for a second request: a tunnel ends with its connection, and an
//! upgrade that the origin declines is rare.

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::prelude::*;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{ErrorType, OrErr};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Number of connections so far. Each has a group of its own in Pingora's pool, so that no other
/// request is given it.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Makes a request to `peer` use a connection of this kind.
pub fn for_upgrade(peer: &mut HttpPeer) {
    peer.group_key = CONNECTIONS.fetch_add(1, Relaxed);
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.custom_l4 = Some(Arc::new(Connector));
}

#[derive(Debug)]
struct Connector;

#[async_trait]
impl Connect for Connector {
    /// Pingora limits the time of this.
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectNoRoute, "no origin has a Unix socket");
        };
        let tcp = TcpStream::connect(address).await;
        let tcp = tcp.or_err(ErrorType::ConnectError, "for an upgrade")?;
        let socket = YieldingSocket { tcp, has_written: false, has_read: false };
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

/// A socket whose first read after a write waits for one round of the scheduler, until the origin's
/// answer comes. Later a tunnel would hardly be read while its client sends.
#[derive(Debug)]
struct YieldingSocket {
    tcp: TcpStream,
    has_written: bool,
    has_read: bool,
}

impl VirtualSocket for YieldingSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.tcp.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for YieldingSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.has_written) && !this.has_read {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.tcp).poll_read(cx, buf);
        this.has_read |= read.is_ready();
        read
    }
}

impl AsyncWrite for YieldingSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.has_written = true;
        Pin::new(&mut this.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
