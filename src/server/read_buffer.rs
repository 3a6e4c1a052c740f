//! Reads from a connection without holding memory while no bytes arrive.
//!
//! A buffer per connection would cost 16 KiB for each of thousands of idle connections. So all
//! connections of a thread read into one buffer of that thread. The caller uses the bytes during
//! the call, or copies as many as arrived. [`replay`] hands out bytes that were read earlier.

use bytes::BytesMut;
use pingora::protocols::IO;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

/// The size of a thread's read buffer, in bytes. A header with many cookies or one TLS record fits.
pub const READ_BUFFER_BYTES: usize = 16 << 10;

thread_local! {
    static READ_BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Copies bytes that were read earlier from `ahead` to `buf`. Returns `false` if there are none.
pub fn replay(ahead: &mut BytesMut, buf: &mut ReadBuf<'_>) -> bool {
    if ahead.is_empty() {
        // Frees the allocation: an idle connection holds no memory here.
        if ahead.capacity() > 0 {
            *ahead = BytesMut::new();
        }
        return false;
    }
    buf.put_slice(&ahead.split_to(ahead.len().min(buf.remaining())));
    true
}

/// Reads once and passes the bytes to `take`. The slice is empty if the peer closed.
pub fn poll_read<T>(
    stream: &mut dyn IO,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    poll_fill(|target| Pin::new(stream).poll_read(cx, target), take)
}

/// Does what [`poll_read`] does, with bytes that `read` reads into the buffer that it gets.
pub fn poll_fill<T>(
    read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    // Allocates at a thread's first read, and at a read inside `take`.
    let allocate = || vec![0; READ_BUFFER_BYTES].into_boxed_slice();
    let mut read_buffer = READ_BUFFER.take().unwrap_or_else(allocate);
    let mut target = ReadBuf::new(&mut read_buffer);
    let taken = read(&mut target).map_ok(|()| take(target.filled()));
    READ_BUFFER.set(Some(read_buffer));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn received_bytes_are_passed_on_and_a_close_gives_none() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"abc").await.unwrap();
        let read = poll_fn(|cx| poll_read(&mut near, cx, |bytes| bytes.to_vec())).await;
        assert_eq!(read.unwrap(), b"abc");
        drop(far);
        let read = poll_fn(|cx| poll_read(&mut near, cx, |bytes| bytes.len())).await;
        assert_eq!(read.unwrap(), 0);
    }
}
