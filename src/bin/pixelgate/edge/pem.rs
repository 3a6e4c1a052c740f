//! Reads PEM files: the certificates of listeners, and the authorities of `edge.origin_ca`.

use pixelgate::tools::read_regular_file;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;

/// The most bytes of a PEM file: ten times the certificates that an operating system trusts.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a PEM file, which must be a regular file.
///
/// # Errors
///
/// The path of the file, and why it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_regular_file(path, FILE_BYTES_MAX).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
///
/// The path of the file, and the reason: it cannot be read, is not PEM, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|_| format!("{}: the file is not valid PEM", path.display()))?;
    match all.is_empty() {
        true => Err(format!("{}: the file holds no certificate", path.display())),
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
