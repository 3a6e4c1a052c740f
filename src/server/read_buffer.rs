//! Reading without holding memory while there is nothing to read.
//!
//! A connection that waits needs no room for what has not come yet, and ten thousand that wait
//! would hold ten thousand rooms. So all connections of a thread read into one room of the
//! thread's; what came is used there, or copied by its real length. What was read before its reader
//! was there is read once more by [`replay`].

use bytes::BytesMut;
use pingora::protocols::IO;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

/// Bytes of the room: more than a header with many cookies, and one TLS record.
const ROOM_BYTES: usize = 16 << 10;

thread_local! {
    static ROOM: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Gives a reader what was read before its time, if there is anything left of that. Says whether.
pub fn replay(ahead: &mut BytesMut, buf: &mut ReadBuf<'_>) -> bool {
    if ahead.is_empty() {
        // Whoever waits for more holds nothing.
        *ahead = BytesMut::new();
        return false;
    }
    buf.put_slice(&ahead.split_to(ahead.len().min(buf.remaining())));
    true
}

/// Reads once and hands what came to `take`; nothing at all came from a peer that closed.
pub fn poll_read<T>(
    stream: &mut dyn IO,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    // A thread's first read makes the room, and so would one inside `take`.
    let mut room = ROOM.take().unwrap_or_else(|| vec![0; ROOM_BYTES].into_boxed_slice());
    let mut buffer = ReadBuf::new(&mut room);
    let read = Pin::new(stream).poll_read(cx, &mut buffer);
    let taken = read.map_ok(|()| take(buffer.filled()));
    ROOM.set(Some(room));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_came_is_handed_over_and_a_close_is_nothing() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"abc").await.unwrap();
        let read = poll_fn(|cx| poll_read(&mut near, cx, |bytes| bytes.to_vec())).await;
        assert_eq!(read.unwrap(), b"abc");
        drop(far);
        let read = poll_fn(|cx| poll_read(&mut near, cx, |bytes| bytes.len())).await;
        assert_eq!(read.unwrap(), 0);
    }
}
