//! The formats that a portal list can be written in (SPEC 5).

use serde::{Deserialize, Serialize};

/// The largest list that is read, in bytes: four million ids of 15 digits.
pub const LIST_BYTES_MAX: u64 = 64 << 20;

/// How a list is written.
///
/// ```
/// use pixelgate::custom::PortalFormat;
/// use pixelgate::{Config, PixelGate};
///
/// let list = "62515 # a customer\n56043\n";
/// let builder = PixelGate::builder(Config::default()).portals(list, PortalFormat::Text);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Format {
    /// `portals = [62515]`, `[[portal]]` and `[defaults]`.
    Toml,
    /// The same shape in JSON, dates as strings.
    Json,
    /// One id a line; `#` begins a comment.
    Text,
}

impl Format {
    /// The format that a file name or URL path ends in.
    pub(super) fn of_name(name: &str) -> Option<Format> {
        let (_, extension) = name.rsplit_once('.')?;
        [Format::Toml, Format::Json, Format::Text]
            .into_iter()
            .find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }

    /// The byte between two ids.
    pub(super) const fn separator(self) -> u8 {
        match self {
            Format::Toml | Format::Json => b',',
            Format::Text => b'\n',
        }
    }

    /// The ending of the names of such files, without the dot.
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Format::Toml => "toml",
            Format::Json => "json",
            Format::Text => "txt",
        }
    }
}
