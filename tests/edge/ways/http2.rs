//! The ways that a request can come over HTTP/2.

use super::requests::encoded;
use crate::h2::{Client, connect, over, read};
use crate::http::Response;
use bytes::Bytes;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A request without its body, and its body where it has one.
pub type Asked = (http::request::Builder, Option<Bytes>);

/// In clear, with prior knowledge.
pub async fn in_clear(address: SocketAddr) -> Client {
    over(TcpStream::connect(address).await.unwrap()).await
}

/// The same, in pieces of a few bytes.
async fn torn(address: SocketAddr) -> Client {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    over(Torn(stream)).await
}

/// Clients of one edge, each of which sends requests in its own manner.
pub struct Clients {
    edge: SocketAddr,
    tls: SocketAddr,
    open: Vec<Client>,
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
            let (clear, torn) = (in_clear(self.edge).await, torn(self.edge).await);
            self.open = vec![clear, torn, connect(self.tls).await];
        }
        self.asked += 1;
        let mut answers = Vec::new();
        for client in &mut self.open {
            let (names, asked): (Vec<_>, Vec<_>) = ways(query).into_iter().unzip();
            answers.extend(names.into_iter().zip(ask_all(client, asked).await));
        }
        answers
    }
}

/// The ways a `GET` for a query can come over HTTP/2. Bytes that no `http::Uri` holds are encoded:
/// docs/security.md says what the edge does about them.
fn ways(query: &[u8]) -> Vec<(&'static str, Asked)> {
    let target =
        |path: &str, query: &[u8]| http::Uri::try_from([path.as_bytes(), query].concat()).ok();
    let get = |path| {
        let uri = target(path, query).or_else(|| target(path, &encoded(query)));
        http::Request::get(uri.expect("an encoded query is valid"))
    };
    let event = || get("http://a/v1/event/?");
    let empty = Some(Bytes::new());
    vec![
        ("HTTP/2", (event(), None)),
        ("HTTP/2, another case", (get("http://a/V1//event/?"), None)),
        ("HTTP/2, host twice", (event().header("host", "a"), None)),
        ("HTTP/2, a length of 0", (event().header("content-length", "0"), None)),
        (
            "HTTP/2, a length of 0 and an empty frame",
            (event().header("content-length", "0"), empty.clone()),
        ),
        ("HTTP/2, an empty frame", (event(), empty)),
        ("HTTP/2, a host in brackets", (get("http://[::1]:80/v1/event/?"), None)),
    ]
}

/// A request of HTTP/1 as one of HTTP/2. `None`: HTTP/2 has no such request, or its client does not
/// send it.
pub fn translated(request: &str) -> Option<http::request::Builder> {
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
    // The connection's own.
    lines.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    let uri = match target.starts_with('/') {
        true => format!("http://{}{target}", host.trim()),
        false => return None,
    };
    let mut builder = http::Request::builder().method(method).uri(uri.parse::<http::Uri>().ok()?);
    for (name, value) in lines {
        builder = builder.header(name, value.trim());
    }
    builder.headers_ref().is_some().then_some(builder)
}

/// Sends all at once, and returns their answers in order.
pub async fn ask_all(client: &mut Client, all: Vec<Asked>) -> Vec<Response> {
    let mut asked = Vec::new();
    for (request, body) in all {
        asked.push(client.ask(request, body).await);
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
