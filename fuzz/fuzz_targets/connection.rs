//! Sends arbitrary bytes, in pieces, to the HTTP server with Pingora and no origin behind it. The
//! server must not panic, must end every connection, and must answer no event as accepted that it
//! did not record.
//!
//! The first input byte, plus 1, is the length of the pieces in bytes.

#![no_main]

use async_trait::async_trait;
use edge::http_server::{BufferedBytes, Limits, Server, proxy};
use edge::config::{Durability, FileUpstream, Upstream};
use edge::{Config, PixelGate};
use libfuzzer_sys::fuzz_target;
use pingora::apps::ServerApp;
use pingora::http::ResponseHeader;
use pingora::prelude::{HttpPeer, ProxyHttp, Session};
use pingora::server::configuration::ServerConf;
use pingora::{Error, ErrorType, Result};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// A connection that lasts longer counts as one that never ends.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pipe capacity in bytes: more than the responses to any input, so that no write blocks.
const PIPE_BYTES: usize = 16 << 20;

/// A proxy without an origin: it answers 404 to all but event requests.
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

    // Fuzzing causes millions of errors; do not log them.
    fn suppress_error_log(&self, _: &Session, _: &(), _: &Error) -> bool {
        true
    }
}

struct Edge {
    runtime: Runtime,
    gate: PixelGate,
    server: Arc<Server<Host>>,
    // Dropping the sender would signal a stop.
    _stop: watch::Sender<bool>,
    stopping: watch::Receiver<bool>,
}

static EDGE: LazyLock<Edge> = LazyLock::new(|| {
    // Removes what an earlier process of this id left.
    let dir = std::env::temp_dir().join(format!("pixelgate-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a folder");
    let portals = dir.join("portals.txt");
    std::fs::write(&portals, "1\n62515\n").expect("a portal list");
    let mut config = Config::default();
    config.portals.source = portals.display().to_string();
    config.spool.dir = dir.join("spool");
    config.upstream = vec![Upstream::new("file", FileUpstream::new(dir.join("events")))];
    config.spool.durability = Durability::Memory;
    config.events.methods = vec!["GET".to_owned(), "POST".to_owned()];
    let gate = PixelGate::builder(config)
        .state_dir(&dir)
        .open()
        .expect("a gate");
    let proxy = proxy(&Arc::new(ServerConf::default()), Host(gate.clone())).expect("a proxy");
    let mut limits = Limits::default();
    (limits.header_lines_max, limits.header_bytes_max) = (20, 2048);
    let server = Server::new(proxy, gate.clone(), limits);
    let server = Arc::new(server.buffered_bytes(BufferedBytes::new(1 << 20)));
    let (stop, stopping) = watch::channel(false);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    Edge { runtime, gate, server, _stop: stop, stopping }
});

/// The response bytes to `bytes`, sent in pieces of `piece` bytes.
async fn exchange(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let server = EDGE.server.clone();
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
    let (_, answers) = tokio::join!(server.process_new(Box::new(near), &EDGE.stopping), client);
    answers
}

/// Number of accepted-event responses with a pixel; a response to `HEAD` has none.
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
        let exchange = exchange(bytes, usize::from(*piece) + 1);
        let exchange = tokio::time::timeout(CONNECTION_TIMEOUT, exchange);
        exchange.await.expect("every connection ends")
    });
    let (after, _) = edge.gate.metrics().verdicts();
    // HTTP/2 responses are not parsed here.
    if bytes.starts_with(b"PRI ") || contains(bytes, b"PRI * HTTP/2.0") {
        return;
    }
    // A request whose body is incomplete is neither.
    assert_eq!(pixels(&answers), after - before, "answered and recorded");
});
