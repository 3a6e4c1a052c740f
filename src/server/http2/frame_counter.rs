//! A stream that passes bytes through and counts HTTP/2 frames against a [`FrameBudget`].

use super::frame::{Frame, PREFACE};
use super::frame_budget::FrameBudget;
use crate::server::read_buffer::replay;
use crate::telemetry::metrics::Limit;
use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Length of a frame header, in bytes (RFC 9113, section 4.1).
const FRAME_HEAD_BYTES: usize = 9;

/// Finds frame headers in a byte stream that arrives in pieces of any size.
#[derive(Debug)]
struct Frames {
    head: [u8; FRAME_HEAD_BYTES],
    /// Bytes of `head` that are filled.
    filled: usize,
    /// Bytes until the next frame header.
    skip: usize,
}

impl Frames {
    /// Expects a client's preface first.
    fn new() -> Self {
        Self { head: [0; FRAME_HEAD_BYTES], filled: 0, skip: PREFACE.len() }
    }

    /// Calls `received` for each frame header in `bytes`; stops at its first error.
    fn read(
        &mut self,
        mut bytes: &[u8],
        mut received: impl FnMut(Frame) -> Result<(), Limit>,
    ) -> Result<(), Limit> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let piece = (FRAME_HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + piece].copy_from_slice(&bytes[..piece]);
            self.filled += piece;
            bytes = &bytes[piece..];
            if self.filled == FRAME_HEAD_BYTES {
                self.filled = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                self.skip = length;
                received(Frame { kind, flags, length })?;
            }
        }
    }
}

/// An HTTP/2 connection whose received frames are counted.
#[derive(Debug)]
pub struct FrameCounter {
    inner: Stream,
    /// Bytes that were read before Pingora got the connection.
    received: BytesMut,
    frames: Frames,
    budget: Arc<FrameBudget>,
    limit_sender: Option<oneshot::Sender<Limit>>,
}

impl FrameCounter {
    /// Counts the frames of `inner`, whose first bytes, `received`, are already read. The receiver
    /// gets the limit that ended the connection, if one did.
    pub fn new(
        inner: Stream,
        received: BytesMut,
        budget: Arc<FrameBudget>,
    ) -> (Self, oneshot::Receiver<Limit>) {
        let (limit_sender, receiver) = oneshot::channel();
        let limit_sender = Some(limit_sender);
        (Self { inner, received, frames: Frames::new(), budget, limit_sender }, receiver)
    }

    fn note_sent(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = result {
            self.budget.bytes_sent(*bytes);
        }
    }
}

impl AsyncRead for FrameCounter {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !replay(&mut this.received, buf) {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        }
        let bytes = &buf.filled()[before..];
        this.budget.bytes_received();
        if let Err(limit) = this.frames.read(bytes, |frame| this.budget.frame_received(frame)) {
            if let Some(limit_sender) = this.limit_sender.take() {
                // The receiver is dropped only if the connection has ended for another reason.
                let _ = limit_sender.send(limit);
            }
            return Poll::Ready(Err(io::Error::other("an HTTP/2 limit was exceeded")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FrameCounter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note_sent(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, pieces);
        self.note_sent(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// The remaining traits are required by Pingora; they delegate to `inner`.

#[async_trait]
impl Shutdown for FrameCounter {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

impl UniqueID for FrameCounter {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for FrameCounter {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    /// HTTP/2, also if the client chose it by prior knowledge.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H2)
    }
}

impl GetTimingDigest for FrameCounter {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for FrameCounter {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for FrameCounter {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for FrameCounter {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let frame = |kind: u8, flags: u8, payload: usize| {
            let length = u32::try_from(payload).unwrap().to_be_bytes();
            let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 0];
            bytes.resize(FRAME_HEAD_BYTES + payload, 0xaa);
            bytes
        };
        let all =
            [PREFACE.to_vec(), frame(4, 0, 0), frame(1, 4, 30), frame(0, 1, 300), frame(6, 0, 8)];
        let all = all.concat();
        let expect = [(4, 0, 0), (1, 4, 30), (0, 1, 300), (6, 0, 8)];
        for piece in 1..all.len() {
            let mut frames = Frames::new();
            let mut found = Vec::new();
            for bytes in all.chunks(piece) {
                let received = |frame: Frame| {
                    found.push((frame.kind, frame.flags, frame.length));
                    Ok(())
                };
                frames.read(bytes, received).unwrap();
            }
            assert_eq!(found, expect, "in pieces of {piece}");
        }
    }
}
