//! Builds a Pingora proxy whose connections to origins are [`OriginStream`]s.

use super::origin_stream::OriginStream;
use super::origin_timeouts::OriginTimeouts;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::HttpServerOptions;
use pingora::connectors::http::custom::{Connection, Connector};
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::listeners::ALPN;
use pingora::protocols::tls::CustomALPN;
use pingora::proxy::{HttpProxy, ProcessCustomSession, ProxyHttp, ProxyServiceBuilder};
use pingora::server::Fds;
use pingora::server::configuration::ServerConf;
use pingora::services::Service;
use pingora::upstreams::peer::{HttpPeer, Peer};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

/// The name of a protocol that makes Pingora call this connector. It is never sent to an origin.
const MARK: &[u8] = b"pixelgate-origin";

/// The proxy that a [`Server`](super::Server) serves.
///
/// ```
/// use pixelgate::http_server::{Proxy, Server};
/// use pixelgate::{Limits, PixelGate};
/// use std::sync::Arc;
///
/// fn server<SV>(proxy: Arc<Proxy<SV>>, gate: PixelGate) -> Server<SV> {
///     Server::new(proxy, gate, Limits::default())
/// }
/// ```
pub type Proxy<SV> = HttpProxy<SV, OriginConnector>;

/// Opens connections to origins. Pingora reads from them only as much as the client takes, and
/// keeps idle ones in its own pool, as it does without a connector.
///
/// ```
/// use pingora::upstreams::peer::HttpPeer;
/// use pixelgate::http_server::OriginConnector;
///
/// // In `upstream_peer`:
/// let mut peer = HttpPeer::new("127.0.0.1:9000", false, String::new());
/// OriginConnector::route(&mut peer);
/// ```
pub struct OriginConnector(OriginTransport);

/// What connections to origins are opened with: the trusted certificates, the options and the
/// timeouts. A clone is another handle to the same transport.
///
/// ```
/// use pingora::connectors::ConnectorOptions;
/// use pixelgate::http_server::{OriginTimeouts, OriginTransport};
///
/// let options = ConnectorOptions::new(128); // most connections that stay open unused
/// let timeouts = OriginTimeouts::default();
/// let transport = OriginTransport::new(options.clone(), timeouts);
/// let handle = transport.clone();
/// handle.replace(options, timeouts); // reads the certificates again
/// ```
#[derive(Clone)]
pub struct OriginTransport(Arc<ArcSwap<Transport>>);

struct Transport {
    connector: TransportConnector,
    timeouts: OriginTimeouts,
}

impl OriginTransport {
    /// Reads the trusted certificates of `options`.
    ///
    /// # Panics
    ///
    /// `options.ca_file` holds no certificate. Or there is no such file, and a certificate of the
    /// machine cannot be used.
    pub fn new(options: ConnectorOptions, timeouts: OriginTimeouts) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Transport::new(options, timeouts))))
    }

    /// Opens each later connection with these options and timeouts, and reads the trusted
    /// certificates again.
    ///
    /// # Panics
    ///
    /// `options.ca_file` holds no certificate. Or there is no such file, and a certificate of the
    /// machine cannot be used.
    pub fn replace(&self, options: ConnectorOptions, timeouts: OriginTimeouts) {
        self.0.store(Arc::new(Transport::new(options, timeouts)));
    }
}

impl Transport {
    fn new(options: ConnectorOptions, timeouts: OriginTimeouts) -> Self {
        Self { connector: TransportConnector::new(Some(options)), timeouts }
    }
}

impl OriginConnector {
    /// Makes Pingora open its connections to this HTTP/1 origin by the connector. Without this, a
    /// response of the origin may take up to 840 KiB of memory for a client that does not read.
    pub fn route(peer: &mut HttpPeer) {
        peer.options.alpn = ALPN::Custom(CustomALPN::new(MARK.to_vec()));
    }
}

#[async_trait]
impl Connector for OriginConnector {
    type Session = ();

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> pingora::Result<(Connection<()>, bool)> {
        let mut peer = peer.clone();
        if let Some(options) = peer.get_mut_peer_options() {
            options.alpn = ALPN::H1;
        }
        let OriginConnector(OriginTransport(transport)) = self;
        let transport = transport.load_full();
        let stream = transport.connector.new_stream(&peer).await?;
        let stream = OriginStream::new(stream, transport.timeouts);
        Ok((Connection::Stream(Box::new(stream)), false))
    }

    /// Gives none: all sessions are HTTP/1 sessions of Pingora, which reuses them itself.
    async fn reused_http_session<P: Peer + Send + Sync + 'static>(&self, _: &P) -> Option<()> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        (): (),
        _: &P,
        _: Option<Duration>,
    ) {
    }
}

/// A proxy for `inner`. Call this outside of async code.
///
/// Pingora builds a proxy with a connector only as the application of one of its services, and
/// hands it out only to a connection of that service. So this starts such a service on a port of
/// the loopback interface, connects to it once, and ends it.
///
/// ```
/// # use pingora::proxy::ProxyHttp;
/// # use pingora::server::configuration::ServerConf;
/// # use pixelgate::http_server::{self, Proxy};
/// # use std::sync::Arc;
/// # fn build<SV>(my_proxy: SV) -> std::io::Result<Arc<Proxy<SV>>>
/// # where
/// #     SV: ProxyHttp + Send + Sync + 'static,
/// #     SV::CTX: Send + Sync,
/// # {
/// let proxy = http_server::proxy(&Arc::new(ServerConf::default()), my_proxy)?;
/// # Ok(proxy)
/// # }
/// ```
///
/// # Errors
///
/// The system refused a socket on the loopback interface.
pub fn proxy<SV>(conf: &Arc<ServerConf>, inner: SV) -> io::Result<Arc<Proxy<SV>>>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync + 'static,
{
    let options = ConnectorOptions::from_server_conf(conf);
    proxy_with(conf, inner, OriginTransport::new(options, OriginTimeouts::default()))
}

/// Does what [`proxy`] does, with connections to origins that `transport` opens.
///
/// ```
/// # use pingora::connectors::ConnectorOptions;
/// # use pingora::proxy::ProxyHttp;
/// # use pingora::server::configuration::ServerConf;
/// # use pixelgate::http_server::{self, OriginTimeouts, OriginTransport, Proxy};
/// # use std::sync::Arc;
/// # fn build<SV>(conf: &Arc<ServerConf>, my_proxy: SV) -> std::io::Result<Arc<Proxy<SV>>>
/// # where
/// #     SV: ProxyHttp + Send + Sync + 'static,
/// #     SV::CTX: Send + Sync,
/// # {
/// let options = ConnectorOptions::from_server_conf(conf);
/// let transport = OriginTransport::new(options, OriginTimeouts::default());
/// let proxy = http_server::proxy_with(conf, my_proxy, transport.clone())?;
/// # Ok(proxy)
/// # }
/// ```
///
/// # Errors
///
/// The errors of [`proxy`].
pub fn proxy_with<SV>(
    conf: &Arc<ServerConf>,
    inner: SV,
    transport: OriginTransport,
) -> io::Result<Arc<Proxy<SV>>>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync + 'static,
{
    let connector = OriginConnector(transport);
    let (sender, mut receiver) = mpsc::channel(1);
    let hand_out: ProcessCustomSession<SV, OriginConnector> = Arc::new(move |proxy, _, _| {
        // Fails only for a second connection, and this server makes one only.
        let _ = sender.try_send(proxy);
        Box::pin(async { None })
    });
    let mut server_options = HttpServerOptions::default();
    server_options.force_custom = true;
    let builder = ProxyServiceBuilder::new(conf, inner).custom(connector, hand_out);
    let mut service = builder.server_options(server_options).build();

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    service.add_tcp(&address.to_string());
    let mut sockets = Fds::new();
    sockets.add(address.to_string(), listener.into_raw_fd());
    let sockets = Some(Arc::new(Mutex::new(sockets)));
    let (_stop, stopping) = watch::channel(false);
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let handed_out = async {
            let _connection = TcpStream::connect(address).await?;
            receiver.recv().await.ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
        };
        tokio::select! {
            proxy = handed_out => proxy,
            () = service.start_service(sockets, stopping, 1) => {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    })
}
