//! The operator's listener: `/metrics`, `/livez`, `/readyz`, `/status` (SPEC section 8).
//!
//! Read-only, and apart from the request path: it has a listener and a thread of its own, reads
//! the same handles that the gate counts in, and holds nothing that a request brought.

mod status;

use crate::plugin::PixelGate;
use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// Content type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";
const JSON_TYPE: &str = "application/json";
/// Shortest token that is accepted, in bytes: one that can be guessed guards nothing.
pub const TOKEN_BYTES_MIN: usize = 16;

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

/// The admin pages of one gate.
pub struct Admin {
    gate: PixelGate,
    token: Option<String>,
    started: Instant,
}

impl Admin {
    /// Pages about `gate`.
    pub fn new(gate: PixelGate, config: &Config) -> Self {
        Self { gate, token: config.token.clone(), started: Instant::now() }
    }

    fn page(&self, session: &ServerSession) -> Page {
        let request = session.req_header();
        if !self.allows(session) {
            return Page::text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        }
        match request.uri.path() {
            "/metrics" => {
                status::refresh_gauges(&self.gate);
                Page::of(StatusCode::OK, METRICS_TYPE, self.gate.metrics().render())
            }
            "/livez" => Page::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let (ready, text) = status::readiness(&self.gate);
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Page::text(code, text)
            }
            "/status" => {
                let status = status::status(&self.gate, self.started.elapsed().as_secs());
                Page::of(StatusCode::OK, JSON_TYPE, status.to_string())
            }
            _ => Page::text(StatusCode::NOT_FOUND, "/metrics /livez /readyz /status\n"),
        }
    }

    fn allows(&self, session: &ServerSession) -> bool {
        let Some(token) = &self.token else { return true };
        let given = session.get_header(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
        given.is_some_and(|given| equal(given, token.as_bytes()))
    }
}

/// Compares without telling by its time how much was right.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Page {
    fn of(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body }
    }

    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::of(status, TEXT_TYPE, body.into())
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let page = self.page(session);
        let head = session.req_header().method == Method::HEAD;
        let response = Response::builder()
            .status(page.status)
            .header(header::CONTENT_TYPE, page.content_type)
            .header(header::CONTENT_LENGTH, page.body.len())
            .header(header::CACHE_CONTROL, "no-store")
            .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        let response = match page.status {
            StatusCode::UNAUTHORIZED => response.header(header::WWW_AUTHENTICATE, "Bearer"),
            _ => response,
        };
        let body = if head { Vec::new() } else { page.body.into_bytes() };
        response.body(body).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn tokens_are_equal_only_when_every_byte_is() {
        assert!(equal(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!equal(other, b"abc"));
        }
    }
}
