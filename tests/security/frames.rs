//! An HTTP/2 client for tests that sends exactly the given frames.

use crate::harness::PATIENCE;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a request (HPACK, RFC 7541, without indexing).
pub fn block(method: &str, path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // Names 2, 4 and 1 of the static table; 0x86 is `:scheme: http`.
    [&[0x02][..], &text(method), &[0x86, 0x04], &text(path), &[0x01], &text("a")].concat()
}

/// One more field of a header block.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [&[0x00][..], &text(name), &text(value)].concat()
}

/// A whole `GET` as one frame.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block("GET", path))
}

/// A client on a connection of its own.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects and sends the preface with these settings.
    pub fn open(address: SocketAddr, settings: &[u8]) -> Client {
        let mut client = Client::connect(address);
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        client
    }

    /// Connects and sends nothing.
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends `bytes` up to `times` times until the peer stops reading; panics if it reads all.
    pub fn flood(&mut self, bytes: &[u8], times: usize) {
        let many = bytes.repeat(100);
        for _ in 0..times / 100 {
            if self.stream.write_all(&many).is_err() {
                return;
            }
        }
        panic!("the peer took it all");
    }

    /// The next frame; `None` when the peer has closed.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("the peer is silent"),
            Err(_) => return None,
            Ok(()) => {}
        }
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// The next frame that answers or ends a stream; `None` when the peer has closed.
    pub fn next_answer(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if matches!(frame.kind, HEADERS | RST_STREAM) {
                return Some(frame);
            }
        }
    }

    /// The next frame of this kind.
    pub fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().expect("a frame before the close");
            if frame.kind == kind && (kind != SETTINGS || frame.flags == 0) {
                return frame;
            }
        }
    }

    /// Reads until the peer closes.
    pub fn is_closed(&mut self) -> bool {
        while self.next().is_some() {}
        true
    }
}
