//! Splits a query into pieces and decodes them (SPEC 3; `application/x-www-form-urlencoded` of the
//! WHATWG URL Standard).
//!
//! A *piece* stands between two `&` and has two *parts*, a key and a value. One pass over the bytes
//! finds the separators and the classes of bytes in each part. Most parts are plain ASCII and are
//! borrowed unchanged; only the others are decoded and trimmed, in a second pass.
//!
//! This file does not know what parameters mean, except that a raw `+` stands for itself in `email`
//! and `_m`.

use std::borrow::Cow;
use std::fmt::Write;

use super::param::Reserved;

/// The classes of the bytes in a part: the union over its bytes. A byte of `[a-z0-9_]` has none.
type Class = u8;
/// Any byte that is not one of `[a-z0-9_]`.
const NOT_NAME: Class = 1;
/// `%`.
const PERCENT: Class = 1 << 1;
/// `+`.
const PLUS: Class = 1 << 2;
/// A space or an ASCII control character.
const BLANK: Class = 1 << 3;
/// Not ASCII.
const NON_ASCII: Class = 1 << 4;
/// `=`, which ends a key.
const EQUALS_SIGN: Class = 1 << 5;
/// `&`, which ends a piece.
const AMPERSAND: Class = 1 << 6;

static CLASS: [Class; 256] = {
    let mut table = [NOT_NAME; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] |= match byte as u8 {
            b'%' => PERCENT,
            b'+' => PLUS,
            0..=b' ' | 0x7F => BLANK,
            0x80.. => NON_ASCII,
            b'=' => EQUALS_SIGN,
            b'&' => AMPERSAND,
            _ => 0,
        };
        if matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'_') {
            table[byte] = 0;
        }
        byte += 1;
    }
    table
};

/// What a raw `+` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plus {
    /// A space, as in every form.
    Space,
    /// A plus sign, in addresses and numbers: people write it there unencoded.
    Itself,
}

impl Plus {
    pub(super) const fn of(param: Option<Reserved>) -> Plus {
        match param {
            Some(Reserved::Email | Reserved::Revenue) => Plus::Itself,
            Some(Reserved::Portal | Reserved::Event | Reserved::ExternalId) | None => Plus::Space,
        }
    }
}

/// A decoded and trimmed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text<'a> {
    pub(super) text: Cow<'a, str>,
    /// True: the text is printable ASCII without spaces, and needs no further check. False:
    /// unknown.
    pub(super) plain: bool,
}

/// The decoded bytes of a part are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotUtf8;

/// One non-empty piece between two `&`, split at its first `=`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    key: &'a str,
    value: &'a str,
    key_class: Class,
    value_class: Class,
    has_equals_sign: bool,
}

impl<'a> Piece<'a> {
    /// The key, decoded, trimmed and lower-cased.
    #[inline]
    pub(super) fn key(&self) -> Result<Cow<'a, str>, NotUtf8> {
        if self.has_plain_key() { Ok(Cow::Borrowed(self.key)) } else { self.decoded_key() }
    }

    fn decoded_key(&self) -> Result<Cow<'a, str>, NotUtf8> {
        let mut key = self.spelled_key()?;
        if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            key.to_mut().make_ascii_lowercase();
        }
        Ok(key)
    }

    /// The key, decoded and trimmed, in the case in which it was sent.
    pub(super) fn spelled_key(&self) -> Result<Cow<'a, str>, NotUtf8> {
        Ok(text(self.key, self.key_class, Plus::Space)?.text)
    }

    /// Whether the key consists of `[a-z0-9_]` alone, and so needs no decoding.
    pub(super) fn has_plain_key(&self) -> bool {
        self.key_class & NOT_NAME == 0
    }

    /// The key of a piece whose key is not UTF-8, with U+FFFD in place of each invalid sequence.
    pub(super) fn key_lossy(&self) -> String {
        String::from_utf8_lossy(&decode(self.key.as_bytes(), Plus::Space))
            .trim()
            .to_ascii_lowercase()
    }

    /// The value as received, neither decoded nor trimmed.
    pub(super) fn raw_value(&self) -> &'a str {
        self.value
    }

    /// Whether the piece contains `=`.
    pub(super) fn has_equals_sign(&self) -> bool {
        self.has_equals_sign
    }

    /// The value, decoded and trimmed.
    #[inline]
    pub(super) fn value(&self, plus: Plus) -> Result<Text<'a>, NotUtf8> {
        text(self.value, self.value_class, plus)
    }
}

/// The non-empty pieces of a query, in order.
pub(super) fn pieces(query: &str) -> Pieces<'_> {
    Pieces { rest: query }
}

/// The iterator of [`pieces`].
pub(super) struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Piece<'a>> {
        while matches!(self.rest.as_bytes().first()?, b'&') {
            self.rest = &self.rest[1..];
        }
        let known = name_prefix(self.rest.as_bytes());
        let (key, key_class, rest) = until(EQUALS_SIGN | AMPERSAND, self.rest, known);
        let has_equals_sign = matches!(rest.as_bytes().first(), Some(b'='));
        let rest = if has_equals_sign { &rest[1..] } else { rest };
        let (value, value_class, rest) = until(AMPERSAND, rest, plain_prefix(rest.as_bytes()));
        self.rest = rest;
        Some(Piece { key, value, key_class, value_class, has_equals_sign })
    }
}

/// Cuts `text` before the first byte of a class in `ends`. The first `known` bytes are known to be
/// of no such class and are skipped. Returns the part before the cut, the classes of its bytes
/// after the first `known`, and the rest. Every byte that ends a part is ASCII, so the cut is never
/// within a character.
#[inline(always)]
fn until(ends: Class, text: &str, known: usize) -> (&str, Class, &str) {
    let mut class = 0;
    let is_end = |byte: &u8| {
        let with_it = class | CLASS[usize::from(*byte)];
        let is_end = with_it & ends != 0;
        if !is_end {
            class = with_it;
        }
        is_end
    };
    let length = text.as_bytes()[known..].iter().position(is_end);
    let (part, rest) = text.split_at(length.map_or(text.len(), |length| known + length));
    (part, class, rest)
}

/// The number of bytes at the start that are of no class.
#[inline(always)]
fn name_prefix(text: &[u8]) -> usize {
    let other = text.iter().position(|byte| CLASS[usize::from(*byte)] != 0);
    other.unwrap_or(text.len())
}

/// A number of bytes at the start that are of no class but [`NOT_NAME`] and [`EQUALS_SIGN`], which
/// do not matter in a value. Tests eight bytes at a time, and may return too few.
#[inline(always)]
fn plain_prefix(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, _) = text.as_chunks();
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // Sets the high bit of each byte that is below `,`, is DEL, or is not ASCII. All bytes of
        // another class are among these. A carry may set the bit of a byte after the first such
        // byte as well, but never of one before it.
        let others = word.wrapping_sub(ONES * u64::from(b',')) | word.wrapping_add(ONES) | word;
        if others & HIGHS != 0 {
            return 8 * place + (others & HIGHS).trailing_zeros() as usize / 8;
        }
    }
    8 * words.len()
}

#[inline(always)]
fn text(raw: &str, class: Class, plus: Plus) -> Result<Text<'_>, NotUtf8> {
    let coded = match plus {
        Plus::Space => PERCENT | PLUS,
        Plus::Itself => PERCENT,
    };
    if class & (coded | BLANK | NON_ASCII) == 0 {
        return Ok(Text { text: Cow::Borrowed(raw), plain: true });
    }
    if class & coded == 0 {
        return Ok(Text { text: Cow::Borrowed(raw.trim()), plain: false });
    }
    Ok(Text { text: Cow::Owned(decoded(raw, plus)?), plain: false })
}

fn decoded(raw: &str, plus: Plus) -> Result<String, NotUtf8> {
    String::from_utf8(decode(raw.as_bytes(), plus)).map(trimmed).map_err(|_| NotUtf8)
}

/// Percent-encodes every non-ASCII byte of a query that is not UTF-8. The meaning stays the same.
pub(super) fn encode_non_ascii(query: &[u8]) -> String {
    let mut encoded = String::with_capacity(query.len() * 3);
    for &byte in query {
        if byte.is_ascii() {
            encoded.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn trimmed(mut text: String) -> String {
    text.truncate(text.trim_end().len());
    let blank = text.len() - text.trim_start().len();
    if blank > 0 {
        text.drain(..blank);
    }
    text
}

/// Percent-decodes, once. A `%` without two hexadecimal digits stays as it is.
fn decode(raw: &[u8], plus: Plus) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, after @ ..] = rest {
        rest = after;
        decoded.push(match (byte, after) {
            (b'+', _) if plus == Plus::Space => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => *byte,
        });
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(query: &str) -> Vec<(&str, &str)> {
        pieces(query).map(|piece| (piece.key, piece.value)).collect()
    }

    #[test]
    fn pieces_are_split_at_ampersands_and_the_first_equals_sign() {
        assert_eq!(split(""), []);
        assert_eq!(split("&&&"), []);
        assert_eq!(split("a"), [("a", "")]);
        assert_eq!(split("="), [("", "")]);
        assert_eq!(split("&a=1&&b=2&"), [("a", "1"), ("b", "2")]);
        assert_eq!(split("a=b=c&=d"), [("a", "b=c"), ("", "d")]);
    }

    #[test]
    fn what_is_seen_eight_bytes_at_a_time_is_what_the_table_says() {
        for (byte, place) in (0..=u8::MAX).flat_map(|byte| (0..17).map(move |place| (byte, place)))
        {
            for rest in [b',', b'-', b'=', b'Z', b'a', b'~'] {
                let mut text = [rest; 24];
                text[place] = byte;
                let class = CLASS[usize::from(byte)] & !(NOT_NAME | EQUALS_SIGN);
                let most = if class == 0 { text.len() } else { place };
                assert!(plain_prefix(&text) <= most, "{byte:#x} at {place}");
            }
        }
        assert_eq!(plain_prefix(b",-./09:;<=>?@AZ[]^_`az{|}~"), 24);
    }

    /// Keys, values, and which of them are plain, found byte by byte.
    fn naive(query: &str) -> Vec<(&str, &str, bool, bool)> {
        let named = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '%' | '+');
        let pieces = query.split('&').filter(|piece| !piece.is_empty());
        let parts = pieces.map(|piece| piece.split_once('=').unwrap_or((piece, "")));
        parts.map(|(k, v)| (k, v, k.chars().all(named), v.chars().all(plain))).collect()
    }

    fn check(query: &str) {
        let plain = |piece: &Piece<'_>| piece.value(Plus::Space).unwrap().plain;
        let seen = pieces(query).map(|p| (p.key, p.value, p.has_plain_key(), plain(&p)));
        assert_eq!(seen.collect::<Vec<_>>(), naive(query), "{query:?}");
    }

    #[test]
    fn what_is_not_plain_is_seen_wherever_it_stands() {
        for c in (0..0x100).filter_map(char::from_u32).chain(['\u{20AC}', '\u{10FFFF}']) {
            for place in 0..20 {
                let (before, behind) = ("a".repeat(place), "z".repeat(20 - place));
                check(&format!("{before}{c}{behind}=1&b=2"));
                check(&format!("x={before}{c}{behind}&b=2"));
                check(&format!("{before}={behind}{c}&_={c}&{c}"));
            }
        }
    }

    #[test]
    fn parts_of_any_length_are_cut_where_they_end() {
        for (key, value) in (0..20).flat_map(|key| (0..40).map(move |value| (key, value))) {
            let (key, value) = ("k".repeat(key), "v".repeat(value));
            check(&format!("{key}={value}"));
            check(&format!("{key}&&{value}=&={key}={value}&"));
            check(&format!("{key}{}{value}", "&".repeat(value.len())));
            check(&format!("{key}%={value}&{key}={value}+"));
        }
    }

    #[test]
    fn decoding_leaves_malformed_percent_signs_alone() {
        for (raw, decoded) in [
            ("%", "%"),
            ("%4", "%4"),
            ("%4g", "%4g"),
            ("%%41", "%A"),
            ("%25%34%31", "%41"),
            ("%e2%82%AC", "€"),
        ] {
            assert_eq!(decode(raw.as_bytes(), Plus::Space), decoded.as_bytes(), "{raw}");
        }
        assert_eq!(decode(b"a+b%2B", Plus::Space), b"a b+");
        assert_eq!(decode(b"a+b%2B", Plus::Itself), b"a+b+");
    }

    #[test]
    fn plain_text_is_borrowed() {
        let piece = pieces("name=Value-1").next().expect("there is one");
        let value = piece.value(Plus::Space);
        assert!(matches!(value, Ok(Text { text: Cow::Borrowed("Value-1"), plain: true })));
        assert!(piece.has_plain_key() && matches!(piece.key(), Ok(Cow::Borrowed("name"))));
    }
}
