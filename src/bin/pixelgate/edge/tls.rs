//! The certificates of the TLS listeners (SPEC 9, `edge.tls`). They are loaded before the start,
//! chosen by the name of the server (SNI), and reloaded when their files change and at SIGHUP.
//!
//! Entries of `edge.tls` with the same address share one listener. A connection gets the first
//! certificate that is valid for the name that the client sent. If none is valid, or no name was
//! sent, it gets the first one. Entries are reloaded one by one. An entry that cannot be read, or
//! whose key does not match its certificate yet, keeps the certificate and key in use.

use super::config::TlsListener;
use super::pem;
use arc_swap::ArcSwap;
use log::{error, info};
use parking_lot::Mutex;
use pixelgate::tools::{ENCRYPTED_KEY, FileStamp, is_encrypted};
use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The certificates of one listener.
pub struct Certificates {
    entries: Mutex<Vec<Entry>>,
    in_use: ArcSwap<Vec<Arc<CertifiedKey>>>,
}

/// One entry of `edge.tls`.
struct Entry {
    cert: PathBuf,
    key: PathBuf,
    /// The stamps of certificate and key when they were last read, successfully or not. `None`: the
    /// metadata of the file could not be read.
    seen: [Option<FileStamp>; 2],
    /// The last failure, which was logged. `None`: the files could be read.
    logged: Option<String>,
}

impl Certificates {
    /// Loads the entries of `edge.tls`. Returns the certificates of each address, in the order of
    /// the configuration.
    ///
    /// # Errors
    ///
    /// The path of the first file that cannot be used, and the reason.
    pub fn load_all(entries: &[TlsListener]) -> Result<Vec<(String, Arc<Self>)>, String> {
        let mut grouped: Vec<(String, Vec<Entry>)> = Vec::new();
        for TlsListener { listen, cert, key } in entries {
            let seen = [cert, key].map(|file| FileStamp::read(file).ok());
            let entry = Entry { cert: cert.clone(), key: key.clone(), seen, logged: None };
            match grouped.iter_mut().find(|(address, _)| address == listen) {
                Some((_, all)) => all.push(entry),
                None => grouped.push((listen.clone(), vec![entry])),
            }
        }
        let load = |(listen, entries): (String, Vec<Entry>)| {
            let keys = entries.iter().map(|entry| read(&entry.cert, &entry.key).map(Arc::new));
            let in_use = ArcSwap::from_pointee(keys.collect::<Result<_, _>>()?);
            Ok((listen, Arc::new(Self { entries: Mutex::new(entries), in_use })))
        };
        grouped.into_iter().map(load).collect()
    }

    /// Reloads the entries whose files have changed, or all of them if `whole` is true. Open
    /// connections keep their certificate. A failure is logged again only if its reason changes, or
    /// if `whole` is true.
    pub fn reload(&self, whole: bool) {
        let mut entries = self.entries.lock();
        let mut keys = Vec::clone(&self.in_use.load());
        let mut changed = false;
        for (entry, in_use) in entries.iter_mut().zip(&mut keys) {
            // Read before the files, so that the next poll finds a change in between.
            let now = [&entry.cert, &entry.key].map(|file| FileStamp::read(file).ok());
            if now == entry.seen && !whole {
                continue;
            }
            entry.seen = now;
            match read(&entry.cert, &entry.key) {
                Ok(key) => {
                    if key.cert != in_use.cert {
                        info!("edge.tls: {} is in use from now on", entry.cert.display());
                    }
                    *in_use = Arc::new(key);
                    entry.logged = None;
                    changed = true;
                }
                Err(why) if entry.logged.as_ref() == Some(&why) && !whole => {}
                Err(why) => {
                    error!("edge.tls: {why}; the certificate in use stays");
                    entry.logged = Some(why);
                }
            }
        }
        if changed {
            self.in_use.store(Arc::new(keys));
        }
    }

    /// Returns what is wrong with the entries that could not be reloaded.
    pub fn failures(&self) -> Vec<String> {
        self.entries.lock().iter().filter_map(|entry| entry.logged.clone()).collect()
    }

    /// Replaces the entries by those of `other`, in a reload that changes `edge.tls`.
    pub fn replace(&self, other: &Self) {
        let mut entries = self.entries.lock();
        *entries = std::mem::take(&mut *other.entries.lock());
        self.in_use.store(other.in_use.load_full());
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.in_use.load();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| all.iter().find(|key| is_for(key, &name)));
        named.or(all.first()).cloned()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().ok().and_then(|c| ParsedCertificate::try_from(c).ok());
    parsed.is_some_and(|parsed| verify_server_name(&parsed, name).is_ok())
}

/// Reads a certificate chain and its key, and checks that they match.
fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let failed = |path: &Path, why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let chain = pem::certificates(cert)?;
    let secret = pem::read(key)?;
    if is_encrypted(&secret) {
        return Err(format!("{} {ENCRYPTED_KEY}", key.display()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|_| failed(key, &"holds no private key in PEM"))?;
    let secret = any_supported_type(&secret)
        .map_err(|_| failed(key, &"holds a key that is neither RSA, ECDSA nor Ed25519"))?;
    let certified = CertifiedKey::new(chain, secret);
    certified.keys_match().map_err(|_| {
        failed(key, &format!("is not the key of the certificate {}", cert.display()))
    })?;
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
    fn an_unusable_file_is_named_in_the_error() {
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

    /// The first certificate in use, by its bytes.
    fn in_use(certificates: &Certificates) -> Vec<u8> {
        certificates.in_use.load()[0].cert[0].to_vec()
    }

    #[test]
    fn a_changed_pair_is_loaded_and_half_of_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        std::fs::copy(CERT, &cert).unwrap();
        std::fs::copy(KEY, &key).unwrap();
        let listener =
            TlsListener { listen: "127.0.0.1:0".into(), cert: cert.clone(), key: key.clone() };
        let all = Certificates::load_all(&[listener]).unwrap();
        let (_, certificates) = &all[0];
        let first = in_use(certificates);

        let new = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
        std::fs::write(&cert, new.cert.pem()).unwrap();
        certificates.reload(false);
        assert_eq!(in_use(certificates), first, "the key still belongs to the old certificate");
        std::fs::remove_file(&cert).unwrap();
        certificates.reload(false);
        assert_eq!(in_use(certificates), first, "the file is missing");

        // Editors replace a file by renaming a new one over it.
        std::fs::write(dir.path().join("new"), new.cert.pem()).unwrap();
        std::fs::rename(dir.path().join("new"), &cert).unwrap();
        std::fs::write(&key, new.signing_key.serialize_pem()).unwrap();
        certificates.reload(false);
        assert_eq!(in_use(certificates), new.cert.der().to_vec());
    }
}
