//! One HTTP/2 stream as a session of Pingora.
//!
//! Pingora's own session for HTTP/2 has three faults. It credits a client's window when it has read
//! a piece of a body, not when the origin has taken the piece. It writes the last chunk twice to an
//! HTTP/1 origin if a body closes with an empty DATA frame. And it drops 1xx responses and, as
//! Pingora does in HTTP/1, trailers. This session has none of these faults. `docs/pingora.md` says
//! which changes of Pingora would make it needless.

use super::uploads::Upload;
use crate::server::exchange::{self, Side};
use crate::server::http1::trailers;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use h2::server::SendResponse;
use h2::{FlowControl, Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session;
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// The most bytes of a request's body that are kept for a second attempt at an origin.
const RETRY_BYTES_MAX: usize = 64 << 10;

/// Fields that concern one HTTP/1 connection (RFC 9113, section 8.2.2).
const HOP_BY_HOP: [HeaderName; 5] = [
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The session of one stream.
pub struct Http2Session {
    request: RequestHeader,
    body: RecvStream,
    /// Whether the end of the body was read.
    body_ended: bool,
    trailer_lines_max: usize,
    body_read: usize,
    /// The body so far, for a second attempt. `None`: Pingora has not asked for it, or it is longer
    /// than [`RETRY_BYTES_MAX`].
    retry: Option<BytesMut>,
    retry_truncated: bool,
    respond: SendResponse<Bytes>,
    /// The stream of the response's body. `None`: the header was not sent yet.
    sender: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// Whether the end of the response was sent.
    ended: bool,
    body_sent: usize,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    digest: Arc<Digest>,
    upload: Option<Arc<Upload>>,
}

/// A piece of a request's body. When the piece is dropped, the origin has taken it, and its bytes
/// are credited to the client's windows.
struct Piece {
    data: Bytes,
    flow: FlowControl,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Fails only if the stream has already given all of its bytes back.
        let _ = self.flow.release_capacity(self.data.len());
    }
}

impl Http2Session {
    /// A session for a request and its stream. `upload` is `Some` if a body may follow.
    pub fn new(
        request: RequestHeader,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        digest: Arc<Digest>,
        upload: Option<Arc<Upload>>,
    ) -> Self {
        Self {
            request,
            body,
            body_ended: false,
            trailer_lines_max: 0,
            body_read: 0,
            retry: None,
            retry_truncated: false,
            respond,
            sender: None,
            written: None,
            ended: false,
            body_sent: 0,
            write_timeout: None,
            drain_timeout: None,
            digest,
            upload,
        }
    }

    /// Passes on up to `lines` trailers of the request. A body with more is an error.
    pub fn take_trailers(&mut self, lines: usize) {
        self.trailer_lines_max = lines;
    }

    /// Sends a response header. An informational one may come before the final one (RFC 9110,
    /// section 15.2), but 101 has no meaning in HTTP/2.
    fn send_header(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended || self.written.is_some() || header.status == StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(());
        }
        for name in &HOP_BY_HOP {
            header.remove_header(name);
        }
        if header.status.is_informational() {
            let response = Response::from_parts(header.as_owned_parts(), ());
            return self.respond.send_informational(response).map_err(write_error);
        }
        // The `Date` of an origin stays, because caches compute with it (RFC 9110, section 6.6.1).
        if !header.headers.contains_key(header::DATE) {
            header.insert_header(header::DATE, get_cached_date())?;
        }
        let response = Response::from_parts(header.as_owned_parts(), ());
        self.sender = Some(self.respond.send_response(response, end).map_err(write_error)?);
        self.written = Some(header);
        self.ended = end;
        exchange::client_written(&Poll::Ready(()));
        Ok(())
    }

    /// Sends a piece of the response's body as the client's windows allow, and after the last one
    /// the trailers of an HTTP/1 origin.
    async fn send_body(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let limit = self.write_timeout;
        let Some(sender) = &mut self.sender else {
            return Err(Error::explain(ErrorType::H2Error, "a body before its header").into_down());
        };
        self.body_sent += data.len();
        let trailers = if end { trailers::of_response() } else { None };
        let is_last = end && trailers.is_none();
        if data.is_empty() && is_last {
            sender.send_data(data, true).map_err(write_error)?;
        } else {
            while !data.is_empty() {
                let granted = within(limit, window(sender, data.len())).await??;
                let piece = data.split_to(granted.min(data.len()));
                sender.send_data(piece, is_last && data.is_empty()).map_err(write_error)?;
            }
        }
        if let Some(trailers) = trailers {
            sender.send_trailers(trailers).map_err(write_error)?;
        }
        self.ended = end;
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        match &mut self.sender {
            Some(sender) if !self.ended => {
                self.ended = true;
                sender.send_trailers(trailers).map_err(write_error)
            }
            _ => Ok(()),
        }
    }

    /// Reads the trailers of the request behind its body.
    async fn read_trailers(&mut self) -> Result<()> {
        let read = self.body.trailers().await;
        let Some(trailers) = read.map_err(read_error)? else { return Ok(()) };
        if trailers.len() > self.trailer_lines_max {
            return Err(Error::explain(ErrorType::H2Error, "too many trailers").into_down());
        }
        trailers::store(Side::Request, &trailers::lines(&trailers));
        Ok(())
    }

    /// The next piece of the body. Once the whole answer was sent, the write timeout limits the
    /// wait, because nothing else does: a client that sends nothing would hold the exchange, and
    /// its connection to the origin, for as long as it sends PINGs. After an error the `h2` crate
    /// resets the stream with NO_ERROR.
    async fn next_data(&mut self) -> Result<Option<Bytes>> {
        let next = self.body.data();
        let data = match self.write_timeout.filter(|_| self.ended) {
            Some(limit) => timeout(limit, next)
                .await
                .map_err(|_| Error::new(ErrorType::ReadTimedout).into_down())?,
            None => next.await,
        };
        data.transpose().map_err(read_error)
    }

    fn keep_for_retry(&mut self, data: &[u8]) {
        let Some(retry) = &mut self.retry else { return };
        if retry.len() + data.len() > RETRY_BYTES_MAX {
            self.retry = None;
            self.retry_truncated = true;
        } else {
            retry.extend_from_slice(data);
        }
    }

    /// Waits until the client resets the stream.
    async fn reset_by_client(&mut self) -> Box<Error> {
        let reset = poll_fn(|cx| match &mut self.sender {
            Some(sender) => sender.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        match reset.await {
            Ok(_) => Error::new(ErrorType::H2Error).into_down(),
            Err(e) => Error::because(ErrorType::H2Error, "while idle", e).into_down(),
        }
    }
}

/// Waits for room for up to `wanted` bytes in the windows of the stream and the connection.
async fn window(sender: &mut SendStream<Bytes>, wanted: usize) -> Result<usize> {
    sender.reserve_capacity(wanted);
    let granted = poll_fn(|cx| {
        let granted = sender.poll_capacity(cx);
        exchange::client_written(&granted);
        granted
    });
    match granted.await {
        Some(granted) => granted.map_err(write_error),
        None => Err(Error::explain(ErrorType::H2Error, "the stream is closed").into_down()),
    }
}

async fn within<F: Future>(limit: Option<Duration>, future: F) -> Result<F::Output> {
    match limit {
        Some(limit) => timeout(limit, future)
            .await
            .map_err(|_| Error::new(ErrorType::WriteTimedout).into_down()),
        None => Ok(future.await),
    }
}

fn read_error(e: h2::Error) -> Box<Error> {
    Error::because(ErrorType::ReadError, "while reading a stream", e).into_down()
}

fn write_error(e: h2::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, "while writing to a stream", e).into_down()
}

#[async_trait]
impl Session for Http2Session {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        loop {
            poll_fn(|_| exchange::poll_request_taken()).await;
            let Some(data) = self.next_data().await? else {
                if !self.body_ended {
                    self.read_trailers().await?;
                }
                self.body_ended = true;
                return Ok(None);
            };
            // An empty piece would be written to an HTTP/1 origin as the last chunk.
            if data.is_empty() {
                continue;
            }
            self.body_read += data.len();
            self.keep_for_retry(&data);
            let flow = self.body.flow_control().clone();
            return Ok(Some(Bytes::from_owner(Piece { data, flow })));
        }
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let limit = self.drain_timeout;
        let drain = async {
            while self.read_body_bytes().await?.is_some() {}
            Ok(())
        };
        match limit {
            Some(limit) => match timeout(limit, drain).await {
                Ok(drained) => drained,
                Err(_) => Err(Error::new(ErrorType::ReadTimedout).into_down()),
            },
            None => drain.await,
        }
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if let Some(upload) = &self.upload {
            upload.proxied();
        }
        if no_body_expected || self.is_body_done() {
            return Err(self.reset_by_client().await);
        }
        self.read_body_bytes().await
    }

    fn is_body_done(&mut self) -> bool {
        self.body_ended || self.body.is_end_stream()
    }

    fn is_body_empty(&mut self) -> bool {
        self.body_read == 0 && self.is_body_done()
    }

    fn enable_retry_buffering(&mut self) {
        if self.retry.is_none() && !self.retry_truncated {
            self.retry = Some(BytesMut::new());
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.retry_truncated
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let kept = self.retry.as_deref().filter(|kept| !kept.is_empty())?;
        Some(Bytes::copy_from_slice(kept))
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.send_header(resp, end)
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, end: bool) -> Result<()> {
        self.send_header(Box::new(resp.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.send_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.send_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut end = false;
        for task in tasks {
            end |= task.is_end();
            match task {
                HttpTask::Header(header, last) => self.send_header(header, last)?,
                HttpTask::Body(Some(data), last) if !data.is_empty() => {
                    self.send_body(data, last).await?;
                }
                HttpTask::Trailer(Some(trailers)) => self.send_trailers(*trailers)?,
                HttpTask::Body(..) | HttpTask::Trailer(None) | HttpTask::Done => {}
                HttpTask::UpgradedBody(..) => {
                    return Err(Error::explain(ErrorType::InternalError, "an upgrade in HTTP/2"));
                }
                HttpTask::Failed(e) => return Err(e),
            }
        }
        if end {
            self.finish().await?;
        }
        Ok(end)
    }

    async fn finish(&mut self) -> Result<()> {
        match self.sender {
            Some(_) => self.send_body(Bytes::new(), true).await,
            None => Ok(()),
        }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        if !self.ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    /// The method alone: a target may hold personal data.
    fn request_summary(&self) -> String {
        self.request.method.to_string()
    }

    /// Nothing: only Pingora's subrequests use it, which this server does not make.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn body_bytes_sent(&self) -> usize {
        self.body_sent
    }

    fn body_bytes_read(&self) -> usize {
        self.body_read
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    // HTTP/2 has no messages beside requests and responses.

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
