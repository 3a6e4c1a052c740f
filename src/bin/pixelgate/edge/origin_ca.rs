//! The trust file of the origins, `edge.origin_ca`.

use super::pem;
use pixelgate::tools::tls_words;
use std::path::Path;

/// Checks that a PEM file holds certificates to verify origins with. Pingora panics over a file
/// that it cannot use.
pub fn check(path: &Path) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in pem::certificates(path)? {
        let cannot = |e| format!("{}: {}", path.display(), tls_words(&e).unwrap_or_default());
        roots.add(certificate).map_err(cannot)?;
    }
    Ok(())
}
