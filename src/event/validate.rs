//! The rules of single fields (SPEC 3), except those in `email.rs` and `revenue.rs`.
//!
//! Each function checks a value and changes nothing. A control character is a character of
//! Unicode's category Cc.

use super::param::{
    EVENT_CHARS_MAX, EXTERNAL_ID_CHARS_MAX, PORTAL_DIGITS_MAX, PROPERTY_NAME_BYTES_MAX,
};
use super::query::Text;

/// Reads a portal's number, which has the form `0*[1-9][0-9]{0,14}`. `None` if the value does not.
pub(super) fn portal(value: &Text<'_>) -> Option<u64> {
    let text = value.text.as_bytes();
    let zeros = text.iter().take_while(|byte| **byte == b'0').count();
    let digits = &text[zeros..];
    if digits.is_empty() || digits.len() > PORTAL_DIGITS_MAX {
        return None;
    }
    // Not `str::parse`, which accepts a leading `+`.
    digits.iter().try_fold(0u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// Whether a value can be the id or name of an event.
pub(super) fn is_event_name(value: &Text<'_>) -> bool {
    is_opaque(value, EVENT_CHARS_MAX)
}

/// Whether a value can be the caller's id of the contact.
pub(super) fn is_external_id(value: &Text<'_>) -> bool {
    is_opaque(value, EXTERNAL_ID_CHARS_MAX)
}

/// Whether a name can be that of a contact property: it has the form `[a-z][a-z0-9_]{0,99}`.
pub fn is_property_name(name: &str) -> bool {
    let is_name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    is_plain_property_name(name) && name.bytes().all(is_name_byte)
}

/// Does what [`is_property_name`] does, for a name that is known to consist of `[a-z0-9_]`.
pub(super) fn is_plain_property_name(name: &str) -> bool {
    name.len() <= PROPERTY_NAME_BYTES_MAX
        && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
}

/// Whether a value can be that of a property: it has no control characters but tab, LF and CR.
pub(super) fn is_property_value(value: &Text<'_>) -> bool {
    value.plain || !value.text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
}

fn is_opaque(value: &Text<'_>, chars_max: usize) -> bool {
    if value.plain {
        return value.text.len() <= chars_max;
    }
    let mut chars = value.text.chars();
    chars.by_ref().take(chars_max).all(|c| !c.is_control()) && chars.next().is_none()
}
