//! An origin that speaks TLS: it sends one fixed answer and records requests and server names.

use crate::wire::read_head;
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A self-signed certificate.
pub fn certificate(names: &[&str]) -> CertifiedKey<KeyPair> {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    rcgen::generate_simple_self_signed(names).unwrap()
}

/// Writes a certificate and its key in PEM.
pub fn write_pair(pair: &CertifiedKey<KeyPair>, cert: &Path, key: &Path) {
    std::fs::write(key, pair.signing_key.serialize_pem()).unwrap();
    std::fs::write(cert, pair.cert.pem()).unwrap();
}

/// The names in one request: SNI and `Host`.
type Names = (Option<String>, String);

pub struct TlsOrigin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Names>>>,
}

impl TlsOrigin {
    pub fn start(pair: &CertifiedKey<KeyPair>) -> TlsOrigin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let chain = vec![CertificateDer::from(pair.cert.der().to_vec())];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let config = Arc::new(config);
        let origin = TlsOrigin { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let seen = Arc::clone(&origin.seen);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(config.clone()).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, socket));
                while let Some(request) = read_head(&mut stream) {
                    let name = stream.get_ref().conn.server_name().map(str::to_owned);
                    let host = request.header("host").unwrap_or_default().to_owned();
                    seen.lock().unwrap().push((name, host));
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";
                    if stream.get_mut().write_all(answer).is_err() {
                        break;
                    }
                }
            }
        });
        origin
    }

    pub fn seen(&self) -> Vec<Names> {
        self.seen.lock().unwrap().clone()
    }
}
