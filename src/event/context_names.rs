//! The parts of a request's context that are stored only on request of the operator: the cookie
//! `events.utk_cookie`, the headers `events.context_headers`, and the host, for an upstream with
//! `keep_host`.

use crate::config_error::ConfigError;

use super::param::{CONTEXT_HEADER_NAME_BYTES_MAX, CONTEXT_HEADERS_MAX};

/// Headers that `events.context_headers` must not name, each with the reason. Credentials are never
/// stored (SPEC 3), and data that `[privacy]` reduces must not be stored unreduced.
const NEVER_STORED: [(&str, &str); 15] = [
    ("authorization", CREDENTIALS),
    ("cookie", CREDENTIALS),
    ("proxy-authorization", CREDENTIALS),
    ("x-api-key", CREDENTIALS),
    ("x-auth-token", CREDENTIALS),
    ("cf-connecting-ip", ADDRESS),
    ("fastly-client-ip", ADDRESS),
    ("forwarded", ADDRESS),
    ("true-client-ip", ADDRESS),
    ("x-client-ip", ADDRESS),
    ("x-cluster-client-ip", ADDRESS),
    ("x-forwarded-for", ADDRESS),
    ("x-real-ip", ADDRESS),
    ("referer", "is context.referer, as privacy.referer says"),
    ("user-agent", "is context.user_agent"),
];
const CREDENTIALS: &str = "holds credentials";
const ADDRESS: &str = "holds an address, which is context.ip as privacy.ip says";

/// The checked names. The default holds none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContextNames {
    has_host: bool,
    utk_cookie: Option<String>,
    headers: Box<[HeaderName]>,
}

/// The name of a header: as configured, which is its name in the wire form, and in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HeaderName {
    written: String,
    lower: String,
}

impl ContextNames {
    /// Checks the names.
    ///
    /// # Errors
    ///
    /// There are more than 16 headers; or a name is not a token (RFC 9110, section 5.6.2) of at
    /// most 64 bytes, is given twice, or is one of `NEVER_STORED`.
    pub(super) fn new(cookie: Option<&str>, headers: &[String]) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError::new("events.context_headers", reason);
        if cookie.is_some_and(|name| !is_token(name)) {
            return Err(ConfigError::new("events.utk_cookie", "is not the name of a cookie"));
        }
        if headers.len() > CONTEXT_HEADERS_MAX {
            return Err(wrong(format!("must hold at most {CONTEXT_HEADERS_MAX} names")));
        }
        let mut names = Vec::with_capacity(headers.len());
        for written in headers {
            let lower = written.to_ascii_lowercase();
            if !is_token(written) || written.len() > CONTEXT_HEADER_NAME_BYTES_MAX {
                let most = CONTEXT_HEADER_NAME_BYTES_MAX;
                return Err(wrong(format!("must hold names of headers of at most {most} bytes")));
            }
            if let Some((name, why)) = NEVER_STORED.iter().find(|(name, _)| *name == lower) {
                return Err(wrong(format!("must not name {name}, which {why}")));
            }
            if names.iter().any(|name: &HeaderName| name.lower == lower) {
                return Err(wrong("must not name a header twice".to_owned()));
            }
            names.push(HeaderName { written: written.clone(), lower });
        }
        names.sort();
        Ok(Self { has_host: false, utk_cookie: cookie.map(str::to_owned), headers: names.into() })
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        !self.has_host && self.utk_cookie.is_none() && self.headers.is_empty()
    }

    /// Whether the `Host` of a request is stored as `context.host`.
    pub fn has_host(&self) -> bool {
        self.has_host
    }

    pub(super) fn set_host(&mut self, is_stored: bool) {
        self.has_host = is_stored;
    }

    /// The name of the cookie whose value is stored as `context.utk`.
    pub fn utk_cookie(&self) -> Option<&str> {
        self.utk_cookie.as_deref()
    }

    /// The headers as (name in the wire form, name in lower case), sorted by the name in the wire
    /// form.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.headers.iter().map(|name| (name.written.as_str(), name.lower.as_str()))
    }
}

/// Whether a text is a token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_once_each_and_never_those_of_credentials() {
        let names = |headers: &[&str]| {
            let headers: Vec<String> = headers.iter().map(|name| (*name).to_owned()).collect();
            ContextNames::new(Some("hubspotutk"), &headers)
        };
        let good = names(&["X-Region", "CF-IPCountry"]).unwrap();
        assert_eq!(good.utk_cookie(), Some("hubspotutk"));
        let headers: Vec<_> = good.headers().collect();
        assert_eq!(headers, [("CF-IPCountry", "cf-ipcountry"), ("X-Region", "x-region")]);
        let long = "x".repeat(65);
        let never = NEVER_STORED.map(|(name, _)| [name]);
        let never = never.iter().map(|name| &name[..]);
        let others = [&["a b"][..], &[""], &["Cookie"], &["AUTHORIZATION"], &["a", "A"], &[&long]];
        for bad in never.chain(others) {
            assert_eq!(names(bad).unwrap_err().key(), "events.context_headers", "{bad:?}");
        }
        assert!(names(&["x"; 17]).is_err());
        assert_eq!(ContextNames::new(Some("a=b"), &[]).unwrap_err().key(), "events.utk_cookie");
    }
}
