//! Certificates of the TLS listeners: read before anything starts, chosen by name, read again on
//! SIGHUP.
//!
//! Several entries of `edge.tls` with one address share its listener: each connection gets the
//! first certificate that is valid for the name it asks for, and the first of all where it asks
//! for none that is known. A certificate that cannot be read again leaves the one in use.

use super::TlsListener;
use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The certificates of one listener.
pub struct Certificates {
    files: Vec<(PathBuf, PathBuf)>,
    loaded: ArcSwap<Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Groups the entries of `edge.tls` by their address, in the order in which they stand.
    pub fn load_all(entries: &[TlsListener]) -> Result<Vec<(String, Arc<Self>)>, String> {
        let mut grouped: Vec<(String, Vec<(PathBuf, PathBuf)>)> = Vec::new();
        for entry in entries {
            let files = (entry.cert.clone(), entry.key.clone());
            match grouped.iter_mut().find(|(listen, _)| *listen == entry.listen) {
                Some((_, all)) => all.push(files),
                None => grouped.push((entry.listen.clone(), vec![files])),
            }
        }
        let load = |(listen, files): (String, Vec<_>)| {
            let loaded = ArcSwap::from_pointee(read_all(&files)?);
            Ok((listen, Arc::new(Self { files, loaded })))
        };
        grouped.into_iter().map(load).collect()
    }

    /// Reads the files again. Connections that are open keep what they have.
    pub fn reload(&self) -> Result<(), String> {
        self.loaded.store(Arc::new(read_all(&self.files)?));
        Ok(())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.loaded.load();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| all.iter().find(|key| is_for(key, &name)));
        named.or(all.first()).cloned()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().ok().and_then(|c| ParsedCertificate::try_from(c).ok());
    parsed.is_some_and(|parsed| verify_server_name(&parsed, name).is_ok())
}

fn read_all(files: &[(PathBuf, PathBuf)]) -> Result<Vec<Arc<CertifiedKey>>, String> {
    files.iter().map(|(cert, key)| read(cert, key).map(Arc::new)).collect()
}

/// Reads a chain and its key, and makes sure that they belong together.
fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let told = |path: &Path, why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(cert).map_err(|e| told(cert, &e))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|e| told(cert, &e))?;
    if chain.is_empty() {
        return Err(told(cert, &"holds no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| told(key, &e))?;
    let secret = any_supported_type(&secret).map_err(|e| told(key, &e))?;
    let certified = CertifiedKey::new(chain, secret);
    certified.keys_match().map_err(|_| told(key, &format!("is not {}'s", cert.display())))?;
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.pem");
    const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.key");

    #[test]
    fn a_certificate_is_for_the_names_it_holds() {
        let key = read(Path::new(CERT), Path::new(KEY)).unwrap();
        assert!(is_for(&key, &"edge.test".try_into().unwrap()));
        assert!(!is_for(&key, &"other.test".try_into().unwrap()));
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_file() {
        let (cert, key) = (Path::new(CERT), Path::new(KEY));
        for (cert, key, file) in [
            (Path::new("/none.pem"), key, "/none.pem"),
            (cert, Path::new("/none.key"), "/none.key"),
            (key, key, KEY),
            (cert, cert, CERT),
        ] {
            let why = read(cert, key).unwrap_err();
            assert!(why.contains(file), "{why}");
        }
    }
}
