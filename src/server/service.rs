//! [`Server`]: the HTTP server in front of one Pingora proxy.

use super::admission::{Admission, Admitted, peer};
use super::buffered_bytes::BufferedBytes;
use super::connection::Connection;
use super::in_force::{InForce, LimitsHandle};
use super::limits::Limits;
use super::origin_connector::Proxy;
use crate::plugin::PixelGate;
use crate::telemetry::in_flight::InFlight;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::sync::Arc;

/// The bytes of bodies that may wait in memory, unless [`Server::buffered_bytes`] sets another
/// limit.
const BUFFERED_BYTES_MAX_DEFAULT: usize = 256 << 20;

/// The HTTP server in front of one Pingora proxy: limits, fast path, and hand-over.
///
/// [`Acceptor`](super::Acceptor) is the Pingora service that runs it. It also works as the
/// application of one of Pingora's own services, with two differences: a connection takes its
/// permit only after the TLS handshake, and a PROXY header is not read before the handshake.
///
/// ```
/// # use pingora::proxy::ProxyHttp;
/// # use pingora::server::configuration::ServerConf;
/// # use pixelgate::http_server::{self, Acceptor, Listener};
/// # use pixelgate::{Limits, PixelGate, Server};
/// # use std::{net::TcpListener, sync::Arc};
/// /// A Pingora service that answers events itself and passes on the rest to `inner`.
/// fn service<SV>(inner: SV, gate: PixelGate, socket: TcpListener) -> std::io::Result<Acceptor<SV>>
/// where
///     SV: ProxyHttp + Send + Sync + 'static,
///     SV::CTX: Send + Sync,
/// {
///     let proxy = http_server::proxy(&Arc::new(ServerConf::default()), inner)?;
///     let mut acceptor = Acceptor::new("pixels", Server::new(proxy, gate, Limits::default()));
///     socket.set_nonblocking(true)?;
///     acceptor.listen(Listener::tcp(socket));
///     Ok(acceptor)
/// }
/// ```
pub struct Server<SV> {
    pub(super) proxy: Arc<Proxy<SV>>,
    pub(super) gate: PixelGate,
    /// The configuration that the last connection or request found in force.
    latest: ArcSwap<InForce>,
    pub(super) in_flight: InFlight,
    pub(super) admission: Admission,
    pub(super) buffered_bytes: BufferedBytes,
}

impl<SV> Server<SV> {
    /// A server for `proxy`, which [`proxy`](super::proxy) has built, and whose `request_filter`
    /// must call [`PixelGate::handle`] of `gate` first. The server counts the connections, and the
    /// requests that it answers itself, in the counters of
    /// [`Builder::in_flight`](crate::Builder::in_flight); the proxy counts its own.
    pub fn new(proxy: Arc<Proxy<SV>>, gate: PixelGate, limits: Limits) -> Self {
        let state = gate.state();
        let in_flight = state.in_flight.clone().unwrap_or_default();
        let buffered_bytes = BufferedBytes::new(BUFFERED_BYTES_MAX_DEFAULT);
        let admission = Admission::new(limits, gate.clone(), in_flight.clone());
        let latest = ArcSwap::from_pointee(InForce::now(&gate, &admission.limits));
        Self { proxy, gate, latest, in_flight, admission, buffered_bytes }
    }

    /// Bounds the bodies that wait in memory, in all servers that share the count. Default: 256 MiB
    /// for this server.
    pub fn buffered_bytes(self, buffered_bytes: BufferedBytes) -> Self {
        Self { buffered_bytes, ..self }
    }

    /// Replaces the limits while the server runs.
    pub fn limits_handle(&self) -> LimitsHandle {
        LimitsHandle { limits: self.admission.limits.clone(), gate: self.gate.clone() }
    }

    /// The configuration in force. Connections share one value until the next reload.
    pub(super) fn in_force(&self) -> Arc<InForce> {
        let latest = self.latest.load_full();
        if latest.reloads == self.gate.reloads() {
            return latest;
        }
        let now = Arc::new(InForce::now(&self.gate, &self.admission.limits));
        self.latest.store(Arc::clone(&now));
        now
    }

    /// Replaces `in_force` if a reload has come after it.
    pub(super) fn refresh(&self, in_force: &mut Arc<InForce>) {
        if in_force.reloads != self.gate.reloads() {
            *in_force = self.in_force();
        }
    }

    /// An admitted connection before its first request.
    pub(super) fn connection(&self, stream: Stream, admitted: Admitted) -> Connection {
        Connection::new(stream, admitted, self.in_force())
    }
}

#[async_trait]
impl<SV> ServerApp for Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    async fn process_new(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        // Without a permit the connection closes without a response.
        let (permit, client) = (self.admission.permit()?, peer(&*stream));
        let admitted = self.admission.admit(permit, client, &mut *stream).await?;
        // Pingora's task holds memory for a TLS handshake as long as it runs. A task of its own
        // costs an idle connection less.
        let connection = self.connection(stream, admitted);
        tokio::spawn(self.clone().serve_agreed(connection, shutdown.clone()));
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
