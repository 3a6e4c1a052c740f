//! Accepting: from a listening socket to a task for each connection.
//!
//! Pingora's own service starts each connection in a task that has room for a TLS handshake, some
//! eight kilobytes that are copied several times, and gives a handshake a minute. Here a
//! connection has its place before its task is made, the task is as large as a wait for the next
//! request, and a handshake has as long as a header.

use super::connection::Connection;
use super::connection_limit::Permit;
use super::service::Server;
use super::socket::Socket;
use crate::telemetry::metrics::Limit;
use async_trait::async_trait;
use bytes::BytesMut;
use log::error;
use pingora::apps::HttpServerApp;
use pingora::listeners::tls::{Acceptor as TlsAcceptor, TlsSettings};
use pingora::proxy::ProxyHttp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Pause after a connection could not be accepted, for want of open files or memory as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A socket that listens, for HTTP in the clear unless it is given TLS.
pub struct Listener {
    socket: Listening<std::net::TcpListener, std::os::unix::net::UnixListener>,
    tls: Option<Arc<TlsAcceptor>>,
}

/// A listening socket of either family.
enum Listening<T, U> {
    Tcp(T),
    Unix(U),
}

impl Listener {
    /// Listens on a TCP socket, which must not block.
    pub fn tcp(socket: std::net::TcpListener) -> Self {
        // An answer is written once, and nothing follows that it could wait for. Connections
        // inherit this from their listener; one that did not would be slower, and no worse.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        Self { socket: Listening::Tcp(socket), tls: None }
    }

    /// Listens on a Unix socket, which must not block.
    pub fn unix(socket: std::os::unix::net::UnixListener) -> Self {
        Self { socket: Listening::Unix(socket), tls: None }
    }

    /// The same, with TLS. Panics where Pingora cannot read the files that the settings name.
    pub fn tls(self, settings: TlsSettings) -> Self {
        Self { tls: Some(Arc::new(settings.build())), ..self }
    }
}

impl Listening<TcpListener, UnixListener> {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Socket::tcp(stream, peer))
            }
            Self::Unix(listener) => Ok(Socket::unix(listener.accept().await?.0)),
        }
    }
}

/// A Pingora service: a front door and the sockets on which it listens.
pub struct Acceptor<SV> {
    name: String,
    server: Arc<Server<SV>>,
    listeners: Vec<Listener>,
    stopped: ShutdownWatch,
}

impl<SV> Acceptor<SV> {
    /// A service that accepts until `stopped` says so. Connections hear of it, too.
    pub fn new(name: &str, server: Server<SV>, stopped: ShutdownWatch) -> Self {
        Self { name: name.to_owned(), server: Arc::new(server), listeners: Vec::new(), stopped }
    }

    /// Listens on one more socket. To be called before the service starts.
    pub fn listen(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }
}

#[async_trait]
impl<SV> Service for Acceptor<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let mut accepting = JoinSet::new();
        for listener in self.listeners.drain(..) {
            accepting.spawn(self.server.clone().accept(listener, self.stopped.clone()));
        }
        accepting.join_all().await;
        self.server.proxy.http_cleanup().await;
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Accepts on one socket until the stop.
    async fn accept(self: Arc<Self>, listener: Listener, shutdown: ShutdownWatch) {
        let listening = match listener.socket {
            Listening::Tcp(socket) => TcpListener::from_std(socket).map(Listening::Tcp),
            Listening::Unix(socket) => UnixListener::from_std(socket).map(Listening::Unix),
        };
        let listening = match listening {
            Ok(listening) => listening,
            Err(e) => return error!("a socket cannot listen: {e}"),
        };
        let mut stopping = shutdown.clone();
        let mut stopped = pin!(stopping.wait_for(|stop| *stop));
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stopped => return,
                accepted = listening.accept() => accepted,
            };
            match accepted {
                Ok(socket) => self.welcome(socket, &listener.tls, &shutdown),
                // Whoever has left already is no trouble.
                Err(e) if has_left(&e) => {}
                Err(e) => {
                    error!("a connection cannot be accepted: {e}");
                    tokio::select! {
                        _ = &mut stopped => return,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Gives a new connection its place and its task. Without a place it closes, unanswered.
    fn welcome(
        self: &Arc<Self>,
        socket: Socket,
        tls: &Option<Arc<TlsAcceptor>>,
        shutdown: &ShutdownWatch,
    ) {
        let Some(permit) = self.admission.permit() else { return };
        let (server, shutdown) = (self.clone(), shutdown.clone());
        if tls.is_some() || self.limits().proxy_protocol {
            tokio::spawn(server.shake_hands(socket, permit, tls.clone(), shutdown));
            return;
        }
        if let Some(admitted) = self.admission.claim(permit, socket.peer(), BytesMut::new()) {
            let connection = Connection::new(Box::new(socket), admitted);
            tokio::spawn(server.serve(connection, shutdown));
        }
    }

    /// Reads a PROXY header where there is one, makes a TLS handshake where there is TLS, and
    /// serves the connection.
    async fn shake_hands(
        self: Arc<Self>,
        mut socket: Socket,
        permit: Permit,
        tls: Option<Arc<TlsAcceptor>>,
        shutdown: ShutdownWatch,
    ) {
        // Boxed, all of it: its room would be held for as long as the connection lives.
        let admitted = Box::pin(self.admission.admit(permit, socket.peer(), &mut socket)).await;
        let Some(mut admitted) = admitted else { return };
        let Some(tls) = tls else {
            return self.serve(Connection::new(Box::new(socket), admitted), shutdown).await;
        };
        socket.rewind(std::mem::take(&mut admitted.ahead));
        let shaken = timeout(self.limits().header_timeout, tls.tls_handshake(socket));
        let Ok(Ok(stream)) = Box::pin(shaken).await else {
            self.admission.limit_reporter.tell(Limit::TlsHandshake);
            return;
        };
        self.serve_agreed(Connection::new(Box::new(stream), admitted), shutdown).await;
    }
}

/// Whether a connection ended before it was accepted.
fn has_left(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_sends_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let Listening::Tcp(listener) = Listener::tcp(listener).socket else { unreachable!() };
        let _client = std::net::TcpStream::connect(address).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }
}
