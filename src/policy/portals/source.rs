//! Where a portal list comes from.

use super::source_file::FileSource;
use super::source_url::UrlSource;

/// Where lists come from.
#[derive(Debug)]
pub(super) enum Source {
    /// There will be no other list.
    Fixed,
    File(FileSource),
    Url(UrlSource),
}
