//! HTTP/1.1 on the wire: messages are read without normalization, and an origin answers with the
//! given bytes.

use crate::harness::PATIENCE;
use rustix::net::sockopt::set_socket_linger;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One message as received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// Names in received spelling and order; bytes above 127 as Latin-1.
    pub headers: Vec<(String, String)>,
    /// The body, its transfer coding removed.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the stream ended before the message was complete.
    pub truncated: bool,
}

impl Message {
    /// The only header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.as_str())
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_default()
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length").and_then(|length| length.parse().ok())
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

/// A line without its end; `None` where the stream ends before it.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let read = reader.read_until(b'\n', &mut line);
    if read.is_err() || line.pop() != Some(b'\n') {
        return None;
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Some(latin1(&line))
}

fn fields(reader: &mut impl BufRead) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Some(fields);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

/// Start line and headers; `None` where nothing, or not all of it, came.
pub fn read_head(reader: &mut impl BufRead) -> Option<Message> {
    let start = line(reader)?;
    let headers = fields(reader)?;
    Some(Message { start, headers, ..Message::default() })
}

fn read_exactly(reader: &mut impl Read, length: u64, message: &mut Message) -> bool {
    let mut body = Vec::new();
    // An error is a reset: what came before it is in `body`.
    let _ = reader.take(length).read_to_end(&mut body);
    message.body.extend_from_slice(&body);
    body.len() as u64 == length
}

fn read_chunks(reader: &mut impl BufRead, message: &mut Message) -> Option<()> {
    loop {
        let size = line(reader)?;
        let size = u64::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            message.trailers = fields(reader)?;
            return Some(());
        }
        read_exactly(reader, size, message).then_some(())?;
        line(reader)?;
    }
}

/// The body of a request.
pub fn read_request_body(reader: &mut impl BufRead, message: &mut Message) {
    message.truncated = match (message.is_chunked(), message.length()) {
        (true, _) => read_chunks(reader, message).is_none(),
        (false, Some(length)) => !read_exactly(reader, length, message),
        (false, None) => false,
    };
}

/// All responses to one request: interim ones first, the final one last.
pub fn read_responses(reader: &mut impl BufRead, method: &str) -> Vec<Message> {
    let mut responses = Vec::new();
    while let Some(mut message) = read_head(reader) {
        let status = message.status();
        let interim = (100..200).contains(&status) && status != 101;
        let bodyless =
            interim || method == "HEAD" || status == 101 || status == 204 || status == 304;
        if !bodyless {
            message.truncated = match (message.is_chunked(), message.length()) {
                (true, _) => read_chunks(reader, &mut message).is_none(),
                (false, Some(length)) => !read_exactly(reader, length, &mut message),
                (false, None) => reader.read_to_end(&mut message.body).is_err(),
            };
        }
        responses.push(message);
        if !interim {
            break;
        }
    }
    responses
}

/// Sends a request as it is and reads what comes back.
pub fn exchange(address: SocketAddr, method: &str, request: &[u8]) -> Vec<Message> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other end may answer and close before it has read all.
    let _ = stream.write_all(request);
    read_responses(&mut BufReader::new(stream), method)
}

/// One thing that an origin does.
#[derive(Debug, Clone)]
pub enum Act {
    Send(Vec<u8>),
    /// Closes the connection in order.
    Close,
    /// Closes the connection with a reset.
    Reset,
    Pause(Duration),
    /// Sends back what comes, until the client closes.
    Echo,
    /// Does nothing until the client closes.
    Hang,
}

/// What an origin does with a request for a target, before it reads the body and after.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub before_body: Vec<Act>,
    pub after_body: Vec<Act>,
}

/// An origin that answers by a script and records its requests.
pub struct Origin {
    pub address: SocketAddr,
    scripts: Arc<Mutex<HashMap<String, Script>>>,
    seen: Arc<Mutex<Vec<Message>>>,
    open: Arc<AtomicUsize>,
}

impl Origin {
    pub fn start() -> Origin {
        Self::on_listener(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Starts an origin on this listener; it lives until the process ends.
    pub fn on_listener(listener: TcpListener) -> Origin {
        let address = listener.local_addr().unwrap();
        let origin =
            Origin { address, scripts: Arc::default(), seen: Arc::default(), open: Arc::default() };
        let (scripts, seen) = (origin.scripts.clone(), origin.seen.clone());
        let open = origin.open.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (scripts, seen, open) = (scripts.clone(), seen.clone(), open.clone());
                open.fetch_add(1, Relaxed);
                std::thread::spawn(move || {
                    serve(stream, &scripts, &seen);
                    open.fetch_sub(1, Relaxed);
                });
            }
        });
        origin
    }

    /// How many connections to it are open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Scripts by exact request target; other requests get 204.
    pub fn on(&self, target: &str, script: Script) {
        self.scripts.lock().unwrap().insert(target.to_owned(), script);
    }

    /// Answers with these bytes.
    pub fn answer(&self, target: &str, bytes: &[u8]) {
        let after_body = vec![Act::Send(bytes.to_vec())];
        self.on(target, Script { after_body, ..Script::default() });
    }

    /// The requests that came since this was last called.
    pub fn take_seen(&self) -> Vec<Message> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn serve(
    stream: TcpStream,
    scripts: &Mutex<HashMap<String, Script>>,
    seen: &Mutex<Vec<Message>>,
) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = read_head(&mut reader)?;
        let target = request.start.split(' ').nth(1)?.to_owned();
        let script = scripts.lock().unwrap().get(&target).cloned().unwrap_or_else(|| Script {
            after_body: vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
            ..Script::default()
        });
        perform(&script.before_body, &mut writer, &mut reader)?;
        read_request_body(&mut reader, &mut request);
        let truncated = request.truncated;
        seen.lock().unwrap().push(request);
        perform(&script.after_body, &mut writer, &mut reader)?;
        if truncated {
            return None;
        }
    }
}

fn perform(acts: &[Act], writer: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> Option<()> {
    for act in acts {
        match act {
            Act::Send(bytes) => writer.write_all(bytes).ok()?,
            Act::Pause(time) => std::thread::sleep(*time),
            Act::Close => return None,
            Act::Reset => {
                set_socket_linger(&*writer, Some(Duration::ZERO)).unwrap();
                return None;
            }
            Act::Echo => loop {
                let bytes = reader.fill_buf().ok()?.to_vec();
                if bytes.is_empty() {
                    return None;
                }
                writer.write_all(&bytes).ok()?;
                reader.consume(bytes.len());
            },
            Act::Hang => {
                let _ = io::copy(reader, &mut io::sink());
                return None;
            }
        }
    }
    Some(())
}
