//! An upstream of one's own: here it prints each batch as NDJSON.
//!
//! ```text
//! cargo run --example upstream -- 127.0.0.1:8085 data/upstream
//! curl -i 'http://127.0.0.1:8085/v1/event/?_a=62515&_n=signup'
//! ```
//!
//! `send` makes one attempt and says what became of it. Retries, waits, splits, dead letters and
//! metrics are the gate's. `batch.id()` is the same in every attempt.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pixelgate::custom::{Failure, PortalFormat, is_bot};
use pixelgate::{Batch, Config, Outcome, PixelGate, Upstream};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

struct Printer;

#[async_trait]
impl Upstream for Printer {
    fn kind(&self) -> &'static str {
        "printer"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let mut lines = Vec::new();
        for event in batch.events() {
            let Ok(event) = event else { return Outcome::Rejected(Failure::new("damaged")) };
            event.write_json(&mut lines, is_bot(event.context.user_agent.as_deref()));
            lines.push(b'\n');
        }
        let written = std::io::stdout().write_all(&lines);
        written.map_or(Outcome::Retry(Failure::new("stdout is gone")), |()| Outcome::Delivered)
    }
}

struct Pixels(PixelGate);

#[async_trait]
impl ProxyHttp for Pixels {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        if self.0.handle(session).await?.is_none() {
            session.respond_error(404).await?; // a proxy returns Ok(false) here
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Error::e_explain(InternalError, "every request is answered above")
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, folder] = &arguments[..] else {
        return Err("usage: upstream LISTEN FOLDER".into());
    };
    let folder = PathBuf::from(folder);
    let mut config = Config::default();
    config.spool.dir = folder.join("spool");
    let gate = PixelGate::builder(config).upstream("printer", Arc::new(Printer));
    let gate = gate.portals("62515", PortalFormat::Text).state_dir(&folder).open()?;

    let conf = ServerConf { grace_period_seconds: Some(0), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let mut service = http_proxy_service(&server.configuration, Pixels(gate.clone()));
    service.add_tcp(listen);
    server.add_service(service);
    server.run(RunArgs::default());
    gate.close(Duration::from_secs(5))?;
    Ok(())
}
