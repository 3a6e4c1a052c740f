//! The bytes of names and values (RFC 9110, section 5).

/// For each byte, whether it may stand in a token.
const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let signs = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < signs.len() {
        table[signs[at] as usize] = true;
        at += 1;
    }
    table
};

/// Whether all bytes may stand in a token.
pub fn is_token(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| is_token_byte(b))
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[usize::from(byte)]
}

/// Whether all bytes may stand in the value of a field.
pub fn is_value(bytes: &[u8]) -> bool {
    // Looks at all bytes, so that the compiler can test several at a time.
    bytes.iter().fold(true, |fits, &b| fits & is_field_byte(b))
}

/// Whether a byte may stand in the value of a field (RFC 9110, section 5.5): no control character
/// but the tab.
pub fn is_field_byte(byte: u8) -> bool {
    (byte == b'\t') | ((byte >= b' ') & (byte != 0x7f))
}
