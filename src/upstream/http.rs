//! `http`: a collector that takes a batch as the body of one `POST` (SPEC 7).

use crate::config_error::ConfigError;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;
use uuid::Uuid;

use super::batch::{Batch, Body};
use super::client::Client;
use super::compress::{Compression, compress};
use super::contract::Upstream;
use super::encode::{Format, encode};
use super::limits::CONNECTION_SECONDS_DEFAULT;
use super::outcome::{Failure, Outcome};
use super::sign::Signer;
use super::tls::Tls;
use super::{answer, client};
use crate::clock::now;
use crate::env::Secret;

/// Maximum number of configured headers.
pub const HEADERS_MAX: usize = 32;

/// Headers that cannot be configured, because pixelgate itself sets them in each request.
const HEADERS_OURS: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
    "x-batch-events",
];

/// The settings of an `[[upstream]]` of kind `http`.
///
/// ```
/// use pixelgate::config::{BatchFormat, HttpUpstream, Secret, Upstream};
///
/// let mut collector = HttpUpstream::default();
/// collector.url = Secret::new("https://collector.example/events");
/// collector.format = BatchFormat::Ndjson;
/// assert!(Upstream::new("collector", collector).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The `http` or `https` URL to which batches are posted. May hold `${ENV}`.
    pub url: Secret,
    /// The format of a body. Default: `json`.
    pub format: Format,
    /// The compression of a body. Default: `gzip`.
    pub compression: Compression,
    /// Headers that are added to every request, at most 32. Values may hold `${ENV}`.
    pub headers: BTreeMap<String, Secret>,
    /// The key that signs every request by Standard Webhooks 1.0: `whsec_…`. May hold `${ENV}`.
    pub secret: Option<Secret>,
    /// The longest time for one request, from connecting to the end of the response, in seconds, 1
    /// to 300. Default: 10.
    pub timeout_seconds: u64,
    /// The longest time that a connection is used, in seconds, 1 to 86,400. Default: 300.
    pub connection_seconds_max: u64,
    /// The proxy for all requests, an `http://` or `https://` URL. Empty: no proxy. `None`, the
    /// default: the proxy that the environment names. May hold `${ENV}`.
    pub proxy: Option<Secret>,
    /// Maximum number of batches in flight, 1 to 64. The concurrency limiter stays at or below it.
    /// Default: 8.
    pub concurrency_max: usize,
    /// Whether each portal's events are delivered in order. Default: `none`.
    pub order: Order,
    /// Certificates (PEM) to trust instead of the machine's.
    pub ca: Option<PathBuf>,
    /// Client certificate chain (PEM), for a backend that requires one. Needs `key`.
    pub cert: Option<PathBuf>,
    /// The private key (PEM) of `cert`.
    pub key: Option<PathBuf>,
}

/// The order in which events are delivered.
///
/// ```
/// use pixelgate::config::{HttpUpstream, Order};
///
/// let mut collector = HttpUpstream::default();
/// collector.order = Order::Portal;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// No order: a batch may overtake another.
    #[default]
    None,
    /// Each portal's events in the order in which they were accepted, retries included. A batch
    /// that is retried blocks the portals that share its queue, and all portals once the bounds
    /// on waiting events are reached.
    Portal,
}

/// The upstream of kind `http`: see the [module](self).
pub struct Http {
    client: Client,
    url: Url,
    headers: HeaderMap,
    signer: Option<Signer>,
    format: Format,
    compression: Compression,
    concurrency_max: usize,
    order: Order,
}

// Implemented by hand, because the URL may hold credentials.
impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http(..)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::new(""),
            format: Format::default(),
            compression: Compression::default(),
            headers: BTreeMap::new(),
            secret: None,
            timeout_seconds: 10,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
            proxy: None,
            concurrency_max: 8,
            order: Order::default(),
            ca: None,
            cert: None,
            key: None,
        }
    }
}

impl Config {
    /// Checks the limits, the URL, the headers and the secret.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.setup().validate()?;
        parse_url(&self.url)?;
        self.own_headers()?;
        self.signer().map(drop)
    }

    fn setup(&self) -> client::Setup {
        client::Setup {
            timeout_seconds: self.timeout_seconds,
            connections: self.concurrency_max,
            connection_seconds_max: self.connection_seconds_max,
            proxy: self.proxy.clone(),
            ..client::Setup::default()
        }
    }

    /// Builds the upstream. Reads the certificates; resolves no name and opens no connection.
    pub(in crate::upstream) fn build(&self) -> Result<Http, ConfigError> {
        let url = parse_url(&self.url)?;
        let mut headers = self.own_headers()?;
        let content_type = HeaderValue::from_static(self.format.content_type());
        headers.insert(header::CONTENT_TYPE, content_type);
        if let Some(encoding) = self.compression.content_encoding() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        let tls =
            Tls { ca: self.ca.as_deref(), cert: self.cert.as_deref(), key: self.key.as_deref() };
        Ok(Http {
            client: Client::build(&url, self.setup(), &tls)?,
            url,
            headers,
            signer: self.signer()?,
            format: self.format,
            compression: self.compression,
            concurrency_max: self.concurrency_max,
            order: self.order,
        })
    }

    /// The files that are read when the upstream is built.
    pub(super) fn files(&self) -> [Option<&Path>; 3] {
        [self.ca.as_deref(), self.cert.as_deref(), self.key.as_deref()]
    }

    fn signer(&self) -> Result<Option<Signer>, ConfigError> {
        let Some(secret) = &self.secret else { return Ok(None) };
        Signer::new(secret.expose()).map(Some)
    }

    fn own_headers(&self) -> Result<HeaderMap, ConfigError> {
        if self.headers.len() > HEADERS_MAX {
            let reason = format!("must be at most {HEADERS_MAX}, and are {}", self.headers.len());
            return Err(ConfigError::new("headers", reason));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let key = format!("headers.{name}");
            let parsed = HeaderName::from_bytes(name.as_bytes())
                .map_err(|e| ConfigError::caused(&key, "is no header name", e))?;
            if HEADERS_OURS.contains(&parsed.as_str()) {
                return Err(ConfigError::new(key, "is set by pixelgate itself"));
            }
            // The error's text does not contain the value, which may be a secret.
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|e| ConfigError::caused(&key, "cannot be a header's value", e))?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        Ok(headers)
    }
}

/// The placeholder for an event's portal in the `url` of kind `legacy`.
pub(super) const PORTAL: &str = "{portal}";

/// Parses a configured URL, which must begin with `http://` or `https://` and a host.
pub(super) fn parse_url(text: &Secret) -> Result<Url, ConfigError> {
    let text = text.expose();
    if text.is_empty() {
        return Err(ConfigError::new("url", "is missing"));
    }
    if text.contains(PORTAL) {
        let why = "holds {portal}, which stands for a portal in the kind legacy alone";
        return Err(ConfigError::new("url", why));
    }
    let url = Url::parse(text).map_err(|e| ConfigError::caused("url", "is no URL", e))?;
    if url.fragment().is_some() {
        return Err(ConfigError::new("url", "has a fragment (#), which is never sent"));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(ConfigError::new("url", "must begin with http:// or https:// and a host"));
    }
    Ok(url)
}

impl Http {
    /// The body of the batch and its key. It is encoded on a blocking thread: compressing 1 MB
    /// takes milliseconds, during which the other tasks of the async thread would wait.
    async fn body(&self, batch: &Batch) -> Result<(Uuid, Body), Outcome> {
        let (batch, format, compression) = (batch.clone(), self.format, self.compression);
        let encoding = format as u8 * 16 + compression as u8;
        let is_encoded = batch.is_encoded_as(encoding);
        let make = move || {
            batch.encoded(encoding, |records: &[Bytes]| {
                let plain = encode(records, format)?;
                let plain_bytes = plain.len();
                Some(Body { bytes: compress(plain, compression)?.into(), plain_bytes })
            })
        };
        let encoded = if is_encoded {
            make()
        } else {
            // Fails only while the runtime shuts down.
            let shut_down = |_| Outcome::Retry(Failure::new("shutting down"));
            tokio::task::spawn_blocking(make).await.map_err(shut_down)?
        };
        let id = encoded.id;
        encoded.body.map(|body| (id, body)).ok_or_else(Outcome::unreadable)
    }
}

#[async_trait]
impl Upstream for Http {
    fn kind(&self) -> &'static str {
        "http"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let (id, body) = match self.body(batch).await {
            Ok(encoded) => encoded,
            Err(outcome) => return outcome,
        };
        let id = id.to_string();
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header("idempotency-key", &id)
            .header("x-batch-events", batch.records().len());
        if let Some(signer) = &self.signer {
            // The time is that of this attempt, because receivers reject an old time as a replay.
            let seconds = now().as_second();
            request = request
                .header("webhook-id", &id)
                .header("webhook-timestamp", seconds)
                .header("webhook-signature", signer.sign(&id, seconds, &body.bytes));
        }
        match request.body(body.bytes).send().await {
            Ok(response) => {
                let outcome = answer::outcome(response.status(), response.headers(), now());
                client::drain(response).await;
                outcome
            }
            Err(error) => Outcome::Retry(Failure::new(self.client.describe(&error))),
        }
    }

    fn concurrency_max(&self) -> usize {
        self.concurrency_max
    }

    fn keeps_portal_order(&self) -> bool {
        self.order == Order::Portal
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{CONCURRENCY_MAX, TIMEOUT_SECONDS_MAX};
    use super::*;

    fn config(rest: &str) -> Config {
        toml::from_str(&format!("url = 'http://collector/in'\n{rest}")).expect(rest)
    }

    #[track_caller]
    fn check_refused(config: &Config, key: &str, word: &str) {
        let built = config.validate().and_then(|()| config.build().map(drop));
        let error = built.expect_err(key);
        assert_eq!(error.key(), key);
        assert!(error.reason().contains(word), "{error}");
    }

    fn url(url: &str) -> Config {
        Config { url: Secret::new(url), ..Config::default() }
    }

    #[test]
    fn a_url_is_absolute_http_with_a_host() {
        for good in ["http://h", "https://h:1/p?q=1", "http://user:pass@h/", "http://[::1]:9/"] {
            url(good).validate().expect(good);
        }
        check_refused(&Config::default(), "url", "missing");
        check_refused(&url("collector/in"), "url", "no URL");
        check_refused(&url("ftp://h/"), "url", "http://");
        check_refused(&url("http://"), "url", "no URL");
        let unset = toml::from_str::<Config>("url = 'http://${PIXELGATE_NO_SUCH}/'").unwrap_err();
        assert!(unset.message().contains("PIXELGATE_NO_SUCH"), "{unset}");
    }

    #[test]
    fn numbers_are_held_to_their_bounds() {
        for (key, max) in
            [("timeout_seconds", TIMEOUT_SECONDS_MAX), ("concurrency_max", CONCURRENCY_MAX as u64)]
        {
            for good in [1, max] {
                config(&format!("{key} = {good}")).validate().expect(key);
            }
            for bad in [0, max + 1] {
                check_refused(&config(&format!("{key} = {bad}")), key, "must be 1 to");
            }
        }
    }

    #[test]
    fn headers_are_checked_and_ours_are_ours() {
        check_refused(&config("headers = { 'a b' = 'x' }"), "headers.a b", "header name");
        check_refused(&config("headers = { A = \"x\\ny\" }"), "headers.A", "value");
        for ours in HEADERS_OURS {
            let headers = format!("headers = {{ {ours} = 'x' }}");
            check_refused(&config(&headers), &format!("headers.{ours}"), "itself");
        }
        let many = |n: usize| {
            let headers = (0..n).map(|n| (format!("x-{n}"), Secret::new("v"))).collect();
            Config { headers, ..config("") }
        };
        many(HEADERS_MAX).validate().unwrap();
        check_refused(&many(HEADERS_MAX + 1), "headers", "at most");
    }

    #[test]
    fn certificates_that_cannot_be_read_are_named() {
        check_refused(&config("ca = '/no/such/file'"), "ca", "read");
        check_refused(&config("cert = '/no/such/file'"), "key", "missing");
        check_refused(&config("key = '/no/such/file'"), "cert", "missing");
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "not a certificate").unwrap();
        let config = Config { ca: Some(empty), ..config("") };
        check_refused(&config, "ca", "no certificate");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let config = config("secret = 'whsec_c2VjcmV0'\nheaders = { A = 'c2VjcmV0' }");
        let config = Config { url: Secret::new("http://c2VjcmV0@h/"), ..config };
        assert!(!format!("{config:?}").contains("c2VjcmV0"));
    }
}
