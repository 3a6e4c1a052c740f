//! Secrets in the configuration: where they come from, and how they stay out of sight.
//!
//! A value may hold `${NAME}`, replaced by the environment variable of that name when the
//! setting is read. Nothing else is special: no defaults, no nesting, no bare `$NAME`.

use crate::config_error::ConfigError;
use std::fmt;

use serde::Deserialize;

/// A configured text that must not be printed: its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text with each `${NAME}` replaced from the environment. `key` names the setting in
    /// the error; neither the text nor a variable's value is ever part of it.
    pub fn expand(&self, key: &str) -> Result<String, ConfigError> {
        expand(&self.0, key, |name| std::env::var(name).ok())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Replaces each `${NAME}` in `text` by `lookup`'s answer. The error names `key`, never a value.
pub(crate) fn expand(
    text: &str,
    key: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, ConfigError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(ConfigError::new(key, "has a `${` without a `}`"));
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            // The name is not repeated: a mistyped `${` may stand in the middle of a secret.
            return Err(ConfigError::new(key, "has no variable's name between `${` and `}`"));
        }
        let Some(value) = lookup(name) else {
            let reason = format!("${{{name}}} is not in the environment (as UTF-8 text)");
            return Err(ConfigError::new(key, reason));
        };
        out.push_str(&value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<&str, &str>) {
        let lookup = |name: &str| match name {
            "TOKEN" => Some("t0ps3cret".to_owned()),
            "NESTED" => Some("${TOKEN}".to_owned()),
            _ => None,
        };
        let got = expand(text, "headers.authorization", lookup);
        match (got, expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect),
            (Err(got), Err(expect)) => {
                let got = got.to_string();
                assert!(got.contains(expect) && got.contains("headers.authorization"), "{got}");
                assert!(!got.contains("t0ps3cret"), "{got}");
            }
            (got, expect) => panic!("{text}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn variables_are_replaced_once_and_nothing_else_is_special() {
        check("Bearer ${TOKEN}", Ok("Bearer t0ps3cret"));
        check("${TOKEN}${TOKEN}!", Ok("t0ps3crett0ps3cret!"));
        check("${NESTED}", Ok("${TOKEN}"));
        check("$TOKEN $5 }", Ok("$TOKEN $5 }"));
        check("", Ok(""));
    }

    #[test]
    fn what_cannot_be_replaced_names_the_key_and_the_variable() {
        check("${MISSING}", Err("MISSING"));
        check("${TOKEN} ${", Err("without"));
        check("${t0ps3cret with spaces}", Err("no variable's name"));
        check("${}", Err("no variable's name"));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("t0ps3cret")), "Secret(..)");
    }
}
