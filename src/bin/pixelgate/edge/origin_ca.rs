//! The trust file of the origins, `edge.origin_ca`.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::path::Path;

/// Checks that a PEM file holds certificates to verify origins with. Pingora panics over a file
/// that it cannot use.
pub fn check(path: &Path) -> Result<(), String> {
    let error = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| error(&e))? {
        roots.add(certificate.map_err(|e| error(&e))?).map_err(|e| error(&e))?;
    }
    if roots.is_empty() { Err(error(&"holds no certificate")) } else { Ok(()) }
}
