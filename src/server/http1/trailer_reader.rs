//! Reads the answers of an origin along with Pingora: finds their trailers, their end, and the
//! place at which chunks break the grammar.

use super::body::Chunks;
use super::date;
use super::framing::Framing;
use super::header_check::end_of_head;
use super::reason;
use super::trailers::store;
use crate::server::exchange::{self, Side};
use bytes::BytesMut;

/// The longest header of an answer whose trailers are looked for, in bytes. Pingora takes no longer
/// one.
const HEAD_BYTES_MAX: usize = 1 << 20;

/// Finds the trailers in the answers to one request, the end of the last one, and the place at
/// which its chunks break the grammar. Pingora takes a chunk size without a digit for the last
/// chunk, and so a broken answer for a whole one.
#[derive(Debug, Default)]
pub struct TrailerReader {
    framing: Framing,
    /// Whether the answer has no body whatever its header says: it is that to a `HEAD`.
    has_no_body: bool,
    /// The header as far as it was read, if it came in pieces, and how much of it was searched.
    head: BytesMut,
    searched: usize,
    trailers: Vec<u8>,
    is_broken: bool,
}

impl TrailerReader {
    /// A reader of the answers to the request whose header begins with `head`.
    pub fn new(head: &[u8]) -> Self {
        Self { has_no_body: head.starts_with(b"HEAD "), ..Self::default() }
    }

    /// Whether a byte of the final answer was read, or of one whose status is not known yet.
    pub fn has_begun(&self) -> bool {
        !matches!(self.framing, Framing::Header) || !self.head.is_empty()
    }

    /// Whether the final answer was read to its end.
    pub fn is_whole(&self) -> bool {
        matches!(self.framing, Framing::Length(0))
    }

    /// Whether the chunks of the final answer are broken, so that its end will never be known.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Reads the next bytes of the connection, and stores the trailers when they are whole. Returns
    /// how many bytes Pingora may read: all, unless the chunks are broken.
    pub fn read(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_broken {
            let rest = &bytes[at..];
            at += match &mut self.framing {
                Framing::Header => self.read_head(rest),
                Framing::Chunks(chunks) => {
                    let chunks = *chunks;
                    self.read_chunks(chunks, rest)
                }
                Framing::Length(left) => {
                    *left = left.saturating_sub(rest.len() as u64);
                    rest.len()
                }
                Framing::Other => rest.len(),
            };
        }
        at
    }

    /// Reads the part of a chunked body that follows the part before `chunks`. Returns how many
    /// bytes belong to it and follow the grammar.
    fn read_chunks(&mut self, chunks: Chunks, bytes: &[u8]) -> usize {
        let mut after = chunks;
        match after.take_of_origin(bytes, &mut self.trailers) {
            Ok(taken) if after != Chunks::End => {
                self.framing = Framing::Chunks(after);
                taken
            }
            Ok(taken) => {
                if !self.trailers.is_empty() {
                    store(Side::Response, &self.trailers);
                }
                self.framing = Framing::Length(0);
                taken
            }
            // All data of the body was read. Pingora decides whether it takes the trailers.
            Err(_) if after.is_behind_last_chunk() => {
                self.framing = Framing::Other;
                bytes.len()
            }
            Err(_) => {
                self.is_broken = true;
                chunks.sound_bytes_of_origin(bytes)
            }
        }
    }

    /// Reads a header. Returns how many of the bytes belong to it.
    fn read_head(&mut self, bytes: &[u8]) -> usize {
        let before = self.head.len();
        let end = if before == 0 {
            end_of_head(bytes, &mut self.searched)
        } else {
            self.head.extend_from_slice(bytes);
            end_of_head(&self.head, &mut self.searched)
        };
        let Some(end) = end else {
            if before == 0 {
                self.head.extend_from_slice(bytes);
            }
            if self.head.len() > HEAD_BYTES_MAX {
                (self.framing, self.head) = (Framing::Other, BytesMut::new());
            }
            return bytes.len();
        };
        let head = if before == 0 { &bytes[..end] } else { &self.head[..end] };
        self.framing = Framing::of_answer(head, self.has_no_body);
        if !matches!(self.framing, Framing::Header) {
            date::store(head);
            reason::store(head);
        }
        if matches!(self.framing, Framing::Chunks(_)) {
            exchange::response_has_chunks();
        }
        (self.head, self.searched) = (BytesMut::new(), 0);
        end - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::buffered_bytes::BufferedBytes;
    use bytes::Bytes;

    const LINES: &[u8] = b"X-Sum: 1\r\nx-sum:\t2\r\n";
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    async fn exchange<T>(test: impl Future<Output = T>) -> T {
        exchange::scope(BufferedBytes::new(0), 0, true, test).await
    }

    /// The trailers in these bytes of an origin, read in two pieces.
    fn read(request: &[u8], bytes: &[u8], cut: usize) -> Bytes {
        exchange::store_trailers(Side::Response, Bytes::new());
        let mut reader = TrailerReader::new(request);
        reader.read(&bytes[..cut]);
        reader.read(&bytes[cut..]);
        exchange::trailers(Side::Response)
    }

    #[tokio::test]
    async fn trailers_are_read_wherever_an_answer_is_cut() {
        let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nX: y\r\nTRANSFER-ENCODING:Chunked \r\n\r\n";
        let whole =
            format!("{hints}{head}5;a=b\r\n0\r\n\r\n\r\n00\r\nX-Sum: 1\r\nx-sum:\t2\r\n\r\n");
        exchange(async {
            for cut in 0..=whole.len() {
                assert_eq!(read(b"GET / ", whole.as_bytes(), cut), LINES, "cut at {cut}");
            }
            for (request, from, to) in [
                ("HEAD / ", "", ""),
                ("GET / ", " 200 OK", " 204 No Content"),
                ("GET / ", "Chunked", "gzip"),
                ("GET / ", "x-sum:", "x-sum :"),
                ("GET / ", "x-sum:\t2\r\n", "x-sum:\t2\n"),
                ("GET / ", "x-sum:\t2\r\n", "\tx-sum: 2\r\n"),
            ] {
                let other = whole.replace(from, to);
                assert_eq!(read(request.as_bytes(), other.as_bytes(), 20), "", "{from:?} {to:?}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn an_answer_is_broken_where_its_chunks_break_the_grammar() {
        let head = String::from_utf8_lossy(HEAD);
        exchange(async {
            for (sound, rest) in [
                ("", "\r\n\r\n"),
                ("5;a=b\r\nhello\r\n", "\r\n\r\n"),
                ("5\r\nhello\r\n", ";a\r\n\r\n"),
                ("5  \r\nhello\r\n", " \r\n\r\n"),
                ("5\r\nhello", "0\r\n\r\n"),
                ("5\r\nhello\r", "0\n\r\n"),
                ("fffffffffffffff", "f0\r\n"),
            ] {
                let whole = format!("{head}{sound}{rest}");
                for cut in 0..=whole.len() {
                    let mut reader = TrailerReader::new(b"GET / ");
                    let first = reader.read(&whole.as_bytes()[..cut]);
                    let second = reader.read(&whole.as_bytes()[cut..]);
                    assert_eq!(first + second, head.len() + sound.len(), "{whole:?}, {cut}");
                    assert!(reader.is_broken(), "{whole:?}, {cut}");
                }
            }
            for whole in ["5 \t\r\nhello\r\n0 \r\n\r\n", "0\r\nX : y\r\n\r\n", "0\r\n\n"] {
                let whole = format!("{head}{whole}");
                let mut reader = TrailerReader::new(b"GET / ");
                assert_eq!(reader.read(whole.as_bytes()), whole.len(), "{whole:?}");
                assert!(!reader.is_broken(), "{whole:?}");
            }
        })
        .await;
    }
}
