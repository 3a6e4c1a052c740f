//! The calls of a gate that a host makes by itself: without Pingora's server, on a runtime of one
//! thread, and with a clock, a registry, a portal list and an upstream of its own.

use crate::harness::{PATIENCE, wait_for};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::prelude::*;
use pingora::protocols::http::ServerSession;
use pingora::server::configuration::ServerConf;
use pingora::services::Service;
use pixelgate::config::{Durability, FileUpstream};
use pixelgate::custom::{Clock, InFlight, PortalFormat, Refusal, Registry, SystemClock};
use pixelgate::http_server::{self, Acceptor, Limits, Listener};
use pixelgate::{Batch, Builder, Config, Outcome, PixelGate, Reason, Upstream, Verdict};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::ThreadId;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(10);
/// 2030-01-01T00:00:00Z.
const YEAR_2030_MS: u64 = 1_893_456_000_000;

/// A clock that stands still.
struct Fixed;

impl Clock for Fixed {
    fn unix_ms(&self) -> u64 {
        YEAR_2030_MS
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// The system's clock, which counts how often the date is read on the thread that made it.
struct Counting {
    thread: ThreadId,
    dates: AtomicU64,
}

impl Clock for Counting {
    fn unix_ms(&self) -> u64 {
        if std::thread::current().id() == self.thread {
            self.dates.fetch_add(1, Relaxed);
        }
        SystemClock.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }
}

/// An upstream that keeps the wire form of what it gets.
#[derive(Default)]
struct Kept(Mutex<Vec<serde_json::Value>>);

#[async_trait]
impl Upstream for Kept {
    fn kind(&self) -> &'static str {
        "kept"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        for event in batch.events() {
            let mut json = Vec::new();
            event.unwrap().write_json(&mut json, false);
            self.0.lock().push(serde_json::from_slice(&json).unwrap());
        }
        Outcome::Delivered
    }
}

fn config(dir: &TempDir) -> Config {
    let mut config = Config::default();
    config.spool.dir = dir.path().join("spool");
    config.response.event_id = true;
    config.batch.linger_ms = 1;
    config
}

/// A gate for portal 62515, and the upstream that gets its events.
fn builder(config: Config, dir: &TempDir) -> (Builder, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let builder = PixelGate::builder(config).state_dir(dir.path()).upstream("kept", kept.clone());
    (builder.portals("62515", PortalFormat::Text), kept)
}

/// The verdict of a request, and the head of its response.
async fn ask(gate: &PixelGate, method: &str, target: &str) -> (Option<Verdict>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let stream: pingora::protocols::l4::stream::Stream = listener.accept().await.unwrap().0.into();
    let mut session = ServerSession::new_http1(Box::new(stream));
    assert!(session.read_request().await.unwrap());
    session.set_keepalive(None);
    let verdict = gate.handle_downstream(&mut session).await.unwrap();
    match verdict.is_some() {
        true => drop(session.finish().await.unwrap()),
        false => drop(session),
    }
    let mut response = Vec::new();
    client.read_to_end(&mut response).await.unwrap();
    (verdict, String::from_utf8_lossy(&response).into_owned())
}

async fn judge(gate: &PixelGate, query: &str) -> Verdict {
    ask(gate, "GET", &format!("/v1/event/?{query}")).await.0.unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn a_verdict_says_what_became_of_which_event() {
    let dir = tempfile::tempdir().unwrap();
    let gate = builder(config(&dir), &dir).0.clock(Arc::new(Fixed)).open().unwrap();

    let (verdict, response) = ask(&gate, "GET", "/v1/event/?_a=62515&_n=buy%20it").await;
    let verdict = verdict.unwrap();
    assert!(verdict.is_accepted());
    assert_eq!((verdict.portal(), verdict.event_name()), (Some(62515), Some("buy it")));
    let id = verdict.event_id().unwrap();
    assert_eq!(id.received_at_ms(), YEAR_2030_MS);
    assert!(response.contains(&format!("X-Event-Id: {id}\r\n")), "{response}");
    assert_eq!(verdict.committed_at_ms(), Some(YEAR_2030_MS));
    assert_eq!((verdict.to_string(), verdict.reason()), ("accepted".to_owned(), None));
    assert!(!format!("{verdict:?}").contains("buy it"), "the caller's text is not for a log");

    let check = async |query: &str, reason: Reason, portal: Option<u64>, name: Option<&str>| {
        let verdict = judge(&gate, query).await;
        assert_eq!(verdict.to_string(), format!("rejected; reason={}", reason.as_str()));
        assert_eq!((verdict.reason(), verdict.portal()), (Some(reason), portal), "{query}");
        assert_eq!((verdict.event_name(), verdict.event_id()), (name, None), "{query}");
        assert_eq!(verdict.committed_at_ms(), None);
    };
    check("_a=7&_n=x", Reason::PortalNotAllowed, Some(7), Some("x")).await;
    check("_a=7&_n=x&email=x", Reason::InvalidEmail, Some(7), Some("x")).await;
    check("_a=7&_n=x&email=%ff&x=\u{fc}", Reason::InvalidEncoding, Some(7), Some("x")).await;
    check("_a=7", Reason::MissingEvent, Some(7), None).await;
    check("_n=x", Reason::MissingPortal, None, None).await;

    let (head, _) = ask(&gate, "HEAD", "/v1/event/?_a=7&_n=x").await;
    assert_eq!(head.unwrap().to_string(), "not_judged");
    assert_eq!(ask(&gate, "GET", "/page").await.0, None);
    gate.close_async(LIMIT).await.unwrap();
    check("_a=62515&_n=x", Reason::Overloaded, Some(62515), Some("x")).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_accepted_event_reads_the_date_once_on_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let thread = std::thread::current().id();
    let clock = Arc::new(Counting { thread, dates: AtomicU64::new(0) });
    let gate = builder(config(&dir), &dir).0.clock(clock.clone()).open().unwrap();
    let before = clock.dates.load(Relaxed);
    let verdict = judge(&gate, "_a=62515&_n=x").await;
    assert!(verdict.committed_at_ms() >= verdict.event_id().map(|id| id.received_at_ms()));
    assert_eq!(clock.dates.load(Relaxed) - before, 1, "for the id alone");
    gate.close_async(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn without_a_commit_there_is_no_time_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.spool.durability = Durability::Memory;
    let gate = builder(config, &dir).0.open().unwrap();
    let verdict = judge(&gate, "_a=62515&_n=x").await;
    assert!(verdict.is_accepted() && verdict.committed_at_ms().is_none());
    gate.close_async(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn delivery_runs_on_the_hosts_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let (builder, kept) = builder(config(&dir), &dir);
    let gate = builder.runtime(tokio::runtime::Handle::current()).open().unwrap();
    assert!(judge(&gate, "_a=62515&_n=x").await.is_accepted());
    let delivered = async {
        while kept.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.expect("the event to be delivered");
    assert_eq!(kept.0.lock()[0]["event"], "x");
    gate.close_async(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_host_replaces_its_portal_list_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let gate = builder(config(&dir), &dir).0.open().unwrap();
    assert!(judge(&gate, "_a=62515&_n=x").await.is_accepted());
    gate.put_portals("portals = [7]", PortalFormat::Toml).unwrap();
    assert!(judge(&gate, "_a=7&_n=x").await.is_accepted());
    assert_eq!(judge(&gate, "_a=62515&_n=x").await.reason(), Some(Reason::PortalNotAllowed));

    let error = gate.put_portals("portals = [x]", PortalFormat::Toml).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    let status = gate.gate().portals().status();
    assert_eq!((status.count, status.failures, status.fresh), (1, 1, false));
    assert!(judge(&gate, "_a=7&_n=x").await.is_accepted());
    gate.put_portals("7\n8\n", PortalFormat::Text).unwrap();
    assert!(gate.gate().portals().status().fresh);
    gate.close_async(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn metrics_are_in_the_hosts_registry_as_long_as_the_gate_is() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new();
    let open = || builder(config(&dir), &dir).0.name("shop").registry(registry.clone()).open();
    let gate = open().unwrap();
    assert!(judge(&gate, "_a=62515&_n=x").await.is_accepted());
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let line = "pixelgate_requests_total{gate=\"shop\",verdict=\"accepted\"} 1\n";
    assert!(text.contains(line), "{text}");
    let error = open().map(drop).unwrap_err();
    assert_eq!(error.to_string(), "the metrics cannot be registered");
    gate.close_async(LIMIT).await.unwrap();
    drop(gate);
    assert_eq!(registry.gather().len(), 0);
    open().unwrap().close_async(LIMIT).await.unwrap();
}

#[test]
fn a_configured_upstream_and_the_hosts_own_both_get_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("events");
    let mut config = config(&dir);
    config.upstream = vec![pixelgate::config::Upstream::new("files", FileUpstream::new(&files))];
    let (builder, kept) = builder(config, &dir);
    let gate = builder.open().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(judge(&gate, "_a=62515&_n=x")).is_accepted());
    wait_for("both upstreams", || {
        let written = std::fs::read_dir(&files).unwrap().count();
        written > 0 && !kept.0.lock().is_empty()
    });
    gate.close(LIMIT).unwrap();
}

/// A host whose proxy answers events and nothing else.
struct Host(PixelGate);

#[async_trait]
impl ProxyHttp for Host {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        Ok(self.0.handle(session).await?.is_some())
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Error::e_explain(InternalError, "only events are sent")
    }
}

/// The HTTP server of the library around [`Host`], listening.
fn serve(gate: &PixelGate, runtime: &tokio::runtime::Runtime) -> SocketAddr {
    let proxy = http_server::proxy(&Arc::new(ServerConf::default()), Host(gate.clone())).unwrap();
    let server = http_server::Server::new(proxy, gate.clone(), Limits::default());
    let mut acceptor = Acceptor::new("front", server);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    acceptor.listen(Listener::tcp(socket));
    runtime.spawn(async move {
        let (_never, stopped) = watch::channel(false);
        acceptor.start_service(None, stopped, 1).await;
    });
    address
}

/// The verdict that a request over HTTP/2 gets.
async fn verdict_h2(address: SocketAddr, target: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://edge.test{target}")).body(()).unwrap();
    let response = send.send_request(request, true).unwrap().0.await.unwrap();
    response.headers()["x-event-verdict"].to_str().unwrap().to_owned()
}

/// The verdict that a request over HTTP/1 gets.
async fn verdict_h1(address: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.take(4096).read_to_string(&mut response).await.ok();
    let verdict = response.split("X-Event-Verdict: ").nth(1).unwrap();
    verdict.split("\r\n").next().unwrap().to_owned()
}

#[test]
fn an_inspector_sees_events_in_every_way_they_come_and_explain_asks_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.response.body = pixelgate::config::ResponseBody::Empty;
    let (builder, kept) = builder(config, &dir);
    let list = "[[portal]]\nid = 62515\nrate = { per_second = 1, burst = 4 }\n\
                drop_properties = [\"secret\"]\n";
    let builder = builder.in_flight(InFlight::default()).clock(Arc::new(Fixed));
    let gate = builder.portals(list, PortalFormat::Toml).inspect(|event, context| {
        assert!(event.properties.is_empty(), "what is not stored is not shown");
        if event.name == "bad" {
            return Err(Refusal::new("the host says no"));
        }
        context.add("name", &event.name).map_err(|_| Refusal::new("the name cannot be added"))
    });
    let gate = gate.open().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let address = serve(&gate, &runtime);

    let refused = "rejected; reason=refused_by_host";
    runtime.block_on(async {
        for target in ["/v1/event/", "http://edge.test/v1/event/"] {
            let of = |name: &str| format!("{target}?_a=62515&_n={name}&secret=1");
            assert_eq!(verdict_h1(address, &of("good")).await, "accepted");
            assert_eq!(verdict_h1(address, &of("bad")).await, refused);
        }
        assert_eq!(verdict_h2(address, "/v1/event/?_a=62515&_n=good").await, "accepted");
        assert_eq!(verdict_h2(address, "/v1/event/?_a=62515&_n=bad").await, refused);
        assert!(judge(&gate, "_a=62515&_n=good").await.is_accepted());
        let verdict = judge(&gate, "_a=62515&_n=bad").await;
        assert_eq!(verdict.rejection().unwrap().host_reason, Some("the host says no"));
        // The four accepted events have used up the rate; a refused one uses none of it.
        assert_eq!(judge(&gate, "_a=62515&_n=good").await.reason(), Some(Reason::RateLimited));
    });
    let (_, reasons) = gate.metrics().verdicts();
    assert!(reasons.contains(&(Reason::RefusedByHost, 4)), "{reasons:?}");
    let explanation = pixelgate::tools::explain(&gate.gate(), &[], "_a=62515&_n=bad").unwrap();
    let text = explanation.to_text();
    assert!(text.contains("refused_by_host (status 403)"), "{text}");
    assert!(text.contains("the host's reason: the host says no"), "{text}");
    wait_for("four events", || kept.0.lock().len() == 4);
    for event in &*kept.0.lock() {
        assert_eq!(event["context"]["added"], serde_json::json!({ "name": "good" }));
    }
    gate.close(LIMIT).unwrap();
}
