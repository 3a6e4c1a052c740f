//! The `[admin]` section of the configuration.

use crate::env::Secret;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// The shortest token, in bytes. A shorter one could be guessed.
pub const TOKEN_BYTES_MIN: usize = 16;

/// The `[admin]` section.
///
/// ```
/// use pixelgate::config::{Admin, Secret};
///
/// let mut admin = Admin::default();
/// admin.listen = "0.0.0.0:9090".to_owned();
/// assert_eq!(admin.validate().unwrap_err().0, "token");
/// admin.token = Some(Secret::new("sixteen bytes ok"));
/// assert!(admin.validate().is_ok());
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The address and port of the listener. Empty: no admin listener. May hold `${NAME}`. Default:
    /// `127.0.0.1:9090`.
    #[serde(deserialize_with = "crate::env::expanded")]
    pub listen: String,
    /// The token that a request must send as `Authorization: Bearer`. Required if `listen` is not
    /// a loopback address. At least 16 printable ASCII characters, no space at either end. May hold
    /// `${NAME}`.
    pub token: Option<Secret>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9090".to_owned(), token: None }
    }
}

impl Config {
    /// Checks the section. The error is a key of `[admin]` and the reason why its value cannot be
    /// used.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() {
            return Ok(());
        }
        let malformed = |_| ("listen", "is not an IP address with a port".to_owned());
        let address: SocketAddr = self.listen.parse().map_err(malformed)?;
        match &self.token {
            Some(token) if token.expose().len() < TOKEN_BYTES_MIN => {
                Err(("token", format!("has fewer than {TOKEN_BYTES_MIN} bytes")))
            }
            Some(token) if !is_sendable(token.expose()) => {
                let why = "cannot be sent in a header: it must be of printable ASCII characters, \
                           with no space at either end";
                Err(("token", why.to_owned()))
            }
            None if !is_loopback(address.ip()) => {
                let why = "is needed where admin.listen is not a loopback address";
                Err(("token", why.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether clients can send a token in a header. Servers drop the spaces at the ends of a value,
/// and a browser sends other bytes for a character outside of ASCII than a command line does.
fn is_sendable(token: &str) -> bool {
    token.bytes().all(|byte| matches!(byte, b' '..=b'~')) && token.trim_ascii() == token
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_others_can_reach_needs_a_token() {
        let check = |listen: &str, token: Option<&str>| {
            let config = Config { listen: listen.into(), token: token.map(Secret::new) };
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(check("127.0.0.1:9090", None), None);
        assert_eq!(check("[::1]:9090", None), None);
        assert_eq!(check("", None), None);
        assert_eq!(check("0.0.0.0:9090", None), Some("token"));
        assert_eq!(check("0.0.0.0:9090", Some("short")), Some("token"));
        assert_eq!(check("0.0.0.0:9090", Some("sixteen bytes ok")), None);
        assert_eq!(check("localhost", None), Some("listen"));
    }

    #[test]
    fn a_token_can_be_sent_in_a_header() {
        let check = |token: &str| {
            let config = Config { token: Some(Secret::new(token)), ..Config::default() };
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(check("0123456789 ~!\"abc"), None);
        for wrong in ['\0', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{85}', 'é', '🛒'] {
            assert_eq!(check(&format!("01234567{wrong}89abcdef")), Some("token"), "{wrong:?}");
        }
        assert_eq!(check(" 0123456789abcdef"), Some("token"));
        assert_eq!(check("0123456789abcdef "), Some("token"));
    }
}
