//! The errors of a spool that could not be opened or closed.

use std::io;
use std::path::PathBuf;

use crate::config_error::ConfigError;

/// Why a spool could not be opened. The content of its files is never a reason, nor is a disk that
/// is full or fails (SPEC 6), unless the caller needs a disk that takes events.
///
/// ```
/// use pixelgate::errors::{OpenError, SpoolError};
///
/// fn is_worth_a_retry(error: &OpenError) -> bool {
///     matches!(error, OpenError::Spool(SpoolError::Busy(_)))
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum OpenError {
    /// A value of the `[spool]` section is out of range (SPEC 9).
    #[error("the spool's configuration cannot be used")]
    Config(#[source] ConfigError),
    /// There are too many upstreams, a name is empty or too long, or two have the same name.
    #[error("the spool's upstreams: {0}")]
    Upstreams(String),
    /// Another process has held the lock of the folder for 10 s.
    #[error("spool.dir: another process keeps the spool {} locked", .0.display())]
    Busy(PathBuf),
    /// The folder cannot be used: the path is not a folder, or this process may not write there.
    #[error("spool.dir: the spool {} cannot be used", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Why a spool was not closed completely.
///
/// ```
/// # use pixelgate::PixelGate;
/// # use pixelgate::errors::CloseError;
/// # use std::time::Duration;
/// fn stop(gate: &PixelGate) {
///     match gate.close(Duration::from_secs(5)) {
///         Err(CloseError::TimedOut) => eprintln!("the disk takes more than 5 s"),
///         Err(error) => eprintln!("{error}"),
///         Ok(()) => {}
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CloseError {
    /// The disk took longer than the time limit. The threads end in the background.
    #[error("the spool did not close in time")]
    TimedOut,
    /// The cursors could not be written, so some delivered events will be delivered again.
    #[error("the spool's cursors could not be written")]
    Io(#[source] io::Error),
}
