//! Connections to an origin for requests that ask for an upgrade, such as WebSocket.
//!
//! Pingora 0.9.1 has two halves for a request, one for the client and one for the origin. The end
//! of the request's empty body is a message from the first half to the second. If the second half
//! reads the origin's status 101 before this message, it takes the message for the end of the
//! tunnel and closes. With an origin that answers within microseconds this happens in about one of
//! a hundred requests. So the first read after a write waits here for one round of the scheduler,
//! in which the message is handled. `tests/edge/duplex.rs` shows when a newer Pingora does not need
//! this any more.
//!
//! Such a connection is never used for a second request. A tunnel ends with its connection, and an
//! origin that declines an upgrade is rare.

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

/// The number of the next connection. It is also the group of the connection in Pingora's pool, so
/// that no other request can get the connection.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Lets a request to `peer` use a connection of this kind.
pub fn for_upgrade(peer: &mut HttpPeer) {
    peer.group_key = CONNECTIONS.fetch_add(1, Relaxed);
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.custom_l4 = Some(Arc::new(Connector));
}

#[derive(Debug)]
struct Connector;

#[async_trait]
impl Connect for Connector {
    /// Connects. Pingora limits the time that this takes.
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

/// A socket whose reads after a write wait for one round of the scheduler, until the answer of the
/// origin comes. From then on reads do not wait, because a tunnel whose client sends all the time
/// would hardly be read.
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
