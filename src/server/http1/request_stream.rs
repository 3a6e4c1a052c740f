//! The stream of one request: Pingora reads from it that request and nothing after it.
//!
//! A client may send requests without waiting for answers (RFC 9112, section 9.3.2). Pingora closes
//! the connection when it meets bytes after the request that it serves, at times after the origin
//! has executed that request and before the client has its answer. So Pingora must never meet such
//! bytes: this stream ends each body where [`Body`] says, and stores the bytes after it for the
//! next request. It also carries trailers, which Pingora drops.
//!
//! When Pingora drops the stream, the connection comes back through a [`Return`], and the server
//! decides whether it takes another request or closes.

use super::body::{Body, BodyError};
use super::header_check::Upgrade;
use super::trailers::{self, TrailerWriter};
use crate::server::exchange::{self, Side};
use crate::server::pingora_traits::delegate_traits;
use crate::server::read_buffer;
use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::{Shutdown, Stream};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;

/// The beginning of an answer that accepts an upgrade, and of any other informational answer.
const SWITCHING_PROTOCOLS: &[u8] = b"HTTP/1.1 101 ";
const INFORMATIONAL: &[u8] = b"HTTP/1.1 1";

/// Receives the connection when Pingora has dropped its stream: the stream below, the bytes that
/// were received and not read, and what is left of the request's body.
pub type Return = oneshot::Receiver<(Stream, BytesMut, Body)>;

/// Whether the connection becomes a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tunnel {
    No,
    /// The client asks for a tunnel; whether there is one depends on the origin's answer.
    Asked,
    /// The origin accepted: from here on all bytes pass.
    Open,
}

/// A connection while Pingora serves one of its requests.
#[derive(Debug)]
pub struct RequestStream {
    /// The stream below. `None` only while this is dropped.
    inner: Option<Stream>,
    /// Received bytes that Pingora has not read.
    received: BytesMut,
    body: Body,
    /// The lines of the body's trailers as far as they were read, and how many there may be.
    trailers: Vec<u8>,
    trailer_lines_max: usize,
    response: TrailerWriter,
    tunnel: Tunnel,
    back: Option<oneshot::Sender<(Stream, BytesMut, Body)>>,
}

impl RequestStream {
    /// A stream of the bytes that follow a request's header. `received` holds those that were read
    /// with it. A body with more trailers than `trailer_lines_max` is malformed.
    pub fn new(
        inner: Stream,
        received: BytesMut,
        body: Body,
        upgrade: Upgrade,
        trailer_lines_max: usize,
    ) -> (Self, Return) {
        let (back, returned) = oneshot::channel();
        let tunnel = if upgrade == Upgrade::WebSocket { Tunnel::Asked } else { Tunnel::No };
        let stream = Self {
            inner: Some(inner),
            received,
            body,
            trailers: Vec::new(),
            trailer_lines_max,
            response: TrailerWriter::new(Side::Response),
            tunnel,
            back: Some(back),
        };
        (stream, returned)
    }

    fn inner(&self) -> &Stream {
        self.inner.as_ref().expect("only `drop` takes it, and nothing is called after that")
    }

    fn inner_mut(&mut self) -> &mut Stream {
        self.inner.as_mut().expect("only `drop` takes it, and nothing is called after that")
    }

    /// Reads bytes of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(exchange::poll_request_taken());
        if !self.received.is_empty() {
            let mut received = std::mem::take(&mut self.received);
            let piece = received.len().min(buf.remaining());
            let taken = self.take_body(&received[..piece])?;
            buf.put_slice(&received.split_to(taken));
            self.received = received;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(self.inner_mut()).poll_read(cx, buf))?;
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let taken = self.take_body(bytes)?;
        self.received = BytesMut::from(&bytes[taken..]);
        buf.set_filled(before + taken);
        Poll::Ready(Ok(()))
    }

    /// How many of `bytes` belong to the body. Stores its trailers when they are whole.
    fn take_body(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let malformed = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        let taken = self.body.take(bytes, &mut self.trailers).map_err(malformed)?;
        if self.body.is_whole() && !self.trailers.is_empty() {
            if memchr::memchr_iter(b'\n', &self.trailers).count() > self.trailer_lines_max {
                return Err(malformed(BodyError));
            }
            trailers::store(Side::Request, &std::mem::take(&mut self.trailers));
        }
        Ok(taken)
    }

    /// Waits for the client's close, and stores what it sends. Once it has sent something, nothing
    /// more is read, and so no waker is registered: Pingora polls this beside the origin's answer,
    /// whose arrival ends the wait.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.received.is_empty() {
            return Poll::Pending;
        }
        let Self { inner: Some(inner), received, .. } = self else { return Poll::Pending };
        let read = read_buffer::poll_read(&mut **inner, cx, |bytes| {
            received.extend_from_slice(bytes);
            bytes.len()
        });
        if ready!(read)? == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_write_pieces(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { inner: Some(inner), response, .. } = self else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let written = response.poll_write(Pin::new(inner), cx, pieces);
        exchange::client_written(&written);
        written
    }

    /// Notes whether an answer that begins with `bytes` accepts an upgrade.
    fn note_answer(&mut self, bytes: &[u8]) {
        if self.tunnel == Tunnel::Asked {
            if bytes.starts_with(SWITCHING_PROTOCOLS) {
                self.tunnel = Tunnel::Open;
            } else if !bytes.starts_with(INFORMATIONAL) {
                self.tunnel = Tunnel::No;
            }
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if let (Some(back), Some(inner)) = (self.back.take(), self.inner.take()) {
            // Fails if the connection's task is gone; then the connection closes here.
            let _ = back.send((inner, std::mem::take(&mut self.received), self.body));
        }
    }
}

impl AsyncRead for RequestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.tunnel == Tunnel::Open {
            ready!(exchange::poll_request_taken());
            if read_buffer::replay(&mut this.received, buf) {
                return Poll::Ready(Ok(()));
            }
            return Pin::new(this.inner_mut()).poll_read(cx, buf);
        }
        match this.body.is_whole() {
            true => this.poll_close(cx),
            false => this.poll_body(cx, buf),
        }
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.note_answer(bytes);
        this.poll_write_pieces(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.note_answer(pieces.first().map(|piece| &**piece).unwrap_or_default());
        this.poll_write_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(self.get_mut().inner_mut()).poll_flush(cx);
        exchange::client_written(&flushed);
        flushed
    }

    /// Sends what is written. The server closes the connection after its return.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[async_trait]
impl Shutdown for RequestStream {
    async fn shutdown(&mut self) {
        // An error means that the connection is already broken.
        let _ = self.flush().await;
    }
}

delegate_traits!(RequestStream, inner);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    fn stream(
        received: &[u8],
        body: Body,
        upgrade: Upgrade,
    ) -> (RequestStream, Return, DuplexStream) {
        let (near, far) = duplex(1 << 16);
        let (stream, back) =
            RequestStream::new(Box::new(near), BytesMut::from(received), body, upgrade, 2);
        (stream, back, far)
    }

    /// Whether a read waits.
    async fn waits(stream: &mut RequestStream) -> bool {
        let mut bytes = [0; 16];
        tokio::select! {
            biased;
            _ = stream.read(&mut bytes) => false,
            () = std::future::ready(()) => true,
        }
    }

    #[tokio::test]
    async fn a_request_is_read_to_its_end_and_the_next_one_comes_back() {
        let sent = b"5\r\nhello\r\n0\r\n\r\nGET /next";
        let length = sent.len() - b"GET /next".len();
        for ahead in 0..=sent.len() {
            let (mut stream, back, mut far) = stream(&sent[..ahead], Body::CHUNKED, Upgrade::None);
            far.write_all(&sent[ahead..]).await.unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(body, &sent[..length]);
            assert!(waits(&mut stream).await && waits(&mut stream).await);
            drop((stream, far));
            let (mut inner, received, body) = back.await.unwrap();
            assert!(body.is_whole());
            let mut next = received.to_vec();
            inner.read_to_end(&mut next).await.unwrap();
            assert_eq!(next, b"GET /next", "{ahead} bytes ahead");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_cut_or_malformed_is_an_error_and_a_close_after_it_is_none() {
        for (body, sent) in [
            (Body::CHUNKED, "zz"),
            (Body::CHUNKED, "5\r\nhe"),
            (Body::Length(9), "he"),
            (Body::CHUNKED, "0\r\nX: 1\r\nX: 2\r\nX: 3\r\n\r\n"),
        ] {
            let (mut stream, _back, far) = stream(sent.as_bytes(), body, Upgrade::None);
            drop(far);
            assert!(stream.read_to_end(&mut Vec::new()).await.is_err(), "{sent:?}");
        }
        let (mut stream, _back, far) = stream(b"", Body::Length(0), Upgrade::None);
        drop(far);
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn bytes_behind_an_upgrade_pass_only_once_it_is_accepted() {
        for (answer, passes) in [
            (&b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..], true),
            (b"HTTP/1.1 103 Early Hints\r\n\r\n", false),
            (b"HTTP/1.1 200 OK\r\n\r\n", false),
        ] {
            let (mut stream, _back, _far) = stream(b"early", Body::Length(0), Upgrade::WebSocket);
            assert!(waits(&mut stream).await);
            stream.write_all(answer).await.unwrap();
            assert_eq!(waits(&mut stream).await, !passes);
        }
        let (mut stream, _back, _far) = stream(b"early", Body::Length(0), Upgrade::WebSocket);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        stream.write_all(b"HTTP/1.1 101 in a body").await.unwrap();
        assert!(waits(&mut stream).await);
    }
}
