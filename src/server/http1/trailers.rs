//! Carries the trailers of chunked messages (RFC 9112, section 7.1.2) past Pingora, which reads
//! them to their end and drops them.
//!
//! The stream on one side of Pingora stores the trailers that it reads in the exchange; the stream
//! on the other side adds them to what Pingora writes, behind the last chunk. Both find their place
//! by the grammar of [chunks](super::body::Chunks). A message that is not chunked towards its
//! recipient has no place for them, and loses them.

use super::date;
use super::framing::Framing;
use super::header_check::trimmed;
use super::reason;
use crate::server::exchange::{self, Side};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Fields that may stand in no trailer section, because a recipient that takes trailers for headers
/// would frame, route, authenticate or decode the message by them (RFC 9110, section 6.5.1).
/// Conditions (`If-…`) and statements about the client (`X-Forwarded-…`) are left out as well.
const NEVER_TRAILERS: [&str; 32] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "www-authenticate",
    "x-http-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// Whether a field of this name may stand in a trailer section. `_` counts as `-`, as in CGI.
fn may_be_trailer(name: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.to_ascii_lowercase() == *b || (*a == b'_' && *b == b'-');
    let begins =
        |with: &str| name.len() >= with.len() && name.iter().zip(with.as_bytes()).all(same);
    let is = |other: &&str| name.len() == other.len() && begins(other);
    !begins("if-") && !begins("x-forwarded-") && !NEVER_TRAILERS.iter().any(is)
}

/// Stores trailers in the exchange, without those that may not be trailers. `lines` are whole lines
/// that follow the grammar.
pub fn store(side: Side, lines: &[u8]) {
    let mut allowed = BytesMut::with_capacity(lines.len());
    for line in lines.split_inclusive(|&b| b == b'\n') {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        if may_be_trailer(name) {
            allowed.extend_from_slice(line);
        }
    }
    exchange::store_trailers(side, allowed.freeze());
}

/// The lines of trailers that came over HTTP/2. White space around a value is no part of it (RFC
/// 9110, section 5.5).
pub fn lines(trailers: &HeaderMap) -> Vec<u8> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        [name.as_str().as_bytes(), b": ", trimmed(value.as_bytes()), b"\r\n"].concat()
    };
    trailers.iter().flat_map(line).collect()
}

/// The trailers of the response, as HTTP/2 has them. `None`: there are none.
pub fn of_response() -> Option<HeaderMap> {
    let lines = exchange::trailers(Side::Response);
    let mut trailers = HeaderMap::new();
    for line in lines.split_inclusive(|&b| b == b'\n') {
        let (name, value) = line.split_at(memchr::memchr(b':', line)?);
        let value = trimmed(value[1..].strip_suffix(b"\r\n")?);
        // The grammar of the lines is that of the map.
        let (name, value) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        trailers.try_append(name.ok()?, value.ok()?).ok()?;
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// Follows what Pingora writes of one message, and adds its trailers behind the last chunk.
#[derive(Debug)]
pub struct TrailerWriter {
    side: Side,
    framing: Framing,
    /// Bytes of the header that are still to be written.
    head_left: usize,
    /// The rest of another header that is written in place of those bytes: that of a request with
    /// added lines, or of a response with its origin's `Date` and reason phrase.
    own_head: Bytes,
    /// Trailers that are still to be written.
    trailers: Bytes,
}

impl TrailerWriter {
    pub fn new(side: Side) -> Self {
        let (own_head, trailers) = (Bytes::new(), Bytes::new());
        Self { side, framing: Framing::Header, head_left: 0, own_head, trailers }
    }

    /// Writes some of `pieces`, and before them the lines or trailers that are to be added there.
    /// Pingora writes each header by itself, and passes all of it at once.
    pub fn poll_write(
        &mut self,
        mut stream: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(poll_write_all(stream.as_mut(), cx, &mut self.trailers))?;
        let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
        if self.head_left == 0 && matches!(self.framing, Framing::Header) && !first.is_empty() {
            self.begin(first)?;
        }
        if !self.own_head.is_empty() {
            ready!(poll_write_all(stream, cx, &mut self.own_head))?;
            return Poll::Ready(Ok(std::mem::take(&mut self.head_left)));
        }
        if self.head_left > 0 {
            let length = first.len().min(self.head_left);
            let written = ready!(stream.poll_write(cx, &first[..length]))?;
            self.head_left -= written;
            return Poll::Ready(Ok(written));
        }
        let Framing::Chunks(chunks) = &mut self.framing else {
            return write(stream, cx, pieces);
        };
        let trailers = exchange::trailers(self.side);
        let written = if trailers.is_empty() || chunks.is_before_trailers() {
            ready!(write(stream, cx, pieces))?
        } else {
            let length = chunks.before_trailers(first).unwrap_or(first.len());
            ready!(stream.poll_write(cx, &first[..length]))?
        };
        let was_before = chunks.is_before_trailers();
        let mut left = written;
        for piece in pieces {
            let length = piece.len().min(left);
            left -= length;
            if chunks.take(&piece[..length], &mut Vec::new()).is_err() {
                self.framing = Framing::Other;
                return Poll::Ready(Ok(written));
            }
        }
        if chunks.is_before_trailers() && !was_before {
            self.trailers = trailers;
        }
        Poll::Ready(Ok(written))
    }

    /// Notes the header `head`. A request whose lines cannot be added is not sent.
    fn begin(&mut self, head: &[u8]) -> io::Result<()> {
        let added = match self.side {
            Side::Request => exchange::take_request_lines(),
            Side::Response => Bytes::new(),
        };
        match head.strip_suffix(b"\r\n").filter(|lines| lines.ends_with(b"\r\n")) {
            Some(_) if self.side == Side::Response => {
                let dated = date::restored(head);
                let reasoned = reason::restored(if dated.is_empty() { head } else { &dated });
                self.own_head = if reasoned.is_empty() { dated } else { reasoned };
            }
            Some(_) if added.is_empty() => {}
            Some(lines) => self.own_head = [lines, &added, b"\r\n"].concat().into(),
            None if added.is_empty() => {
                self.framing = Framing::Other;
                return Ok(());
            }
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
        self.head_left = head.len();
        self.framing = Framing::behind(head, exchange::has_chunks(self.side));
        Ok(())
    }
}

/// Writes all of `bytes`, which holds what is left of them.
fn poll_write_all(
    mut stream: Pin<&mut impl AsyncWrite>,
    cx: &mut Context<'_>,
    bytes: &mut Bytes,
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        let written = ready!(stream.as_mut().poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.advance(written);
    }
    Poll::Ready(Ok(()))
}

/// Writes some of `pieces`: one alone is written plainly.
pub fn write(
    stream: Pin<&mut impl AsyncWrite>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match pieces {
        [piece] => stream.poll_write(cx, piece),
        _ => stream.poll_write_vectored(cx, pieces),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::buffered_bytes::BufferedBytes;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;

    const LINES: &[u8] = b"X-Sum: 1\r\nx-sum:\t2\r\n";
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    /// Its data looks like a last chunk.
    const CHUNK: [&[u8]; 3] = [b"5\r\n", b"0\r\n\r\n", b"\r\n"];
    const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

    async fn exchange<T>(test: impl Future<Output = T>) -> T {
        let test = async {
            exchange::response_has_chunks();
            test.await
        };
        exchange::scope(BufferedBytes::new(0), 0, true, test).await
    }

    /// Writes messages as Pingora does, to a stream that takes few bytes at once.
    async fn written(room: usize, messages: &[&[&[u8]]]) -> Vec<u8> {
        written_by(Side::Response, room, messages).await
    }

    async fn written_by(side: Side, room: usize, messages: &[&[&[u8]]]) -> Vec<u8> {
        let (mut stream, mut far) = tokio::io::duplex(room);
        let mut writer = TrailerWriter::new(side);
        let write = async {
            for message in messages {
                let mut pieces: Vec<IoSlice<'_>> =
                    message.iter().map(|p| IoSlice::new(p)).collect();
                let mut left = &mut pieces[..];
                while !left.is_empty() {
                    let poll = poll_fn(|cx| writer.poll_write(Pin::new(&mut stream), cx, left));
                    let written = poll.await.unwrap();
                    assert!(written > 0);
                    IoSlice::advance_slices(&mut left, written);
                }
            }
            drop(stream);
        };
        let mut bytes = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut bytes), write);
        read.unwrap();
        bytes
    }

    #[tokio::test]
    async fn trailers_stand_behind_the_last_chunk_however_little_is_written() {
        let hints: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";
        for room in 1..100 {
            exchange(async {
                let messages: [&[&[u8]]; 4] = [&[hints], &[HEAD], &CHUNK, &[LAST_CHUNK]];
                let plain = written(room, &messages).await;
                assert_eq!(plain, messages.concat().concat());
                exchange::store_trailers(Side::Response, Bytes::from_static(LINES));
                let expect = [&messages[..3].concat().concat(), &b"0\r\n"[..], LINES, b"\r\n"];
                assert_eq!(written(room, &messages).await, expect.concat(), "{room} bytes");
            })
            .await;
        }
    }

    #[tokio::test]
    async fn a_message_without_chunks_stays_as_it_is() {
        for head in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"[..],
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"PUT / HTTP/1.1\r\nX: transfer-encoding: chunked\r\n\r\n",
        ] {
            exchange(async {
                exchange::store_trailers(Side::Response, Bytes::from_static(LINES));
                let messages: [&[&[u8]]; 2] = [&[head], &[LAST_CHUNK]];
                assert_eq!(written(100, &messages).await, messages.concat().concat());
            })
            .await;
        }
    }

    #[tokio::test]
    async fn added_lines_stand_at_the_end_of_the_header_of_one_request() {
        let head: &[u8] = b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n";
        let longer = b"PUT / HTTP/1.1\r\nHost: a\r\nx-a: 1\r\nx-b: 2\r\n\r\n";
        for room in 1..100 {
            exchange(async {
                let names = ["x-a", "x-b"].map(HeaderName::from_static);
                let values = ["1", "2"].map(HeaderValue::from_static);
                let lines = [(&names[0], &values[0]), (&names[1], &values[1])];
                assert!(exchange::add_request_lines(&lines));
                let messages: [&[&[u8]]; 2] = [&[head], &[b"body"]];
                let expect = [&longer[..], b"body"].concat();
                assert_eq!(written_by(Side::Request, room, &messages).await, expect, "{room}");
                let plain = messages.concat().concat();
                assert_eq!(written_by(Side::Request, room, &messages).await, plain);
            })
            .await;
        }
    }

    #[test]
    fn a_trailer_of_http2_has_no_white_space_around_its_value() {
        let name = HeaderName::from_static("x-sum");
        for (value, expect) in [(" 1 ", "x-sum: 1\r\n"), ("\t1 2\t", "x-sum: 1 2\r\n")] {
            let value = HeaderValue::from_static(value);
            assert_eq!(lines(&HeaderMap::from_iter([(name.clone(), value)])), expect.as_bytes());
        }
    }

    #[tokio::test]
    async fn what_could_be_taken_for_a_header_is_no_trailer() {
        exchange(async {
            let stored = |lines: &str| {
                store(Side::Request, lines.as_bytes());
                exchange::trailers(Side::Request)
            };
            for name in NEVER_TRAILERS {
                let upper = name.to_ascii_uppercase();
                for name in [name, &upper, &name.replace('-', "_")] {
                    assert_eq!(stored(&format!("X-Sum: 1\r\n{name}: 2\r\n")), "X-Sum: 1\r\n");
                }
            }
            for name in ["If-Match", "IF_RANGE", "X-Forwarded-For", "x_forwarded_proto"] {
                assert_eq!(stored(&format!("{name}: 1\r\n")), "", "{name}");
            }
            for name in ["Grpc-Status", "Iffy", "Hos", "Hosts", "Server-Timing", "Digest", "ETag"] {
                let line = format!("{name}: 1\r\n");
                assert_eq!(stored(&line), line);
            }
        })
        .await;
    }
}
