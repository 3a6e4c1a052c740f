//! Integers and strings of a header block (RFC 7541, section 5).

use super::huffman;
use crate::request::simd::{self, Block};
use std::borrow::Cow;

/// The most bytes of an integer, as in the `h2` crate.
const INTEGER_BYTES_MAX: usize = 5;
/// The bit of a string in the Huffman code.
const HUFFMAN: u8 = 0x80;

/// The unread rest of a block.
pub struct Rest<'b>(pub &'b [u8]);

impl<'b> Rest<'b> {
    /// Skips the bytes for which `is` holds.
    #[inline]
    pub fn skip_while(&mut self, is: impl Fn(u8) -> bool) {
        let end = self.0.iter().position(|byte| !is(*byte));
        self.0 = &self.0[end.unwrap_or(self.0.len())..];
    }

    /// Reads an integer with a prefix of `prefix` bits, at most 7 (section 5.1). `None`: it is too
    /// long, or its end is missing.
    #[inline]
    pub fn integer(&mut self, prefix: u32) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        let most = (1 << prefix) - 1;
        match first & most {
            value if value < most => Some(usize::from(value)),
            _ => self.long_integer(usize::from(most)),
        }
    }

    fn long_integer(&mut self, mut value: usize) -> Option<usize> {
        for at in 0..INTEGER_BYTES_MAX - 1 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value += usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Reads a string. `None`: its end is missing.
    pub fn text(&mut self) -> Option<Text<'b>> {
        let all = self.0;
        let is_huffman = all.first()? & HUFFMAN != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Text { encoded: &all[..all.len() - rest.len()], text, is_huffman })
    }
}

/// A string.
pub struct Text<'b> {
    /// The string as received, its length included.
    pub encoded: &'b [u8],
    text: &'b [u8],
    is_huffman: bool,
}

impl<'b> Text<'b> {
    /// The decoded length in bytes, if all decoded bytes are plain ([`huffman::is_plain`]).
    pub fn plain_length(&self) -> Option<usize> {
        match self.is_huffman {
            true => huffman::plain_length(self.text),
            false => simd::find(self.text, 0, is_odd).is_none().then_some(self.text.len()),
        }
    }

    /// The decoded bytes. `None`: the string is not valid in the Huffman code.
    pub fn decoded(&self) -> Option<Cow<'b, [u8]>> {
        match self.is_huffman {
            true => huffman::decode(self.text).map(Cow::Owned),
            false => Some(Cow::Borrowed(self.text)),
        }
    }

    /// The string `text`, encoded without the Huffman code.
    pub fn encode(text: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(text.len() + INTEGER_BYTES_MAX);
        let most = usize::from(!HUFFMAN);
        match text.len() {
            length if length < most => encoded.push(length as u8),
            length => {
                encoded.push(most as u8);
                let mut left = length - most;
                while left >= 0x80 {
                    encoded.push(left as u8 | 0x80);
                    left >>= 7;
                }
                encoded.push(left as u8);
            }
        }
        encoded.extend_from_slice(text);
        encoded
    }
}

/// Marks bytes that are not plain, as [`huffman::is_plain`] says.
#[inline(always)]
fn is_odd(bytes: Block) -> Block {
    let signs = bytes.are(b'"').or(bytes.are(b'<')).or(bytes.are(b'>')).or(bytes.are(b'`'));
    bytes.are_outside(b' ', b'~').or(signs)
}

#[cfg(test)]
mod tests {
    use super::huffman::is_plain;
    use super::*;

    #[test]
    fn integers_are_those_of_the_rfc() {
        let check = |bytes: &[u8], prefix, expect: Option<usize>| {
            let mut rest = Rest(bytes);
            assert_eq!(rest.integer(prefix), expect, "{bytes:x?}");
            assert!(expect.is_none() || rest.0.is_empty());
        };
        // Appendix C.1.
        check(&[0b1110_1010], 5, Some(10));
        check(&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5, Some(1337));
        check(&[0xff, 0x00], 7, Some(127));
        check(&[0xff, 0xff, 0xff, 0xff, 0x7f], 7, Some(127 + (1 << 28) - 1));
        check(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x00], 7, None);
        check(&[0xff, 0x80], 7, None);
        check(&[], 7, None);
    }

    #[test]
    fn strings_come_back() {
        for length in [0, 1, 126, 127, 128, 254, 255, 256, 16_000, 70_000] {
            let text = vec![b'x'; length];
            let encoded = Text::encode(&text);
            let mut rest = Rest(&encoded);
            let read = rest.text().unwrap();
            assert_eq!((read.encoded, read.decoded().unwrap()), (&encoded[..], text.into()));
            assert_eq!(read.plain_length(), Some(length));
            assert!(rest.0.is_empty());
            assert!(Rest(&encoded[..length]).text().is_none());
        }
    }

    #[test]
    fn each_byte_is_plain_or_not_in_both_codings() {
        for byte in 0..=u8::MAX {
            for length in [1, 20] {
                let encoded = Text::encode(&vec![byte; length]);
                let text = Rest(&encoded).text().unwrap();
                assert_eq!(text.plain_length().is_some(), is_plain(byte), "{byte}");
            }
        }
    }
}
