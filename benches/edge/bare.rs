//! Pingora's proxy alone, with an empty `ProxyHttp`: the cost of the runtime below pixelgate.
//!
//! The benchmark starts its own binary for it: see [`FLAG`].

use crate::nginx;
use crate::process::Mode;
use crate::server::{Kind, Server, folder, free_address};
use async_trait::async_trait;
use pingora::prelude::*;
use pingora::proxy::http_proxy_service;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::process::Command;

/// The argument that makes this program the proxy; its address and the origin's follow.
pub const FLAG: &str = "--bare-proxy";

/// Starts the proxy in front of an origin of its own.
pub fn proxy(mode: Mode) -> Server {
    let origin = nginx::origin();
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([FLAG, &address.to_string(), &origin.address.to_string()]);
    let mut server = Server::start(Kind::Unrecorded, mode, folder(), address, &command);
    server.origin = Some(Box::new(origin));
    server
}

/// Serves on one thread until SIGTERM, and then ends at once: Pingora's default is 5 minutes later.
pub fn serve(address: SocketAddr, origin: SocketAddr) {
    let conf = ServerConf {
        threads: 1,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = pingora::server::Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(origin));
    service.add_tcp(&address.to_string());
    server.add_service(service);
    server.run_forever();
}

/// Passes everything on to one origin.
struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}
