//! Writes records in whole blocks, around the page cache.
//!
//! A record rarely ends where a block does. So the last block is filled up with zeros, and the next
//! write repeats it: its records, with the same bytes as on disk, and then the new ones. A write
//! that a power loss tears changes only bytes after the records that were answered.

use std::io;

use crate::spool::fs::{DIRECT_BLOCK_BYTES, File, write_full};

/// The largest buffer that is kept after a burst, in bytes.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Writes the blocks of one segment.
#[derive(Default)]
pub struct BlockWriter {
    /// The records of the last block, which are on disk.
    last: Vec<u8>,
    /// The memory of a write. It has room for one block more, because a write must begin at an
    /// address that is a multiple of a block.
    buffer: Vec<u8>,
}

impl BlockWriter {
    /// Writes `pieces` in order at `offset`, which is 0 at first and then the end of the last
    /// write. After an error, it is unknown which blocks have been written.
    pub fn write(&mut self, file: &dyn File, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let from = offset - self.last.len() as u64;
        assert!(from.is_multiple_of(DIRECT_BLOCK_BYTES as u64), "a block begins at {from}");
        let bytes = self.last.len() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let whole = bytes.next_multiple_of(DIRECT_BLOCK_BYTES);
        if self.buffer.len() < whole + DIRECT_BLOCK_BYTES {
            self.buffer.resize(whole + DIRECT_BLOCK_BYTES, 0);
        }
        let start = self.buffer.as_ptr().addr().wrapping_neg() % DIRECT_BLOCK_BYTES;
        let blocks = &mut self.buffer[start..start + whole];
        let mut at = 0;
        for piece in std::iter::once(&self.last[..]).chain(pieces.iter().copied()) {
            blocks[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        blocks[bytes..].fill(0);
        write_full(file, blocks, from)?;
        self.last.clear();
        self.last.extend_from_slice(&blocks[bytes - bytes % DIRECT_BLOCK_BYTES..bytes]);
        if self.buffer.len() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::fs::{Fs, Open, SystemFs, read_block};

    #[test]
    fn pieces_of_any_length_stand_one_behind_the_other_and_zeros_behind_the_last() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        SystemFs.open(&path, Open::Create).expect("a file");
        let Ok(file) = SystemFs.open(&path, Open::Direct) else {
            return eprintln!("skipped: the file system refuses O_DIRECT");
        };
        // A reader goes through the page cache.
        let reader = SystemFs.open(&path, Open::Read).expect("a file");
        let mut blocks = BlockWriter::default();
        let mut expect: Vec<u8> = Vec::new();
        for (turn, bytes) in [64, 1, 4031, 4096, 0, 5000, 1, 200_000, 7].into_iter().enumerate() {
            let piece = vec![turn as u8 + 1; bytes];
            let (front, back) = piece.split_at(bytes / 3);
            blocks.write(&*file, &[front, back], expect.len() as u64).expect("a write");
            expect.extend_from_slice(&piece);
            let found = read_block(&*reader, 1 << 20, 0).expect("a read");
            assert_eq!(found.len(), expect.len().next_multiple_of(DIRECT_BLOCK_BYTES));
            assert!(found.starts_with(&expect), "after {bytes} bytes more");
            assert!(found[expect.len()..].iter().all(|byte| *byte == 0), "the rest of the block");
        }
    }
}
