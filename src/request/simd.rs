//! Sixteen bytes at a time: where in a text the first byte of a kind stands.
//!
//! A header is searched for what ends its parts, and for what is odd in it. Byte by byte that
//! costs more than all that is decided about it. (A query's parts are short: eight bytes at a time
//! were found to be faster there, see `event/query.rs`.)

use wide::i8x16;

/// How many bytes [`Lanes`] are.
const LANES: usize = 16;

/// Sixteen bytes, or sixteen answers to a question about them.
#[derive(Clone, Copy)]
pub struct Lanes(i8x16);

impl Lanes {
    #[inline(always)]
    fn new(bytes: &[u8; LANES]) -> Lanes {
        Lanes(i8x16::new(bytes.map(u8::cast_signed)))
    }

    /// Which are this byte.
    #[inline(always)]
    pub fn are(self, byte: u8) -> Lanes {
        Lanes(self.0.simd_eq(i8x16::splat(byte.cast_signed())))
    }

    /// Which are another one.
    #[inline(always)]
    pub fn are_not(self, byte: u8) -> Lanes {
        Lanes(!self.are(byte).0)
    }

    /// Which are neither `first`, `last`, nor between them.
    #[inline(always)]
    pub fn are_outside(self, first: u8, last: u8) -> Lanes {
        // Shifted so that `first` is the least that there is.
        let by = i8::MIN.wrapping_sub(first.cast_signed());
        let shifted = self.0 + i8x16::splat(by);
        Lanes(shifted.simd_gt(i8x16::splat(last.cast_signed().wrapping_add(by))))
    }

    /// The letters of ASCII in lower case. What is no letter does not become one.
    #[inline(always)]
    pub fn to_lower_case(self) -> Lanes {
        Lanes(self.0 | i8x16::splat(0x20))
    }

    /// Which are one or the other.
    #[inline(always)]
    pub fn or(self, other: Lanes) -> Lanes {
        Lanes(self.0 | other.0)
    }

    /// Which are one and the other.
    #[inline(always)]
    pub fn and(self, other: Lanes) -> Lanes {
        Lanes(self.0 & other.0)
    }

    /// The bit of each that was answered with yes, from the lowest on.
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.to_bitmask()
    }
}

/// Where, from place `from` on, the first byte `is` of a kind.
#[inline(always)]
pub fn find(bytes: &[u8], from: usize, is: impl Fn(Lanes) -> Lanes) -> Option<usize> {
    let mut at = from;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let bits = is(Lanes::new(chunk)).bits();
        if bits != 0 {
            return Some(at + bits.trailing_zeros() as usize);
        }
        at += LANES;
    }
    let left = bytes.len() - at;
    let bits = match bytes.last_chunk() {
        // Some of these were seen before.
        Some(chunk) => is(Lanes::new(chunk)).bits() >> (LANES - left),
        None => {
            let mut padded = [0; LANES];
            padded[..left].copy_from_slice(&bytes[at..]);
            is(Lanes::new(&padded)).bits() & ((1 << left) - 1)
        }
    };
    (bits != 0).then(|| at + bits.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind of bytes, asked of sixteen and of one.
    type Kind = (fn(Lanes) -> Lanes, fn(u8) -> bool);

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
    fn behind_the_end_there_is_nothing_to_find() {
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
