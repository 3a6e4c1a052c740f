//! Looks at each event before it is stored: adds to its context, or refuses it.
//!
//! ```text
//! cargo run --example embed_inspect -- 127.0.0.1:8083 data/inspect
//! curl -i 'http://127.0.0.1:8083/v1/event/?_a=62515&_n=signup&plan=pro'
//! curl -i 'http://127.0.0.1:8083/v1/event/?_a=62515&_n=internal_test'
//! ```
//!
//! What is added reaches upstreams as `context.added`. A refused event is answered 403
//! `refused_by_host`; the host's reason is in its verdict and in what `explain` says.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pixelgate::config::{FileUpstream, Upstream};
use pixelgate::custom::{Addition, PortalFormat, Refusal};
use pixelgate::{Config, Event, PixelGate};
use std::path::PathBuf;
use std::time::Duration;

fn inspect(event: &Event<'_>, context: &mut Addition<'_, '_>) -> std::result::Result<(), Refusal> {
    if event.name.starts_with("internal_") {
        return Err(Refusal::new("internal events do not come from outside"));
    }
    let paying = event.properties.iter().any(|(name, value)| name == "plan" && value != "free");
    // An error would mean that the name cannot be used.
    let _ = context.add("customer", if paying { "paying" } else { "free" });
    Ok(())
}

struct Pixels(PixelGate);

#[async_trait]
impl ProxyHttp for Pixels {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        match self.0.handle(session).await? {
            None => session.respond_error(404).await?, // a proxy returns Ok(false) here
            Some(verdict) => {
                let refused = verdict.rejection().and_then(|rejection| rejection.host_reason);
                println!("{verdict} {}", refused.unwrap_or_default());
            }
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Error::e_explain(InternalError, "every request is answered above")
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: embed_inspect LISTEN FOLDER".into());
    };
    let folder = PathBuf::from(folder);
    let mut config = Config::default();
    config.spool.dir = folder.join("spool");
    config.upstream = vec![Upstream::new("files", FileUpstream::new(folder.join("events")))];
    let gate = PixelGate::builder(config).portals("62515", PortalFormat::Text).inspect(inspect);
    let gate = gate.state_dir(&folder).open()?;

    let conf = ServerConf { grace_period_seconds: Some(0), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let mut service = http_proxy_service(&server.configuration, Pixels(gate.clone()));
    service.add_tcp(&listen);
    server.add_service(service);
    server.run(RunArgs::default());
    gate.close(Duration::from_secs(5))?;
    Ok(())
}
