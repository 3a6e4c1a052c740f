//! The error of a configuration value that cannot be used, the same for every section.

use std::error::Error;

/// A key whose value cannot be used, and why. Displays as `key: reason` and never shows a value
/// that may be secret.
///
/// ```
/// use pixelgate::Config;
///
/// let mut config = Config::default();
/// config.batch.events_max = 0;
/// let error = config.validate().err().unwrap();
/// assert_eq!((error.key(), error.reason()), ("batch.events_max", "must be 1 to 100000"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ConfigError {
    key: String,
    reason: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Lets [`crate::PixelGate::builder`] take a configuration that is checked already.
impl From<std::convert::Infallible> for ConfigError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl ConfigError {
    pub(crate) fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into(), source: None }
    }

    /// An error whose cause is another error, which `source()` returns.
    pub(crate) fn caused(
        key: impl Into<String>,
        reason: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { source: Some(Box::new(source)), ..Self::new(key, reason) }
    }

    /// The same error, with its key below `section`.
    pub(crate) fn within(mut self, section: &str) -> Self {
        self.key = format!("{section}.{}", self.key);
        self
    }

    /// The whole key, such as `events.query_bytes_max`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong with the value, as the rest of a sentence that begins with the key: `must be
    /// at most 1024`.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// A deserializer's message without the value that it shows: `invalid type: string, expected a
/// map`. Keys and the allowed values stay.
///
/// ```
/// use pixelgate::tools::without_value;
///
/// let message = "invalid type: string \"t0ps3cret\", expected a map";
/// assert_eq!(without_value(message), "invalid type: string, expected a map");
/// ```
pub fn without_value(message: &str) -> String {
    let (Some((mistake, found)), Some((_, expected))) =
        (message.split_once([':', '`']), message.rsplit_once(", expected "))
    else {
        return message.to_owned();
    };
    match mistake.trim_end() {
        "unknown variant" => format!("unknown value, expected {expected}"),
        mistake @ ("invalid type" | "invalid value") => {
            let kind = found.split(['`', '"', ',']).next().unwrap_or_default().trim();
            format!("{mistake}: {kind}, expected {}", in_words(expected))
        }
        _ => message.to_owned(),
    }
}

/// What a deserializer expects, for readers who know no types of Rust.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number, 0 to 255",
        "u16" => "a whole number, 0 to 65535",
        "u32" => "a whole number, 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "parsable string" => "a size such as \"64MiB\"",
        // The name of a type, such as `struct Config`.
        name if name.starts_with("struct ") => "a table",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_types_and_allowed_values_and_no_value() {
        let check = |message: &str, expect: &str| assert_eq!(without_value(message), expect);
        check(
            "invalid type: integer `1`, expected struct Config",
            "invalid type: integer, expected a table",
        );
        check(
            "invalid type: string \"s3cr`t, expected x\", expected a map",
            "invalid type: string, expected a map",
        );
        check(
            "invalid type: integer `12`, expected a string",
            "invalid type: integer, expected a string",
        );
        check(
            "invalid type: floating point `1.5`, expected u64",
            "invalid type: floating point, expected a whole number, 0 or more",
        );
        check(
            "invalid value: string \"x\", expected parsable string",
            "invalid value: string, expected a size such as \"64MiB\"",
        );
        check(
            "unknown variant `s3cret`, expected `a` or `b`",
            "unknown value, expected `a` or `b`",
        );
        check("unknown field `x`, expected `a` or `b`", "unknown field `x`, expected `a` or `b`");
        check("missing field `x`", "missing field `x`");
    }
}
