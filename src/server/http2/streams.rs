//! An HTTP/2 connection's streams: a plain event request is answered here, any other by the proxy.
//!
//! The gate judges and answers both ways alike. What is spared is what Pingora makes for each
//! request that it may have to pass on: some thirty kilobytes that are moved about several times.

use crate::server::service::Server;
use crate::telemetry::metrics::Limit;
use async_trait::async_trait;
use http::{Method, header};
use log::debug;
use pingora::ErrorType;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::sync::Arc;

/// See the module.
pub struct Streams<SV>(pub Arc<Server<SV>>);

/// Whether a request is what `h1` takes for plain: nothing but a header, which asks for an answer.
fn is_plain(session: &mut ServerSession) -> bool {
    let request = session.req_header();
    let asks = request.method == Method::GET && !request.headers.contains_key(header::EXPECT);
    asks && session.is_body_done()
}

impl<SV> Streams<SV> {
    /// Answers a plain event request. Gives back any other.
    async fn answer(&self, mut session: ServerSession) -> Option<ServerSession> {
        let Streams(server) = self;
        if !server.limits().answer_plain || !is_plain(&mut session) {
            return Some(session);
        }
        let _in_flight_guard = server.in_flight.enter_here();
        // The window of a stream is the client's to open, or not.
        session.set_write_timeout(Some(server.limits().write_timeout));
        let answered = match server.gate.handle_downstream(&mut session).await {
            Ok(None) => return Some(session),
            Ok(Some(_)) => session.finish().await.map(drop),
            Err(e) => Err(e),
        };
        match answered {
            Err(e) if *e.etype() == ErrorType::WriteTimedout => {
                server.admission.limit_reporter.tell(Limit::WriteTime);
            }
            Err(e) => debug!("a client left before it was answered: {}", e.etype().as_str()),
            Ok(()) => {}
        }
        None
    }
}

#[async_trait]
impl<SV> HttpServerApp for Streams<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let session = self.answer(session).await?;
        self.0.proxy.process_new_http(session, shutdown).await
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.0.proxy.server_options()
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.0.proxy.h2_options()
    }
}
