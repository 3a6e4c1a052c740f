//! Counts the bytes of bodies that wait in memory, in the whole process.
//!
//! A client that does not read its download, or an origin that does not read an upload, makes the
//! other side's bytes wait here. Each exchange alone holds a bounded number of bytes. This count
//! bounds all of them together: once it is full, each exchange that begins gets the smallest
//! buffers with which it still makes progress. None is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Pieces have their full length while at most this part of all bytes is reserved: with the default
/// of 256 MiB and 80 KiB for each, by 102 exchanges.
pub(crate) const AMPLE_DIVISOR: usize = 32;

/// Counts the bytes of bodies that wait in memory; clones share the count.
///
/// ```
/// use pixelgate::http_server::BufferedBytes;
///
/// let buffered_bytes = BufferedBytes::new(64 << 20); // for all servers of the process
/// buffered_bytes.set_max(128 << 20);
/// ```
#[derive(Debug, Clone)]
pub struct BufferedBytes(Arc<Count>);

#[derive(Debug)]
struct Count {
    held: AtomicUsize,
    bytes_max: AtomicUsize,
}

/// Reserved bytes, which are returned to the count when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    count: BufferedBytes,
    bytes: usize,
}

impl BufferedBytes {
    /// A count of 0 that is full at `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Count { held: AtomicUsize::new(0), bytes_max: bytes_max.into() }))
    }

    /// Makes the count full at `bytes_max` bytes. Bytes that are reserved stay reserved.
    pub fn set_max(&self, bytes_max: usize) {
        self.0.bytes_max.store(bytes_max, Relaxed);
    }

    /// Whether so few bytes are reserved that an exchange may have pieces of full length.
    pub(crate) fn is_ample(&self) -> bool {
        self.0.held.load(Relaxed) <= self.bytes_max() / AMPLE_DIVISOR
    }

    fn bytes_max(&self) -> usize {
        self.0.bytes_max.load(Relaxed)
    }

    /// Reserves bytes for an exchange. `None`: fewer are left.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Reservation> {
        self.reserve_within(bytes, self.bytes_max())
    }

    /// Reserves bytes for the larger window of an HTTP/2 connection. All windows together get at
    /// most half of the bytes: the other half is for exchanges. `None`: fewer are left.
    pub(crate) fn reserve_window(&self, bytes: usize) -> Option<Reservation> {
        self.reserve_within(bytes, self.bytes_max() / 2)
    }

    fn reserve_within(&self, bytes: usize, bytes_max: usize) -> Option<Reservation> {
        let held = self.0.held.fetch_add(bytes, Relaxed).saturating_add(bytes);
        // Dropped below, and so returned, if it exceeds the limit.
        let reservation = Reservation { count: self.clone(), bytes };
        (held <= bytes_max).then_some(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.count.0.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_reserved_than_there_is() {
        let buffered = BufferedBytes::new(8);
        let first = buffered.reserve(5);
        assert!(first.is_some() && buffered.reserve(4).is_none());
        let second = buffered.reserve(3);
        assert!(second.is_some() && buffered.reserve(1).is_none());
        drop(first);
        assert!(buffered.reserve(5).is_some());
        assert!(buffered.reserve_window(1).is_some() && buffered.reserve_window(2).is_none());
    }

    #[test]
    fn bytes_are_ample_while_a_small_part_of_them_is_reserved() {
        let buffered = BufferedBytes::new(10 * AMPLE_DIVISOR);
        let first = buffered.reserve(10);
        assert!(buffered.is_ample());
        let second = buffered.reserve(1);
        assert!(!buffered.is_ample());
        drop((first, second));
        assert!(buffered.is_ample());
    }
}
