//! A connection to an origin that gives its bytes in pieces as [`exchange`] allows, and carries
//! trailers.
//!
//! Pingora reads nothing from an origin while it writes to it. So an origin that does not read
//! until it has sent, such as an echo, would wait for ever, and the answer of an origin that does
//! not read an upload would be noticed only after a timeout. Therefore a write does not wait once
//! the origin answers: the bytes that the origin does not take are stored, and are sent while its
//! answer is read. Nothing more is read from the client until all of them are sent. If the whole
//! answer has come and the origin takes no byte for [`PATIENCE`], the rest of the request is
//! dropped, and the connection ends.

use super::alarm::Alarm;
use super::exchange::{self, Side};
use super::http1::trailer_reader::TrailerReader;
use super::http1::trailers::{TrailerWriter, write};
use super::origin_timeouts::OriginTimeouts;
use super::pingora_traits::delegate_traits;
use super::read_buffer;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora::protocols::{Shutdown, Stream};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Sleep, sleep};

/// The longest time for which an origin whose whole answer has come may take no byte of the
/// request.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection to an origin.
#[derive(Debug)]
pub struct OriginStream {
    wire: Wire,
    /// The number of the exchange that the connection serves. It serves one request of an exchange
    /// only: Pingora makes a second attempt on another connection.
    exchange: u64,
    request: TrailerWriter,
    response: TrailerReader,
    timeouts: OriginTimeouts,
    alarm: Alarm,
    /// Whether the alarm limits a wait for the next request.
    is_idle: bool,
}

/// How much of the final answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    None,
    Some,
    Whole,
}

/// The connection itself, below the code that adds and finds trailers.
#[derive(Debug)]
struct Wire {
    stream: Take<Stream>,
    answer: Answer,
    /// Bytes of the answer that came while a write waited, and that Pingora has not read yet.
    received: BytesMut,
    /// Bytes of the request that the origin has not taken. They are at most the few pieces that
    /// Pingora had read from the client before.
    unsent: BytesMut,
    /// The timer of [`PATIENCE`], which runs while the origin takes nothing after its whole answer.
    patience: Option<Pin<Box<Sleep>>>,
    /// Whether the rest of the request is dropped.
    is_over: bool,
    /// Whether a part of a request was sent after its whole answer had come. An origin that has not
    /// read it may take it for the next request.
    is_ahead: bool,
}

impl OriginStream {
    pub fn new(stream: Stream, timeouts: OriginTimeouts) -> Self {
        let wire = Wire {
            stream: stream.take(0),
            answer: Answer::None,
            received: BytesMut::new(),
            unsent: BytesMut::new(),
            patience: None,
            is_over: false,
            is_ahead: false,
        };
        let (request, response) = (TrailerWriter::new(Side::Request), TrailerReader::default());
        let alarm = Alarm::default();
        Self { wire, exchange: 0, request, response, timeouts, alarm, is_idle: false }
    }

    fn stream(&self) -> &Stream {
        self.wire.stream.get_ref()
    }

    fn poll_write_pieces(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(number) = exchange::number()
            && self.exchange != number
        {
            self.exchange = number;
            self.request = TrailerWriter::new(Side::Request);
            self.response = TrailerReader::new(pieces.first().map_or(&[], |head| head));
            self.wire.answer = Answer::None;
        }
        let written = self.request.poll_write(Pin::new(&mut self.wire), cx, pieces);
        self.within_limit(written, cx)
    }

    /// `polled`, or an error if the origin has been waited for too long.
    fn within_limit<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.alarm.end_wait();
            return polled;
        }
        let is_idle = match exchange::number() {
            None => true,
            Some(number) if number == self.exchange => false,
            // Another exchange only looks whether this connection is still open before it uses it.
            Some(_) => return polled,
        };
        if std::mem::replace(&mut self.is_idle, is_idle) != is_idle {
            self.alarm.end_wait();
        }
        let limit = if is_idle { self.timeouts.idle } else { self.timeouts.io };
        let Some(limit) = limit else { return polled };
        self.alarm.poll(limit, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for OriginStream {
    fn drop(&mut self) {
        // The stored bytes are dropped, so the client need not wait for them. The `Date` and the
        // reason of an answer that was not passed on must not get into the proxy's own answer.
        if exchange::number() == Some(self.exchange) {
            exchange::set_request_waits(false);
            exchange::take_date();
            exchange::store_reason(Bytes::new());
        }
    }
}

impl Wire {
    fn stream(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.get_mut())
    }

    /// Whether the connection can serve no other request, because its origin may not have taken all
    /// of the current one.
    fn ends(&self) -> bool {
        self.is_over || self.is_ahead || (self.answer == Answer::Whole && !self.unsent.is_empty())
    }

    /// Sends the stored bytes of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(self.stream.get_mut()).poll_write(cx, &self.unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(written);
            self.patience = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Does what [`Wire::poll_send`] does, and then flushes.
    fn poll_send_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.stream().poll_flush(cx)
    }

    /// Sends the stored bytes of the request, and lets the client be read again when all are sent.
    fn send_waiting(&mut self, cx: &mut Context<'_>) {
        // The next write meets the same error and reports it. Until then, all bytes that the origin
        // has sent are read.
        if exchange::request_waits() && self.poll_send_all(cx).is_ready() {
            self.unsent = BytesMut::new();
            exchange::set_request_waits(false);
            cx.waker().wake_by_ref();
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        bytes_max: usize,
    ) -> Poll<io::Result<()>> {
        if read_buffer::replay(&mut self.received, buf) {
            return Poll::Ready(Ok(()));
        }
        self.stream.set_limit(bytes_max as u64);
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }

    /// Notes how much of the answer was read.
    fn note_answer(&mut self, cx: &mut Context<'_>, answer: Answer) {
        self.answer = answer;
        // Pingora reads nothing after the answer, so only a further write can send stored bytes.
        if answer == Answer::Whole && exchange::request_waits() {
            exchange::set_request_waits(false);
            cx.waker().wake_by_ref();
        }
    }

    /// Waits until a write need not wait any longer for an origin that takes nothing: the origin
    /// has begun to answer, or [`PATIENCE`] has passed since its whole answer.
    fn poll_untaken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.answer == Answer::None {
            ready!(self.poll_answer(cx));
            self.answer = Answer::Some;
        }
        if self.answer == Answer::Some {
            exchange::set_request_waits(true);
            return Poll::Ready(());
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        ready!(patience.as_mut().poll(cx));
        (self.is_over, self.unsent) = (true, BytesMut::new());
        Poll::Ready(())
    }

    /// Waits until the origin sends something, and stores it for Pingora.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, received, .. } = self;
        if !received.is_empty() {
            return Poll::Ready(());
        }
        let store = |bytes: &[u8]| received.extend_from_slice(bytes);
        // Pingora meets an end or an error again when it reads, and reports it.
        read_buffer::poll_read(&mut **stream.get_mut(), cx, store).map(drop)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Writes some of `pieces`, or stores or drops all of them.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.is_ahead |=
            this.answer == Answer::Whole && pieces.iter().any(|piece| !piece.is_empty());
        if !this.is_over {
            if this.poll_send(cx)?.is_ready()
                && let Poll::Ready(written) = write(this.stream(), cx, pieces)
            {
                this.patience = None;
                return Poll::Ready(written);
            }
            ready!(this.poll_untaken(cx));
        }
        if !this.is_over {
            pieces.iter().for_each(|piece| this.unsent.extend_from_slice(piece));
        }
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(flushed) = this.poll_send_all(cx) {
            return Poll::Ready(flushed);
        }
        this.poll_untaken(cx).map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_all(cx))?;
        this.stream().poll_shutdown(cx)
    }
}

impl AsyncRead for OriginStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.wire.ends() {
            // Pingora takes this for a close by the origin, and uses the connection no more.
            return Poll::Ready(Ok(()));
        }
        if this.response.is_broken() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        this.wire.send_waiting(cx);
        let Poll::Ready(room) = exchange::poll_room(cx) else {
            // The wait is for the client, not for the origin.
            this.alarm.end_wait();
            return Poll::Pending;
        };
        let before = buf.filled().len();
        let read = this.wire.poll_read(cx, buf, room);
        ready!(this.within_limit(read, cx))?;
        let Self { wire, response, .. } = this;
        let bytes = &buf.filled()[before..];
        let is_end = bytes.is_empty();
        exchange::origin_read(bytes.len());
        let sound = response.read(bytes);
        if response.is_broken() && sound == 0 {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        // What follows in a broken answer is not passed on: the next read is an error.
        buf.set_filled(before + sound);
        let answer = match response.has_begun() {
            _ if is_end || response.is_whole() => Answer::Whole,
            true => Answer::Some,
            false => Answer::None,
        };
        wire.note_answer(cx, answer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OriginStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.wire).poll_flush(cx);
        this.within_limit(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for OriginStream {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut **self.wire.stream.get_mut()).await;
    }
}

delegate_traits!(OriginStream, stream);

#[cfg(test)]
mod tests {
    use super::super::buffered_bytes::BufferedBytes;
    use super::super::socket::Socket;
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::UnixStream;
    use tokio::time::Instant;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const TIMEOUTS: OriginTimeouts =
        OriginTimeouts { io: Some(Duration::from_secs(5)), idle: Some(Duration::from_secs(50)) };

    fn origin() -> (OriginStream, DuplexStream) {
        let (near, far) = duplex(1 << 10);
        (OriginStream::new(Box::new(near), TIMEOUTS), far)
    }

    async fn exchange<T>(test: impl Future<Output = T>) -> T {
        exchange::scope(BufferedBytes::new(0), 0, false, test).await
    }

    /// Asserts that `wait` ends with a timeout, after `limit`.
    async fn check<T>(wait: impl Future<Output = io::Result<T>>, limit: Option<Duration>) {
        let began = Instant::now();
        assert_eq!(wait.await.err().map(|e| e.kind()), Some(io::ErrorKind::TimedOut));
        let (waited, limit) = (began.elapsed(), limit.unwrap());
        assert!(waited >= limit && waited < limit + Duration::from_millis(2), "{waited:?}");
    }

    #[tokio::test]
    async fn pieces_for_an_origin_that_answers_count_whole_and_arrive_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
        let mut origin = OriginStream::new(Box::new(Socket::unix(near)), TIMEOUTS);
        exchange::scope(BufferedBytes::new(1 << 20), 0, false, async {
            let mut expect = Vec::new();
            // More than a socket takes: the rest is stored, and still counts as written.
            for round in 0..40_u8 {
                let (long, short) = (vec![round; 32 << 10], [round, b'-', round]);
                let pieces = [&long[..], b"", &short].map(io::IoSlice::new);
                let written = origin.write_vectored(&pieces).await.unwrap();
                let whole = [&long[..], &short].concat();
                assert!(written == whole.len() || !exchange::request_waits(), "{round}: {written}");
                expect.extend_from_slice(&whole[..written]);
            }
            assert!(exchange::request_waits());
            let mut all = vec![0; expect.len()];
            let (read, sent) = tokio::join!(far.read_exact(&mut all), async {
                std::future::poll_fn(|cx| origin.wire.poll_send_all(cx)).await
            });
            sent.unwrap();
            read.unwrap();
            assert!(all == expect, "the bytes arrive as they were written");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_for_an_origin_has_the_limit_of_what_is_waited_for() {
        let (mut stream, mut far) = origin();
        for _ in 0..2 {
            exchange(async {
                stream.write_all(HEAD).await.unwrap();
                // What arrives in time ends a wait, and the next one begins anew.
                for _ in 0..3 {
                    let answer = async {
                        sleep(Duration::from_secs(4)).await;
                        far.write_all(b"a").await
                    };
                    let (read, answered) = tokio::join!(stream.read_u8(), answer);
                    assert!(read.is_ok() && answered.is_ok());
                }
            })
            .await;
            check(stream.read_u8(), TIMEOUTS.idle).await;
        }
        exchange(async {
            stream.write_all(HEAD).await.unwrap();
            check(stream.read_u8(), TIMEOUTS.io).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_takes_nothing_is_waited_for_as_long() {
        let (mut stream, _far) = origin();
        exchange(async {
            stream.write_all(HEAD).await.unwrap();
            check(stream.write_all(&[0; 1 << 11]), TIMEOUTS.io).await;
        })
        .await;
    }
}
