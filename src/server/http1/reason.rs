//! Keeps the reason phrase of an origin's answer where it holds bytes above ASCII (RFC 9112,
//! section 4), which Pingora drops.
//!
//! The stream of the origin stores status and reason in the exchange, and the stream of the client
//! writes them in place of Pingora's.

use crate::server::exchange;
use bytes::Bytes;

/// The bytes before the status: `HTTP/1.1 `.
const VERSION_BYTES: usize = 9;
const STATUS_BYTES: usize = 3;

/// Stores status and reason of an origin's final answer, or that Pingora drops nothing of them.
pub fn store(head: &[u8]) {
    let line = &head[..line_end(head)];
    let dropped = match line.get(VERSION_BYTES..) {
        Some(status_and_reason) if !line.is_ascii() => Bytes::copy_from_slice(status_and_reason),
        _ => Bytes::new(),
    };
    exchange::store_reason(dropped);
}

/// The header of an answer with the origin's reason. Empty: Pingora has written it as it was, or
/// this is another answer, such as an informational one.
pub fn restored(head: &[u8]) -> Bytes {
    let kept = exchange::reason();
    let status = head.get(VERSION_BYTES..VERSION_BYTES + STATUS_BYTES);
    if kept.is_empty() || status != kept.get(..STATUS_BYTES) {
        return Bytes::new();
    }
    [&head[..VERSION_BYTES], &kept, &head[line_end(head)..]].concat().into()
}

/// The end of the first line, without its CRLF or LF.
fn line_end(head: &[u8]) -> usize {
    let end = memchr::memchr(b'\n', head).unwrap_or(head.len());
    if head[..end].ends_with(b"\r") { end - 1 } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::buffered_bytes::BufferedBytes;

    #[tokio::test]
    async fn a_reason_stands_where_pingora_wrote_none() {
        exchange::scope(BufferedBytes::new(0), 0, false, async {
            for (read, written, expect) in [
                (&b"HTTP/1.1 200 \xe9\r\nA: 1\r\n\r\n"[..], "HTTP/1.1 200 ", "200 \u{e9}"),
                (b"HTTP/1.0 799 a \xe9\t\n\n", "HTTP/1.1 799 ", "799 a \u{e9}\t"),
                (b"HTTP/1.1 200 All well\r\n\r\n", "HTTP/1.1 200 All well", ""),
                (b"HTTP/1.1 200 \xe9\r\n\r\n", "HTTP/1.1 103 Early Hints", ""),
                (b"HTTP/1.1 200 \xe9\r\n\r\n", "HTTP/1.1 502 Bad Gateway", ""),
                (b"HTTP/1.1 200 OK\r\nA: \xe9\r\n\r\n", "HTTP/1.1 200 OK", ""),
                (b"\xe9", "HTTP/1.1 200 OK", ""),
            ] {
                store(read);
                let restored = restored(format!("{written}\r\nB: 2\r\n\r\n").as_bytes());
                let expect = match expect {
                    "" => String::new(),
                    expect => format!("HTTP/1.1 {expect}\r\nB: 2\r\n\r\n"),
                };
                let expect: Vec<u8> = expect.chars().map(|c| c as u8).collect();
                assert_eq!(restored, expect, "{read:?} {written:?}");
            }
        })
        .await;
    }
}
