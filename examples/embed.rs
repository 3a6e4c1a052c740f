//! Adds pixelgate to your own Pingora proxy: the smallest host.
//!
//! ```text
//! cargo run --example embed -- 127.0.0.1:8081 127.0.0.1:9000 config/portals.toml
//! curl -i 'http://127.0.0.1:8081/v1/event/?_a=62515&_n=signup'
//! ```
//!
//! Two calls are added to an ordinary Pingora proxy: `handle` in `request_filter`, and `close`
//! after the server has stopped.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pixelgate::config::{FileUpstream, Upstream};
use pixelgate::{Config, PixelGate, Verdict};
use std::path::PathBuf;
use std::time::Duration;

struct MyProxy {
    pixels: PixelGate,
    backend: String,
}

#[async_trait]
impl ProxyHttp for MyProxy {
    type CTX = Option<Verdict>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        *ctx = self.pixels.handle(session).await?; // None: another path
        Ok(ctx.is_some()) // Some: answered
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend.as_str(), false, String::new())))
    }

    async fn logging(&self, _: &mut Session, _: Option<&Error>, ctx: &mut Self::CTX) {
        if let Some(verdict) = ctx {
            println!("{verdict}");
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, backend, portals, folder @ ..] = &arguments[..] else {
        return Err("usage: embed LISTEN BACKEND PORTALS [FOLDER]".into());
    };
    let folder = PathBuf::from(folder.first().map_or("data/embed", String::as_str));

    let mut config = Config::default();
    config.portals.source = portals.clone();
    config.spool.dir = folder.join("spool");
    config.upstream = vec![Upstream::new("files", FileUpstream::new(folder.join("events")))];
    let pixels = PixelGate::builder(config).state_dir(&folder).open()?;

    let conf = ServerConf {
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(5),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let proxy = MyProxy { pixels: pixels.clone(), backend: backend.clone() };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(listen);
    server.add_service(service);
    server.run(RunArgs::default()); // not `run_forever`, which exits the process before `close`
    pixels.close(Duration::from_secs(5))?;
    Ok(())
}
