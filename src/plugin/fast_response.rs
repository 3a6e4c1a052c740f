//! Prebuilt responses as bytes ready to send.

use crate::response::answers::{Answer, OwnLines};
use crate::response::title_case::title_case;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use std::cell::Cell;

/// A prebuilt response of the fast path. Each request adds `Date`, `Connection` and the
/// [`OwnLines`].
#[derive(Debug)]
pub struct FastResponse {
    /// The status, for the access log.
    pub status: u16,
    /// The length of the body, in bytes, for the access log.
    pub body_bytes: u64,
    head: Bytes,
    /// The default `Retry-After`, which a rate limit replaces by its own seconds.
    retry_after: Option<HeaderValue>,
    /// The bytes after the date (`Connection` and the body): first for a connection that stays
    /// open, then for one that closes.
    tails: [Bytes; 2],
}

impl FastResponse {
    /// Serializes an answer.
    pub fn new(answer: &Answer) -> FastResponse {
        let status = StatusCode::from_u16(answer.status).unwrap_or_default();
        let reason = status.canonical_reason().unwrap_or_default();
        let mut head = BytesMut::new();
        head.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        let mut retry_after = None;
        for (name, value) in &answer.headers {
            if name == header::RETRY_AFTER {
                retry_after = Some(value.clone());
                continue;
            }
            put_line(&mut head, &title_case(name), value.as_bytes());
        }
        let tails = ["keep-alive", "close"].map(|connection| {
            let mut tail = BytesMut::from(&b"\r\n"[..]);
            put_line(&mut tail, "Connection", connection.as_bytes());
            tail.put_slice(b"\r\n");
            tail.put_slice(&answer.body);
            tail.freeze()
        });
        FastResponse {
            status: answer.status,
            body_bytes: answer.body.len() as u64,
            head: head.freeze(),
            retry_after,
            tails,
        }
    }

    /// Passes the bytes of the whole response to `take`. `keep` says whether the connection stays
    /// open.
    pub fn write<T>(&self, own: &OwnLines, keep: bool, take: impl FnOnce(&[u8]) -> T) -> T {
        thread_local! {
            static OUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut out = OUT.take();
        out.clear();
        self.write_into(&mut out, own, keep);
        let taken = take(&out);
        OUT.set(out);
        taken
    }

    fn write_into(&self, out: &mut Vec<u8>, own: &OwnLines, keep: bool) {
        let [keeps, closes] = &self.tails;
        let tail = if keep { keeps } else { closes };
        out.put_slice(&self.head);
        if let Some(prebuilt) = &self.retry_after {
            match own.retry_after_seconds {
                Some(seconds) => {
                    let mut digits = itoa::Buffer::new();
                    put_line(out, "Retry-After", digits.format(seconds).as_bytes());
                }
                None => put_line(out, "Retry-After", prebuilt.as_bytes()),
            }
        }
        own.put_accepted(|name, value| put_line(out, name, value.as_bytes()));
        out.put_slice(b"Date: ");
        out.put_slice(pingora::protocols::http::date::get_cached_date().as_bytes());
        out.put_slice(tail);
    }
}

fn put_line(out: &mut impl BufMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
