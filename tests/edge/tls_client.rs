//! A TLS client with a chosen configuration that returns what was negotiated.

use crate::harness::PATIENCE;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// The certificate of `edge.test`, and its key.
pub const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.pem");
pub const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/edge.key");

pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A client configuration that trusts only the given certificates.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    /// A client that trusts these files and speaks TLS 1.2 and 1.3.
    pub fn trusting(files: &[&Path]) -> Client {
        Self::with(files, rustls::ALL_VERSIONS, &[])
    }

    /// A client with these TLS versions and ALPN protocols.
    pub fn with(
        files: &[&Path],
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Client {
        let mut roots = RootCertStore::empty();
        for file in files {
            for certificate in CertificateDer::pem_file_iter(file).unwrap() {
                roots.add(certificate.unwrap()).unwrap();
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Client { config: Arc::new(config) }
    }

    /// A connection with a finished handshake.
    pub fn connect(&self, address: SocketAddr, name: &str) -> io::Result<Stream> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection =
            ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

/// The negotiated TLS version.
pub fn version(stream: &Stream) -> ProtocolVersion {
    stream.conn.protocol_version().unwrap()
}

/// The server's certificate, DER.
pub fn shown(stream: &Stream) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}
