//! Splitting a query and decoding its pieces (SPEC 3; `application/x-www-form-urlencoded` of the
//! WHATWG URL Standard).
//!
//! One pass over the bytes finds the separators and, on the way, what each part is made of. Most
//! parts turn out to be plain ASCII and are borrowed as they stand; only the others are looked at
//! again, decoded and trimmed.
//!
//! Nothing here knows what a parameter means, but that a `+` is itself in two of them.

use std::borrow::Cow;
use std::fmt::Write;

use super::param::Reserved;

/// What a part is made of: the union over its bytes.
type Class = u8;
/// Not of `[a-z0-9_]`.
const NOT_NAME: Class = 1;
/// `%`.
const PERCENT: Class = 1 << 1;
/// `+`.
const PLUS: Class = 1 << 2;
/// A space or an ASCII control character.
const BLANK: Class = 1 << 3;
/// Not ASCII.
const WIDE: Class = 1 << 4;

static CLASS: [Class; 256] = {
    let mut table = [NOT_NAME; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] |= match byte as u8 {
            b'%' => PERCENT,
            b'+' => PLUS,
            0..=b' ' | 0x7F => BLANK,
            0x80.. => WIDE,
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
    /// A space, as everywhere in forms.
    Space,
    /// Itself: where people write it and mean it, in addresses and numbers.
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
    /// Surely printable ASCII without spaces. Saves looking at it again; false says nothing.
    pub(super) plain: bool,
}

/// The part's bytes, decoded, are not UTF-8.
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
    pub(super) fn key(&self) -> Result<Cow<'a, str>, NotUtf8> {
        let mut key = text(self.key, self.key_class, Plus::Space)?.text;
        if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            key.to_mut().make_ascii_lowercase();
        }
        Ok(key)
    }

    /// The key where it is made of `[a-z0-9_]` alone, and so needs nothing done to it.
    pub(super) fn plain_key(&self) -> Option<&'a str> {
        (self.key_class & NOT_NAME == 0).then_some(self.key)
    }

    /// The key as well as it can be shown where it is not UTF-8.
    pub(super) fn key_lossy(&self) -> String {
        String::from_utf8_lossy(&decode(self.key.as_bytes(), Plus::Space))
            .trim()
            .to_ascii_lowercase()
    }

    /// The value as it came.
    pub(super) fn raw_value(&self) -> &'a str {
        self.value
    }

    /// Whether there was a `=`.
    pub(super) fn has_equals_sign(&self) -> bool {
        self.has_equals_sign
    }

    /// The value, decoded and trimmed.
    pub(super) fn value(&self, plus: Plus) -> Result<Text<'a>, NotUtf8> {
        text(self.value, self.value_class, plus)
    }
}

/// The non-empty pieces of a query, in order.
pub(super) fn pieces(query: &str) -> Pieces<'_> {
    Pieces { rest: query }
}

/// See [`pieces`].
pub(super) struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        while let Some(rest) = self.rest.strip_prefix('&') {
            self.rest = rest;
        }
        if self.rest.is_empty() {
            return None;
        }
        let (key, key_class, rest) = until(self.rest, |byte| byte == b'=' || byte == b'&');
        let after = rest.strip_prefix('=');
        let (value, value_class, rest) = until(after.unwrap_or(rest), |byte| byte == b'&');
        self.rest = rest;
        let has_equals_sign = after.is_some();
        Some(Piece { key, value, key_class, value_class, has_equals_sign })
    }
}

/// Cuts before the first byte that ends a part, and says what the part is made of. What ends a part
/// is ASCII, so the cut is never within a character.
#[inline(always)]
fn until(text: &str, ends: impl Fn(u8) -> bool) -> (&str, Class, &str) {
    let mut class = 0;
    let mut length = text.len();
    for (place, byte) in text.bytes().enumerate() {
        if ends(byte) {
            length = place;
            break;
        }
        class |= CLASS[usize::from(byte)];
    }
    let (part, rest) = text.split_at(length);
    (part, class, rest)
}

fn text(raw: &str, class: Class, plus: Plus) -> Result<Text<'_>, NotUtf8> {
    let coded = match plus {
        Plus::Space => PERCENT | PLUS,
        Plus::Itself => PERCENT,
    };
    if class & (coded | BLANK | WIDE) == 0 {
        return Ok(Text { text: Cow::Borrowed(raw), plain: true });
    }
    let text = if class & coded == 0 {
        Cow::Borrowed(raw.trim())
    } else {
        let decoded = decode(raw.as_bytes(), plus);
        Cow::Owned(trimmed(String::from_utf8(decoded).map_err(|_| NotUtf8)?))
    };
    Ok(Text { text, plain: false })
}

/// A query whose raw bytes are not UTF-8, with all that is not ASCII percent-encoded: that says the
/// same.
pub(super) fn encode_wide(query: &[u8]) -> String {
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
        assert_eq!(piece.plain_key(), Some("name"));
    }
}
