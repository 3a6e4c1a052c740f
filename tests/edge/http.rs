//! A small HTTP/1.1 client that sends exactly the given bytes.

use crate::harness::PATIENCE;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A response, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Names in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
    /// The body, transfer coding removed.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The reason in the verdict header; `accepted` for an accepted event.
    pub fn verdict(&self) -> &str {
        let verdict = self.header("x-event-verdict").unwrap_or("none");
        verdict.strip_prefix("rejected; reason=").unwrap_or(verdict)
    }
}

/// A kept connection, over TCP or another stream.
pub struct Connection<S: Read + Write = TcpStream> {
    stream: BufReader<S>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream: BufReader::new(stream) }
    }

    /// A connection that exists already.
    pub fn of(stream: TcpStream) -> Connection {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection::over(stream)
    }
}

impl<S: Read + Write> Connection<S> {
    /// A connection over this stream, which must have a limit of time for each read.
    pub fn over(stream: S) -> Connection<S> {
        Connection { stream: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// As `send`, for a peer that may have closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Whether the peer has closed, now that everything it sent was read.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// `GET` with further header lines, each ended by CRLF.
    pub fn get(&mut self, target: &str, lines: &str) -> Response {
        self.request("GET", target, lines)
    }

    /// A request without a body. Its host is `edge.test`, unless the lines begin with another.
    pub fn request(&mut self, method: &str, target: &str, lines: &str) -> Response {
        let host = if lines.starts_with("Host: ") { "" } else { "Host: edge.test\r\n" };
        let head = format!("{method} {target} HTTP/1.1\r\n{host}{lines}\r\n");
        self.send(head.as_bytes());
        self.read(method)
    }

    /// Reads one final response to a request with `method`.
    pub fn read(&mut self, method: &str) -> Response {
        self.try_read(method).expect("a whole response")
    }

    /// As `read`; the error is the peer's early close.
    pub fn try_read(&mut self, method: &str) -> std::io::Result<Response> {
        loop {
            let response = self.read_one(method)?;
            if response.status >= 200 {
                return Ok(response);
            }
        }
    }

    /// Reads one response, 1xx included; the error is the peer's early close.
    pub fn read_one(&mut self, method: &str) -> std::io::Result<Response> {
        let status_line = self.line()?;
        let status: u16 = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        let bodyless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if bodyless {
            return Ok(response);
        }
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let length = usize::from_str_radix(self.line()?.trim(), 16).unwrap();
                let mut chunk = vec![0; length];
                self.stream.read_exact(&mut chunk)?;
                self.line()?;
                if length == 0 {
                    break;
                }
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut response.body)?;
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }
}
