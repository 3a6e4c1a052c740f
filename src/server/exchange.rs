//! The state that the two streams of one exchange share: the stream of the client and that of the
//! origin. It holds whether the client takes the response, the header lines that are added to the
//! request, and what Pingora does not pass on: the trailers, and the `Date` of the response.
//!
//! Pingora reads a response in pieces of up to 64 KiB and queues up to ten of them, 640 KiB, while
//! the client takes none; neither number can be configured. But Pingora reads from the origin and
//! writes to the client in one task, and this server supplies the streams for both. These streams
//! share a value of the task: the stream of the origin gives one piece, and no further one while a
//! write to the client waits. So at most two pieces are in memory: Pingora's read buffer, whose
//! pages stay in use, and the piece that is being written.
//!
//! Every wait for the client ends: the client takes bytes, which wakes the reader, or the write
//! times out, which ends the exchange.

use super::buffered_bytes::{BufferedBytes, Reservation};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use std::cell::{Cell, OnceCell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

/// The most bytes of one piece of a response over HTTP/1. Each piece costs a system call on either
/// side: with 16 KiB a download of 1 MB took 1.4 times the CPU time.
pub const PIECE_BYTES_HTTP1: usize = 32 << 10;
/// The most bytes of one piece of a response over HTTP/2. One client may have many streams, so this
/// is less: the longest DATA frame that every client takes (RFC 9113, section 4.2).
pub const PIECE_BYTES_HTTP2: usize = 16 << 10;
/// The most bytes of one piece once [`LARGE_RESPONSE_BYTES`] of a response were read. Then the
/// client certainly reads, because the kernels of both sides buffer less: Linux buffers at most 4
/// MiB of what a socket sends (`tcp_wmem`), and as a rule less of what it receives.
const LARGE_PIECE_BYTES: usize = 64 << 10;
const LARGE_RESPONSE_BYTES: usize = 8 << 20;
/// The most bytes of one piece while more than a small part of `edge.buffered_bytes_max` is
/// reserved in the whole process, because there are many exchanges. Each of them then costs half as
/// much memory, but a download costs 1.6 times the CPU time.
const PIECE_BYTES_SMALL: usize = 8 << 10;
/// The most bytes of one piece while `edge.buffered_bytes_max` bytes wait in the whole process.
const PIECE_BYTES_MIN: usize = 2 << 10;
/// The bytes of `edge.buffered_bytes_max` that an exchange reserves for the part of its response or
/// upload that waits in memory, and the further bytes that it reserves for large pieces.
const RESERVED_BYTES: usize = 80 << 10;
const LARGE_RESERVED_BYTES: usize = 64 << 10;
/// The bytes that one read gives while nothing of the earlier bytes was written and no write waits.
/// The earlier bytes may be the beginning of a header or of a chunk, of which Pingora writes
/// nothing before it is whole.
const TRICKLE_BYTES: usize = 256;
/// The number of reads in a row that yield first, so that Pingora's other half of the task, or the
/// task of an HTTP/2 connection, can write.
const YIELDS_MAX: u32 = 2;

/// The number of exchanges so far.
static EXCHANGES: AtomicU64 = AtomicU64::new(0);

tokio::task_local! {
    static EXCHANGE: Exchange;
}

/// A message of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// Whether a client takes its response, by the last write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// The client took bytes.
    Takes,
    /// Nothing was written since bytes were read from the origin.
    Unknown,
    /// The client has no room: the write waits.
    Full,
}

/// The state of one exchange between a client and an origin.
struct Exchange {
    /// The number of the exchange in the process, from 1.
    number: u64,
    buffered_bytes: BufferedBytes,
    piece_bytes: usize,
    /// The exchange's share of all buffered bytes, from the first read of a response on. `None`:
    /// nothing was left.
    reserved: OnceCell<Option<Reservation>>,
    large_reserved: OnceCell<Option<Reservation>>,
    /// Bytes that were read from the origin.
    read: Cell<usize>,
    client: Cell<Client>,
    yields: Cell<u32>,
    /// The origin's stream, while it waits for the client to take bytes.
    reader: Cell<Option<Waker>>,
    /// Whether bytes of the request wait in memory for the origin to take them.
    request_waits: Cell<bool>,
    /// Lines that follow the header lines of the request, each with its CRLF.
    request_lines: RefCell<Bytes>,
    /// Whether the body of the request may end in trailers, and whether that of the response may;
    /// the latter is known once its header was read.
    request_has_chunks: bool,
    response_has_chunks: Cell<bool>,
    /// Lines of trailers, each with its CRLF; empty: none, or not read yet.
    request_trailers: RefCell<Bytes>,
    response_trailers: RefCell<Bytes>,
    /// The `Date` lines of the origin's answer, each with its CRLF.
    date: RefCell<Bytes>,
    /// Status and reason phrase of the origin's answer, if Pingora drops the phrase.
    reason: RefCell<Bytes>,
}

/// Runs `future`, which serves one request, as an exchange. `request_has_chunks`: the body of the
/// request may end in trailers.
pub fn scope<F: Future>(
    buffered_bytes: BufferedBytes,
    piece_bytes: usize,
    request_has_chunks: bool,
    future: F,
) -> impl Future<Output = F::Output> {
    let exchange = Exchange {
        number: EXCHANGES.fetch_add(1, Relaxed) + 1,
        buffered_bytes,
        piece_bytes,
        reserved: OnceCell::new(),
        large_reserved: OnceCell::new(),
        read: Cell::new(0),
        client: Cell::new(Client::Takes),
        yields: Cell::new(0),
        reader: Cell::default(),
        request_waits: Cell::new(false),
        request_lines: RefCell::default(),
        request_has_chunks,
        response_has_chunks: Cell::new(false),
        request_trailers: RefCell::default(),
        response_trailers: RefCell::default(),
        date: RefCell::default(),
        reason: RefCell::default(),
    };
    EXCHANGE.scope(exchange, future)
}

/// Notes whether the client took bytes just now, or has no room for any.
pub fn client_written<T>(written: &Poll<T>) {
    // Outside of an exchange there is nothing to note.
    let _ = EXCHANGE.try_with(|exchange| {
        if written.is_pending() {
            exchange.client.set(Client::Full);
            return;
        }
        exchange.client.set(Client::Takes);
        exchange.yields.set(0);
        if let Some(reader) = exchange.reader.take() {
            reader.wake();
        }
    });
}

/// How many bytes may be read from the origin now; at least 1. Pending while a write waits for the
/// client.
pub fn poll_room(cx: &mut Context<'_>) -> Poll<usize> {
    EXCHANGE.try_with(|exchange| exchange.poll_room(cx)).unwrap_or(Poll::Ready(usize::MAX))
}

/// The number of the current exchange, which no other exchange has. `None`: there is none.
pub fn number() -> Option<u64> {
    EXCHANGE.try_with(|exchange| exchange.number).ok()
}

/// Sends these header lines with the current request, behind its other lines. This works for a
/// request of a [`Server`](crate::Server) that goes to its origin through an
/// [`OriginConnector`](crate::http_server::OriginConnector). Call it in `upstream_request_filter`,
/// which Pingora calls again for a second attempt. Three lines cost a tenth of what they cost in
/// Pingora's header map.
///
/// Returns whether they will be sent: `false` outside of a request of a `Server`.
///
/// ```
/// use http::{HeaderName, HeaderValue};
/// use pixelgate::http_server::add_request_lines;
///
/// let name = HeaderName::from_static("x-forwarded-proto");
/// let is_added = add_request_lines(&[(&name, &HeaderValue::from_static("https"))]);
/// assert!(!is_added, "there is no request here");
/// ```
pub fn add_request_lines(lines: &[(&HeaderName, &HeaderValue)]) -> bool {
    EXCHANGE
        .try_with(|exchange| {
            let length = |(name, value): &(&HeaderName, &HeaderValue)| {
                name.as_str().len() + value.len() + b": \r\n".len()
            };
            let mut text = BytesMut::with_capacity(lines.iter().map(length).sum());
            for (name, value) in lines {
                for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                    text.extend_from_slice(piece);
                }
            }
            exchange.request_lines.replace(text.freeze());
        })
        .is_ok()
}

/// Takes what [`add_request_lines`] has stored.
pub fn take_request_lines() -> Bytes {
    EXCHANGE.try_with(|exchange| exchange.request_lines.take()).unwrap_or_default()
}

/// Whether the body of a message may end in trailers.
pub fn has_chunks(side: Side) -> bool {
    let has_chunks = |exchange: &Exchange| match side {
        Side::Request => exchange.request_has_chunks,
        Side::Response => exchange.response_has_chunks.get(),
    };
    EXCHANGE.try_with(has_chunks).unwrap_or(false)
}

/// Notes that the body of the response may end in trailers.
pub fn response_has_chunks() {
    // Outside of an exchange there is nothing to note.
    let _ = EXCHANGE.try_with(|exchange| exchange.response_has_chunks.set(true));
}

/// Stores the trailers of a message: whole lines.
pub fn store_trailers(side: Side, lines: Bytes) {
    // Outside of an exchange the other side does not exist.
    let _ = EXCHANGE.try_with(|exchange| exchange.trailers(side).replace(lines));
}

/// The trailers of a message. Empty: none, or not read yet.
pub fn trailers(side: Side) -> Bytes {
    EXCHANGE.try_with(|exchange| exchange.trailers(side).borrow().clone()).unwrap_or_default()
}

/// Stores the `Date` lines of the origin's answer, each with its CRLF.
pub fn store_date(lines: Bytes) {
    // Outside of an exchange there is no client.
    let _ = EXCHANGE.try_with(|exchange| exchange.date.replace(lines));
}

/// Takes what [`store_date`] has stored.
pub fn take_date() -> Bytes {
    EXCHANGE.try_with(|exchange| exchange.date.take()).unwrap_or_default()
}

/// Stores status and reason phrase of the origin's answer. Empty: Pingora keeps the phrase.
pub fn store_reason(status_and_reason: Bytes) {
    // Outside of an exchange there is no client.
    let _ = EXCHANGE.try_with(|exchange| exchange.reason.replace(status_and_reason));
}

/// What [`store_reason`] has stored.
pub fn reason() -> Bytes {
    EXCHANGE.try_with(|exchange| exchange.reason.borrow().clone()).unwrap_or_default()
}

/// Notes whether bytes of the request wait in memory for the origin to take them. Meanwhile no more
/// are read from the client.
pub fn set_request_waits(waits: bool) {
    // Outside of an exchange there is nothing to note.
    let _ = EXCHANGE.try_with(|exchange| exchange.request_waits.set(waits));
}

/// Whether bytes of the request wait in memory for the origin to take them.
pub fn request_waits() -> bool {
    EXCHANGE.try_with(|exchange| exchange.request_waits.get()).unwrap_or(false)
}

/// Waits until the origin has taken all bytes of the request that wait in memory: before that, no
/// more are read from the client. Registers no waker, because the origin's stream, which is read in
/// the same task, wakes that task.
pub fn poll_request_taken() -> Poll<()> {
    if request_waits() { Poll::Pending } else { Poll::Ready(()) }
}

/// Whether the current task is in an exchange.
pub fn is_current() -> bool {
    EXCHANGE.try_with(|_| ()).is_ok()
}

/// Notes that bytes were read from the origin.
pub fn origin_read(bytes: usize) {
    // Outside of an exchange there is nothing to note.
    let _ = EXCHANGE.try_with(|exchange| {
        exchange.read.set(exchange.read.get().saturating_add(bytes));
        exchange.client.set(Client::Unknown);
    });
}

impl Exchange {
    fn trailers(&self, side: Side) -> &RefCell<Bytes> {
        match side {
            Side::Request => &self.request_trailers,
            Side::Response => &self.response_trailers,
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        match self.client.get() {
            Client::Takes => return Poll::Ready(self.piece_bytes()),
            Client::Unknown if self.yields.get() >= YIELDS_MAX => {
                return Poll::Ready(TRICKLE_BYTES);
            }
            Client::Unknown => {
                self.yields.set(self.yields.get() + 1);
                cx.waker().wake_by_ref();
            }
            Client::Full => self.reader.set(Some(cx.waker().clone())),
        }
        Poll::Pending
    }

    fn piece_bytes(&self) -> usize {
        let reserve = |bytes| move || self.buffered_bytes.reserve(bytes);
        if self.reserved.get_or_init(reserve(RESERVED_BYTES)).is_none() {
            return PIECE_BYTES_MIN;
        }
        let is_large = self.read.get() >= LARGE_RESPONSE_BYTES
            && self.large_reserved.get_or_init(reserve(LARGE_RESERVED_BYTES)).is_some();
        match is_large {
            true => LARGE_PIECE_BYTES,
            false if self.buffered_bytes.is_ample() => self.piece_bytes,
            false => self.piece_bytes.min(PIECE_BYTES_SMALL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffered_bytes::AMPLE_DIVISOR;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    /// Reads all that may be read, as Pingora does: up to five pieces until the client takes some.
    fn read_ahead() -> usize {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut read = 0;
        for _ in 0..5 {
            if let Poll::Ready(room) = poll_room(cx) {
                origin_read(room);
                read += room;
            }
        }
        read
    }

    async fn ahead(buffered_bytes: BufferedBytes, read_before: usize) -> [usize; 3] {
        scope(buffered_bytes, PIECE_BYTES_HTTP1, false, async {
            origin_read(read_before);
            client_written(&Poll::Ready(()));
            let first = read_ahead();
            client_written(&Poll::Ready(()));
            let again = read_ahead();
            client_written(&Poll::<()>::Pending);
            [first, again, read_ahead()]
        })
        .await
    }

    #[tokio::test]
    async fn little_is_read_while_the_client_waits() {
        let (small, large) = (RESERVED_BYTES, RESERVED_BYTES + LARGE_RESERVED_BYTES);
        for (bytes_max, read_before, piece) in [
            (0, 0, PIECE_BYTES_MIN),
            (0, LARGE_RESPONSE_BYTES, PIECE_BYTES_MIN),
            (small, 0, PIECE_BYTES_SMALL),
            (small, LARGE_RESPONSE_BYTES, PIECE_BYTES_SMALL),
            (large, LARGE_RESPONSE_BYTES / 2, PIECE_BYTES_SMALL),
            (large, LARGE_RESPONSE_BYTES, LARGE_PIECE_BYTES),
            (AMPLE_DIVISOR * small, LARGE_RESPONSE_BYTES / 2, PIECE_BYTES_HTTP1),
            (AMPLE_DIVISOR * small - 1, LARGE_RESPONSE_BYTES / 2, PIECE_BYTES_SMALL),
        ] {
            // Two of the five reads wait; while the client has no room, all do.
            let ahead_max = piece + 2 * TRICKLE_BYTES;
            let read = ahead(BufferedBytes::new(bytes_max), read_before).await;
            assert_eq!(read, [ahead_max, ahead_max, 0], "{bytes_max} {read_before}");
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_bytes_wakes_the_reader() {
        scope(BufferedBytes::new(0), PIECE_BYTES_HTTP1, false, async {
            let woken = Arc::<Woken>::default();
            let waker = Waker::from(woken.clone());
            origin_read(1);
            client_written(&Poll::<()>::Pending);
            assert!(poll_room(&mut Context::from_waker(&waker)).is_pending());
            assert!(!woken.0.load(Relaxed));
            client_written(&Poll::Ready(()));
            assert!(woken.0.load(Relaxed));
            let room = poll_room(&mut Context::from_waker(&waker));
            assert_eq!(room, Poll::Ready(PIECE_BYTES_MIN));
        })
        .await;
    }

    #[tokio::test]
    async fn outside_of_an_exchange_nothing_is_limited() {
        assert_eq!(poll_room(&mut Context::from_waker(Waker::noop())), Poll::Ready(usize::MAX));
    }
}
