//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their bytes, and
//! each length begins where the one before it ends. So the lengths alone determine the codes. The
//! longest code consists of ones only and stands for the end of a string. It may not occur itself;
//! its first bits fill up the last byte of a string.

/// The length of each byte's code, in bits.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// The length of the shortest and the longest code, in bits.
const CODE_BITS_MIN: usize = 5;
const CODE_BITS_MAX: usize = 30;

/// The codes in their order.
struct Codes {
    /// For each length, the bits at which longer codes begin, followed by zeros.
    ends: [u32; CODE_BITS_MAX + 1],
    /// For each length, the number of bytes that have a shorter code.
    shorter: [usize; CODE_BITS_MAX + 1],
    /// All bytes, in the order of their codes.
    bytes: [u8; 256],
}

const CODES: Codes = {
    let mut codes =
        Codes { ends: [0; CODE_BITS_MAX + 1], shorter: [0; CODE_BITS_MAX + 1], bytes: [0; 256] };
    let (mut length, mut count, mut end) = (1, 0, 0);
    while length <= CODE_BITS_MAX {
        codes.shorter[length] = count;
        let mut byte = 0;
        while byte < LENGTHS.len() {
            if LENGTHS[byte] as usize == length {
                codes.bytes[count] = byte as u8;
                count += 1;
                end += 1 << (u32::BITS as usize - length);
            }
            byte += 1;
        }
        codes.ends[length] = end;
        length += 1;
    }
    codes
};

/// The byte whose code these bits begin with, and the length of that code. `None`: the code that
/// ends a string.
const fn first_code(bits: u32) -> Option<(u8, usize)> {
    let mut length = CODE_BITS_MIN;
    while bits >= CODES.ends[length] {
        length += 1;
        if length > CODE_BITS_MAX {
            return None;
        }
    }
    let place = (bits - CODES.ends[length - 1]) >> (u32::BITS as usize - length);
    Some((CODES.bytes[CODES.shorter[length] + place as usize], length))
}

/// Whether a byte is plain: printable ASCII, but none of the bytes that are encoded in a target.
/// Plain bytes need no further check in a target nor in the value of a field.
pub const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// The number of bits that are looked up at once. The codes of nearly all plain bytes are no
/// longer.
const STEP_BITS: usize = 13;
/// Marks a step that takes two codes and not one.
const TWO_CODES: u8 = 1 << 6;
/// Marks bits at which no step is possible: the first code is longer, or its byte is not plain.
const NOT_PLAIN: u8 = 1 << 7;

/// For each value of [`STEP_BITS`] bits, the number of these bits that the codes of one or two
/// plain bytes take, with [`TWO_CODES`] or [`NOT_PLAIN`].
static STEPS: [u8; 1 << STEP_BITS] = {
    let mut steps = [NOT_PLAIN; 1 << STEP_BITS];
    let mut at = 0;
    while at < steps.len() {
        let bits = (at as u32) << (u32::BITS as usize - STEP_BITS);
        if let Some((byte, first)) = first_code(bits)
            && is_plain(byte)
            && first <= STEP_BITS
        {
            steps[at] = first as u8;
            if let Some((byte, second)) = first_code(bits << first)
                && is_plain(byte)
                && first + second <= STEP_BITS
            {
                steps[at] = (first + second) as u8 | TWO_CODES;
            }
        }
        at += 1;
    }
    steps
};

/// The number of steps for which one load of bits is enough.
const STEPS_PER_LOAD: usize = 4;
const _: () = assert!(STEPS_PER_LOAD * STEP_BITS <= u64::BITS as usize - 7);

/// The next 64 bits of a string of which eight bytes are left, and ones where they are fewer.
fn bits_of(rest: &[u8]) -> u64 {
    match rest.first_chunk() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => {
            let mut padded = [0xff; 8];
            padded[..rest.len()].copy_from_slice(rest);
            u64::from_be_bytes(padded)
        }
    }
}

/// The decoded length of a string in bytes, if all of them are plain. This takes a fifth of the
/// instructions of [`decode`]. A string that has a plain byte of more than 13 bits (`^`, `{`, `}`,
/// `\`) counts as one that is not plain.
pub fn plain_length(text: &[u8]) -> Option<usize> {
    let (mut from, mut length) = (0, 0);
    while let Some(chunk) = text.get(from / 8..).and_then(<[u8]>::first_chunk) {
        let mut bits = u64::from_be_bytes(*chunk) << (from % 8);
        let (mut taken, mut step) = (0, 0);
        for _ in 0..STEPS_PER_LOAD {
            step = STEPS[(bits >> (u64::BITS as usize - STEP_BITS)) as usize];
            bits <<= step % TWO_CODES;
            taken += usize::from(step);
        }
        // Past such a step all are.
        if step & NOT_PLAIN != 0 {
            return None;
        }
        from += taken % usize::from(TWO_CODES);
        length += STEPS_PER_LOAD + taken / usize::from(TWO_CODES);
    }
    let mut left = text.len() * 8 - from;
    let shifted = |bits: u64, by: usize| (bits << by) | ((1 << by) - 1);
    let mut bits = shifted(bits_of(&text[from / 8..]), from % 8);
    while left >= 8 || bits != u64::MAX {
        let step = STEPS[(bits >> (u64::BITS as usize - STEP_BITS)) as usize];
        let taken = usize::from(step % TWO_CODES);
        if step & NOT_PLAIN != 0 || taken > left {
            return None;
        }
        bits = shifted(bits, taken);
        left -= taken;
        length += if step & TWO_CODES != 0 { 2 } else { 1 };
    }
    Some(length)
}

/// Decodes a string. `None`: it holds the code for the end of a string, or its padding is not the
/// beginning of that code.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let (mut from, end) = (0, text.len() * 8);
    let mut decoded = Vec::with_capacity(text.len() * 8 / CODE_BITS_MIN);
    while from < end {
        // At least 57 bits of the string, or all that are left and then zeros.
        let bits = bits_of(&text[from / 8..]) << (from % 8);
        let left = end - from;
        if left < 8 && bits.leading_ones() as usize >= left {
            break;
        }
        let (byte, length) = first_code((bits >> u32::BITS) as u32)?;
        from += length;
        if from > end {
            return None;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

/// An encoder for tests, which knows the codes by the rule that makes them.
#[cfg(test)]
pub mod encoder {
    use crate::server::http2::huffman::LENGTHS;

    /// The bits of a code in ones and zeros.
    pub fn code(byte: u8) -> String {
        let length = |byte: u8| u32::from(LENGTHS[usize::from(byte)]);
        let is_before = |other: &u8| (length(*other), *other) < (length(byte), byte);
        let room = |byte: u8| 1_u64 << (32 - length(byte));
        let begin: u64 = (0..=u8::MAX).filter(is_before).map(room).sum();
        format!("{begin:032b}")[..length(byte) as usize].to_owned()
    }

    pub fn packed(bits: &str) -> Vec<u8> {
        let byte = |bits: &[u8]| bits.iter().fold(0, |byte, bit| (byte << 1) | (bit - b'0'));
        bits.as_bytes().chunks(8).map(byte).collect()
    }

    /// A string in the Huffman code.
    pub fn encode(text: &[u8]) -> Vec<u8> {
        static CODES: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| (0..=u8::MAX).map(code).collect());
        let mut bits: String = text.iter().map(|byte| &*CODES[usize::from(*byte)]).collect();
        bits.push_str(&"1".repeat(bits.len().next_multiple_of(8) - bits.len()));
        packed(&bits)
    }
}

#[cfg(test)]
mod tests {
    use super::encoder::{code, encode, packed};
    use super::*;

    #[test]
    fn codes_are_those_of_the_rfc() {
        // Appendix B: the first and the last code of each length.
        for (byte, expect) in [
            (b'0', "00000"),
            (b't', "01001"),
            (b' ', "010100"),
            (b'u', "101101"),
            (b':', "1011100"),
            (b'z', "1111011"),
            (b'&', "11111000"),
            (b'Z', "11111101"),
            (b'!', "1111111000"),
            (b'?', "1111111100"),
            (b'\'', "11111111010"),
            (b'|', "11111111100"),
            (b'#', "111111111010"),
            (b'>', "111111111011"),
            (0, "1111111111000"),
            (b'~', "1111111111101"),
            (b'^', "11111111111100"),
            (b'}', "11111111111101"),
            (b'<', "111111111111100"),
            (b'{', "111111111111110"),
            (b'\\', "1111111111111110000"),
            (208, "1111111111111110010"),
            (128, "11111111111111100110"),
            (249, "1111111111111111111111111110"),
            (b'\n', "111111111111111111111111111100"),
            (22, "111111111111111111111111111110"),
        ] {
            assert_eq!(code(byte), expect, "{byte}");
        }
    }

    #[test]
    fn examples_of_the_rfc_are_decoded() {
        let check = |hex: &str, expect: &str| {
            let bytes = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let text: Vec<u8> = (0..hex.len()).step_by(2).map(bytes).collect();
            assert_eq!(decode(&text).unwrap(), expect.as_bytes());
            assert_eq!(encode(expect.as_bytes()), text);
            assert_eq!(plain_length(&text), Some(expect.len()));
        };
        // Appendix C.4 and C.6.
        check("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com");
        check("25a849e95bb8e8b4bf", "custom-value");
        check("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT");
        check("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com");
    }

    #[test]
    fn broken_strings_are_refused() {
        for bits in [
            "11111111",                         // Eight bits of padding.
            "00000000",                         // One code and padding of zeros.
            "0001111111111111",                 // Longer padding behind a code.
            "11111111111111111111111111111111", // The end of a string.
            "11111110",                         // Half a code.
        ] {
            assert_eq!(decode(&packed(bits)), None, "{bits}");
            assert_eq!(plain_length(&packed(bits)), None, "{bits}");
        }
        assert_eq!(decode(b""), Some(Vec::new()));
        assert_eq!(plain_length(b""), Some(0));
    }

    proptest::proptest! {
        #[test]
        fn strings_come_back(text: Vec<u8>) {
            proptest::prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn plain_strings_are_measured_and_others_found(
            mut text in "[ !#-;=?-_a-z|~]{0,100}",
            odd in "[\"<>`\\x00-\\x1f\\x7f\u{80}-\u{ff}]",
            at: proptest::sample::Index,
        ) {
            let expect = text.chars().all(|c| !matches!(c, '\\' | '^')).then_some(text.len());
            proptest::prop_assert_eq!(plain_length(&encode(text.as_bytes())), expect);
            text.insert_str(at.index(text.len() + 1), &odd);
            proptest::prop_assert_eq!(plain_length(&encode(text.as_bytes())), None);
        }

        /// What counts as plain is decoded to as many plain bytes.
        #[test]
        fn any_bits_are_measured_as_they_are_decoded(text: Vec<u8>) {
            if let Some(length) = plain_length(&text) {
                let decoded = decode(&text).unwrap();
                proptest::prop_assert!(decoded.iter().all(|byte| is_plain(*byte)));
                proptest::prop_assert_eq!(decoded.len(), length);
            }
        }
    }
}
