//! The HTTP client that the kinds `http`, `legacy` and `hubspot` share, and the TLS setup that
//! `nats` shares with them.
//!
//! Trusted are the machine's root certificates, or only those of `ca` if it is set. Proxy
//! variables of the environment are ignored: a variable meant for another program must not
//! redirect personal data. Redirects are not followed: a `POST` could become a `GET`, or go to an
//! address that is not configured.

use crate::config_error::ConfigError;
use crate::regular_file;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Response, redirect};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Connect timeout in seconds, TLS handshake included; `timeout_seconds` if that is less.
pub const CONNECT_SECONDS_MAX: u64 = 5;
/// How many bytes of a response body are read and dropped to reuse its connection.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long [`drain`] may take, in milliseconds: a batch does not wait for an unused body.
pub const ANSWER_BODY_MS_MAX: u64 = 1000;
/// Largest PEM file that is read, in bytes.
const PEM_BYTES_MAX: u64 = 4 << 20;
/// Interval of pings on an HTTP/2 connection, in seconds, so that a dead connection is noticed.
const H2_PING_SECONDS: u64 = 15;

const USER_AGENT: &str = concat!("pixelgate/", env!("CARGO_PKG_VERSION"));

/// Paths to PEM files, as configured.
#[derive(Debug, Default)]
pub struct Tls<'a> {
    /// Certificates to trust instead of the machine's.
    pub ca: Option<&'a Path>,
    /// Client certificate chain. Needs `key`.
    pub cert: Option<&'a Path>,
    /// The private key of `cert`.
    pub key: Option<&'a Path>,
}

/// Settings that differ between the kinds.
pub struct Setup {
    /// Time from the start of a request to the end of its response.
    pub timeout_seconds: u64,
    /// Maximum number of idle connections.
    pub connections: usize,
    /// How long an idle connection is kept.
    pub idle_seconds: u64,
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

/// The TLS configuration of a connection: trusted roots and client certificate. Without `ca`, the
/// machine's root certificates are trusted if `roots` is true, else none.
pub fn tls_config(tls: &Tls<'_>, roots: bool) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let store = match tls.ca {
        Some(path) => given_roots(path)?,
        None if roots => machine_roots()?,
        None => RootCertStore::empty(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ConfigError::caused("url", "no TLS version is available", e))?
        .with_root_certificates(store);
    Ok(match (tls.cert, tls.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("cert", cert)?;
            let pem = read_pem("key", key)?;
            let key = PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|e| ConfigError::caused("key", "no private key can be read", e))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| ConfigError::caused("cert", "does not fit its key", e))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(ConfigError::new("key", "is missing: `cert` needs it")),
        (None, Some(_)) => return Err(ConfigError::new("cert", "is missing: `key` needs it")),
    })
}

fn given_roots(path: &Path) -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        store
            .add(certificate)
            .map_err(|e| ConfigError::caused("ca", "holds a certificate that is no root", e))?;
    }
    Ok(store)
}

fn machine_roots() -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    // Unreadable certificates are skipped: one among hundreds must not prevent the start.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        let reason = "this machine has no root certificates: install ca-certificates or set `ca`";
        return Err(ConfigError::new("url", reason));
    }
    Ok(store)
}

fn read_pem(key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    regular_file::read(path, PEM_BYTES_MAX)
        .map_err(|e| ConfigError::caused(key, format!("{} cannot be read", path.display()), e))
}

fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = read_pem(key, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|e| ConfigError::caused(key, "no certificate can be read", e))?;
    if all.is_empty() {
        let reason = format!("{} holds no certificate", PathBuf::from(path).display());
        return Err(ConfigError::new(key, reason));
    }
    Ok(all)
}
