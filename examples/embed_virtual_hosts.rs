//! A gate for each host name in one process, and an access log with the id of each event.
//!
//! ```text
//! cargo run --example embed_virtual_hosts -- 127.0.0.1:8082 data/hosts a.example=62515 b.example=7
//! curl -H 'Host: a.example' 'http://127.0.0.1:8082/a.example/?_a=62515&_n=signup'
//! ```
//!
//! Each gate has its own event path, portals, spool and state. They share a registry of metrics.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pixelgate::config::{FileUpstream, Upstream};
use pixelgate::custom::{PortalFormat, Registry};
use pixelgate::{Config, PixelGate, Verdict};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

struct Hosts(HashMap<String, PixelGate>);

#[async_trait]
impl ProxyHttp for Hosts {
    type CTX = Option<Verdict>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let host = session.get_header("host").and_then(|host| host.to_str().ok());
        if let Some(gate) = host.and_then(|host| self.0.get(host)) {
            *ctx = gate.handle(session).await?;
        }
        Ok(ctx.is_some())
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        Error::e_explain(HTTPStatus(404), "only events are served")
    }

    async fn logging(&self, _: &mut Session, _: Option<&Error>, verdict: &mut Self::CTX) {
        if let Some(verdict) = verdict {
            println!("{verdict} portal={:?} id={:?}", verdict.portal(), verdict.event_id());
        }
    }
}

fn open(host: &str, portals: &str, folder: &str, registry: &Registry) -> PixelGate {
    let folder = Path::new(folder);
    let mut config = Config::default();
    config.events.path = format!("/{host}/");
    config.spool.dir = folder.join("spool");
    config.upstream = vec![Upstream::new("files", FileUpstream::new(folder.join("events")))];
    let gate = PixelGate::builder(config).name(host).registry(registry.clone());
    gate.portals(portals, PortalFormat::Text).state_dir(folder).open().expect("a gate")
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, folder, hosts @ ..] = &arguments[..] else {
        return Err("usage: embed_virtual_hosts LISTEN FOLDER HOST=PORTAL...".into());
    };
    let (registry, mut gates) = (Registry::new(), HashMap::new());
    for host in hosts {
        let (host, portal) = host.split_once('=').ok_or("a host is HOST=PORTAL")?;
        gates.insert(host.to_owned(), open(host, portal, &format!("{folder}/{host}"), &registry));
    }
    let all: Vec<PixelGate> = gates.values().cloned().collect();
    let conf = ServerConf { grace_period_seconds: Some(0), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let mut service = http_proxy_service(&server.configuration, Hosts(gates));
    service.add_tcp(listen);
    server.add_service(service);
    server.run(RunArgs::default());
    println!("{}", prometheus::TextEncoder::new().encode_to_string(&registry.gather())?);
    all.iter().try_for_each(|gate| gate.close(Duration::from_secs(5)))?;
    Ok(())
}
