//! What one look at a list's source found.

use super::list::List;

/// What one look at a source found.
#[derive(Debug)]
pub(super) enum Look {
    /// The source still has the list in use.
    Same,
    /// The source has a new list.
    New(Box<List>),
    /// The source is changing; the next look may find it at rest.
    Unsettled,
    /// The source has no usable list. Says why, with the file or URL and, if known, the line.
    Failed(String),
}
