//! PEM files, as certificates of listeners and as the trust file of the origins.

use pixelgate::tools::read_regular_file;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;

/// Largest PEM file that is read, in bytes: ten times the certificates that an operating system
/// trusts.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a PEM file, which must be a regular file.
///
/// # Errors
///
/// The file cannot be read. Begins with its path, as all errors here.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_regular_file(path, FILE_BYTES_MAX).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
///
/// The file cannot be read, is no PEM, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|_| format!("{}: is no sound PEM file", path.display()))?;
    match all.is_empty() {
        true => Err(format!("{}: holds no certificate", path.display())),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("edge.pem");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let expect = format!("{}: is not a regular file", fifo.display());
        assert_eq!(certificates(&fifo).unwrap_err(), expect);
    }
}
