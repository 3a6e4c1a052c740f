//! One client: a connection in HTTP/1.1, or a stream of an HTTP/2 connection.

use crate::tls;
use crate::workload::{Transport, Workload};
use bytes::Bytes;
use h2::client::SendRequest;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Headers of a browser.
const HEADERS: [(&str, &str); 5] = [
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("Accept", "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"),
    ("Accept-Language", "en-US,en;q=0.5"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Referer", "https://shop.example.com/thank-you"),
];
/// Room for one read: an event's answer fits in it.
const READ_BYTES: usize = 16 << 10;
/// Loopback addresses that clients connect from, so that none runs out of ports.
const ADDRESSES: usize = 200;

/// A client that sends one request again and again.
pub enum Client {
    Http1(Http1),
    Http2(Http2),
}

impl Client {
    /// One client for each connection of the workload. The HTTP/2 connection is opened here.
    pub async fn all(workload: &Workload, server: SocketAddr) -> Vec<Client> {
        if workload.transport == Transport::Streams {
            let send = connect_h2(server).await;
            let one = || Client::Http2(Http2 { send: send.clone(), workload: workload.clone() });
            return std::iter::repeat_with(one).take(workload.connections).collect();
        }
        let request: Arc<[u8]> = request(workload).into_bytes().into();
        let one = |number: usize| {
            let buffer = vec![0; READ_BYTES].into();
            let (workload, request) = (workload.clone(), Arc::clone(&request));
            Client::Http1(Http1 { workload, server, number, request, stream: None, buffer })
        };
        (0..workload.connections).map(one).collect()
    }

    /// Sends one request and checks the answer.
    pub async fn ask(&mut self) {
        match self {
            Client::Http1(client) => client.ask().await,
            Client::Http2(client) => client.ask().await,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// A client with one connection at a time.
pub struct Http1 {
    workload: Workload,
    server: SocketAddr,
    number: usize,
    request: Arc<[u8]>,
    stream: Option<Box<dyn Stream>>,
    buffer: Box<[u8]>,
}

impl Http1 {
    async fn ask(&mut self) {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect().await,
        };
        stream.write_all(&self.request).await.unwrap();
        self.read_response(&mut *stream).await;
        if self.workload.transport == Transport::Persistent {
            self.stream = Some(stream);
        }
    }

    async fn connect(&self) -> Box<dyn Stream> {
        let stream = connect(self.server, self.number).await;
        match self.workload.transport {
            Transport::Handshake => Box::new(tls::connect(stream, &[]).await),
            _ => Box::new(stream),
        }
    }

    /// Reads one response to its end. The body is counted and dropped.
    async fn read_response(&mut self, stream: &mut dyn Stream) {
        let mut length = 0;
        let head = loop {
            let read = stream.read(&mut self.buffer[length..]).await.unwrap();
            assert!(read > 0, "the server closed in the middle of a header");
            length += read;
            if let Some(at) = memchr::memmem::find(&self.buffer[..length], b"\r\n\r\n") {
                break at + 4;
            }
        };
        let answered = std::str::from_utf8(&self.buffer[9..12]).unwrap();
        assert_eq!(answered, self.workload.status.to_string(), "the wrong answer");
        assert_eq!(content_length(&self.buffer[..head]), self.workload.body_bytes);
        let mut body = length - head;
        while body < self.workload.body_bytes {
            let read = stream.read(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the server closed in the middle of a body");
            body += read;
        }
        assert_eq!(body, self.workload.body_bytes, "more than one answer");
    }
}

/// A client with one stream at a time, on a connection that others share.
pub struct Http2 {
    send: SendRequest<Bytes>,
    workload: Workload,
}

impl Http2 {
    async fn ask(&mut self) {
        let mut request =
            http::Request::get(format!("https://{}{}", tls::NAME, self.workload.target));
        for (name, value) in HEADERS {
            request = request.header(name, value);
        }
        let mut send = self.send.clone().ready().await.expect("the connection lives");
        let (response, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), self.workload.status, "the wrong answer");
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(piece) = body.data().await {
            let piece = piece.expect("a whole body");
            length += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        assert_eq!(length, self.workload.body_bytes);
    }
}

async fn connect_h2(server: SocketAddr) -> SendRequest<Bytes> {
    let stream = tls::connect(connect(server, 0).await, &[b"h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    // Ends with its runtime, even in the middle of a frame.
    tokio::spawn(connection);
    send
}

async fn connect(server: SocketAddr, number: usize) -> TcpStream {
    let address = Ipv4Addr::new(127, 0, 0, 2 + (number % ADDRESSES) as u8);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    let stream = socket.connect(server).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn request(workload: &Workload) -> String {
    let mut request = format!("GET {} HTTP/1.1\r\nHost: track.example.com\r\n", workload.target);
    for (name, value) in HEADERS {
        request += &format!("{name}: {value}\r\n");
    }
    let connection = if workload.transport == Transport::Close { "close" } else { "keep-alive" };
    request + &format!("Connection: {connection}\r\n\r\n")
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    found.map_or(0, |(_, length)| length.trim().parse().unwrap())
}
