//! The HTTP client that the kinds `http`, `legacy` and `hubspot` share.
//!
//! Proxy variables of the environment are ignored: a variable meant for another program must not
//! redirect personal data. Redirects are not followed: a `POST` could become a `GET`, or go to an
//! address that is not configured.

use crate::config_error::ConfigError;
use std::time::Duration;

use reqwest::{Client, Response, redirect};

use super::tls::{Tls, tls_config};

/// Connect timeout in seconds, TLS handshake included; `timeout_seconds` if that is less.
pub const CONNECT_SECONDS_MAX: u64 = 5;
/// How many bytes of a response body are read and dropped to reuse its connection.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long [`drain`] may take, in milliseconds: a batch does not wait for an unused body.
pub const ANSWER_BODY_MS_MAX: u64 = 1000;
/// Interval of pings on an HTTP/2 connection, in seconds, so that a dead connection is noticed.
const H2_PING_SECONDS: u64 = 15;

const USER_AGENT: &str = concat!("pixelgate/", env!("CARGO_PKG_VERSION"));

/// Settings that differ between the kinds.
pub struct Setup {
    /// Time from the start of a request to the end of its response.
    pub timeout_seconds: u64,
    /// Maximum number of idle connections.
    pub connections: usize,
    /// How long an idle connection is kept.
    pub idle_seconds: u64,
    /// Whether HTTP/2 is never used: there, a request's `Host` is that of its URL.
    pub http1_only: bool,
}

/// Builds a client for one upstream.
pub fn build(url: &url::Url, setup: &Setup, tls: &Tls<'_>) -> Result<Client, ConfigError> {
    let connect = Duration::from_secs(setup.timeout_seconds.min(CONNECT_SECONDS_MAX));
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(connect)
        .timeout(Duration::from_secs(setup.timeout_seconds))
        .pool_idle_timeout(Duration::from_secs(setup.idle_seconds))
        .pool_max_idle_per_host(setup.connections)
        .http2_keep_alive_interval(Duration::from_secs(H2_PING_SECONDS))
        .http2_adaptive_window(true);
    // Set for plain `http` too: the client needs a TLS configuration before its first request and
    // would otherwise look for a process-wide default, which may not exist.
    let roots = url.scheme() == "https" || tls.ca.is_some();
    let mut config = tls_config(tls, roots)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if setup.http1_only {
        builder = builder.http1_only();
        config.alpn_protocols.remove(0);
    }
    builder = builder.tls_backend_preconfigured(config);
    builder.build().map_err(|e| ConfigError::caused("url", "no client for it can be made", e))
}

/// The body of a response. `None` if it is longer than `bytes_max` or cannot be read. The client's
/// timeout bounds the wait.
pub async fn body(mut answer: Response, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if bytes.len() + chunk.len() > bytes_max {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// Reads and drops the rest of a response, so that its connection can be reused. Errors are
/// ignored: the status has already decided the outcome, and only the connection is lost. Stops
/// after [`ANSWER_BYTES_MAX`] or [`ANSWER_BODY_MS_MAX`].
pub async fn drain(mut answer: Response) {
    let read = async {
        let mut bytes = 0;
        while let Ok(Some(chunk)) = answer.chunk().await {
            bytes += chunk.len();
            if bytes > ANSWER_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(ANSWER_BODY_MS_MAX), read).await;
}
