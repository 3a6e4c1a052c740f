//! The `http` upstream over TLS: which authorities it trusts, its client certificate, and the
//! protocol that it negotiates. The certificates are made for each run.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use crate::authority::{Authority, write};
use crate::backend::Backend;
use crate::delivery::Rig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

impl Authority {
    fn server(&self, name: &str, clients: Option<&Authority>, alpn: &[&str]) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = self.sign(name);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Terminates TLS and forwards the bytes to the backend.
async fn terminate(acceptor: TlsAcceptor, backend: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                let mut plain = TcpStream::connect(backend).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    addr
}

fn upstream(addr: SocketAddr, rest: &str) -> String {
    let port = addr.port();
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'out'\nkind = 'http'\nurl = 'https://localhost:{port}/'\n{rest}\n"
    )
}

async fn check_delivered(backend: &Backend, config: &str) {
    let mut rig = Rig::start(config);
    rig.accept(120);
    rig.settled("out").await;
    assert_eq!(rig.check("out", &backend.events()), 0);
    rig.stop().await;
}

async fn check_refused(config: &str) {
    let mut rig = Rig::start(config);
    rig.accept(120);
    rig.until("out", |s| s.last_error.is_some()).await;
    assert_eq!(rig.counts("out").delivered, 0);
    rig.stop().await;
}

#[tokio::test]
async fn only_the_configured_authority_is_trusted() {
    let (ours, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "ours.pem", &ours.pem);
    let trusting = format!("ca = '{ca}'");
    let backend = Backend::playing([]).await;

    let addr = terminate(ours.server("localhost", None, &["http/1.1"]), backend.addr()).await;
    check_delivered(&backend, &upstream(addr, &trusting)).await;
    // The system's authorities do not include this one.
    check_refused(&upstream(addr, "")).await;
    // A certificate of another authority or for another host is refused.
    let addr = terminate(other.server("localhost", None, &["http/1.1"]), backend.addr()).await;
    check_refused(&upstream(addr, &trusting)).await;
    let addr = terminate(ours.server("elsewhere", None, &["http/1.1"]), backend.addr()).await;
    check_refused(&upstream(addr, &trusting)).await;
}

#[tokio::test]
async fn a_backend_that_asks_for_a_certificate_gets_the_configured_one() {
    let (ours, clients) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "ca.pem", &ours.pem);
    let (certificate, key) = clients.sign("edge");
    let cert = write(dir.path(), "edge.pem", &certificate.pem());
    let key = write(dir.path(), "edge.key", &key.serialize_pem());
    let backend = Backend::playing([]).await;
    let server = ours.server("localhost", Some(&clients), &["http/1.1"]);
    let addr = terminate(server, backend.addr()).await;
    check_refused(&upstream(addr, &format!("ca = '{ca}'"))).await;
    let rest = format!("ca = '{ca}'\ncert = '{cert}'\nkey = '{key}'");
    check_delivered(&backend, &upstream(addr, &rest)).await;
}

#[tokio::test]
async fn http2_is_used_where_the_backend_offers_it() {
    let ours = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "ca.pem", &ours.pem);
    let acceptor = ours.server("localhost", None, &["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let taken: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
    let shared = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, taken) = (acceptor.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let tls = acceptor.accept(stream).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let taken = Arc::clone(&taken);
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut bytes = Vec::new();
                        while let Some(Ok(chunk)) = body.data().await {
                            body.flow_control().release_capacity(chunk.len()).unwrap();
                            bytes.extend_from_slice(&chunk);
                        }
                        let events: Vec<_> = serde_json::from_slice(&bytes).unwrap();
                        taken.lock().unwrap().extend(events);
                        respond.send_response(http::Response::new(()), true).unwrap();
                    });
                }
            });
        }
    });
    let mut rig = Rig::start(&upstream(addr, &format!("ca = '{ca}'\ncompression = 'none'")));
    rig.accept(500);
    rig.settled("out").await;
    assert_eq!(rig.check("out", &taken.lock().unwrap()), 0);
    rig.stop().await;
}
