//! Holds the newest records of a lane in memory.
//!
//! Records that are written around the page cache would have to be read from the device, once for
//! each upstream and within milliseconds, because most events are delivered at once. So the
//! committer copies the last records here. A reader that keeps up reads this copy, and a slower
//! reader reads the file.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::fs::{File, FileId, forward_writes};

/// The most bytes of records that are held: about 3,000 events.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// The last bytes of one segment.
#[derive(Default)]
pub struct HotTail(Mutex<Bytes>);

#[derive(Default)]
struct Bytes {
    /// The segment's number.
    number: u64,
    /// The offset of `bytes` in the segment.
    start: u64,
    bytes: VecDeque<u8>,
}

impl HotTail {
    /// Adds records that are at `offset` of a segment. The oldest bytes are dropped to make room.
    pub fn push(&self, number: u64, offset: u64, records: &[u8]) {
        let mut tail = self.0.lock();
        let tail = &mut *tail;
        if (tail.number, tail.start + tail.bytes.len() as u64) != (number, offset) {
            (tail.number, tail.start) = (number, offset);
            tail.bytes.clear();
        }
        let dropped = (tail.bytes.len() + records.len()).saturating_sub(TAIL_BYTES_MAX);
        let oldest = dropped.min(tail.bytes.len());
        tail.bytes.drain(..oldest);
        tail.bytes.extend(&records[dropped - oldest..]);
        tail.start += dropped as u64;
    }

    /// The file of a segment, whose newest records are read from memory.
    pub fn over(self: &Arc<Self>, number: u64, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(TailedFile { tail: Arc::clone(self), number, file })
    }

    /// Passes at most `bytes_max` bytes at `offset` of a segment to `take`, in up to two pieces.
    /// Returns the number of bytes; 0 if they are not in memory.
    fn read(
        &self,
        number: u64,
        offset: u64,
        bytes_max: usize,
        mut take: impl FnMut(&[u8]),
    ) -> usize {
        let tail = self.0.lock();
        let Some(skipped) = offset.checked_sub(tail.start).filter(|_| tail.number == number) else {
            return 0;
        };
        let mut skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let mut left = bytes_max;
        let (front, back) = tail.bytes.as_slices();
        for piece in [front, back] {
            let from = skipped.min(piece.len());
            let to = from + left.min(piece.len() - from);
            take(&piece[from..to]);
            skipped -= from;
            left -= to - from;
        }
        bytes_max - left
    }
}

/// The file that [`HotTail::over`] returns.
struct TailedFile {
    tail: Arc<HotTail>,
    number: u64,
    file: Arc<dyn File>,
}

impl File for TailedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (bytes_max, mut filled) = (buf.len(), 0);
        let take = |piece: &[u8]| {
            buf[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        };
        match self.tail.read(self.number, offset, bytes_max, take) {
            0 => self.file.read_at(buf, offset),
            read => Ok(read),
        }
    }

    fn read_spare(&self, buf: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        let spare = buf.capacity() - buf.len();
        let take = |piece: &[u8]| buf.extend_from_slice(piece);
        match self.tail.read(self.number, offset, spare, take) {
            0 => self.file.read_spare(buf, offset),
            read => Ok(read),
        }
    }

    forward_writes!(file);
}
