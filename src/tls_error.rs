//! Errors of TLS connections in plain words.
//!
//! The TLS library shows the names of its types, as in `invalid peer certificate:
//! Other(OtherError(CaUsedAsEndEntity))`, which say nothing to an operator.

use rustls::{CertificateError, Error as TlsError};
use std::error::Error;
use std::io;

/// Describes the TLS error among `error` and its causes, in plain words and with the library's name
/// for it. `None` if there is no TLS error among them.
pub fn tls_words(error: &(dyn Error + 'static)) -> Option<String> {
    cause::<TlsError>(error).map(words)
}

/// Describes a TLS error in plain words, with the library's name for it.
pub fn words(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(why) => of_certificate(why),
        TlsError::AlertReceived(alert) => {
            format!("the other side refused the TLS handshake ({alert:?})")
        }
        TlsError::InconsistentKeys(_) => "the certificate and the key do not match".to_owned(),
        other => other.to_string(),
    }
}

fn of_certificate(why: &CertificateError) -> String {
    use CertificateError::*;
    // The library's name stays in the message, because a search for it finds further advice.
    let name = match why {
        Other(other) => other.to_string(),
        named => format!("{named:?}"),
    };
    let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let words = match why {
        BadEncoding => "cannot be read",
        Expired | ExpiredContext { .. } => "has expired",
        NotValidYet | NotValidYetContext { .. } => "is not valid yet, by the clock of this machine",
        Revoked => "is revoked",
        UnknownIssuer => "is not signed by an authority that is trusted here",
        BadSignature => "has a wrong signature",
        NotValidForName | NotValidForNameContext { .. } => "is for another name",
        InvalidPurpose | InvalidPurposeContext { .. } => "is for another purpose",
        Other(_) if name == "CaUsedAsEndEntity" => {
            "is that of an authority, which cannot be that of a server or client, too"
        }
        _ => "cannot be verified",
    };
    format!("the certificate {words} ({name})")
}

/// The first `T` among an error and its causes; an I/O error's inner error counts as its cause.
pub fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::OtherError;
    use std::sync::Arc;

    #[derive(Debug, thiserror::Error)]
    #[error("CaUsedAsEndEntity")]
    struct OfAnAuthority;

    #[test]
    fn an_error_is_a_sentence_with_the_librarys_name() {
        let check = |why: CertificateError, expect: &str| {
            let error = io::Error::other(TlsError::InvalidCertificate(why));
            assert_eq!(tls_words(&error).unwrap(), expect);
        };
        check(CertificateError::Expired, "the certificate has expired (Expired)");
        check(
            CertificateError::Other(OtherError(Arc::new(OfAnAuthority))),
            "the certificate is that of an authority, which cannot be that of a server or client, \
             too (CaUsedAsEndEntity)",
        );
        let unknown = CertificateError::UnknownIssuer;
        let expect = "is not signed by an authority that is trusted here (UnknownIssuer)";
        check(unknown, &format!("the certificate {expect}"));
        assert_eq!(tls_words(&io::Error::other("no TLS")), None);
    }
}
