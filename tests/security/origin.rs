//! A test origin that stores every byte it receives and parses them as a lenient server would.

use crate::harness::PATIENCE;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Which field an origin may use to find the end of a body if a request has both.
#[derive(Clone, Copy, Debug)]
pub enum Credulity {
    /// `Content-Length`.
    Length,
    /// `Transfer-Encoding: chunked`.
    Chunks,
}

/// The bytes received on one connection so far.
type Brought = Arc<Mutex<Vec<u8>>>;

/// A running origin.
pub struct Origin {
    /// The address on which it listens.
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Brought>>>,
}

impl Origin {
    /// Starts an origin that answers each request with `200`.
    pub fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Brought>>> = Arc::default();
        let all = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let bytes = Arc::new(Mutex::new(Vec::new()));
                all.lock().unwrap().push(bytes.clone());
                std::thread::spawn(move || answer_all(stream, &bytes));
            }
        });
        Origin { address, connections }
    }

    /// The bytes received on each connection.
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        let connections = self.connections.lock().unwrap();
        connections.iter().map(|bytes| bytes.lock().unwrap().clone()).collect()
    }

    /// The request lines that a server which reads so finds on all connections.
    pub fn request_lines(&self, how: Credulity) -> Vec<String> {
        self.bytes().iter().flat_map(|bytes| read(bytes, how).0).collect()
    }
}

fn answer_all(mut stream: TcpStream, bytes: &Mutex<Vec<u8>>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answered = 0;
    let mut piece = [0; 65536];
    while let Ok(length) = stream.read(&mut piece)
        && length > 0
    {
        let mut bytes = bytes.lock().unwrap();
        bytes.extend_from_slice(&piece[..length]);
        // The edge sends unambiguous requests only, so the strictest reading suffices here.
        let (found, length) = read(&bytes[answered..], Credulity::Chunks);
        drop(bytes);
        answered += length;
        for _ in found {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// Whole requests in `bytes`, by their request lines, and where the last one ends.
fn read(bytes: &[u8], how: Credulity) -> (Vec<String>, usize) {
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(length) = head_length(&bytes[at..]) {
        let head = String::from_utf8_lossy(&bytes[at..at + length]).into_owned();
        let body = &bytes[at + length..];
        let Some(body) = body_length(&head, body, how) else { break };
        lines.push(head.lines().next().unwrap_or_default().to_owned());
        at += length + body;
    }
    (lines, at)
}

/// Length of a header up to its first empty line, with any line ends.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let ends = [&b"\r\n\r\n"[..], b"\n\n", b"\n\r\n"];
    let find =
        |end: &[u8]| bytes.windows(end.len()).position(|w| w == end).map(|at| at + end.len());
    ends.iter().filter_map(|end| find(end)).min()
}

/// Length of the body; `None` if it is not whole.
fn body_length(head: &str, body: &[u8], how: Credulity) -> Option<usize> {
    let value = |name: &str| {
        let named = |line: &&str| line.to_ascii_lowercase().starts_with(name);
        head.lines().find(named).map(|line| line[name.len()..].trim().to_ascii_lowercase())
    };
    let chunked = value("transfer-encoding:").is_some_and(|v| v.contains("chunked"));
    let length = value("content-length:").and_then(|v| v.parse::<usize>().ok());
    match (how, chunked, length) {
        (Credulity::Length, _, Some(length)) | (_, false, Some(length)) => {
            (body.len() >= length).then_some(length)
        }
        (_, true, _) => chunks_length(body),
        (_, false, None) => Some(0),
    }
}

fn chunks_length(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = body[at..].iter().position(|&b| b == b'\n')? + 1;
        let size = std::str::from_utf8(&body[at..at + line]).ok()?.trim();
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line;
        if size == 0 {
            // Trailers, if any, and the empty line.
            return head_length(&[b"\n", &body[at..]].concat()).map(|length| at + length - 1);
        }
        at += size + 2;
        body.get(..at)?;
    }
}
