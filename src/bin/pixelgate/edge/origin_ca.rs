//! The authorities that origins are verified with: those of `edge.origin_ca`, or the machine's.
//!
//! Pingora reads them itself, and panics over one that it cannot use. So they are read here, and
//! Pingora gets a file in memory that holds only those that it can use.

use super::config::Config;
use super::origin_url::OriginUrl;
use super::pem;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pixelgate::tools::tls_words;
use rustix::fs::{MemfdFlags, memfd_create};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// A file without authorities, for connections without TLS.
pub const NO_AUTHORITIES: &str = "/dev/null";

/// The authorities that origins are verified with, in a file that lasts as long as this value.
pub struct Authorities(Option<File>);

impl Authorities {
    /// Reads the authorities for the origins of `edge`. Without `origin_ca`, and without an origin
    /// that is asked over TLS, there are none. Of the machine's, those that cannot be used are left
    /// out, because one among hundreds must not prevent the start. Blocks.
    ///
    /// # Errors
    ///
    /// The key, and why `origin_ca` cannot be used, or that the machine has no authorities.
    pub fn load(edge: &Config) -> Result<Self, String> {
        let is_tls = |url: &String| OriginUrl::parse(url).is_ok_and(|url| url.tls);
        let all = match &edge.origin_ca {
            Some(path) => of_file(path).map_err(|why| format!("edge.origin_ca: {why}"))?,
            None if edge.origin.iter().any(is_tls) => of_machine()?,
            None => return Ok(Self(None)),
        };
        let in_memory = in_memory(&all).map_err(|e| format!("edge.origin: no memory file: {e}"))?;
        Ok(Self(Some(in_memory)))
    }

    /// The path of the file.
    pub fn path(&self) -> String {
        self.0.as_ref().map_or_else(|| NO_AUTHORITIES.to_owned(), path)
    }
}

fn of_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = pem::certificates(path)?;
    for certificate in &all {
        let cannot = |e| format!("{}: {}", path.display(), tls_words(&e).unwrap_or_default());
        RootCertStore::empty().add(certificate.clone()).map_err(cannot)?;
    }
    Ok(all)
}

fn of_machine() -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = rustls_native_certs::load_native_certs().certs;
    all.retain(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    if all.is_empty() {
        return Err("edge.origin: this machine has no root certificates: install ca-certificates \
                    or set edge.origin_ca"
            .to_owned());
    }
    Ok(all)
}

/// Writes certificates to a file in memory, as PEM.
fn in_memory(all: &[CertificateDer<'_>]) -> io::Result<File> {
    let mut file = File::from(memfd_create("origin_ca", MemfdFlags::CLOEXEC)?);
    for certificate in all {
        let text = BASE64_STANDARD.encode(certificate);
        writeln!(file, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----")?;
    }
    // Pingora opens it by its path, and panics if it cannot: without /proc, for example.
    File::open(path(&file))?;
    Ok(file)
}

fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
