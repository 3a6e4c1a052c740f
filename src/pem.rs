//! Recognizes an encrypted private key in a PEM file. A parser skips such a key, so the error would
//! otherwise say that the file holds none.

/// The reason why an encrypted private key cannot be used, as the rest of a sentence that begins
/// with the name of its file.
///
/// ```
/// use pixelgate::tools::ENCRYPTED_KEY;
///
/// let message = format!("key.pem {ENCRYPTED_KEY}");
/// ```
pub const ENCRYPTED: &str =
    "is encrypted, and no password can be given: decrypt it with `openssl pkey`";

/// Whether a PEM file holds an encrypted private key (RFC 7468, section 11; RFC 1421, section
/// 4.6.1.1), which parsers skip as if the file held no key.
///
/// ```
/// use pixelgate::tools::is_encrypted;
///
/// assert!(is_encrypted(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"));
/// assert!(!is_encrypted(b"-----BEGIN PRIVATE KEY-----"));
/// ```
pub fn is_encrypted(pem: &[u8]) -> bool {
    let marks: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];
    marks.iter().any(|mark| memchr::memmem::find(pem, mark).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_encrypted_key_are_known() {
        assert!(is_encrypted(b"\n-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII"));
        assert!(is_encrypted(b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!is_encrypted(b"-----BEGIN PRIVATE KEY-----\nMII"));
    }
}
