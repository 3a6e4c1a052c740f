//! Accepts connections on listening sockets and starts a task for each.
//!
//! Pingora's own service starts each connection in a task of about 8 KiB, sized for a TLS
//! handshake, and allows a handshake 60 s. Here a connection takes its permit before its task
//! starts, the task is as small as a wait for the next request, and a handshake has the header
//! deadline.

use super::connection_limit::Permit;
use super::service::Server;
use super::socket::Socket;
use crate::telemetry::metrics::Limit;
use async_trait::async_trait;
use bytes::BytesMut;
use log::error;
use pingora::apps::HttpServerApp;
use pingora::protocols::Stream;
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

/// The pause after `accept` failed, usually because open files or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The TLS handshake of a listener. The library names no TLS backend of Pingora, so the host calls
/// its own; the acceptor limits the time of a handshake to `header_timeout`.
///
/// This implementation leaves the connection in the clear, as a test may:
///
/// ```
/// use async_trait::async_trait;
/// use pingora::protocols::Stream;
/// use pixelgate::http_server::{Handshake, Socket};
///
/// struct InTheClear;
///
/// #[async_trait]
/// impl Handshake for InTheClear {
///     async fn accept(&self, socket: Socket) -> pingora::Result<Stream> {
///         Ok(Box::new(socket))
///     }
/// }
/// ```
///
/// With Pingora's `openssl` or `boringssl`, whose `Acceptor` is private:
///
/// ```ignore
/// #[async_trait]
/// impl Handshake for MyTls {
///     async fn accept(&self, socket: Socket) -> pingora::Result<Stream> {
///         let tls = pingora::protocols::tls::server::handshake(&self.ssl_acceptor, socket).await?;
///         Ok(Box::new(tls))
///     }
/// }
/// ```
///
/// With `rustls` or `s2n`, where `settings.build()` of Pingora's `TlsSettings` gives the acceptor,
/// the call is `self.acceptor.tls_handshake(socket)`.
#[async_trait]
pub trait Handshake: Send + Sync + 'static {
    /// Does the handshake on an accepted socket and returns the decrypted stream.
    async fn accept(&self, socket: Socket) -> pingora::Result<Stream>;
}

/// A listening socket; plaintext HTTP unless TLS is set.
///
/// ```
/// use pixelgate::http_server::Listener;
///
/// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
/// socket.set_nonblocking(true)?;
/// let listener = Listener::tcp(socket);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    socket: Listening<std::net::TcpListener, std::os::unix::net::UnixListener>,
    tls: Option<Arc<dyn Handshake>>,
}

/// A listening socket of either family.
enum Listening<T, U> {
    Tcp(T),
    Unix(U),
}

impl Listener {
    /// Listens on a TCP socket, which must be non-blocking.
    pub fn tcp(socket: std::net::TcpListener) -> Self {
        // A response is one write, so Nagle's algorithm could only delay it. Connections inherit
        // the option from the listener. A failure costs time and nothing else.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        Self { socket: Listening::Tcp(socket), tls: None }
    }

    /// Listens on a Unix socket, which must be non-blocking.
    pub fn unix(socket: std::os::unix::net::UnixListener) -> Self {
        Self { socket: Listening::Unix(socket), tls: None }
    }

    /// The same socket with TLS.
    pub fn tls(self, handshake: impl Handshake) -> Self {
        Self { tls: Some(Arc::new(handshake)), ..self }
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

/// A Pingora service: a [`Server`] and its listening sockets.
///
/// ```
/// # use pingora::proxy::ProxyHttp;
/// # use pixelgate::http_server::{Acceptor, Listener, Server};
/// # use std::net::TcpListener;
/// fn acceptor<SV>(server: Server<SV>, socket: TcpListener) -> Acceptor<SV> {
///     let mut acceptor = Acceptor::new("pixels", server);
///     acceptor.listen(Listener::tcp(socket));
///     acceptor // for `add_service` of Pingora's server
/// }
/// ```
pub struct Acceptor<SV> {
    name: String,
    server: Arc<Server<SV>>,
    listeners: Vec<Listener>,
    stopped: Option<ShutdownWatch>,
}

impl<SV> Acceptor<SV> {
    /// A service that accepts until Pingora's server stops, and passes the stop on to its
    /// connections.
    pub fn new(name: &str, server: Server<SV>) -> Self {
        let (name, server) = (name.to_owned(), Arc::new(server));
        Self { name, server, listeners: Vec::new(), stopped: None }
    }

    /// Makes the service stop when `stopped` becomes `true`, and not when Pingora's server stops:
    /// for a host that stops its listeners before that.
    pub fn stop_on(self, stopped: ShutdownWatch) -> Self {
        Self { stopped: Some(stopped), ..self }
    }

    /// Adds a listening socket. Call this before the service starts.
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
    async fn start_service(&mut self, _: Option<ListenFds>, server: ShutdownWatch, _: usize) {
        let stopped = self.stopped.take().unwrap_or(server);
        let mut accepting = JoinSet::new();
        for listener in self.listeners.drain(..) {
            accepting.spawn(self.server.clone().accept(listener, stopped.clone()));
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
    /// Accepts connections on one socket until the stop.
    async fn accept(self: Arc<Self>, listener: Listener, shutdown: ShutdownWatch) {
        let listening = match listener.socket {
            Listening::Tcp(socket) => TcpListener::from_std(socket).map(Listening::Tcp),
            Listening::Unix(socket) => UnixListener::from_std(socket).map(Listening::Unix),
        };
        let listening = match listening {
            Ok(listening) => listening,
            Err(e) => return error!("cannot register a listening socket with the runtime: {e}"),
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
                Ok(socket) => self.start_connection(socket, &listener.tls, &shutdown),
                // The client closed the connection before it was accepted.
                Err(e) if is_closed_by_client(&e) => {}
                Err(e) => {
                    error!("cannot accept a connection: {e}");
                    tokio::select! {
                        _ = &mut stopped => return,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Takes a permit for a new connection and starts its task. Without a permit the connection
    /// closes without a response.
    fn start_connection(
        self: &Arc<Self>,
        socket: Socket,
        tls: &Option<Arc<dyn Handshake>>,
        shutdown: &ShutdownWatch,
    ) {
        let Some(permit) = self.admission.permit() else { return };
        let (server, shutdown) = (self.clone(), shutdown.clone());
        if tls.is_some() || self.admission.limits().proxy_protocol {
            tokio::spawn(server.prepare_connection(socket, permit, tls.clone(), shutdown));
            return;
        }
        if let Some(admitted) = self.admission.claim(permit, socket.peer(), BytesMut::new()) {
            let connection = self.connection(Box::new(socket), admitted);
            tokio::spawn(server.serve(connection, shutdown));
        }
    }

    /// Reads a PROXY header and does the TLS handshake, where configured, and serves the
    /// connection.
    async fn prepare_connection(
        self: Arc<Self>,
        mut socket: Socket,
        permit: Permit,
        tls: Option<Arc<dyn Handshake>>,
        shutdown: ShutdownWatch,
    ) {
        // Boxed: otherwise the connection's task would hold this memory until it ends.
        let admitted = Box::pin(self.admission.admit(permit, socket.peer(), &mut socket)).await;
        let Some(mut admitted) = admitted else { return };
        let Some(tls) = tls else {
            let connection = self.connection(Box::new(socket), admitted);
            return self.serve(connection, shutdown).await;
        };
        socket.rewind(std::mem::take(&mut admitted.ahead));
        let limit = self.admission.limits().header_timeout;
        let handshake = timeout(limit, tls.accept(socket));
        let Ok(Ok(stream)) = handshake.await else {
            self.admission.limit_reporter.report(Limit::TlsHandshake);
            return;
        };
        let connection = self.connection(stream, admitted);
        self.serve_agreed(connection, shutdown).await;
    }
}

/// Whether `accept` failed because the client had closed the connection already.
fn is_closed_by_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_connection_has_nodelay() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let Listening::Tcp(listener) = Listener::tcp(listener).socket else { unreachable!() };
        let _client = std::net::TcpStream::connect(address).unwrap();
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }
}
