//! Why a file of events could not be sent.

use std::io;

use crate::delivery::dead_letters::DeadError;

/// Why a file of events could not be sent, or not to its end.
///
/// ```
/// use pixelgate::tools::backfill::BackfillError;
///
/// /// Whether other files can be sent after this one.
/// fn may_go_on(error: &BackfillError) -> bool {
///     !matches!(error, BackfillError::Dead(_) | BackfillError::Room(_))
/// }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The file of events cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// Another process sends the same file to the same upstream.
    #[error("another process sends this file to this upstream")]
    Busy,
    /// The progress file cannot be read or written.
    #[error("the file of its progress: {0}")]
    Progress(io::Error),
    /// There is no room to note which events are sent. They are not sent.
    #[error("its events are not sent, because their progress cannot be stored: {0}")]
    Room(io::Error),
    /// The dead letters of refused events cannot be written.
    #[error("a refused event cannot be stored: {0}")]
    Dead(#[from] DeadError),
}
