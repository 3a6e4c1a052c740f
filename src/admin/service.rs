//! The operator's listener: `/metrics`, `/livez`, `/readyz`, `/status` and the live page at `/`
//! (SPEC section 8).
//!
//! Apart from the request path: it has a listener and a thread of its own, and reads the same
//! handles that the gate counts in. It changes nothing. What a request brought is here only as
//! [`crate::telemetry::event_samples`] masks it.
//!
//! It speaks HTTP/1.1 over Pingora's own session, because Pingora's `ServeHttp` holds an answer
//! back until it is whole, and the page's data (`/live`, server-sent events) never is. Everything
//! is bounded: connections, the time for a header and for taking an answer, watchers, bodies. A
//! watcher that is slow is closed; nothing is kept for it. A stop ends every stream at once.

use super::access::{Access, Denied};
use super::page::Document;
use super::sampler::{self, Sampler};
use super::status;
use crate::explain::explain;
use crate::server::InFlight;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::apps::ServerApp;
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde::Deserialize;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Content type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";
const HTML_TYPE: &str = "text/html; charset=utf-8";
const JSON_TYPE: &str = "application/json";
const EVENTS_TYPE: &str = "text/event-stream";
/// Shortest token that is accepted, in bytes: one that can be guessed guards nothing.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Most connections at once; more are closed unanswered.
pub const CONNECTIONS_MAX: usize = 128;
/// Most pages that watch at once; more are answered 503.
pub const WATCHERS_MAX: usize = 32;
/// How long a connection may be silent, and a request's header take to arrive, in seconds.
const READ_SECONDS_MAX: u64 = 60;
/// How long a client may take to take a piece of an answer, in seconds; then it is closed.
const WRITE_SECONDS_MAX: u64 = 5;
/// How long a stop waits for a page to be told of it, in milliseconds.
const GOODBYE_MS_MAX: u64 = 500;
/// Longest text to explain, in bytes: more than any query that is judged, and the URL around it.
pub const EXPLAIN_BYTES_MAX: usize = 128 << 10;
/// How long it may take to arrive, in seconds.
const BODY_SECONDS_MAX: u64 = 10;

/// The `[admin]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `address:port`; empty: no admin listener.
    pub listen: String,
    /// What a request must bring as `Authorization: Bearer`; needed where `listen` is not a
    /// loopback address.
    pub token: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9090".to_owned(), token: None }
    }
}

impl Config {
    /// Checks the section; the error is the key below `admin.` and why.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() {
            return Ok(());
        }
        let address: SocketAddr = self.listen.parse().map_err(|_| {
            ("listen", format!("`{}` is not an IP address with a port", self.listen))
        })?;
        match &self.token {
            Some(token) if token.len() < TOKEN_BYTES_MIN => {
                Err(("token", format!("has fewer than {TOKEN_BYTES_MIN} bytes")))
            }
            None if !is_loopback(address.ip()) => {
                let why = "is needed where admin.listen is not a loopback address";
                Err(("token", why.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The admin pages of one gate: a Pingora service's application.
pub struct Admin {
    lookout: Arc<Sampler>,
    access: Access,
    document: Document,
    connections: Semaphore,
    watchers: Semaphore,
    in_flight: InFlight,
}

/// An answer that is whole.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    /// A header that only this answer has.
    extra: Option<(&'static str, String)>,
}

impl Admin {
    /// Pages about the gate that `lookout` looks at, which must run beside. An open page counts
    /// as in flight, so that a stop that waits for those lets each be told.
    pub fn new(lookout: Arc<Sampler>, config: &Config, in_flight: InFlight) -> Self {
        Self {
            lookout,
            access: Access::new(config.token.clone()),
            document: Document::new(),
            connections: Semaphore::new(CONNECTIONS_MAX),
            watchers: Semaphore::new(WATCHERS_MAX),
            in_flight,
        }
    }

    /// Answers one request; the connection comes back if it can take another one.
    async fn serve(&self, mut session: ServerSession, stop: &ShutdownWatch) -> Option<Stream> {
        session.set_keepalive((!*stop.borrow()).then_some(READ_SECONDS_MAX));
        let request = session.req_header();
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        let denied = match path.as_str() {
            "/" => self.access.shell(&request.headers),
            _ => self.access.data(&request.headers),
        };
        let read = matches!(method, Method::GET | Method::HEAD);
        match (path.as_str(), denied) {
            (_, Err(denied)) => send(&mut session, denied.page()).await?,
            ("/explain", _) if method == Method::POST => {
                let page = match read_body(&mut session).await {
                    Some(text) => self.explain(&text),
                    None => Page::text(StatusCode::PAYLOAD_TOO_LARGE, "too long, or too slow\n"),
                };
                send(&mut session, page).await?;
            }
            ("/explain", _) => send(&mut session, Page::only("POST")).await?,
            _ if !read => send(&mut session, Page::only("GET, HEAD")).await?,
            ("/live", _) if method == Method::GET => {
                self.stream(&mut session, stop.clone()).await?;
            }
            _ => send(&mut session, self.page(&path)).await?,
        }
        let (stream, unread) = written(session.finish()).await??.into_parts();
        // Nobody pipelines to an admin listener; what was read too far cannot be put back.
        unread.is_none_or(|unread| unread.is_empty()).then_some(stream)
    }

    fn page(&self, path: &str) -> Page {
        let gate = self.lookout.gate();
        match path {
            "/" => Page {
                extra: Some(("Content-Security-Policy", self.document.policy.clone())),
                ..Page::of(StatusCode::OK, HTML_TYPE, self.document.body.clone())
            },
            "/metrics" => {
                status::refresh_gauges(gate);
                Page::of(StatusCode::OK, METRICS_TYPE, gate.metrics().render())
            }
            "/livez" => Page::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let (ready, text) = status::readiness(gate);
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Page::text(code, text)
            }
            "/status" => {
                Page::of(StatusCode::OK, JSON_TYPE, status::status(&self.lookout).to_string())
            }
            "/live" => Page::of(StatusCode::OK, EVENTS_TYPE, String::new()),
            _ => {
                let all = "/ /metrics /livez /readyz /status /live /explain\n";
                Page::text(StatusCode::NOT_FOUND, all)
            }
        }
    }

    /// What `pixelgate explain` says. The text is a person's: it goes back to who sent it, and
    /// nowhere else.
    fn explain(&self, text: &str) -> Page {
        let gate = self.lookout.gate();
        let answer = match explain(gate.gate(), &gate.shared().upstreams, text) {
            Ok(explanation) => json!({
                "verdict": explanation.verdict(),
                "accepted": explanation.is_accepted(),
                "sections": explanation.sections(),
            }),
            Err(not_ours) => json!({
                "verdict": not_ours.to_string(), "accepted": null, "sections": [],
            }),
        };
        Page::of(StatusCode::OK, JSON_TYPE, answer.to_string())
    }

    /// Server-sent events, one a second: the status, and the seconds since the last one.
    async fn stream(&self, session: &mut ServerSession, mut stop: ShutdownWatch) -> Option<()> {
        let Ok(_watcher) = self.watchers.try_acquire() else {
            let page = Page::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages watch\n");
            return send(session, page).await;
        };
        let _busy = self.in_flight.enter_here();
        let mut head = head(StatusCode::OK, EVENTS_TYPE)?;
        head.insert_header("Transfer-Encoding", "chunked").ok()?;
        written(session.write_response_header(Box::new(head))).await?;
        let mut told = self.lookout.watch();
        let mut status: Arc<str> = status::status(&self.lookout).to_string().into();
        let mut last = 0;
        loop {
            let event = self.event(&status, &mut last);
            tokio::select! {
                biased;
                written = written(session.write_response_body(event.into(), false)) => written?,
                // One that is slow does not hold up the stop.
                _ = stop.wait_for(|stop| *stop) => return None,
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                changed = told.changed() => changed.ok()?,
            }
            status = told.borrow_and_update().clone();
        }
        let goodbye = async {
            let event = Bytes::from_static(b"event: stopping\ndata: {}\n\n");
            session.write_response_body(event, false).await.ok()?;
            session.write_response_body(Bytes::new(), true).await.ok()
        };
        timeout(Duration::from_millis(GOODBYE_MS_MAX), goodbye).await.ok()?
    }

    /// One event: `last` is the last second that this watcher has.
    fn event(&self, status: &str, last: &mut u64) -> String {
        let past = self.lookout.past();
        let since = *last;
        let row = |(second, span): (&sampler::Second, sampler::Span)| {
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
        let seconds: Vec<_> = past.since(since).map(row).collect();
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
        let _place = self.connections.try_acquire().ok()?;
        let _connected = self.in_flight.connect();
        let mut stop = shutdown.clone();
        loop {
            let mut session = ServerSession::new_http1(stream);
            let read = timeout(Duration::from_secs(READ_SECONDS_MAX), session.read_request());
            // An error is not logged: it may quote the request.
            let whole = tokio::select! {
                biased;
                read = read => matches!(read, Ok(Ok(true))),
                _ = stop.wait_for(|stop| *stop && self.in_flight.closes_idle()) => false,
            };
            if !whole {
                return None;
            }
            stream = self.serve(session, shutdown).await?;
        }
    }
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
            Denied::Site => Page::text(StatusCode::FORBIDDEN, "not for another site's page\n"),
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

    /// Another method was used.
    fn only(methods: &str) -> Self {
        let extra = Some(("Allow", methods.to_owned()));
        Self { extra, ..Self::text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n")) }
    }
}

/// What every answer has. No `Access-Control-Allow-Origin`: no other site may read this.
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

/// What a write comes to; `None` where the client is gone, or does not take it. (A session's own
/// write timeout does not hold for every write.)
async fn written<T>(write: impl Future<Output = pingora::Result<T>>) -> Option<T> {
    timeout(Duration::from_secs(WRITE_SECONDS_MAX), write).await.ok()?.ok()
}

/// A body as text; `None` where it is too long or too slow.
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
pub mod tests {
    use super::*;
    use crate::plugin::PixelGate;
    use std::path::Path;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::watch;

    /// A gate that keeps all its files in `dir`.
    pub fn gate(dir: &Path) -> PixelGate {
        let list = dir.join("portals.txt");
        std::fs::write(&list, "1\n").unwrap();
        let mut config = crate::Config::default();
        config.portals.source = list.display().to_string();
        config.spool.dir = dir.join("spool");
        let files = format!("name = \"a\"\nkind = \"file\"\ndir = \"{}\"", dir.display());
        config.upstream = vec![toml::from_str(&files).unwrap()];
        PixelGate::builder(config).state_dir(dir).open().unwrap()
    }

    #[tokio::test]
    async fn a_page_that_does_not_read_is_closed_and_gives_its_place_back() {
        let dir = tempfile::tempdir().unwrap();
        let in_flight = InFlight::default();
        let lookout = Arc::new(Sampler::new(gate(dir.path()), 0));
        let admin = Arc::new(Admin::new(lookout, &Config::default(), in_flight.clone()));

        // So little room that the first piece does not fit, and nobody who makes more.
        let (mut page, stream) = tokio::io::duplex(64);
        let (_stop, stopped) = watch::channel(false);
        let serving = tokio::spawn({
            let admin = admin.clone();
            async move { admin.process_new(Box::new(stream), &stopped).await.is_none() }
        });
        page.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let patience = Duration::from_secs(60);
        assert!(timeout(patience, serving).await.expect("it is closed").unwrap());
        assert_eq!(admin.watchers.available_permits(), WATCHERS_MAX);
        assert_eq!(admin.connections.available_permits(), CONNECTIONS_MAX);
        assert_eq!(in_flight.count(), 0);
    }

    #[test]
    fn a_listener_that_others_can_reach_needs_a_token() {
        let check = |listen: &str, token: Option<&str>| {
            let config = Config { listen: listen.into(), token: token.map(str::to_owned) };
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(check("127.0.0.1:9090", None), None);
        assert_eq!(check("[::1]:9090", None), None);
        assert_eq!(check("", None), None);
        assert_eq!(check("0.0.0.0:9090", None), Some("token"));
        assert_eq!(check("0.0.0.0:9090", Some("short")), Some("token"));
        assert_eq!(check("0.0.0.0:9090", Some("sixteen bytes ok")), None);
        assert_eq!(check("localhost", None), Some("listen"));
    }
}
