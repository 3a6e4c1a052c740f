//! Any bytes as a connection, cut anywhere: through the front door, past which Pingora waits and
//! nothing else. It never panics, always ends, and answers no event that it did not record.
//!
//! The first byte says how long the pieces are in which the rest arrives.

#![no_main]

use async_trait::async_trait;
use edge::http_server::{Server, InFlight, Limits};
use edge::config::{Durability, FileUpstream, Upstream, UpstreamKind};
use edge::{Config, PixelGate};
use libfuzzer_sys::fuzz_target;
use pingora::apps::ServerApp;
use pingora::http::ResponseHeader;
use pingora::prelude::{HttpPeer, ProxyHttp, Session};
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::{Error, ErrorType, Result};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// After which a connection counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any input's answers: nobody waits for anybody.
const PIPE_BYTES: usize = 16 << 20;

/// A proxy without an origin: what is not an event is answered 404.
struct Host(PixelGate);

#[async_trait]
impl ProxyHttp for Host {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        if self.0.handle(session).await?.is_none() {
            let mut header = ResponseHeader::build(404, Some(3))?;
            header.insert_header("Content-Length", 0)?;
            session.write_response_header(Box::new(header), true).await?;
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Err(Error::new(ErrorType::ConnectNoRoute))
    }

    // A million refusals are no news.
    fn suppress_error_log(&self, _: &Session, _: &(), _: &Error) -> bool {
        true
    }
}

struct Edge {
    runtime: Runtime,
    gate: PixelGate,
    front: Arc<Server<Host>>,
    // Dropped, it would tell everybody to stop.
    _stop: watch::Sender<bool>,
    stopping: watch::Receiver<bool>,
}

static EDGE: LazyLock<Edge> = LazyLock::new(|| {
    // What an earlier run has left there is of no use.
    let dir = std::env::temp_dir().join(format!("pixelgate-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a folder");
    let portals = dir.join("portals.txt");
    std::fs::write(&portals, "1\n62515\n").expect("a portal list");
    let mut config = Config::default();
    config.portals.source = portals.display().to_string();
    config.spool.dir = dir.join("spool");
    config.upstream = vec![Upstream {
        name: "file".to_owned(),
        batch: Default::default(),
        kind: UpstreamKind::File(FileUpstream { dir: dir.join("events"), ..Default::default() }),
    }];
    config.spool.durability = Durability::Memory;
    config.events.methods = vec!["GET".to_owned(), "POST".to_owned()];
    let gate = PixelGate::builder(config)
        .state_dir(&dir)
        .open()
        .expect("a gate");
    let proxy = http_proxy(&Arc::new(ServerConf::default()), Host(gate.clone()));
    let limits = Limits { header_lines_max: 20, header_bytes_max: 2048, ..Limits::default() };
    let front = Arc::new(Server::new(proxy, gate.clone(), InFlight::default(), limits));
    let (stop, stopping) = watch::channel(false);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    Edge { runtime, gate, front, _stop: stop, stopping }
});

/// What the edge answers to these bytes in pieces of this size.
async fn exchange(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let front = EDGE.front.clone();
    let client = async {
        for piece in bytes.chunks(piece) {
            if far.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = far.shutdown().await;
        let mut answers = Vec::new();
        let _ = far.read_to_end(&mut answers).await;
        answers
    };
    let (_, answers) = tokio::join!(front.process_new(Box::new(near), &EDGE.stopping), client);
    answers
}

/// How many accepted events these answers tell of: those with a pixel, as `HEAD` has none.
fn pixels(mut answers: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(end) = answers.windows(4).position(|w| w == b"\r\n\r\n") {
        let (head, body) = answers.split_at(end + 4);
        let accepted = b"X-Event-Verdict: accepted";
        if head.windows(accepted.len()).any(|w| w == accepted) && body.starts_with(b"GIF89a") {
            count += 1;
        }
        answers = body;
    }
    count
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

fuzz_target!(|input: &[u8]| {
    let [piece, bytes @ ..] = input else { return };
    let edge = &*EDGE;
    let (before, _) = edge.gate.metrics().verdicts();
    let answers = edge.runtime.block_on(async {
        let exchange = tokio::time::timeout(PATIENCE, exchange(bytes, usize::from(*piece) + 1));
        exchange.await.expect("every connection ends")
    });
    let (after, _) = edge.gate.metrics().verdicts();
    // Answers in HTTP/2 are not read here.
    if bytes.starts_with(b"PRI ") || contains(bytes, b"PRI * HTTP/2.0") {
        return;
    }
    let (answered, recorded) = (pixels(&answers), after - before);
    assert!(answered <= recorded, "{answered} answered, {recorded} recorded");
    // Whoever owes a body may be gone before its answer.
    if !contains(bytes, b"content-length") && !contains(bytes, b"transfer-encoding") {
        assert_eq!(answered, recorded);
    }
});
