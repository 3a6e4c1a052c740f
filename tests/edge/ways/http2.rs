//! The ways that a request can come over HTTP/2.

use super::requests::encoded;
use crate::h2::{Client, over, read, tls};
use crate::http::Response;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A request.
pub struct Asked {
    request: http::request::Builder,
    body: Option<Bytes>,
    /// The target that is sent in the place of the target in `request`.
    target: Option<Vec<u8>>,
}

impl Asked {
    /// A request for a target of any bytes. The client of the `h2` crate gets one that it takes.
    fn new(method: &str, host: &str, target: &[u8]) -> Option<Asked> {
        let uri = |target: &[u8]| {
            http::Uri::try_from([b"http://", host.as_bytes(), target].concat()).ok()
        };
        let as_it_is = uri(target).filter(|uri| {
            uri.path_and_query().is_some_and(|kept| kept.as_str().as_bytes() == target)
        });
        let (uri, target) = match as_it_is {
            Some(uri) => (uri, None),
            None => (uri(&encoded(target))?, Some(target.to_vec())),
        };
        let request = http::Request::builder().method(method).uri(uri);
        Some(Asked { request, body: None, target })
    }

    fn with(self, name: &str, value: &str) -> Asked {
        Asked { request: self.request.header(name, value), ..self }
    }

    fn with_empty_frame(self) -> Asked {
        Asked { body: Some(Bytes::new()), ..self }
    }
}

/// A client that sends targets of any bytes.
pub struct AnyClient {
    client: Client,
    targets: Targets,
}

impl AnyClient {
    async fn over<S>(stream: S) -> AnyClient
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let targets = Targets::default();
        AnyClient { client: over(AnyTarget::new(stream, targets.clone())).await, targets }
    }

    /// A client in clear, with prior knowledge.
    pub async fn in_clear(address: SocketAddr) -> AnyClient {
        AnyClient::over(TcpStream::connect(address).await.unwrap()).await
    }

    /// A client in clear that writes a few bytes at a time.
    async fn torn(address: SocketAddr) -> AnyClient {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        AnyClient::over(Torn(stream)).await
    }

    pub async fn over_tls(address: SocketAddr) -> AnyClient {
        AnyClient::over(tls(address).await).await
    }

    /// Sends all requests at once, and returns their answers in order.
    pub async fn ask_all(&mut self, all: Vec<Asked>) -> Vec<Response> {
        let mut asked = Vec::new();
        for Asked { request, body, target } in all {
            self.targets.lock().unwrap().push_back(target);
            asked.push(self.client.ask(request, body).await);
        }
        let mut answers = Vec::new();
        for response in asked {
            let answer = read(response).await.unwrap();
            let value =
                |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            answers.push(Response {
                status: answer.status.as_u16(),
                headers: answer.headers.iter().map(|(n, v)| (n.to_string(), value(v))).collect(),
                body: answer.body,
            });
        }
        answers
    }
}

/// Clients of one edge, each of which sends requests in its own manner.
pub struct Clients {
    edge: SocketAddr,
    tls: SocketAddr,
    open: Vec<AnyClient>,
    asked: usize,
}

/// Queries after which new connections are made.
const QUERIES_PER_CONNECTION: usize = 50;

impl Clients {
    pub fn new(edge: SocketAddr, tls: SocketAddr) -> Clients {
        Clients { edge, tls, open: Vec::new(), asked: 0 }
    }

    /// The answers to a query by each of [`ways`], by each client.
    pub async fn ask(&mut self, query: &[u8]) -> Vec<(&'static str, Response)> {
        if self.asked.is_multiple_of(QUERIES_PER_CONNECTION) {
            self.open = vec![
                AnyClient::in_clear(self.edge).await,
                AnyClient::torn(self.edge).await,
                AnyClient::over_tls(self.tls).await,
            ];
        }
        self.asked += 1;
        let mut answers = Vec::new();
        for client in &mut self.open {
            let (names, asked): (Vec<_>, Vec<_>) = ways(query).into_iter().unzip();
            answers.extend(names.into_iter().zip(client.ask_all(asked).await));
        }
        answers
    }
}

/// The ways a `GET` for a query can come over HTTP/2.
fn ways(query: &[u8]) -> Vec<(&'static str, Asked)> {
    let get = |host, path: &str| {
        let asked = Asked::new("GET", host, &[path.as_bytes(), query].concat());
        asked.expect("an encoded query is valid")
    };
    let event = || get("a", "/v1/event/?");
    vec![
        ("HTTP/2", event()),
        ("HTTP/2, another case", get("a", "/V1//event/?")),
        ("HTTP/2, host twice", event().with("host", "a")),
        ("HTTP/2, a length of 0", event().with("content-length", "0")),
        (
            "HTTP/2, a length of 0 and an empty frame",
            event().with("content-length", "0").with_empty_frame(),
        ),
        ("HTTP/2, an empty frame", event().with_empty_frame()),
        ("HTTP/2, a host in brackets", get("[::1]:80", "/v1/event/?")),
    ]
}

/// A request of HTTP/1 as one of HTTP/2. `None`: HTTP/2 has no such request, or its client does not
/// send it.
pub fn translated(request: &str) -> Option<Asked> {
    let (head, _) = request.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let [method, target, "HTTP/1.1"] = *lines.next()?.split(' ').collect::<Vec<_>>() else {
        return None;
    };
    let mut lines: Vec<(&str, &str)> =
        lines.map(|line| line.split_once(':')).collect::<Option<_>>()?;
    let is_host = |(name, _): &(&str, &str)| name.eq_ignore_ascii_case("host");
    let hosts: Vec<_> = lines.extract_if(.., |line| is_host(line)).collect();
    let [(_, host)] = hosts[..] else { return None };
    // Fields of the connection, which HTTP/2 does not have.
    lines.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    if !target.starts_with('/') {
        return None;
    }
    let mut asked = Asked::new(method, host.trim(), target.as_bytes())?;
    for (name, value) in lines {
        asked = asked.with(name, value.trim());
    }
    asked.request.headers_ref().is_some().then_some(asked)
}

/// The targets to put in, in the order of the requests.
type Targets = Arc<Mutex<VecDeque<Option<Vec<u8>>>>>;

/// Puts other targets into the header blocks that the client of the `h2` crate writes.
struct AnyTarget<S> {
    stream: S,
    targets: Targets,
    /// The bytes of a frame that the client has not written completely.
    written: Vec<u8>,
    /// Bytes to be sent.
    outgoing: VecDeque<u8>,
    /// Bytes of the preface that the client has still to write.
    preface: usize,
}

impl<S> AnyTarget<S> {
    fn new(stream: S, targets: Targets) -> AnyTarget<S> {
        AnyTarget { stream, targets, written: Vec::new(), outgoing: VecDeque::new(), preface: 24 }
    }

    /// Moves on the whole frames that the client wrote.
    fn translate(&mut self) {
        let preface = self.preface.min(self.written.len());
        self.preface -= preface;
        self.outgoing.extend(self.written.drain(..preface));
        while let [a, b, c, kind, ..] = self.written[..] {
            let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if self.written.len() < end {
                return;
            }
            let mut frame: Vec<u8> = self.written.drain(..end).collect();
            const HEADERS: u8 = 1;
            if kind == HEADERS
                && let Some(target) = self.targets.lock().unwrap().pop_front().unwrap()
            {
                let at = place_of_target(&frame);
                frame.splice(at, string(&target));
                let length = u32::try_from(frame.len() - 9).unwrap().to_be_bytes();
                frame[..3].copy_from_slice(&length[1..]);
            }
            self.outgoing.extend(frame);
        }
    }
}

/// A string without the Huffman code (RFC 7541, section 5.2).
fn string(text: &[u8]) -> Vec<u8> {
    let mut string = Vec::new();
    match text.len() {
        length @ ..127 => string.push(length as u8),
        length => {
            let mut left = length - 127;
            string.push(127);
            while left >= 128 {
                string.push(left as u8 | 128);
                left /= 128;
            }
            string.push(left as u8);
        }
    }
    [&string, text].concat()
}

/// Where the value of `:path` stands in a HEADERS frame. The client writes pseudo-headers first,
/// and this one with its name from the static table.
fn place_of_target(frame: &[u8]) -> Range<usize> {
    let mut at = 9;
    loop {
        let first = frame[at];
        at += 1;
        if first & 0x80 != 0 {
            continue;
        }
        // No name here has an index that needs a second byte.
        let mut length = usize::from(frame[at] & 127);
        let begin = at;
        at += 1;
        if length == 127 {
            let mut unit = 1;
            loop {
                length += usize::from(frame[at] & 127) * unit;
                unit *= 128;
                at += 1;
                if frame[at - 1] & 128 == 0 {
                    break;
                }
            }
        }
        at += length;
        if matches!(first & 0x3f, 4 | 5) {
            return begin..at;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyTarget<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        self.translate();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.outgoing.is_empty() {
            let bytes = this.outgoing.make_contiguous();
            let sent = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
            this.outgoing.drain(..sent);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyTarget<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// Writes a few bytes at a time.
struct Torn(TcpStream);

impl AsyncWrite for Torn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let few = bytes.len().min(13);
        Pin::new(&mut self.0).poll_write(cx, &bytes[..few])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for Torn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}
