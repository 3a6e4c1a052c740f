//! The HTTP server of pixelgate around a host's own proxy: limits on connections, strict framing,
//! and a fast path that answers ordinary events without Pingora.
//!
//! ```text
//! cargo run --example embed_front -- 127.0.0.1:8084 127.0.0.1:9000 data/front
//! ```
//!
//! Pingora's `http_proxy_service` is replaced by `proxy`, `Server` and `Acceptor`. The proxy itself
//! is the same: `handle` in its `request_filter` answers what the fast path leaves.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pixelgate::config::{FileUpstream, Upstream};
use pixelgate::custom::{InFlight, InFlightGuard, PortalFormat};
use pixelgate::http_server::{self, Acceptor, Limits, Listener, OriginConnector};
use pixelgate::{Config, PixelGate};
use std::path::PathBuf;
use std::time::Duration;

struct MyProxy {
    pixels: PixelGate,
    backend: String,
    in_flight: InFlight,
}

#[async_trait]
impl ProxyHttp for MyProxy {
    type CTX = InFlightGuard; // counts the request until it is answered

    fn new_ctx(&self) -> InFlightGuard {
        self.in_flight.enter()
    }

    async fn request_filter(&self, session: &mut Session, _: &mut Self::CTX) -> Result<bool> {
        Ok(self.pixels.handle(session).await?.is_some())
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.backend.as_str(), false, String::new());
        OriginConnector::route(&mut peer);
        Ok(Box::new(peer))
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(backend), Some(folder)) =
        (arguments.next(), arguments.next(), arguments.next().map(PathBuf::from))
    else {
        return Err("usage: embed_front LISTEN BACKEND FOLDER".into());
    };
    let mut config = Config::default();
    config.spool.dir = folder.join("spool");
    config.upstream = vec![Upstream::new("files", FileUpstream::new(folder.join("events")))];
    let in_flight = InFlight::default();
    let pixels = PixelGate::builder(config).portals("62515", PortalFormat::Text);
    let pixels = pixels.in_flight(in_flight.clone()).state_dir(&folder).open()?;

    let conf = ServerConf { grace_period_seconds: Some(0), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let proxy = MyProxy { pixels: pixels.clone(), backend, in_flight };
    let proxy = http_server::proxy(&server.configuration, proxy)?;
    let mut limits = Limits::default();
    limits.header_timeout = Duration::from_secs(5);
    let front = http_server::Server::new(proxy, pixels.clone(), limits);
    let mut acceptor = Acceptor::new("front", front);
    let socket = std::net::TcpListener::bind(listen)?;
    socket.set_nonblocking(true)?;
    acceptor.listen(Listener::tcp(socket));
    server.add_service(acceptor);
    server.run(RunArgs::default());
    pixels.close(Duration::from_secs(5))?;
    Ok(())
}
