//! Adds pixelgate to your own Pingora proxy.
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
use pixelgate::{PixelGate, Verdict};
use std::time::Duration;

struct MyProxy {
    pixels: PixelGate,
    backend: String,
}

#[derive(Default)]
struct MyCtx {
    verdict: Option<Verdict>,
}

#[async_trait]
impl ProxyHttp for MyProxy {
    type CTX = MyCtx;

    fn new_ctx(&self) -> MyCtx {
        MyCtx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut MyCtx) -> Result<bool> {
        ctx.verdict = self.pixels.handle(session).await?; // None: another path
        Ok(ctx.verdict.is_some()) // Some: answered
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut MyCtx) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend.as_str(), false, String::new())))
    }

    async fn logging(&self, _: &mut Session, _: Option<&Error>, ctx: &mut MyCtx) {
        if let Some(verdict) = ctx.verdict {
            println!("{verdict:?}");
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: embed LISTEN BACKEND PORTALS [FOLDER]";
    let (listen, backend, portals) = match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(listen), Some(backend), Some(portals)) => (listen, backend, portals),
        _ => return Err(usage.into()),
    };
    let folder = std::path::PathBuf::from(arguments.next().unwrap_or("data/embed".to_owned()));

    let mut config = pixelgate::Config::default();
    config.portals.source = portals;
    config.spool.dir = folder.join("spool");
    let files =
        pixelgate::config::FileUpstream { dir: folder.join("events"), ..Default::default() };
    config.upstream = vec![pixelgate::config::Upstream {
        name: "file".to_owned(),
        batch: Default::default(),
        attempts_max: 12,
        kind: pixelgate::config::UpstreamKind::File(files),
    }];
    let pixels = PixelGate::builder(config).state_dir(&folder).open()?;

    let conf = ServerConf {
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(5),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let proxy = MyProxy { pixels: pixels.clone(), backend };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(&listen);
    server.add_service(service);
    server.run(RunArgs::default()); // not `run_forever`, which exits the process before `close`
    pixels.close(Duration::from_secs(5))?;
    Ok(())
}
