//! The front door: a connection before its first request.
//!
//! Pingora's HTTP server has no deadline for a whole header, no bound on connections and keeps
//! one for ever once it has been used. [`Front`] stands in front of it: it counts connections and
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
//! | `door` | who is let in: places, the PROXY header, before TLS where there is TLS |
//! | `census` | counts connections, in all and by address |
//! | `scratch` | reads without holding memory while there is nothing to read |
//! | `head` | where a header ends, and whether it is sound |
//! | `h1` | an HTTP/1 connection and its requests |
//! | `plain`, `raw` | a plain event request, and its answer as bytes |
//! | `in_flight` | what a stop waits for |
//! | `h2`, `watched` | allowances and deadlines of HTTP/2 |
//! | `limits` | what is allowed, and who is told of what was not |

mod census;
mod door;
mod h1;
mod h2;
mod head;
mod in_flight;
mod limits;
mod plain;
mod proxy_header;
mod raw;
mod scratch;
mod watched;

pub use in_flight::{Busy, InFlight};
pub use limits::Limits;

use crate::answer::Answers;
use crate::plugin::PixelGate;
use async_trait::async_trait;
use door::{BeforeTls, Door, peer};
use h1::Connection;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::PreTlsCallback;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::{HttpProxy, ProxyHttp};
use pingora::server::ShutdownWatch;
use raw::Raw;
use std::sync::Arc;

/// Read and write buffer of a connection's socket, in bytes. What comes is read into room that
/// lives only as long as it is used; writes are gathered so that a pixel leaves in one piece.
pub const SOCKET_BUFFER_BYTES: (usize, usize) = (0, 2048);

/// A Pingora service's application: the front door of a proxy.
pub struct Front<SV> {
    proxy: Arc<HttpProxy<SV, ()>>,
    gate: PixelGate,
    answers: Answers<Raw>,
    in_flight: InFlight,
    door: Arc<Door>,
}

impl<SV> Front<SV> {
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
        proxy.h2_options = Some(h2::options(&limits));
        let shared = gate.shared();
        let Ok(answers) = Answers::build(&shared.response, &shared.methods, Raw::new);
        let (trusted, metrics) = (shared.trusted.clone(), shared.metrics.clone());
        let door = Door::new(limits, trusted, metrics, in_flight.clone());
        Self { proxy: Arc::new(proxy), gate, answers, in_flight, door: Arc::new(door) }
    }

    /// What Pingora has to ask before each TLS handshake
    /// ([`Listeners::set_pre_tls_callback`](pingora::listeners::Listeners::set_pre_tls_callback)).
    /// Without it, handshakes have no place among the connections, and no PROXY header is read
    /// before them.
    pub fn before_tls(&self) -> PreTlsCallback {
        Arc::new(BeforeTls(self.door.clone()))
    }

    fn limits(&self) -> &Limits {
        &self.door.limits
    }
}

#[async_trait]
impl<SV> ServerApp for Front<SV>
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
        let admitted = match door::shaken(&*stream) {
            Some(admitted) => admitted,
            None => self.door.admit(&mut *stream).await?,
        };
        let by_alpn = stream.selected_alpn_proto() == Some(ALPN::H2);
        let peer = peer(&*stream);
        let (came, place) = (admitted.ahead, admitted.place);
        let connection = Connection { stream, came, peer, requests: 0, place };
        // Pingora's task is as large as a TLS handshake: a connection that waits is better off in
        // one of its own.
        if by_alpn {
            tokio::spawn(self.clone().serve_h2(connection, shutdown.clone()));
        } else if let Some(connection) = self.serve_arrived(connection, shutdown).await {
            tokio::spawn(self.clone().serve(connection, shutdown.clone()));
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
