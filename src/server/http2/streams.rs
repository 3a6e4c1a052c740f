//! Serves the streams of an HTTP/2 connection: event requests here, all others by the proxy.
//!
//! Both ways use the same judge and the same responses. Answering here saves the state of about
//! 30 KiB that Pingora creates, and copies, for every request that it might have to proxy.

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

/// The Pingora application for the streams of one connection.
pub struct Streams<SV>(pub Arc<Server<SV>>);

/// Whether a request is a `GET` without a body and without `Expect`.
fn is_simple_get(session: &mut ServerSession) -> bool {
    let request = session.req_header();
    let is_get = request.method == Method::GET && !request.headers.contains_key(header::EXPECT);
    is_get && session.is_body_done()
}

impl<SV> Streams<SV> {
    /// Answers an event request. Returns the session of any other request.
    async fn answer(&self, mut session: ServerSession) -> Option<ServerSession> {
        let Streams(server) = self;
        if !server.limits().answer_plain || !is_simple_get(&mut session) {
            return Some(session);
        }
        let _in_flight_guard = server.in_flight.enter_here();
        // A client that never opens its stream window must not hold the response forever.
        session.set_write_timeout(Some(server.limits().write_timeout));
        let answered = match server.gate.handle_downstream(&mut session).await {
            Ok(None) => return Some(session),
            Ok(Some(_)) => session.finish().await.map(drop),
            Err(e) => Err(e),
        };
        match answered {
            Err(e) if *e.etype() == ErrorType::WriteTimedout => {
                server.admission.limit_reporter.report(Limit::WriteTime);
            }
            Err(e) => debug!(
                "a client closed its stream before the response was sent: {}",
                e.etype().as_str()
            ),
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
