//! The TLS configuration of connections to upstreams.
//!
//! A connection trusts the root certificates of the machine or, if `ca` is set, those of `ca` only.

use crate::config_error::ConfigError;
use crate::pem;
use crate::regular_file;
use crate::tls_error::words;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The largest PEM file that is read, in bytes.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// Paths to PEM files, as configured.
#[derive(Debug, Default)]
pub struct Tls<'a> {
    /// Certificates to trust instead of the machine's.
    pub ca: Option<&'a Path>,
    /// The client's certificate chain. Needs `key`.
    pub cert: Option<&'a Path>,
    /// The private key of `cert`.
    pub key: Option<&'a Path>,
}

/// The TLS configuration of a connection: the trusted roots and the client certificate. Without
/// `ca`, the root certificates of the machine are trusted if `roots` is true, and none otherwise.
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
            if pem::is_encrypted(&pem) {
                let reason = format!("{} {}", key.display(), pem::ENCRYPTED);
                return Err(ConfigError::new("key", reason));
            }
            let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| {
                let reason = format!("{} holds no private key that can be read", key.display());
                ConfigError::caused("key", reason, e)
            })?;
            builder
                .with_client_auth_cert(chain, private_key)
                .map_err(|e| unusable("cert", cert, &e))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(ConfigError::new("key", "is missing: `cert` needs it")),
        (None, Some(_)) => return Err(ConfigError::new("cert", "is missing: `key` needs it")),
    })
}

fn given_roots(path: &Path) -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        store.add(certificate).map_err(|e| unusable("ca", path, &e))?;
    }
    Ok(store)
}

fn unusable(key: &str, path: &Path, error: &rustls::Error) -> ConfigError {
    ConfigError::new(key, format!("{} cannot be used: {}", path.display(), words(error)))
}

fn machine_roots() -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    // Certificates that cannot be read are skipped, because one among hundreds must not prevent the
    // start.
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
    let all = all.map_err(|e| {
        let reason = format!("{} holds a certificate that cannot be read", path.display());
        ConfigError::caused(key, reason, e)
    })?;
    if all.is_empty() {
        let reason = format!("{} holds no certificate", path.display());
        return Err(ConfigError::new(key, reason));
    }
    Ok(all)
}
