//! Responses to requests that are not served, and the close after them.

use crate::event::Context;
use crate::plugin::access::AccessRecord;
use crate::server::connection::Connection;
use crate::server::limits::{LINGER_BYTES_MAX, LINGER_SECONDS_MAX, LINGER_UPLOAD_SECONDS_MAX};
use crate::server::read_buffer;
use crate::server::service::Server;
use crate::telemetry::metrics::Limit;
use http::StatusCode;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

/// What follows the status line of a response to a refused header; the connection closes after it.
const REFUSED: &str = "Content-Length: 0\r\nConnection: close\r\n\r\n";

impl<SV> Server<SV> {
    /// Sends the error response for `limit`, then does a lingering close.
    pub(super) async fn refuse(
        &self,
        connection: Connection,
        limit: Limit,
        began: Option<Instant>,
    ) {
        self.admission.limit_reporter.report(limit);
        let status = match limit {
            Limit::HeaderTime => StatusCode::REQUEST_TIMEOUT,
            Limit::HeaderBytes | Limit::HeaderLines => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        let record = self.record_of_refused(connection.peer, began);
        self.close_with(connection, status, record).await;
    }

    /// Sends a response without a body, then does a lingering close.
    pub(super) async fn close_with(
        &self,
        mut connection: Connection,
        status: StatusCode,
        mut record: Option<Box<AccessRecord>>,
    ) {
        let reason = status.canonical_reason().unwrap_or_default();
        let answer = format!("HTTP/1.1 {} {reason}\r\n{REFUSED}", status.as_str());
        let response = async {
            connection.stream.write_all(answer.as_bytes()).await?;
            connection.stream.flush().await
        };
        let sent = timeout(Duration::from_secs(LINGER_SECONDS_MAX), response).await;
        let is_sent = matches!(sent, Ok(Ok(())));
        if let Some(record) = &mut record {
            (record.status, record.is_whole) = (Some(status.as_u16()), is_sent);
        }
        drop(record);
        // A client that does not take the response in time is closed without draining.
        if is_sent {
            lingering_close(&mut connection.stream).await;
        }
    }

    /// The record of a request whose header is not read, which began at `began`.
    pub(super) fn record_of_refused(
        &self,
        peer: Option<IpAddr>,
        began: Option<Instant>,
    ) -> Option<Box<AccessRecord>> {
        let mut record = self.gate.access_log()?.begin_at(began?);
        let seen = Context { ip: peer, ..Context::default() };
        record.note_visitor(&self.gate.gate().reduced(seen));
        Some(record)
    }
}

/// Closes the sending side, then drains up to 1 s or 256 KiB: see [`LINGER_SECONDS_MAX`].
pub(super) async fn lingering_close(stream: &mut Stream) {
    let drained = drain(stream, LINGER_BYTES_MAX);
    let _ = timeout(Duration::from_secs(LINGER_SECONDS_MAX), drained).await;
}

/// Does what [`lingering_close`] does, for a client that still sends the body of a request that was
/// answered: see [`LINGER_UPLOAD_SECONDS_MAX`]. When the server stops, at most 1 s is left.
pub(super) async fn lingering_close_of_upload(stream: &mut Stream, shutdown: &ShutdownWatch) {
    let mut stopping = shutdown.clone();
    let stopped = async {
        // An error means that the server is gone.
        let _ = stopping.wait_for(|stop| *stop).await;
        sleep(Duration::from_secs(LINGER_SECONDS_MAX)).await;
    };
    let drained = drain(stream, usize::MAX);
    tokio::select! {
        _ = timeout(Duration::from_secs(LINGER_UPLOAD_SECONDS_MAX), drained) => {}
        () = stopped => {}
    }
}

/// Closes the sending side, then reads until the client closes or has sent `bytes_max`.
async fn drain(stream: &mut Stream, bytes_max: usize) -> io::Result<()> {
    AsyncWriteExt::shutdown(stream).await?;
    let mut drained = 0;
    while drained < bytes_max {
        let more = poll_fn(|cx| read_buffer::poll_read(&mut **stream, cx, <[u8]>::len)).await?;
        if more == 0 {
            break;
        }
        drained += more;
    }
    Ok(())
}
