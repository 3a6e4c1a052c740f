//! A backend that takes batches, and fails in every way that a test asks for.
//!
//! Plain HTTP/1.1 on tokio, written out by hand, because a proper server library would not let
//! us break the protocol. What it took is recorded, separately from what it answered: a request
//! may be taken whose answer never arrives.
//!
//! Used as a module of its own by each test that needs it: `#[path = "support/backend.rs"]`.
#![allow(dead_code)] // No test uses all of it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Largest request that is read.
const REQUEST_BYTES_MAX: usize = 128 << 20;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body as it was on the wire, with its content encoding.
    pub body: Vec<u8>,
}

/// What the backend does with a request.
#[derive(Clone)]
pub enum Act {
    /// Reads the body, asks this function, and does what it returns.
    Judge(Arc<dyn Fn(&Request) -> Act + Send + Sync>),
    /// Takes it and answers 200.
    Take,
    /// Takes it and answers with this status.
    TakeWith(u16),
    /// Answers with this status and does not take it.
    Refuse(u16),
    /// Answers with this status and these headers, and does not take it.
    RefuseWith(u16, Vec<(&'static str, String)>),
    /// Takes it and answers with this status, these headers and this body.
    Say(u16, Vec<(&'static str, String)>, String),
    /// Resets the connection after the header, before the body is read.
    ResetBeforeBody,
    /// Takes it and resets the connection instead of answering.
    ResetAfterBody,
    /// Takes it, sends half a status line, and closes.
    HalfHead,
    /// Takes it, answers 200, and closes in the middle of the answer's body.
    HalfBody,
    /// The same with this status.
    CutBody(u16),
    /// Takes it and answers 200 with a body that never ends.
    EndlessBody,
    /// Takes it after this long and answers 200.
    Slow(Duration),
    /// Reads it and never answers.
    Hang,
}

type Script = Box<dyn FnMut(&Request) -> Act + Send>;

/// A running backend (see the module). Stops when dropped.
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    script: Mutex<Script>,
    taken: Mutex<Vec<Request>>,
    seen: Mutex<Vec<Request>>,
    connections: Mutex<u64>,
    changed: Notify,
}

impl Backend {
    /// Starts on a port that the kernel chooses. `script` is asked once for each request, before
    /// its body is read; [`Act::Judge`] sees the body.
    pub async fn start(script: impl FnMut(&Request) -> Act + Send + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(script)),
            taken: Mutex::default(),
            seen: Mutex::default(),
            connections: Mutex::default(),
            changed: Notify::new(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Backend { addr, shared, accepting }
    }

    /// A backend that plays these acts, then takes everything.
    pub async fn playing(acts: impl IntoIterator<Item = Act>) -> Backend {
        let mut acts: std::collections::VecDeque<Act> = acts.into_iter().collect();
        Backend::start(move |_| acts.pop_front().unwrap_or(Act::Take)).await
    }

    /// Replaces the script for all further requests.
    pub fn script(&self, script: impl FnMut(&Request) -> Act + Send + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The requests that were received, with any answer.
    pub fn taken(&self) -> Vec<Request> {
        self.shared.taken.lock().unwrap().clone()
    }

    /// All requests whose header arrived, taken or not (without body where it was not read).
    pub fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The events of the requests that were taken, duplicates included.
    pub fn events(&self) -> Vec<Value> {
        self.taken().iter().flat_map(Request::events).collect()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        *self.shared.connections.lock().unwrap()
    }

    /// Waits until `done` holds. Panics after a minute: then it never will.
    pub async fn until(&self, what: &str, done: impl Fn(&Backend) -> bool) {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(600), wait).await;
        waited.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Request {
    /// A header's value, empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body without its content encoding.
    pub fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        match self.header("content-encoding") {
            "" => plain.clone_from(&self.body),
            "gzip" => {
                flate2::read::GzDecoder::new(&self.body[..]).read_to_end(&mut plain).unwrap();
            }
            "zstd" => plain = zstd::stream::decode_all(&self.body[..]).unwrap(),
            other => panic!("unknown encoding {other}"),
        }
        plain
    }

    /// The events in the body, in their wire form (SPEC 7).
    pub fn events(&self) -> Vec<Value> {
        let plain = self.plain();
        match self.header("content-type") {
            "application/json" => serde_json::from_slice(&plain).unwrap(),
            "application/x-ndjson" => {
                let lines = plain.split_inclusive(|b| *b == b'\n');
                lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
            }
            "application/cloudevents-batch+json" => {
                let envelopes: Vec<Value> = serde_json::from_slice(&plain).unwrap();
                envelopes.into_iter().map(|mut e| e["data"].take()).collect()
            }
            other => panic!("unknown content type {other:?}"),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        *shared.connections.lock().unwrap() += 1;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A connection that the client breaks off is the client's business.
            let _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some((mut request, length)) = read_head(&mut stream, &mut buffer).await? {
        let mut next = (shared.script.lock().unwrap())(&request);
        if !matches!(next, Act::ResetBeforeBody) {
            while buffer.len() < length {
                read_more(&mut stream, &mut buffer).await?;
            }
            request.body = buffer.drain(..length).collect();
        }
        if let Act::Judge(judge) = &next {
            next = judge(&request);
        }
        shared.seen.lock().unwrap().push(request.clone());
        let keep = act(&mut stream, shared, request, next).await?;
        shared.changed.notify_waiters();
        if !keep {
            return Ok(());
        }
    }
    Ok(())
}

/// Does what the script says. Returns whether the connection stays open.
async fn act(
    stream: &mut TcpStream,
    shared: &Shared,
    request: Request,
    act: Act,
) -> io::Result<bool> {
    let take = || {
        shared.taken.lock().unwrap().push(request.clone());
        shared.changed.notify_waiters();
    };
    match act {
        Act::Judge(_) => panic!("a judge says what to do"),
        Act::Take => {
            take();
            answer(stream, 200, &[]).await?;
        }
        Act::TakeWith(status) => {
            take();
            answer(stream, status, &[]).await?;
        }
        Act::Refuse(status) => answer(stream, status, &[]).await?,
        Act::RefuseWith(status, headers) => answer(stream, status, &headers).await?,
        Act::Say(status, headers, body) => {
            take();
            say(stream, status, &headers, &body).await?;
        }
        Act::ResetBeforeBody => return reset(stream),
        Act::ResetAfterBody => {
            take();
            return reset(stream);
        }
        Act::HalfHead => {
            take();
            stream.write_all(b"HTTP/1.1 20").await?;
            return Ok(false);
        }
        Act::HalfBody => {
            take();
            return cut_body(stream, 200).await;
        }
        Act::CutBody(status) => {
            take();
            return cut_body(stream, status).await;
        }
        Act::EndlessBody => {
            take();
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            loop {
                stream.write_all(b"400\r\n").await?;
                stream.write_all(&[b'x'; 0x400]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
        Act::Slow(wait) => {
            tokio::time::sleep(wait).await;
            take();
            answer(stream, 200, &[]).await?;
        }
        Act::Hang => {
            // Ends when the client closes.
            let _ = stream.read(&mut [0]).await?;
            return Ok(false);
        }
    }
    Ok(true)
}

async fn answer(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
) -> io::Result<()> {
    say(stream, status, headers, "ok").await
}

/// Answers with this status and a part of a body. Returns that the connection ends.
async fn cut_body(stream: &mut TcpStream, status: u16) -> io::Result<bool> {
    let answer = format!("HTTP/1.1 {status} Cut\r\nContent-Length: 100\r\n\r\nhalf");
    stream.write_all(answer.as_bytes()).await?;
    Ok(false)
}

async fn say(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    body: &str,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Because\r\n");
    // RFC 9110, 8.6: a 204 has no length, because it has no body.
    if status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.push_str(if status == 204 { "" } else { body });
    stream.write_all(head.as_bytes()).await
}

fn reset(stream: &TcpStream) -> io::Result<bool> {
    // Closing with this set sends RST instead of FIN.
    stream.set_zero_linger()?;
    Ok(false)
}

/// Reads one header, and says how long the body is. `None` at the end of the connection.
async fn read_head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(Request, usize)>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if !buffer.is_empty() || buffer.capacity() == 0 {
            buffer.reserve(8192);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    assert!(!headers.contains_key("transfer-encoding"), "batches have a length");
    let length = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
    assert!(length <= REQUEST_BYTES_MAX);
    Ok(Some((Request { method, target, headers, body: Vec::new() }, length)))
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
