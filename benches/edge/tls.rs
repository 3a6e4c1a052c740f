//! TLS: one certificate for all servers, ECDSA on P-256, and a client that never resumes.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The host name in the certificate.
pub const NAME: &str = "track.example.com";

static CERTIFICATE: LazyLock<rcgen::CertifiedKey<rcgen::KeyPair>> =
    LazyLock::new(|| rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate"));

/// The certificate and its key, as files in `dir`.
pub fn files(dir: &Path) -> (String, String) {
    let write = |name: &str, pem: String| {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    (
        write("cert.pem", CERTIFICATE.cert.pem()),
        write("key.pem", CERTIFICATE.signing_key.serialize_pem()),
    )
}

/// A full TLS 1.3 handshake, with these protocols offered.
pub async fn connect(stream: TcpStream, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    static CONFIG: LazyLock<ClientConfig> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add(CERTIFICATE.cert.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[&TLS13]).expect("ring has it");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        config
    });
    let mut config = CONFIG.clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(NAME).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
}
