//! The outcome of one look at the source of a list.

use std::time::Duration;

use super::list::List;

/// Limit for a look at a file, in seconds. A list of the largest size is read in under a second.
pub(super) const FILE_SECONDS_MAX: u64 = 10;
/// Limit for a whole request to a URL and its answer, in seconds.
pub(super) const FETCH_SECONDS_MAX: u64 = 60;

/// The outcome of one look at a source.
#[derive(Debug)]
pub(super) enum Look {
    /// The source still has the list in use.
    Same,
    /// The source has a new list.
    New(Box<List>),
    /// The source is changing; the next look may find it at rest.
    Unsettled,
    /// The source has no usable list. The text says why, with the file or URL and, if known, the
    /// line.
    Failed(String),
    /// The source has no usable list, and its server asks for no request during this time
    /// (`Retry-After`).
    Deferred(String, Duration),
}
