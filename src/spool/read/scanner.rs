//! Scanning the records of a segment, and finding the way again behind a bad spot.
//!
//! The one reader of record bytes: upstream readers, recovery and `pixelgate spool` all use it.
//! It decides nothing about what a gap means; it says where it is.

use std::io;

use bytes::Bytes;

use crate::spool::format::{
    ChecksumSeed, Found, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, probe,
};
use crate::spool::fs::{File, read_block};

/// Bytes of one read. Records are slices of such a block, so it is also what one forgotten
/// payload keeps in memory.
const BLOCK_BYTES: u64 = 256 << 10;
/// Bytes of one read while searching behind a bad spot.
const SEARCH_BYTES: u64 = 4 << 20;

/// A run of zeros that is skipped at once.
const ZEROS: [u8; 256] = [0; 256];

/// What stands at the scanner's place.
#[derive(Debug)]
pub enum Step {
    /// The record with the number that was expected.
    Record { seq: u64, payload: Bytes },
    /// A bad spot with a sound record behind it: numbers and bytes that are skipped.
    Gap { seqs: std::ops::Range<u64>, bytes: std::ops::Range<u64> },
    /// No record here or behind, up to the bound that was given. The scanner stays here.
    Tail,
    /// All expected numbers were seen.
    End,
}

/// A place in a segment.
#[derive(Debug)]
pub struct Scanner {
    /// The segment's number.
    pub number: u64,
    seed: ChecksumSeed,
    /// Where the next record should be.
    pub offset: u64,
    /// The number it should have.
    pub seq: u64,
    block: Bytes,
    block_at: u64,
}

impl Scanner {
    /// Begins at the first record of a segment.
    pub fn new(number: u64, salt: u64, base_seq: u64) -> Scanner {
        Scanner {
            number,
            seed: ChecksumSeed::new(salt, number),
            offset: SEGMENT_HEADER_BYTES as u64,
            seq: base_seq,
            block: Bytes::new(),
            block_at: 0,
        }
    }

    /// The next step within the first `bytes` bytes of the file and before number `limit`.
    pub fn step(&mut self, file: &dyn File, bytes: u64, limit: u64) -> io::Result<Step> {
        if self.seq >= limit {
            return Ok(Step::End);
        }
        let mut want = RECORD_HEADER_BYTES as u64;
        loop {
            let (seed, due) = (self.seed, self.seq..self.seq + 1);
            match probe(self.window(file, bytes, want)?, seed, due) {
                Found::Record { seq, bytes } => {
                    let from = (self.offset - self.block_at) as usize;
                    let payload = self.block.slice(from + RECORD_HEADER_BYTES..from + bytes);
                    self.offset += bytes as u64;
                    self.seq += 1;
                    return Ok(Step::Record { seq, payload });
                }
                Found::Short { bytes: more } if self.offset + more as u64 <= bytes => {
                    if want >= more as u64 {
                        // The file is shorter than it was said to be.
                        return self.skip(file, bytes, limit);
                    }
                    want = more as u64;
                }
                Found::Short { .. } | Found::Damaged => return self.skip(file, bytes, limit),
            }
        }
    }

    /// Goes back to the record it just returned, whose payload had this many bytes.
    pub fn step_back(&mut self, payload_bytes: u64) {
        self.offset -= RECORD_HEADER_BYTES as u64 + payload_bytes;
        self.seq -= 1;
    }

    /// The block from the scanner's place on, with at least `want` bytes if the file has them.
    fn window(&mut self, file: &dyn File, bytes: u64, want: u64) -> io::Result<&[u8]> {
        let block_end = self.block_at + self.block.len() as u64;
        let inside = self.block_at <= self.offset && self.offset + want <= block_end;
        if !inside {
            let left = bytes.saturating_sub(self.offset);
            let bytes = left.min(BLOCK_BYTES.max(want)) as usize;
            self.block = read_block(file, bytes, self.offset)?.into();
            self.block_at = self.offset;
        }
        Ok(&self.block[(self.offset - self.block_at) as usize..])
    }

    fn skip(&mut self, file: &dyn File, bytes: u64, limit: u64) -> io::Result<Step> {
        // Numbers are contiguous and a record has its size: none can be further ahead than this.
        let left = bytes.saturating_sub(self.offset);
        let last = (self.seq + 1).saturating_add(left / (RECORD_HEADER_BYTES as u64 + 1));
        let seqs = self.seq + 1..limit.min(last);
        match search(file, self.seed, self.offset + 1..bytes, seqs)? {
            None => Ok(Step::Tail),
            Some((offset, seq)) => {
                let step = Step::Gap { seqs: self.seq..seq, bytes: self.offset..offset };
                (self.offset, self.seq) = (offset, seq);
                Ok(step)
            }
        }
    }
}

/// The first sound record of a segment, whatever its number.
pub fn first_record(
    file: &dyn File,
    seed: ChecksumSeed,
    bytes: u64,
) -> io::Result<Option<(u64, u64)>> {
    search(file, seed, SEGMENT_HEADER_BYTES as u64..bytes, 1..u64::MAX)
}

/// The first sound record with a number in `seqs` that begins in `range`.
fn search(
    file: &dyn File,
    seed: ChecksumSeed,
    range: std::ops::Range<u64>,
    seqs: std::ops::Range<u64>,
) -> io::Result<Option<(u64, u64)>> {
    let mut from = range.start;
    while from < range.end && !seqs.is_empty() {
        // Each read reaches one record further than it searches.
        let whole = SEARCH_BYTES + (RECORD_HEADER_BYTES + RECORD_BYTES_MAX) as u64;
        let window = read_block(file, whole.min(range.end - from) as usize, from)?;
        let mut at = 0;
        while at < window.len().min(SEARCH_BYTES as usize) {
            if window[at..].starts_with(&ZEROS) {
                // A preallocated tail is nothing but zeros. The length, in bytes 4 to 7 of a
                // record, is never zero: none begins here but in the last seven bytes.
                at += ZEROS.len() - 7;
                continue;
            }
            if let Found::Record { seq, .. } = probe(&window[at..], seed, seqs.clone()) {
                return Ok(Some((from + at as u64, seq)));
            }
            at += 1;
        }
        if window.len() < SEARCH_BYTES as usize {
            break;
        }
        from += SEARCH_BYTES;
    }
    Ok(None)
}
