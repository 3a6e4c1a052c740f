//! A stream that passes on what a client sends, where [`HeaderFrames`] may replace header blocks.

use super::header_frames::{HeaderFrames, Replaced};
use crate::server::read_buffer::replay;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An HTTP/2 connection whose received header blocks may be written anew.
#[derive(Debug)]
pub struct Rewriter<S> {
    inner: S,
    frames: HeaderFrames,
    /// The beginning of a frame header or of a header block that has not arrived yet.
    held: BytesMut,
    /// Bytes that are passed on before more are read from `inner`.
    ready: BytesMut,
}

impl<S> Rewriter<S> {
    /// Reads `inner` from its preface on. Lists of fields may have `list_bytes_max` bytes.
    pub fn new(inner: S, list_bytes_max: usize) -> Self {
        let frames = HeaderFrames::new(list_bytes_max);
        Self { inner, frames, held: BytesMut::new(), ready: BytesMut::new() }
    }

    /// Moves the bytes of `held` about which [`HeaderFrames`] has decided to `ready`.
    fn release(&mut self) {
        loop {
            let (passed, replaced) = self.frames.pass(&self.held);
            self.ready.extend_from_slice(&self.held[..passed]);
            self.held.advance(passed);
            let Some(Replaced { count, by }) = replaced else { break };
            self.ready.extend_from_slice(&by);
            self.held.advance(count);
        }
        if self.held.is_empty() {
            // Frees the allocation.
            self.held = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewriter<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !replay(&mut this.ready, buf) {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            let bytes = &buf.filled()[before..];
            if bytes.is_empty() {
                // The client has closed. The `h2` crate finds out what is missing.
                this.ready = std::mem::take(&mut this.held);
                replay(&mut this.ready, buf);
                break;
            }
            let is_first = this.held.is_empty();
            let (passed, replaced) = if is_first { this.frames.pass(bytes) } else { (0, None) };
            if passed == bytes.len() {
                break;
            }
            let Replaced { count, by } = replaced.unwrap_or_default();
            this.ready.extend_from_slice(&by);
            this.held.extend_from_slice(&bytes[passed + count..]);
            buf.set_filled(before + passed);
            this.release();
            if passed > 0 {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewriter<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
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
