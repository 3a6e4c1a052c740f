//! Recognizes, removes and escapes characters that a reader does not see.
//!
//! Two addresses that look alike must not be two contacts, and a text that a command prints must
//! not change the terminal. So an address may hold no hidden characters, the context of a request
//! loses them, and commands escape them.

use std::borrow::Cow;
use std::fmt::Write;

use once_cell::sync::Lazy;
use regex_syntax::hir::{Class, HirKind};

/// The hidden characters, see [`is_hidden`]. The last one is the Braille pattern without dots, a
/// blank that Unicode counts among the visible symbols.
const HIDDEN: &str = r"[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Default_Ignorable_Code_Point}\u{2800}]";

/// [`HIDDEN`] as ranges, first and last character, in rising order.
static RANGES: Lazy<Box<[(char, char)]>> = Lazy::new(|| match regex_syntax::parse(HIDDEN) {
    Ok(hir) => match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => unreachable!("a pattern of one class, as the tests below see"),
    },
    Err(error) => unreachable!("the tests below parse the same pattern: {error}"),
});

/// Whether a character is not visible, apart from spaces: a control or format character (Cc, Cf), a
/// line or paragraph separator (Zl, Zp), one for private use (Co), or one that Unicode lets
/// programs ignore (Default_Ignorable_Code_Point), such as a variation selector.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let until = RANGES.partition_point(|(first, _)| *first <= c);
    until > 0 && c <= RANGES[until - 1].1
}

/// The text without its hidden characters.
pub fn without_hidden(text: Cow<'_, str>) -> Cow<'_, str> {
    if is_printable_ascii(&text) || !text.contains(is_hidden) {
        return text;
    }
    Cow::Owned(text.chars().filter(|c| !is_hidden(*c)).collect())
}

/// The same JSON with each hidden character in its strings as an escape (RFC 8259, section 7), so
/// that a terminal shows it. `json` must be valid, and must have no line breaks or tabs between its
/// values.
///
/// ```
/// use pixelgate::tools::escape_hidden;
///
/// assert_eq!(escape_hidden("[\"a\u{200b}b\"]"), r#"["a\u200bb"]"#);
/// ```
pub fn escape_hidden(json: &str) -> Cow<'_, str> {
    if is_printable_ascii(json) || !json.contains(is_hidden) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if !is_hidden(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a `String` cannot fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    Cow::Owned(escaped)
}

/// The loop has no early end, so that the compiler can test sixteen bytes at a time.
fn is_printable_ascii(text: &str) -> bool {
    text.bytes().fold(true, |all, byte| all & matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_hidden_and_what_can_be_is_not() {
        let hidden = "\0\t\n\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{200b}\
            \u{200d}\u{200e}\u{2028}\u{2029}\u{202e}\u{2060}\u{2066}\u{2800}\u{3164}\u{e000}\
            \u{fe0f}\u{feff}\u{ffa0}\u{fff9}\u{1bca0}\u{1d173}\u{e0001}\u{e0061}\u{e0100}\u{f0000}";
        for c in hidden.chars() {
            assert!(is_hidden(c), "U+{:04X}", u32::from(c));
        }
        for c in " aZ~\u{a0}é\u{301}ж購\u{3000}\u{fffd}😀".chars() {
            assert!(!is_hidden(c), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn hidden_characters_are_removed_and_nothing_else() {
        for text in ["", "Mozilla/5.0 (X11)", "caf\u{e9} \u{3000}"] {
            assert!(matches!(without_hidden(text.into()), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(without_hidden("a\u{9b}31m\tb\u{202e}c".into()), "a31mbc");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({ "a\u{202e}": "\u{9b}31m \u{e0001}\u{7f}\u{e9}\n\"" });
        let json = value.to_string();
        let escaped = escape_hidden(&json);
        assert!(!escaped.contains(is_hidden), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        assert!(matches!(escape_hidden("{\"a\":\"\u{e9}\"}"), Cow::Borrowed(_)));
    }
}
