//! The HTTP service of the operator's listener (SPEC 8).
//!
//! It is separate from the request path: it has a listener and a thread of its own, and only reads
//! the counters that the gate increments. It shows text from requests only as
//! [`crate::telemetry::event_samples`] masks it.
//!
//! It speaks HTTP/1.1 over Pingora's session. Pingora's `ServeHttp` would hold an answer back until
//! it is complete, which the server-sent events of `/live` never are. The number of connections and
//! of open pages, the size of a body, and the times for a header, a body and the writing of an
//! answer are limited. A page that reads too slowly is closed, and nothing is buffered for it. A
//! stop of the process ends every stream at once.

use super::access::{Denied, TokenHandle};
use super::config::Config;
use super::connections::Connections;
use super::history::{Second, Span};
use super::page::Document;
use super::portal_totals;
use super::readiness;
use super::sampler::Sampler;
use super::snapshot::Snapshot;
use super::status;
use crate::explain::explain;
use crate::telemetry::in_flight::InFlight;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::apps::ServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The content type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";
const HTML_TYPE: &str = "text/html; charset=utf-8";
const JSON_TYPE: &str = "application/json";
const PROBLEM_TYPE: &str = "application/problem+json";
const EVENTS_TYPE: &str = "text/event-stream";
/// The most streams of `/live` at once. Further requests for it are answered 503.
pub const STREAMS_MAX: usize = 32;
/// Limit for the arrival of a connection's first header, in seconds.
const FIRST_HEADER_SECONDS_MAX: u64 = 5;
/// Limit for the silence before a further request and for the arrival of its header, in seconds.
const READ_SECONDS_MAX: u64 = 60;
/// Limit for writing one piece of an answer, in seconds; then the connection is closed.
const WRITE_SECONDS_MAX: u64 = 5;
/// Limit for writing the last event of a stream at a stop, in milliseconds.
const LAST_EVENT_MS_MAX: u64 = 500;
/// Longest body of `/explain`, in bytes: larger than any query that is judged, with its URL.
pub const EXPLAIN_BYTES_MAX: usize = 128 << 10;
/// Limit for the arrival of a body of `/explain`, in seconds.
const BODY_SECONDS_MAX: u64 = 10;

/// The admin pages of one gate: the application of a Pingora service.
///
/// ```
/// # use pingora::server::Server;
/// # use pingora::services::background::background_service;
/// # use pingora::services::listening::Service;
/// # use pixelgate::admin_pages::{Admin, Sampler};
/// # use pixelgate::{PixelGate, config, custom::InFlight};
/// /// Adds the pages to a server of Pingora's.
/// fn add(server: &mut Server, gate: PixelGate, config: &config::Admin) {
///     let sampler = background_service("sampler", Sampler::new(gate, 0));
///     let pages = Admin::new(sampler.task(), config, InFlight::default());
///     let mut service = Service::new("admin".to_owned(), pages);
///     service.add_tcp(&config.listen);
///     server.add_service(sampler);
///     server.add_service(service);
/// }
/// ```
pub struct Admin {
    sampler: Arc<Sampler>,
    access: TokenHandle,
    document: Document,
    connections: Connections,
    streams: Semaphore,
    in_flight: InFlight,
}

/// A complete answer.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    /// A header in addition to those of every answer.
    extra: Option<(&'static str, String)>,
}

impl Admin {
    /// The pages of the gate that `sampler` samples. The sampler must run as a service of its own.
    /// An open `/live` counts as a request in flight, so that a stop waits until the last event is
    /// sent.
    pub fn new(sampler: Arc<Sampler>, config: &Config, in_flight: InFlight) -> Self {
        Self {
            sampler,
            access: TokenHandle::new(config.token.clone()),
            document: Document::new(),
            connections: Connections::default(),
            streams: Semaphore::new(STREAMS_MAX),
            in_flight,
        }
    }

    /// A handle that replaces the token while the pages are served.
    pub fn token_handle(&self) -> TokenHandle {
        self.access.clone()
    }

    /// Answers one request. Returns the connection if it can take another request.
    async fn serve(&self, mut session: ServerSession, stop: &ShutdownWatch) -> Option<Stream> {
        session.set_keepalive((!*stop.borrow()).then_some(READ_SECONDS_MAX));
        let request = session.req_header();
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        let query = request.uri.query().unwrap_or_default().to_owned();
        let denied = match path.as_str() {
            "/" => self.access.rule().shell(&request.headers),
            _ => self.access.rule().data(&request.headers),
        };
        let read = matches!(method, Method::GET | Method::HEAD);
        match (path.as_str(), denied) {
            (_, Err(denied)) => send(&mut session, denied.page()).await?,
            ("/explain", _) if method == Method::POST => {
                let page = match read_body(&mut session).await {
                    Some(text) => self.explain(&text),
                    None => Page::text(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "the body is too long or took too long\n",
                    ),
                };
                send(&mut session, page).await?;
            }
            ("/explain", _) => send(&mut session, Page::only("POST")).await?,
            _ if !read => send(&mut session, Page::only("GET, HEAD")).await?,
            ("/live", _) if method == Method::GET => {
                self.stream(&mut session, stop.clone()).await?;
            }
            _ => send(&mut session, self.page(&path, &query)).await?,
        }
        let (stream, unread) = written(session.finish()).await??.into_parts();
        // Bytes of a pipelined request cannot be put back, so such a connection is closed.
        unread.is_none_or(|unread| unread.is_empty()).then_some(stream)
    }

    fn page(&self, path: &str, query: &str) -> Page {
        let gate = self.sampler.gate();
        match path {
            "/" => Page {
                extra: Some(("Content-Security-Policy", self.document.policy.clone())),
                ..Page::of(StatusCode::OK, HTML_TYPE, self.document.body.clone())
            },
            "/metrics" => {
                status::refresh_gauges(gate.metrics(), &self.sampler.snapshot());
                portal_totals::refresh_metric(gate, self.sampler.portals_max());
                Page::of(StatusCode::OK, METRICS_TYPE, gate.metrics().render())
            }
            "/livez" => Page::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let snapshot = self.sampler.snapshot();
                let code = match readiness::is_ready(&snapshot) {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                Page::text(code, readiness::text(&snapshot))
            }
            "/status" if let Some(portal) = portal_totals::requested(query) => match portal {
                Ok(portal) => {
                    let totals = portal_totals::of_portal(gate, portal);
                    Page::of(StatusCode::OK, JSON_TYPE, totals.to_string())
                }
                Err(why) => {
                    let problem = portal_totals::problem(why).to_string();
                    Page::of(StatusCode::BAD_REQUEST, PROBLEM_TYPE, problem)
                }
            },
            "/status" => {
                let status = status::to_json(&self.sampler.snapshot());
                Page::of(StatusCode::OK, JSON_TYPE, status.to_string())
            }
            "/live" => Page::of(StatusCode::OK, EVENTS_TYPE, String::new()),
            _ => {
                let all = "/ /metrics /livez /readyz /status /live /explain\n";
                Page::text(StatusCode::NOT_FOUND, all)
            }
        }
    }

    /// The explanation that `pixelgate explain` prints. The text may hold personal data: it appears
    /// in this answer only, and is neither logged nor stored.
    fn explain(&self, text: &str) -> Page {
        let gate = self.sampler.gate();
        let settings = gate.settings();
        let answer = match explain(&settings.gate, &settings.upstreams, text) {
            Ok(explanation) => json!({
                "verdict": explanation.verdict(),
                "accepted": explanation.is_accepted(),
                "sections": explanation.sections(),
            }),
            Err(not_an_event) => json!({
                "verdict": not_an_event.to_string(), "accepted": null, "sections": [],
            }),
        };
        Page::of(StatusCode::OK, JSON_TYPE, answer.to_string())
    }

    /// Sends server-sent events, one a second: the status, and the counters of each second since
    /// the previous event.
    async fn stream(&self, session: &mut ServerSession, mut stop: ShutdownWatch) -> Option<()> {
        let Ok(_permit) = self.streams.try_acquire() else {
            let page = Page::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n");
            return send(session, page).await;
        };
        let _in_flight = self.in_flight.enter_here();
        let mut head = head(StatusCode::OK, EVENTS_TYPE)?;
        head.insert_header("Transfer-Encoding", "chunked").ok()?;
        written(session.write_response_header(Box::new(head))).await?;
        let mut snapshots = self.sampler.subscribe();
        let mut snapshot = Arc::new(self.sampler.snapshot());
        let mut last = 0;
        loop {
            let event = self.event(&snapshot, &mut last);
            tokio::select! {
                biased;
                written = written(session.write_response_body(event.into(), false)) => written?,
                // A page that reads slowly does not delay the stop.
                _ = stop.wait_for(|stop| *stop) => return None,
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                changed = snapshots.changed() => changed.ok()?,
            }
            snapshot = Arc::clone(&snapshots.borrow_and_update());
        }
        let last_event = async {
            let event = Bytes::from_static(b"event: stopping\ndata: {}\n\n");
            session.write_response_body(event, false).await.ok()?;
            session.write_response_body(Bytes::new(), true).await.ok()
        };
        timeout(Duration::from_millis(LAST_EVENT_MS_MAX), last_event).await.ok()?
    }

    /// One event of the stream. `last` is the last second that was sent to this page, and is
    /// advanced.
    fn event(&self, snapshot: &Snapshot, last: &mut u64) -> String {
        let status = status::to_json(snapshot);
        let history = self.sampler.history();
        let since = *last;
        let row = |(second, span): (&Second, Span)| {
            *last = second.at;
            json!([
                second.at,
                span.accepted,
                span.refused(),
                span.turned_away(),
                span.delivered,
                second.pending,
                second.bytes,
                second.lag_seconds,
                span.seconds,
            ])
        };
        let seconds: Vec<_> = history.since(since).map(row).collect();
        format!("data: {{\"status\":{status},\"seconds\":{}}}\n\n", json!(seconds))
    }
}

#[async_trait]
impl ServerApp for Admin {
    async fn process_new(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let connection = self.connections.admit(client_address(&stream))?;
        let _in_flight = self.in_flight.connect();
        let mut stop = shutdown.clone();
        let mut read_seconds_max = FIRST_HEADER_SECONDS_MAX;
        loop {
            let mut session = ServerSession::new_http1(stream);
            let read = timeout(Duration::from_secs(read_seconds_max), session.read_request());
            // The error is not logged, because it may quote the request.
            let is_complete = tokio::select! {
                biased;
                read = read => matches!(read, Ok(Ok(true))),
                () = connection.evicted() => false,
                _ = stop.wait_for(|stop| *stop && self.in_flight.closes_idle()) => false,
            };
            if !is_complete || !connection.set_idle(false) {
                return None;
            }
            stream = self.serve(session, shutdown).await?;
            if !connection.set_idle(true) {
                return None;
            }
            read_seconds_max = READ_SECONDS_MAX;
        }
    }
}

/// The address of a connection's client. `None` for a Unix socket.
fn client_address(stream: &Stream) -> Option<IpAddr> {
    Some(stream.get_socket_digest()?.peer_addr()?.as_inet()?.ip())
}

impl Denied {
    fn page(self) -> Page {
        match self {
            Denied::Token => Page {
                extra: Some(("WWW-Authenticate", "Bearer".to_owned())),
                ..Page::text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n")
            },
            Denied::Host => Page::text(
                StatusCode::FORBIDDEN,
                "without admin.token only requests to localhost or a loopback address are \
                answered\n",
            ),
            Denied::Site => {
                Page::text(StatusCode::FORBIDDEN, "requests of another site's page are denied\n")
            }
        }
    }
}

impl Page {
    fn of(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body, extra: None }
    }

    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::of(status, TEXT_TYPE, body.into())
    }

    /// The answer to a method that the page does not allow.
    fn only(methods: &str) -> Self {
        let extra = Some(("Allow", methods.to_owned()));
        Self { extra, ..Self::text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n")) }
    }
}

/// The header of every answer. It lacks `Access-Control-Allow-Origin`, so that browsers let no
/// other site read the answer.
fn head(status: StatusCode, content_type: &str) -> Option<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(8)).ok()?;
    for (name, value) in [
        ("Content-Type", content_type),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    ] {
        head.insert_header(name, value).ok()?;
    }
    Some(head)
}

async fn send(session: &mut ServerSession, page: Page) -> Option<()> {
    let mut head = head(page.status, page.content_type)?;
    head.insert_header("Content-Length", page.body.len()).ok()?;
    if let Some((name, value)) = page.extra {
        head.insert_header(name, value).ok()?;
    }
    written(session.write_response_header(Box::new(head))).await?;
    if session.req_header().method != Method::HEAD && !page.body.is_empty() {
        written(session.write_response_body(page.body.into(), true)).await?;
    }
    Some(())
}

/// The result of a write. `None`: the client has closed the connection, or did not take the bytes
/// within [`WRITE_SECONDS_MAX`]. The write timeout of Pingora's session does not cover every write.
async fn written<T>(write: impl Future<Output = pingora::Result<T>>) -> Option<T> {
    timeout(Duration::from_secs(WRITE_SECONDS_MAX), write).await.ok()?.ok()
}

/// The body of the request as text. `None` if it is too long or arrives too slowly.
async fn read_body(session: &mut ServerSession) -> Option<String> {
    let reading = async {
        let mut body = Vec::new();
        while let Some(piece) = session.read_request_body().await.ok()? {
            body.extend_from_slice(&piece);
            if body.len() > EXPLAIN_BYTES_MAX {
                return None;
            }
        }
        Some(String::from_utf8_lossy(&body).into_owned())
    };
    timeout(Duration::from_secs(BODY_SECONDS_MAX), reading).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::test_gate;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::watch;

    #[tokio::test]
    async fn a_page_that_does_not_read_is_closed_and_gives_its_permit_back() {
        let dir = tempfile::tempdir().unwrap();
        let in_flight = InFlight::default();
        let sampler = Arc::new(Sampler::new(test_gate::open(dir.path()), 0));
        let admin = Arc::new(Admin::new(sampler, &Config::default(), in_flight.clone()));

        // The first piece does not fit into the buffer, and the client never reads.
        let (mut page, stream) = tokio::io::duplex(64);
        let (_stop, stopped) = watch::channel(false);
        let serving = tokio::spawn({
            let admin = admin.clone();
            async move { admin.process_new(Box::new(stream), &stopped).await.is_none() }
        });
        page.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let patience = Duration::from_secs(60);
        assert!(timeout(patience, serving).await.expect("it is closed").unwrap());
        assert_eq!(admin.streams.available_permits(), STREAMS_MAX);
        assert_eq!(in_flight.count(), 0);
    }
}
