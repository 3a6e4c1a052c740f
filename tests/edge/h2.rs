//! HTTP/2 with the client of the `h2` crate: concurrent streams, trailers, resets, GOAWAY, and
//! requests passed on to an HTTP/1.1 origin.

use crate::delivery::RUNTIME;
use crate::harness::{Edge, PATIENCE, Setup};
use crate::nginx::Nginx;
use crate::tls_client::{CERT, KEY};
use crate::wire::{Act, Origin, Script};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

/// Flow-control window of the client, for each stream and for the connection.
const WINDOW_BYTES: u32 = 16 << 20;

pub struct Client {
    send: SendRequest<Bytes>,
    /// How the connection ends: `Ok` after a GOAWAY without an error.
    end: JoinHandle<Result<(), h2::Error>>,
}

fn start(origin: SocketAddr) -> (Edge, SocketAddr) {
    start_with(Setup::default().origin(origin))
}

pub fn start_with(setup: Setup) -> (Edge, SocketAddr) {
    let tls = format!("tls = [{{ listen = \"127.0.0.1:0\", cert = \"{CERT}\", key = \"{KEY}\" }}]");
    let edge = setup.edge(&tls).start();
    let log = edge.log();
    let address = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let address = address.parse().unwrap();
    (edge, address)
}

/// A client over TLS.
pub async fn connect(address: SocketAddr) -> Client {
    over(tls(address).await).await
}

/// A connection over TLS.
pub async fn tls(address: SocketAddr) -> impl AsyncRead + AsyncWrite + Unpin + Send {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(CERT).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("edge.test").unwrap();
    connector.connect(name, stream).await.unwrap()
}

/// A client over this stream.
pub async fn over<S>(stream: S) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Room for all that a test leaves unread for a while.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let (send, connection) = builder.handshake(stream).await.unwrap();
    Client { send, end: tokio::spawn(connection) }
}

impl Client {
    /// The sender of further requests.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    pub async fn ask(
        &mut self,
        request: http::request::Builder,
        body: Option<Bytes>,
    ) -> ResponseFuture {
        let mut ready = self.send.clone().ready().await.unwrap();
        let (response, mut stream) =
            ready.send_request(request.body(()).unwrap(), body.is_none()).unwrap();
        if let Some(body) = body {
            // A request that was answered by its header alone may be over.
            let _ = stream.send_data(body, true);
        }
        response
    }

    pub async fn get(&mut self, target: &str) -> Answer {
        let response = self.ask(get(target), None).await;
        read(response).await.unwrap()
    }
}

fn get(target: &str) -> http::request::Builder {
    Request::get(format!("https://edge.test{target}"))
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

pub async fn read(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let response = tokio::time::timeout(PATIENCE, response).await.expect("an answer")?;
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = tokio::time::timeout(PATIENCE, stream.data()).await.expect("the body") {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = tokio::time::timeout(PATIENCE, stream.trailers()).await.expect("the end")?;
    Ok(Answer { status: parts.status, headers: parts.headers, body, trailers })
}

#[test]
fn many_streams_at_once_are_each_answered_as_they_should() {
    let nginx = Nginx::start();
    let page = "0123456789".repeat(10_000);
    std::fs::write(nginx.files().join("page"), &page).unwrap();
    let (edge, address) = start(nginx.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let mut asked = Vec::new();
        for n in 0..90 {
            let target = match n % 3 {
                0 => format!("/v1/event/?_a=62515&_n=a&id={n}"),
                1 => "/v1/event/?_a=1&_n=a".to_owned(),
                _ => "/files/page".to_owned(),
            };
            asked.push((n, client.ask(get(&target), None).await));
        }
        // The last answer is read first: none waits for another.
        for (n, response) in asked.into_iter().rev() {
            let answer = read(response).await.unwrap();
            match n % 3 {
                0 => {
                    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 43));
                    assert_eq!(answer.headers["x-event-verdict"], "accepted");
                }
                1 => assert_eq!(answer.status, 403),
                _ => assert!(answer.status == 200 && answer.body == page.as_bytes()),
            }
        }
    });
    assert_eq!(edge.wait_delivered("file")["accepted"], 30);
}

#[test]
fn a_request_over_http2_is_the_same_request_to_an_origin_of_http1() {
    let origin = Origin::start();
    let answer =
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-Empty:\r\n\
                   Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\n\r\nok";
    origin.answer("/a//b/../c?d=%20&&e", answer);
    let (_edge, address) = start(origin.address);
    let long = "x".repeat(20_000);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let request = Request::post("https://edge.test/a//b/../c?d=%20&&e");
        let request = request.header("x-long", &long).header("x-empty", "");
        let request = request.header("cookie", "a=b").header("te", "trailers");
        let response = client.ask(request, Some(Bytes::from_static(b"hello"))).await;
        let answer = read(response).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"ok"[..]));
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.headers["x-empty"], "");
        for name in ["connection", "keep-alive", "transfer-encoding"] {
            assert!(!answer.headers.contains_key(name), "{name} has no place in HTTP/2");
        }
    });
    let seen = origin.take_seen().remove(0);
    assert_eq!(seen.start, "POST /a//b/../c?d=%20&&e HTTP/1.1");
    assert_eq!(seen.body, b"hello");
    for (name, value) in [
        ("host", "edge.test"),
        ("x-long", &long),
        ("x-empty", ""),
        ("cookie", "a=b"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "edge.test"),
        ("te", "trailers"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
}

/// Makes the origin read no body for this target for as long as a test may take.
fn leave_unread(origin: &Origin, target: &str) {
    let before_body = vec![Act::Pause(PATIENCE * 10)];
    origin.on(target, Script { before_body, ..Script::default() });
}

/// More than the windows of a stream and the kernel's buffers hold together.
const LARGE_BYTES: usize = 32 << 20;

#[test]
fn an_upload_that_its_origin_does_not_read_holds_up_no_other() {
    let origin = Origin::start();
    leave_unread(&origin, "/stuck");
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let stuck = Request::put("https://edge.test/stuck");
        let _stuck = client.ask(stuck, Some(vec![1; LARGE_BYTES].into())).await;
        for _ in 0..3 {
            let other = Request::put("https://edge.test/other");
            let response = client.ask(other, Some(vec![2; 3 << 20].into())).await;
            assert_eq!(read(response).await.unwrap().status, 204);
        }
    });
    assert!(origin.take_seen().iter().all(|seen| seen.body.len() == 3 << 20));
}

#[test]
fn uploads_that_are_reset_give_their_window_back() {
    let origin = Origin::start();
    leave_unread(&origin, "/stuck");
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        // Together they fill the window of the connection twice.
        let mut stuck = Vec::new();
        for _ in 0..8 {
            let mut ready = client.send.clone().ready().await.unwrap();
            let request = Request::put("https://edge.test/stuck").body(()).unwrap();
            let (_, mut stream) = ready.send_request(request, false).unwrap();
            stream.send_data(vec![1; LARGE_BYTES].into(), false).unwrap();
            stuck.push(stream);
        }
        crate::harness::wait_for("all to reach the origin", || origin.open() == 8);
        stuck.iter_mut().for_each(|stream| stream.send_reset(h2::Reason::CANCEL));
        let other = Request::put("https://edge.test/other");
        let response = client.ask(other, Some(vec![2; 3 << 20].into())).await;
        assert_eq!(read(response).await.unwrap().status, 204);
    });
}

#[test]
fn a_request_that_waits_for_its_origin_does_not_make_its_connection_idle() {
    let origin = Origin::start();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    // Longer than an idle connection lives.
    let after_body = vec![Act::Pause(Duration::from_secs(6)), Act::Send(answer)];
    origin.on("/slow", Script { after_body, ..Script::default() });
    let limits = "keepalive_seconds = 1\nwrite_timeout_seconds = 1\nheader_timeout_seconds = 1";
    let (_edge, address) = start_with(Setup::default().origin(origin.address).edge(limits));
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let answer = client.get("/slow").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"ok"[..]));
        // Without a request the connection is idle, and ends in order.
        client.end.await.unwrap().unwrap();
    });
}

#[test]
fn early_hints_are_passed_on() {
    let origin = Origin::start();
    origin.answer(
        "/page",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x\r\n\r\n\
          HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let mut response = client.ask(get("/page"), None).await;
        let hints = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(hints.status(), 103);
        assert_eq!(hints.headers()["link"], "</a.css>; rel=preload");
        assert!(!hints.headers().contains_key("connection"));
        assert_eq!(read(response).await.unwrap().body, b"ok");
    });
}

#[test]
fn an_answer_of_the_origin_has_the_date_of_the_origin() {
    const EPOCH: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    let origin = Origin::start();
    let dated = format!("HTTP/1.1 200 OK\r\nDate: {EPOCH}\r\nContent-Length: 2\r\n\r\nok");
    origin.answer("/dated", dated.as_bytes());
    origin.answer("/undated", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        for (target, is_origins) in
            [("/dated", true), ("/undated", false), ("/v1/event/?_a=62515&_n=a", false)]
        {
            let answer = client.get(target).await;
            let dates: Vec<_> = answer.headers.get_all("date").iter().collect();
            assert_eq!(dates.len(), 1, "{target}: {dates:?}");
            assert_eq!(dates[0] == EPOCH, is_origins, "{target}: {dates:?}");
        }
    });
}

#[test]
fn cookies_arrive_as_one_line() {
    let origin = Origin::start();
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let request = get("/page").header("cookie", "a=b").header("x", "y").header("cookie", "c=d");
        let response = client.ask(request, None).await;
        assert_eq!(read(response).await.unwrap().status, 204);
    });
    let seen = origin.take_seen().remove(0);
    let cookies: Vec<_> = seen.headers.iter().filter(|(name, _)| name == "cookie").collect();
    assert_eq!(cookies, [&("cookie".to_owned(), "a=b; c=d".to_owned())]);
}

#[test]
fn an_empty_body_may_end_after_its_header() {
    let nginx = Nginx::start();
    std::fs::write(nginx.files().join("page"), "here").unwrap();
    let (_edge, address) = start(nginx.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let request = get("/files/page").header("content-length", "0");
        let response = client.ask(request, Some(Bytes::new())).await;
        assert_eq!(read(response).await.unwrap().body, b"here");
    });
}

#[test]
fn half_an_answer_resets_its_stream_and_no_other() {
    let origin = Origin::start();
    for (target, half) in [
        ("/sized", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        ("/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ] {
        let after_body = vec![Act::Send(half.as_bytes().to_vec()), Act::Close];
        origin.on(target, Script { after_body, ..Script::default() });
    }
    let (_edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        for target in ["/sized", "/chunked"] {
            let response = client.ask(get(target), None).await;
            assert!(read(response).await.is_err(), "{target} looks whole");
            assert_eq!(client.get("/other").await.status, 204, "the connection goes on");
        }
    });
}

#[test]
fn a_stop_lets_streams_end_and_says_goaway() {
    let origin = Origin::start();
    let slow = vec![
        Act::Pause(std::time::Duration::from_millis(300)),
        Act::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
    ];
    origin.on("/slow", Script { after_body: slow, ..Script::default() });
    let (mut edge, address) = start(origin.address);
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        assert_eq!(client.get("/v1/event/?_a=62515&_n=a").await.status, 200);
        let response = client.ask(get("/slow"), None).await;
        crate::harness::wait_for("the origin to be asked", || !origin.take_seen().is_empty());
        edge.signal(Signal::TERM);
        assert_eq!(read(response).await.unwrap().body, b"ok");
        drop(client.send);
        let end = tokio::time::timeout(PATIENCE, client.end).await.expect("the end").unwrap();
        assert!(end.is_ok(), "{end:?}");
    });
    assert_eq!(edge.wait().code(), Some(0));
}

/// What a client gets for requests around the event path, in order.
async fn answers_around_the_event_path(client: &mut Client) -> Vec<String> {
    let mut all = Vec::new();
    for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT"] {
        for target in ["/v1/event/?_a=62515&_n=a", "/V1//event?_a=1&_n=a", "/v1/event/x", "/x"] {
            for (line, body) in [
                (("accept", "*/*"), None),
                (("accept", "image/gif"), Some("body")),
                (("expect", "100-continue"), Some("")),
            ] {
                let request = get(target).method(method).header(line.0, line.1);
                let response = client.ask(request, body.map(Bytes::from)).await;
                let mut answer = read(response).await.unwrap();
                answer.headers.remove("date");
                let (status, headers) = (answer.status, answer.headers);
                all.push(format!("{method} {target} {line:?} {body:?}: {status} {headers:?}"));
                all.push(String::from_utf8_lossy(&answer.body).into_owned());
            }
        }
    }
    all
}

#[test]
fn streams_are_answered_alike_by_the_fast_path_and_by_pingora() {
    let [front, pingora] = [true, false].map(|plain| {
        let (edge, address) = start_with(Setup::default().edge(&format!("answer_plain = {plain}")));
        let answers = RUNTIME
            .block_on(async { answers_around_the_event_path(&mut connect(address).await).await });
        let row = edge.wait_delivered("file");
        (answers, row["accepted"].as_u64())
    });
    assert_eq!(front, pingora);
    assert_eq!(front.1, Some(3), "each GET of an event of this portal");
}

#[test]
fn an_event_waits_for_other_streams_that_may_come() {
    let (_edge, address) = start_with(Setup::default().spool("linger_ms = 1000"));
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        let began = Instant::now();
        assert_eq!(client.get("/v1/event/?_a=62515&_n=a").await.status, StatusCode::OK);
        assert!(began.elapsed() >= Duration::from_millis(1000), "{:?}", began.elapsed());
    });
}
