//! A stream that passes bytes through and counts HTTP/2 frames against a [`FrameBudget`].

use super::frame::{Frame, PREFACE};
use super::frame_budget::FrameBudget;
use super::uploads::Uploads;
use crate::server::limits::{LINGER_BYTES_MAX, LINGER_SECONDS_MAX};
use crate::server::read_buffer::{self, replay};
use crate::telemetry::metrics::Limit;
use bytes::BytesMut;
use pingora::protocols::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

/// Finds frame headers in a byte stream that arrives in pieces of any size.
#[derive(Debug)]
struct Frames {
    head: [u8; Frame::HEAD_BYTES],
    /// Bytes of `head` that are filled.
    filled: usize,
    /// Bytes until the next frame header.
    skip: usize,
}

impl Frames {
    /// Expects a client's preface first.
    fn new() -> Self {
        Self { head: [0; Frame::HEAD_BYTES], filled: 0, skip: PREFACE.len() }
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
            let piece = (Frame::HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + piece].copy_from_slice(&bytes[..piece]);
            self.filled += piece;
            bytes = &bytes[piece..];
            if self.filled == Frame::HEAD_BYTES {
                self.filled = 0;
                let frame = Frame::of(self.head);
                self.skip = frame.length;
                received(frame)?;
            }
        }
    }
}

/// An HTTP/2 connection whose received frames are counted.
#[derive(Debug)]
pub struct FrameCounter {
    inner: Stream,
    /// Bytes that were read before and are not counted yet.
    received: BytesMut,
    frames: Frames,
    budget: Arc<FrameBudget>,
    /// The uploads of this connection; each RST_STREAM is reported to them.
    uploads: Arc<Uploads>,
    limit_sender: Option<oneshot::Sender<Limit>>,
    lingering: Option<Lingering>,
}

/// What a connection that is being closed may still receive.
#[derive(Debug)]
struct Lingering {
    alarm: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl FrameCounter {
    /// Counts the frames of `inner`, whose first bytes, `received`, are already read. The receiver
    /// gets the limit that ended the connection, if one did.
    pub fn new(
        inner: Stream,
        received: BytesMut,
        budget: Arc<FrameBudget>,
        uploads: Arc<Uploads>,
    ) -> (Self, oneshot::Receiver<Limit>) {
        let (limit_sender, receiver) = oneshot::channel();
        let counter = Self {
            inner,
            received,
            frames: Frames::new(),
            budget,
            uploads,
            limit_sender: Some(limit_sender),
            lingering: None,
        };
        (counter, receiver)
    }

    fn note_sent(&self, result: &Poll<io::Result<usize>>) {
        self.budget.sending_blocked(result.is_pending());
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
        if this.budget.turn_is_over() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if !replay(&mut this.received, buf) {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        }
        let bytes = &buf.filled()[before..];
        this.budget.bytes_received();
        let counted = this.frames.read(bytes, |frame| {
            if frame.kind == Frame::RST_STREAM {
                this.uploads.reset(frame.stream);
            }
            this.budget.frame_received(frame)
        });
        if let Err(limit) = counted {
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
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.budget.sending_blocked(result.is_pending());
        result
    }

    /// Closes the sending side, then drains: see [`LINGER_SECONDS_MAX`]. A client's last SETTINGS
    /// or WINDOW_UPDATE may still arrive, and the GOAWAY is on its way.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, lingering, .. } = self.get_mut();
        let lingering = match lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut *inner).poll_shutdown(cx))?;
                let alarm = Box::pin(sleep(Duration::from_secs(LINGER_SECONDS_MAX)));
                lingering.insert(Lingering { alarm, bytes_left: LINGER_BYTES_MAX })
            }
        };
        if lingering.alarm.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            match ready!(read_buffer::poll_read(&mut **inner, cx, <[u8]>::len)) {
                Ok(bytes) if bytes > 0 && bytes <= lingering.bytes_left => {
                    lingering.bytes_left -= bytes;
                }
                // The client closed too, or sent too much.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let frame = |kind: u8, flags: u8, payload: usize| {
            let length = u32::try_from(payload).unwrap().to_be_bytes();
            let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0x80, 0, 0, 7];
            bytes.resize(Frame::HEAD_BYTES + payload, 0xaa);
            bytes
        };
        let all =
            [PREFACE.to_vec(), frame(4, 0, 0), frame(1, 4, 30), frame(0, 1, 300), frame(6, 0, 8)];
        let all = all.concat();
        let expect = [(4, 0, 7, 0), (1, 4, 7, 30), (0, 1, 7, 300), (6, 0, 7, 8)];
        for piece in 1..all.len() {
            let mut frames = Frames::new();
            let mut found = Vec::new();
            for bytes in all.chunks(piece) {
                let received = |frame: Frame| {
                    found.push((frame.kind, frame.flags, frame.stream, frame.length));
                    Ok(())
                };
                frames.read(bytes, received).unwrap();
            }
            assert_eq!(found, expect, "in pieces of {piece}");
        }
    }
}
