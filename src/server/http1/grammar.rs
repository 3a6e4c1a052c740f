//! The bytes of names and values (RFC 9110, section 5).

/// Whether all bytes may stand in a token.
pub fn is_token(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| is_token_byte(b))
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    let is_sign = matches!(
        byte,
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    );
    byte.is_ascii_alphanumeric() || is_sign
}

/// Whether a byte may stand in the value of a field (RFC 9110, section 5.5): no control character
/// but the tab.
pub fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
