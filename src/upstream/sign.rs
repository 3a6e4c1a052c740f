//! Signs a batch by Standard Webhooks 1.0 (symmetric, `v1`): the receiver recomputes the
//! HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body as sent}`.

use crate::config_error::ConfigError;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// The shortest key that Standard Webhooks allows, in bytes.
const KEY_BYTES_MIN: usize = 24;
/// The longest key that Standard Webhooks allows, in bytes.
const KEY_BYTES_MAX: usize = 64;

/// Signs request bodies with one key.
pub struct Signer(hmac::Key);

impl Signer {
    /// Parses `whsec_` followed by the key in base64. The prefix is optional.
    pub fn new(secret: &str) -> Result<Signer, ConfigError> {
        let fault = |reason: &str| ConfigError::new("secret", reason.to_owned());
        let base64 = secret.strip_prefix("whsec_").unwrap_or(secret);
        let key = STANDARD.decode(base64).map_err(|_| {
            fault("must be `whsec_` and 24 to 64 bytes in base64 (`openssl rand -base64 32`)")
        })?;
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(fault("must hold 24 to 64 bytes (`openssl rand -base64 32`)"));
        }
        Ok(Signer(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The value of the header `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp_seconds}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification and its reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_example_of_the_specification_comes_out() {
        for secret in [SECRET, &SECRET["whsec_".len()..]] {
            let signer = Signer::new(secret).unwrap();
            let got = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, BODY);
            assert_eq!(got, SIGNATURE);
        }
    }

    #[test]
    fn a_secret_that_cannot_be_a_key_is_refused_without_being_shown() {
        let bytes = |n: usize| format!("whsec_{}", STANDARD.encode(vec![7; n]));
        assert!(Signer::new(&bytes(KEY_BYTES_MIN)).is_ok());
        assert!(Signer::new(&bytes(KEY_BYTES_MAX)).is_ok());
        for bad in ["", "hunter2!", &bytes(KEY_BYTES_MIN - 1), &bytes(KEY_BYTES_MAX + 1)] {
            let error = Signer::new(bad).unwrap_err().to_string();
            assert!(error.contains("secret"), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        assert_eq!(format!("{:?}", Signer::new(SECRET).unwrap()), "Signer(..)");
    }
}
