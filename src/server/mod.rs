//! The front door: a connection before its first request.
//!
//! Pingora's HTTP server has no deadline for a whole header, no bound on connections and keeps
//! one for ever once it has been used. [`Server`] stands in front of it: it counts connections and
//! reads each request's header itself under one deadline. A plain event request it answers
//! directly, by the same judge, spool and answers as [`PixelGate::handle`] does; every other goes,
//! with the bytes that were read, down Pingora's own path, provided that no two parties could
//! read its header differently. It decides nothing of its own: which way a request takes shows in
//! what it costs, and in nothing else.
//!
//! HTTP/2, by ALPN or by prior knowledge, is framed by Pingora and watched here.
//!
//! | room | what it does |
//! |---|---|
//! | `entrance` | accepts connections, and shakes hands on TLS |
//! | `socket` | a connection's socket, as Pingora wants one |
//! | `door` | who is let in: places, and the PROXY header |
//! | `census` | counts connections, in all and by address |
//! | `scratch` | reads without holding memory while there is nothing to read, and once more |
//! | `head` | where a header ends, and whether it is sound |
//! | `h1` | an HTTP/1 connection and its requests |
//! | `plain`, `raw` | a plain event request, and its answer as bytes |
//! | `in_flight` | what is under way: what a stop waits for, and who could still ask |
//! | `h2`, `watched` | allowances and deadlines of HTTP/2 |
//! | `streams` | an HTTP/2 connection's requests |
//! | `limits` | what is allowed, and who is told of what was not |

mod acceptor;
mod admission;
mod connection_limit;
mod fast_path;
mod http1;
mod http2;
mod limits;
mod proxy_header;
mod read_buffer;
mod socket;

pub use crate::telemetry::in_flight::{InFlight, InFlightGuard};
pub use acceptor::{Acceptor, Listener};
pub use limits::Limits;

use crate::plugin::PixelGate;
use crate::response::answers::Answers;
use admission::{Admission, peer};
use async_trait::async_trait;
use fast_path::response::Raw;
use http1::Connection;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::protocols::Stream;
use pingora::proxy::{HttpProxy, ProxyHttp};
use pingora::server::ShutdownWatch;
use std::sync::Arc;

/// The front door of a proxy.
///
/// [`Acceptor`] is the service for it. As the application of one of Pingora's own services it does
/// the same, but a TLS handshake then has no place among the connections, and no PROXY header is
/// read before it.
pub struct Server<SV> {
    proxy: Arc<HttpProxy<SV, ()>>,
    gate: PixelGate,
    answers: Answers<Raw>,
    in_flight: InFlight,
    door: Admission,
}

impl<SV> Server<SV> {
    /// A front door for `proxy`, whose `request_filter` asks `gate` first. Requests that are
    /// answered here count as in flight in `in_flight`; the proxy counts its own.
    pub fn new(
        mut proxy: HttpProxy<SV, ()>,
        gate: PixelGate,
        in_flight: InFlight,
        limits: Limits,
    ) -> Self {
        let mut server = HttpServerOptions::default();
        server.h2_idle_timeout = Some(limits.keepalive);
        proxy.server_options = Some(server);
        proxy.h2_options = Some(http2::options(&limits));
        let state = gate.state();
        let Ok(answers) = Answers::build(&state.response, &state.methods, Raw::new);
        let (trusted, metrics) = (state.trusted.clone(), state.metrics.clone());
        let door = Admission::new(limits, trusted, metrics, in_flight.clone());
        Self { proxy: Arc::new(proxy), gate, answers, in_flight, door }
    }

    fn limits(&self) -> &Limits {
        &self.door.limits
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
        // No place: the connection closes unanswered, before anything is spent on it.
        let (place, client) = (self.door.place()?, peer(&*stream));
        let admitted = self.door.admit(place, client, &mut *stream).await?;
        // Pingora's task is as large as a TLS handshake: a connection that waits is better off in
        // one of its own.
        let connection = Connection::new(stream, admitted);
        tokio::spawn(self.clone().serve_agreed(connection, shutdown.clone()));
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
