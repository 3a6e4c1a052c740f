//! The error of a configuration that cannot be used, and the texts that it is made of.

use serde_path_to_error::Path as KeyPath;
use std::path::Path;

/// Why a configuration cannot be used. Displays as `file:line: key: reason`.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {key}{}{reason}", if key.is_empty() { "" } else { ": " })]
pub struct ConfigError {
    /// The file, with the line where it is known, or `environment`.
    place: String,
    pub(super) key: String,
    pub(super) reason: String,
}

/// Returns the error of a mistake in `key` at `place`. An empty key: the whole file is meant.
pub(super) fn error(place: impl ToString, key: &str, reason: String) -> ConfigError {
    ConfigError { place: place.to_string(), key: key.to_owned(), reason }
}

/// Returns the path of the file, with the line if it is known.
pub(super) fn file_place(path: &Path, line: Option<usize>) -> String {
    let file = path.display();
    line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
}

/// Returns a key as messages name it, such as `upstream[0].url`.
pub(super) fn key_of(path: &KeyPath) -> String {
    let key = path.to_string();
    if key == "." { String::new() } else { key }
}

/// Returns the key that `text` sets twice, if that is the mistake. The parser's message lacks it.
pub(super) fn twice<'t>(text: &'t str, e: &toml::de::Error) -> &'t str {
    let is_twice = e.message() == "duplicate key";
    let found = e.span().filter(|_| is_twice).and_then(|span| text.get(span));
    found.unwrap_or_default().trim()
}
