//! Finds the first byte of a kind in a text, sixteen bytes at a time.
//!
//! A header is searched for delimiters and for unusual bytes. One byte at a time, this would cost
//! more than all decisions about the header. (The parts of a query are short, and for them eight
//! bytes at a time were measured to be faster: see `event/query.rs`.)

use wide::i8x16;

/// The bytes in a [`Block`].
const BLOCK_BYTES: usize = 16;

/// Sixteen bytes, or a mask with one byte for each of them: all ones for yes, 0 for no.
#[derive(Clone, Copy)]
pub struct Block(i8x16);

impl Block {
    #[inline(always)]
    fn new(bytes: &[u8; BLOCK_BYTES]) -> Block {
        Block(i8x16::new(bytes.map(u8::cast_signed)))
    }

    /// The mask of bytes equal to `byte`.
    #[inline(always)]
    pub fn are(self, byte: u8) -> Block {
        Block(self.0.simd_eq(i8x16::splat(byte.cast_signed())))
    }

    /// The mask of bytes other than `byte`.
    #[inline(always)]
    pub fn are_not(self, byte: u8) -> Block {
        Block(!self.are(byte).0)
    }

    /// The mask of bytes below `first` or above `last`.
    #[inline(always)]
    pub fn are_outside(self, first: u8, last: u8) -> Block {
        // The bytes are shifted so that `first` becomes the least signed value.
        let by = i8::MIN.wrapping_sub(first.cast_signed());
        let shifted = self.0 + i8x16::splat(by);
        Block(shifted.simd_gt(i8x16::splat(last.cast_signed().wrapping_add(by))))
    }

    /// Sets bit 0x20: ASCII letters become lower case, and no other byte becomes a letter.
    #[inline(always)]
    pub fn to_lower_case(self) -> Block {
        Block(self.0 | i8x16::splat(0x20))
    }

    /// The union of two masks.
    #[inline(always)]
    pub fn or(self, other: Block) -> Block {
        Block(self.0 | other.0)
    }

    /// The intersection of two masks.
    #[inline(always)]
    pub fn and(self, other: Block) -> Block {
        Block(self.0 & other.0)
    }

    /// One bit for each byte of a mask, the first byte in the lowest bit.
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.to_bitmask()
    }
}

/// The offset of the first byte at or after `from` for which `is` gives a mask of yes.
#[inline(always)]
pub fn find(bytes: &[u8], from: usize, is: impl Fn(Block) -> Block) -> Option<usize> {
    let mut at = from;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let bits = is(Block::new(chunk)).bits();
        if bits != 0 {
            return Some(at + bits.trailing_zeros() as usize);
        }
        at += BLOCK_BYTES;
    }
    let left = bytes.len() - at;
    let bits = match bytes.last_chunk() {
        // Overlaps the previous block, whose bytes are shifted out.
        Some(chunk) => is(Block::new(chunk)).bits() >> (BLOCK_BYTES - left),
        None => {
            let mut padded = [0; BLOCK_BYTES];
            padded[..left].copy_from_slice(&bytes[at..]);
            is(Block::new(&padded)).bits() & ((1 << left) - 1)
        }
    };
    (bits != 0).then(|| at + bits.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind of bytes, as a mask of sixteen and as a test of one.
    type Kind = (fn(Block) -> Block, fn(u8) -> bool);

    const KINDS: [Kind; 7] = [
        (|bytes| bytes.are(b'='), |byte| byte == b'='),
        (|bytes| bytes.are(0xE9), |byte| byte == 0xE9),
        (|bytes| bytes.are_not(b'0'), |byte| byte != b'0'),
        (|bytes| bytes.are_outside(b' ', b'~'), |byte| !matches!(byte, b' '..=b'~')),
        (|bytes| bytes.are_outside(0, 0x7F), |byte| !byte.is_ascii()),
        (
            |bytes| {
                bytes.are_outside(b'0', b'9').and(bytes.to_lower_case().are_outside(b'a', b'z'))
            },
            |byte| !byte.is_ascii_alphanumeric(),
        ),
        (
            |bytes| bytes.are_outside(b'0', b'6').or(bytes.are(b'5')),
            |byte| !matches!(byte, b'0'..=b'6') || byte == b'5',
        ),
    ];

    #[test]
    fn a_byte_of_a_kind_is_found_wherever_it_stands() {
        for (lanes, naive) in KINDS {
            for (byte, place) in (0..=u8::MAX).flat_map(|byte| (0..40).map(move |at| (byte, at))) {
                let mut bytes = [b'0'; 40];
                bytes[place] = byte;
                for from in [0, 1, 15, 16, 17, 24, 25, 39, 40] {
                    let after = bytes[from..].iter().position(|byte| naive(*byte));
                    let found = find(&bytes, from, lanes);
                    assert_eq!(found, after.map(|at| from + at), "{byte:#x} at {place}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_found_beyond_the_end() {
        for length in 0..70 {
            let mut bytes = vec![b'0'; length];
            assert_eq!(find(&bytes, 0, |bytes| bytes.are_not(b'0')), None, "{length}");
            if let Some(last) = bytes.last_mut() {
                *last = b'1';
                for from in 0..length {
                    assert_eq!(find(&bytes, from, |bytes| bytes.are(b'1')), Some(length - 1));
                }
                assert_eq!(find(&bytes, length, |bytes| bytes.are(b'1')), None, "{length}");
            }
        }
    }
}
