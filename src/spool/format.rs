//! Encodes and decodes the bytes of a segment: its header and its records.
//!
//! [`super`] has the tables. This module does no I/O. It takes slices of any content and returns
//! what they hold.

/// The bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// The bytes before a record's payload.
pub const RECORD_HEADER_BYTES: usize = 16;
/// The largest payload of a record, in bytes. An event from a query of 8 KiB stays far below it.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

const MAGIC: [u8; 8] = *b"pxgspool";
const VERSION: u32 = 1;
const FLAG_RECYCLED: u32 = 1;

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The lane that the segment belongs to.
    pub lane: u64,
    /// The number of the segment in its lane, counted from 1 and never used twice.
    pub number: u64,
    /// The sequence number of the first record. Every earlier segment ends before it.
    pub base_seq: u64,
    /// The random salt of the lane.
    pub salt: u64,
    /// The number of the segment before this one; 0 if there is none or it is not known.
    pub previous: u64,
    /// Whether the file held another segment before, so that the bytes after the last record mean
    /// nothing.
    pub recycled: bool,
}

impl SegmentHeader {
    /// The bytes of the header.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(u32::from(self.recycled) * FLAG_RECYCLED).to_le_bytes());
        out[16..24].copy_from_slice(&self.lane.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&self.base_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.salt.to_le_bytes());
        out[48..56].copy_from_slice(&self.previous.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header. `None` if the bytes are not a header.
    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let sound = bytes[0..8] == MAGIC
            && u32_at(bytes, 8) == VERSION
            && u32_at(bytes, 60) == crc32c::crc32c(&bytes[..60]);
        sound.then(|| SegmentHeader {
            recycled: u32_at(bytes, 12) & FLAG_RECYCLED != 0,
            lane: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            base_seq: u64_at(bytes, 32),
            salt: u64_at(bytes, 40),
            previous: u64_at(bytes, 48),
        })
    }
}

/// The part of a record's checksum that depends on the lane's salt and the segment's number. It
/// makes a record that was copied from another segment, or left over in a recycled file, fail its
/// checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumSeed {
    /// The share of salt and number in the register of the checksum.
    share: u32,
}

impl ChecksumSeed {
    /// The checksum seed of segment `number` of the lane with this salt.
    pub fn new(salt: u64, number: u64) -> ChecksumSeed {
        ChecksumSeed { share: share(salt.to_le_bytes(), 8) ^ share(number.to_le_bytes(), 0) }
    }

    /// The checksum of a record, from that of its payload. The appending thread sums the payload
    /// when it stages the record; only the committer knows the place of the record.
    pub fn finish(self, payload_crc: u32, len: u32, seq: u64) -> u32 {
        // The register of a CRC is the complement of its value, and the next four bytes enter it by
        // XOR.
        let taken_up = !payload_crc ^ len;
        !(share(taken_up.to_le_bytes(), 24) ^ share(seq.to_le_bytes(), 16) ^ self.share)
    }
}

/// The bytes that follow the payload in a checksum, its *tail*: length, sequence number, salt and
/// segment number.
const TAIL_BYTES: usize = 28;
/// The share of each byte of the tail in the register, by the number of bytes that follow it
/// (`behind`).
///
/// A CRC is linear: the effect of a few bytes at fixed places is the XOR of their single effects.
/// Looking these up takes a third of the instructions of the general algorithm. Each checksum is
/// computed twice: when the record is placed, and when it is read.
static SHARES: [[u32; 256]; TAIL_BYTES] = {
    /// CRC-32C (RFC 3720, section 12.1), bits reversed.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut shares = [[0; 256]; TAIL_BYTES];
    let mut byte = 0;
    while byte < 256 {
        let (mut register, mut behind) = (byte as u32, 0);
        while behind < TAIL_BYTES {
            let mut bit = 0;
            while bit < 8 {
                register = (register >> 1) ^ (POLYNOMIAL * (register & 1));
                bit += 1;
            }
            shares[behind][byte] = register;
            behind += 1;
        }
        byte += 1;
    }
    shares
};

/// The share of these bytes of the tail in the register, with `behind` bytes after them.
fn share<const N: usize>(bytes: [u8; N], behind: usize) -> u32 {
    let of = |(place, byte): (usize, u8)| SHARES[behind + N - 1 - place][usize::from(byte)];
    bytes.into_iter().enumerate().map(of).fold(0, |sum, share| sum ^ share)
}

/// The header of a staged record: the length and the checksum of its payload. It has no sequence
/// number yet.
pub fn stage(payload: &[u8]) -> [u8; RECORD_HEADER_BYTES] {
    let mut header = [0; RECORD_HEADER_BYTES];
    header[0..4].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header
}

/// Turns a placed record back into a staged one.
pub fn unplace(record: &mut [u8]) {
    let header = stage(&record[RECORD_HEADER_BYTES..]);
    record[..RECORD_HEADER_BYTES].copy_from_slice(&header);
}

/// Gives the staged record at the start of `records` its sequence number and its final checksum.
/// Returns its whole size, in bytes.
pub fn place(records: &mut [u8], seed: ChecksumSeed, seq: u64) -> usize {
    let (payload_crc, len) = (u32_at(records, 0), u32_at(records, 4));
    records[0..4].copy_from_slice(&seed.finish(payload_crc, len, seq).to_le_bytes());
    records[8..16].copy_from_slice(&seq.to_le_bytes());
    RECORD_HEADER_BYTES + len as usize
}

/// The whole size of the staged or placed record at the start of `records`, in bytes.
pub fn record_bytes(records: &[u8]) -> usize {
    RECORD_HEADER_BYTES + u32_at(records, 4) as usize
}

/// What one offset of a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A sound record, with its sequence number and its whole size.
    Record { seq: u64, bytes: usize },
    /// Perhaps a record: this many bytes are needed to tell.
    Short { bytes: usize },
    /// No record.
    Damaged,
}

/// Looks for a record with a sequence number in `seqs` at the start of `bytes`.
pub fn probe(bytes: &[u8], seed: ChecksumSeed, seqs: std::ops::Range<u64>) -> Found {
    if bytes.len() < RECORD_HEADER_BYTES {
        return Found::Short { bytes: RECORD_HEADER_BYTES };
    }
    let (len, seq) = (u32_at(bytes, 4), u64_at(bytes, 8));
    if len == 0 || len as usize > RECORD_BYTES_MAX || !seqs.contains(&seq) {
        return Found::Damaged;
    }
    let whole = RECORD_HEADER_BYTES + len as usize;
    let Some(payload) = bytes.get(RECORD_HEADER_BYTES..whole) else {
        return Found::Short { bytes: whole };
    };
    if seed.finish(crc32c::crc32c(payload), len, seq) != u32_at(bytes, 0) {
        return Found::Damaged;
    }
    Found::Record { seq, bytes: whole }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;
    fn seed() -> ChecksumSeed {
        ChecksumSeed::new(SALT, 7)
    }

    fn record(payload: &[u8], seed: ChecksumSeed, seq: u64) -> Vec<u8> {
        let mut out = stage(payload).to_vec();
        out.extend_from_slice(payload);
        assert_eq!(place(&mut out, seed, seq), out.len());
        out
    }

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_passes() {
        let header = SegmentHeader {
            lane: 3,
            number: 9,
            base_seq: 1 << 40,
            salt: 77,
            previous: 7,
            recycled: true,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(SegmentHeader::decode(&bytes[..63]), None);
    }

    #[test]
    fn a_record_reads_back_and_no_flipped_bit_passes() {
        let bytes = record(b"an event", seed(), 42);
        assert_eq!(probe(&bytes, seed(), 42..43), Found::Record { seq: 42, bytes: bytes.len() });
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let found = probe(&bad, seed(), 0..u64::MAX);
            assert!(!matches!(found, Found::Record { .. }), "bit {bit}");
        }
    }

    #[test]
    fn a_seal_is_the_checksum_of_what_follows_the_payload() {
        // Any numbers will do that leave no byte alone.
        let mut word = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            word
        };
        for payload in [&b""[..], b"a", b"an event"] {
            for _ in 0..1000 {
                let (len, seq, salt, number) = (next() as u32, next(), next(), next());
                let mut whole = payload.to_vec();
                whole.extend_from_slice(&len.to_le_bytes());
                [seq, salt, number].iter().for_each(|n| whole.extend_from_slice(&n.to_le_bytes()));
                let sealed =
                    ChecksumSeed::new(salt, number).finish(crc32c::crc32c(payload), len, seq);
                assert_eq!(sealed, crc32c::crc32c(&whole));
            }
        }
    }

    #[test]
    fn a_record_of_another_segment_lane_or_place_is_none() {
        let bytes = record(b"an event", seed(), 42);
        assert_eq!(probe(&bytes, ChecksumSeed::new(SALT, 8), 0..u64::MAX), Found::Damaged);
        assert_eq!(probe(&bytes, ChecksumSeed::new(SALT ^ 1, 7), 0..u64::MAX), Found::Damaged);
        assert_eq!(probe(&bytes, seed(), 0..42), Found::Damaged);
        assert_eq!(probe(&bytes, seed(), 43..u64::MAX), Found::Damaged);
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(probe(&[0; 64], ChecksumSeed::new(0, 0), 0..u64::MAX), Found::Damaged);
    }

    #[test]
    fn a_cut_record_asks_for_what_it_lacks() {
        let bytes = record(&[9; 100], seed(), 1);
        assert_eq!(probe(&bytes[..10], seed(), 1..2), Found::Short { bytes: 16 });
        assert_eq!(probe(&bytes[..50], seed(), 1..2), Found::Short { bytes: 116 });
    }

    #[test]
    fn the_largest_payload_is_a_record_and_one_more_byte_is_not() {
        let largest = record(&vec![1; RECORD_BYTES_MAX], seed(), 1);
        assert!(matches!(probe(&largest, seed(), 1..2), Found::Record { .. }));
        let beyond = record(&vec![1; RECORD_BYTES_MAX + 1], seed(), 1);
        assert_eq!(probe(&beyond, seed(), 1..2), Found::Damaged);
    }
}
