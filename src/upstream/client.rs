//! The HTTP client that the kinds `http`, `legacy` and `hubspot` share.
//!
//! A connection is used for at most `connection_seconds_max`, and the names behind the connections
//! are looked up again every [`LOOKUP_SECONDS`] (SPEC 8). After that time, or when an address has
//! changed, further requests use new connections; requests under way end on the old ones.
//!
//! Redirects are not followed: a `POST` could become a `GET`, or go to an address that is not
//! configured.

use crate::config_error::ConfigError;
use crate::env::Secret;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use reqwest::{RequestBuilder, Response, redirect};
use rustls::ClientConfig;
use url::Url;

use super::answer;
use super::limits::{
    CONCURRENCY_MAX, CONNECTION_SECONDS_DEFAULT, TIMEOUT_SECONDS_MAX, check_connection_seconds,
    check_within,
};
use super::names::Names;
use super::tls::{Tls, tls_config};
use crate::proxy;

/// Limit for connecting, TLS handshake included, in seconds; `timeout_seconds` if that is less.
pub const CONNECT_SECONDS_MAX: u64 = 5;
/// The most bytes of a response body that are read and dropped to reuse its connection.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest time for [`drain`], in milliseconds: a batch does not wait for an unused body.
pub const ANSWER_BODY_MS_MAX: u64 = 1000;
/// Interval of pings on an HTTP/2 connection, in seconds, so that a dead connection is noticed.
const H2_PING_SECONDS: u64 = 15;
/// Pause between two look-ups of the names behind the connections, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// The longest time that a connection stays open without a request, in seconds: less than the
/// keep-alive of common backends and balancers (60 s and more), so that they rarely close a
/// connection just as a request uses it.
const IDLE_SECONDS_DEFAULT: u64 = 50;

const USER_AGENT: &str = concat!("pixelgate/", env!("CARGO_PKG_VERSION"));

/// The settings of a client.
pub struct Setup {
    /// The longest time from the start of a request to the end of its response.
    pub timeout_seconds: u64,
    /// The most idle connections: `concurrency_max`.
    pub connections: usize,
    /// The longest time that a connection stays open without a request.
    pub idle_seconds: u64,
    /// The longest time that a connection is used.
    pub connection_seconds_max: u64,
    /// Whether HTTP/2 is never used. In HTTP/2, the `Host` of a request is always that of its URL.
    pub http1_only: bool,
    /// The configured proxy. Empty: no proxy. `None`: the proxy that the environment names.
    pub proxy: Option<Secret>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            timeout_seconds: 10,
            connections: 8,
            idle_seconds: IDLE_SECONDS_DEFAULT,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
            http1_only: false,
            proxy: None,
        }
    }
}

impl Setup {
    /// Checks the keys that the settings come from.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_within("timeout_seconds", self.timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        check_connection_seconds(self.connection_seconds_max)?;
        crate::proxy::check(self.proxy.as_ref())?;
        check_within("concurrency_max", self.connections as u64, CONCURRENCY_MAX as u64)
    }
}

/// The HTTP client of one upstream. A clone is another handle to the same connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    setup: Setup,
    tls: ClientConfig,
    /// Host and port of the proxy in use, for messages.
    proxy: Option<String>,
    connections: ArcSwap<Connections>,
}

/// The connections that were opened since `since`.
struct Connections {
    client: reqwest::Client,
    since: Instant,
    names: Names,
    /// When the names were looked up last.
    looked_up: Mutex<Instant>,
}

/// Whether a URL has the scheme `https`, whose case does not matter.
fn is_https(url: &str) -> bool {
    url.split(':').next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

impl Client {
    /// Builds a client for one upstream.
    ///
    /// # Errors
    ///
    /// The key whose value or file cannot be used.
    pub fn build(url: &Url, setup: Setup, tls: &Tls<'_>) -> Result<Client, ConfigError> {
        // Needed for `http` URLs as well: without a TLS configuration, the client would look for a
        // process-wide default, which may not exist.
        let is_http = url.scheme() == "http";
        let own = setup.proxy.as_ref().map_or("", Secret::expose);
        let roots = !is_http || tls.ca.is_some() || is_https(own);
        let mut tls = tls_config(tls, roots)?;
        tls.alpn_protocols = match setup.http1_only {
            true => vec![b"http/1.1".to_vec()],
            false => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        let connections = ArcSwap::from_pointee(connections(&setup, &tls)?);
        let proxy = proxy::place(setup.proxy.as_ref(), url);
        Ok(Client(Arc::new(Inner { setup, tls, proxy, connections })))
    }

    /// Describes a failed request for logs, without its URL.
    pub fn describe(&self, error: &reqwest::Error) -> String {
        answer::describe(error, self.0.proxy.as_deref())
    }

    /// Begins a `GET` request.
    pub fn get(&self, url: Url) -> RequestBuilder {
        self.current().get(url)
    }

    /// Begins a `POST` request.
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.current().post(url)
    }

    /// The client whose connections may still be used.
    fn current(&self) -> reqwest::Client {
        let Inner { setup, connections, .. } = &*self.0;
        let current = connections.load_full();
        if current.since.elapsed() >= Duration::from_secs(setup.connection_seconds_max) {
            self.renew(&current);
        } else {
            self.look_up_if_due(&current);
        }
        connections.load().client.clone()
    }

    /// Makes further requests use new connections. Does nothing if the connections in use are not
    /// `old` any more.
    fn renew(&self, old: &Arc<Connections>) {
        let Inner { setup, tls, connections: current, .. } = &*self.0;
        // Building it succeeded before, so an error is not expected; the old connections stay then.
        if let Ok(new) = connections(setup, tls) {
            current.compare_and_swap(old, Arc::new(new));
        }
    }

    /// Looks the names up again every [`LOOKUP_SECONDS`], in a task beside the requests.
    fn look_up_if_due(&self, current: &Arc<Connections>) {
        let mut looked_up = current.looked_up.lock();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if looked_up.elapsed() < Duration::from_secs(LOOKUP_SECONDS) {
            return;
        }
        *looked_up = Instant::now();
        let (this, current) = (self.clone(), Arc::clone(current));
        runtime.spawn(async move {
            if current.names.have_changed().await {
                this.renew(&current);
            }
        });
    }
}

/// A client that has no connection yet.
fn connections(setup: &Setup, tls: &ClientConfig) -> Result<Connections, ConfigError> {
    let names = Names::default();
    let connect = Duration::from_secs(setup.timeout_seconds.min(CONNECT_SECONDS_MAX));
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .dns_resolver(names.clone())
        .connect_timeout(connect)
        .timeout(Duration::from_secs(setup.timeout_seconds))
        .pool_idle_timeout(Duration::from_secs(setup.idle_seconds))
        .pool_max_idle_per_host(setup.connections)
        .http2_keep_alive_interval(Duration::from_secs(H2_PING_SECONDS))
        .http2_adaptive_window(true);
    if setup.http1_only {
        builder = builder.http1_only();
    }
    let builder = proxy::proxied(builder, setup.proxy.as_ref())?;
    let client = builder.tls_backend_preconfigured(tls.clone()).build();
    let client =
        client.map_err(|e| ConfigError::caused("url", "cannot be used by the HTTP client", e))?;
    let now = Instant::now();
    Ok(Connections { client, since: now, names, looked_up: Mutex::new(now) })
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

/// Reads and drops the rest of a response, so that its connection can be reused. Ignores errors:
/// the status has decided the outcome, and only the connection is lost. Stops after
/// [`ANSWER_BYTES_MAX`] or [`ANSWER_BODY_MS_MAX`].
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
