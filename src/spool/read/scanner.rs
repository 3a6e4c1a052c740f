//! Scans the records of a segment, and finds the next sound record after a damaged stretch.
//!
//! This is the only reader of record bytes: upstream readers, recovery and `pixelgate spool` all
//! use it. It reports where a gap is, and does not decide what the gap means.

use std::io;

use bytes::Bytes;

use crate::spool::format::{
    ChecksumSeed, Found, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, probe,
};
use crate::spool::fs::{File, read_block};

/// The size of one read, in bytes. Records are slices of such a block, so one payload keeps a whole
/// block in memory.
const BLOCK_BYTES: u64 = 256 << 10;
/// The size of one read of the search after a damaged stretch, in bytes.
const SEARCH_BYTES: u64 = 4 << 20;
/// A run of zeros that the search skips at once.
const ZEROS: [u8; 256] = [0; 256];

/// What the scanner found at its place.
#[derive(Debug)]
pub enum Step {
    /// The record with the expected number.
    Record { seq: u64, payload: Bytes },
    /// A damaged stretch before a sound record: the numbers and bytes that are skipped.
    Gap { seqs: std::ops::Range<u64>, bytes: std::ops::Range<u64> },
    /// There is no record from here up to the given bound. The scanner stays here.
    Tail,
    /// All expected numbers were read.
    End,
}

/// A place in a segment.
#[derive(Debug)]
pub struct Scanner {
    /// The segment's number.
    pub number: u64,
    seed: ChecksumSeed,
    /// The offset at which the next record is expected.
    pub offset: u64,
    /// The expected number of the next record.
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
                        // The file is shorter than `bytes`.
                        return self.skip(file, bytes, limit);
                    }
                    want = more as u64;
                }
                Found::Short { .. } | Found::Damaged => return self.skip(file, bytes, limit),
            }
        }
    }

    /// Goes back to the record that was returned last, whose payload had `payload_bytes` bytes.
    pub fn step_back(&mut self, payload_bytes: u64) {
        self.offset -= RECORD_HEADER_BYTES as u64 + payload_bytes;
        self.seq -= 1;
    }

    /// The bytes from the scanner's place on, at least `want` of them if the file has so many.
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
        // The numbers are contiguous, and each record takes some bytes, so no greater number than
        // this can be in the rest of the file.
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
        // Each read reaches one record beyond the stretch that it searches.
        let whole = SEARCH_BYTES + (RECORD_HEADER_BYTES + RECORD_BYTES_MAX) as u64;
        let window = read_block(file, whole.min(range.end - from) as usize, from)?;
        let mut at = 0;
        while at < window.len().min(SEARCH_BYTES as usize) {
            if window[at..].starts_with(&ZEROS) {
                // A preallocated tail is all zeros. Bytes 4 to 7 of a record, its length, are never
                // zero, so a record can only begin in the last seven bytes of this run.
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
