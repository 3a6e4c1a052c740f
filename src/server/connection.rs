//! An HTTP connection between two requests, and how a request's header is read from it.

use super::admission::Admitted;
use super::connection_limit::Permit;
use super::http1::header_check::{empty_lines, end_of_head};
use super::in_force::InForce;
use super::limits::Limits;
use crate::telemetry::metrics::Limit;
use bytes::{Buf, BytesMut};
use pingora::protocols::Stream;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// The buffer space for one read of the rest of a header, in bytes.
const READ_BYTES: usize = 4096;

/// How reading a header ended.
pub enum Head {
    /// `received` begins with a whole header of this many bytes.
    Complete(usize),
    /// The header exceeds a limit.
    Refused(Limit),
    /// The client closed the connection, or reading failed.
    Closed,
}

/// A connection between two of its requests.
pub struct Connection {
    pub stream: Stream,
    /// Received bytes that are not processed yet. Holds no memory while the connection is idle.
    pub received: BytesMut,
    /// The client's address: from the PROXY header, else the peer's. `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    /// The number of requests so far, the current one included.
    pub requests: u32,
    /// The configuration that was in force when the last request arrived.
    pub in_force: Arc<InForce>,
    /// Counts this connection in the connection limit until it is dropped.
    pub permit: Permit,
}

impl Connection {
    /// An admitted connection before its first request.
    pub fn new(stream: Stream, admitted: Admitted, in_force: Arc<InForce>) -> Connection {
        let Admitted { permit, client, ahead } = admitted;
        Connection { stream, received: ahead, peer: client, requests: 0, in_force, permit }
    }

    /// Reads until `received` begins with a whole header and holds at least `least` bytes. Fails
    /// past `header_bytes_max` bytes, or `header_timeout` after the call.
    pub async fn read_head(&mut self, limits: &Limits, least: usize) -> Head {
        let Connection { stream, received, .. } = self;
        let mut searched = 0;
        let mut find_head = |received: &mut BytesMut| {
            // Empty lines before a request line are skipped (RFC 9112, section 2.2).
            if searched == 0 {
                received.advance(empty_lines(received));
            }
            match end_of_head(received, &mut searched) {
                Some(end) if end > limits.header_bytes_max => {
                    Some(Head::Refused(Limit::HeaderBytes))
                }
                Some(end) if received.len() >= least => Some(Head::Complete(end)),
                None if received.len() > limits.header_bytes_max => {
                    Some(Head::Refused(Limit::HeaderBytes))
                }
                _ => None,
            }
        };
        if let Some(head) = find_head(received) {
            return head;
        }
        let rest = async {
            loop {
                received.reserve(READ_BYTES);
                match stream.read_buf(received).await {
                    Ok(length) if length > 0 => {}
                    _ => return Head::Closed,
                }
                if let Some(head) = find_head(received) {
                    return head;
                }
            }
        };
        let rest = timeout(limits.header_timeout, rest).await;
        rest.unwrap_or(Head::Refused(Limit::HeaderTime))
    }
}
