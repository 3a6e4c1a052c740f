//! Where a portal list comes from.

use super::source_file::FileSource;
use super::source_url::UrlSource;

/// Where lists come from.
#[derive(Debug)]
// A process has one, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Source {
    /// There will be no other list.
    Fixed,
    /// The host brings each list ([`Portals::put`](super::Portals::put)).
    Host,
    File(FileSource),
    Url(UrlSource),
}
