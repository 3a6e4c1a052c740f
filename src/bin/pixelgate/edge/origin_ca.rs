//! Checks `edge.origin_ca`, the file of the authorities that origins are verified with.

use super::pem;
use pixelgate::tools::tls_words;
use std::path::Path;

/// Checks that a PEM file holds certificates to verify origins with. Pingora would panic over a
/// file that it cannot use.
///
/// # Errors
///
/// The path of the file, and why it cannot be used.
pub fn check(path: &Path) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in pem::certificates(path)? {
        let cannot = |e| format!("{}: {}", path.display(), tls_words(&e).unwrap_or_default());
        roots.add(certificate).map_err(cannot)?;
    }
    Ok(())
}
