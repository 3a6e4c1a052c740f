//! The source of portal lists.

use super::source_file::FileSource;
use super::source_url::UrlSource;

/// The source of the lists of one policy.
#[derive(Debug)]
// A process has one value of this type, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Source {
    /// The list never changes.
    Fixed,
    /// The host passes each list to [`Portals::put`](super::Portals::put).
    Host,
    File(FileSource),
    Url(UrlSource),
}
