//! Configured text that may hold `${NAME}`, and secrets that no log line shows.
//!
//! One rule applies to every string key that may hold a secret or an address (SPEC 9): when the
//! configuration is read, each `${NAME}` is replaced once by the environment variable of that name.
//! White space around the value of a variable and around the whole text is removed, because the
//! file of a secret often ends in a newline. A name that is not set is an error. There are no
//! defaults, no nesting and no bare `$NAME`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{
    Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

/// A configured text that must not be printed: its `Debug` shows nothing of it.
///
/// ```
/// use pixelgate::config::Secret;
///
/// let token = Secret::new("t0ps3cret");
/// assert_eq!(format!("{token:?}"), "Secret(..)");
/// assert_eq!(token.expose(), "t0ps3cret");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a configured text cannot be used. Never shows the text or a variable's value.
///
/// ```
/// use pixelgate::config::expand;
/// use pixelgate::errors::ExpandError;
///
/// assert_eq!(expand("Bearer ${TOKEN"), Err(ExpandError::Unclosed));
/// ```
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A `${` has no `}` after it.
    #[error("has a `${{` without a `}}`")]
    Unclosed,
    /// The text between `${` and `}` is not a name. The error does not show it, because a mistyped
    /// `${` may stand in the middle of a secret.
    #[error("has no variable's name between `${{` and `}}`")]
    NoName,
    /// The environment has no such variable, or its value is not UTF-8.
    #[error("${{{0}}} is not in the environment (as UTF-8 text)")]
    Unset(String),
}

impl Secret {
    /// Wraps `text` as it is: only text from a configuration file is expanded.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself. It must not appear in a log line, an error or a page.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        expanded(deserializer).map(Secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads a string key and expands it: `#[serde(deserialize_with = "…")]`.
///
/// ```
/// #[derive(serde::Deserialize)]
/// struct Collector {
///     #[serde(deserialize_with = "pixelgate::config::expanded")]
///     url: String,
/// }
///
/// let collector: Collector = toml::from_str("url = '${CARGO_PKG_NAME}.example'")?;
/// assert_eq!(collector.url, "pixelgate.example");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The value is no string, or it cannot be expanded.
pub fn expanded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    expand(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads one string or a list of strings, and expands each.
///
/// ```
/// #[derive(serde::Deserialize)]
/// struct Collectors {
///     #[serde(deserialize_with = "pixelgate::config::expanded_list")]
///     urls: Vec<String>,
/// }
///
/// let text = "urls = ['a.example', '${CARGO_PKG_NAME}.example']";
/// let collectors: Collectors = toml::from_str(text)?;
/// assert_eq!(collectors.urls, ["a.example", "pixelgate.example"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The errors of [`expanded`].
pub fn expanded_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts: Vec<Secret> = one_or_many(deserializer)?;
    Ok(texts.into_iter().map(|Secret(text)| text).collect())
}

/// Reads one value, a string or a table, or a list of such values: `listen = "0.0.0.0:80"` is
/// `listen = ["0.0.0.0:80"]`. Every list key of the configuration is read so.
///
/// # Errors
///
/// The value, or one in the list, is no `T`.
pub fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(OneOrMany(PhantomData))
}

/// The serde visitor of [`one_or_many`].
struct OneOrMany<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value or a list of values")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        T::deserialize(text.into_deserializer()).map(|one| vec![one])
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

/// The text with each `${NAME}` replaced by that variable of the process's environment.
///
/// ```
/// use pixelgate::config::expand;
///
/// assert_eq!(expand(" ${CARGO_PKG_NAME}.example ").unwrap(), "pixelgate.example");
/// ```
///
/// # Errors
///
/// The text has a `${` that names no variable.
pub fn expand(text: &str) -> Result<String, ExpandError> {
    expand_from(text, |name| std::env::var(name).ok())
}

fn expand_from(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (name, tail) = after.split_once('}').ok_or(ExpandError::Unclosed)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(ExpandError::NoName);
        }
        let value = lookup(name).ok_or_else(|| ExpandError::Unset(name.to_owned()))?;
        out.push_str(value.trim());
        rest = tail;
    }
    out.push_str(rest);
    Ok(out.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<&str, &str>) {
        let lookup = |name: &str| match name {
            "TOKEN" => Some("t0ps3cret\n".to_owned()),
            "NESTED" => Some("${TOKEN}".to_owned()),
            _ => None,
        };
        match (expand_from(text, lookup), expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect),
            (Err(got), Err(expect)) => {
                let got = got.to_string();
                assert!(got.contains(expect), "{got}");
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
    fn white_space_around_a_text_and_a_value_is_removed() {
        check(" a b\r\n", Ok("a b"));
        check("nats://u:${TOKEN}@h", Ok("nats://u:t0ps3cret@h"));
    }

    #[test]
    fn a_text_that_cannot_be_replaced_names_the_variable_alone() {
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
