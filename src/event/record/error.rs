//! The error of a stored record that cannot be read.

use thiserror::Error;

/// Why a stored record cannot be read. Names the field and never shows its content.
///
/// ```
/// use pixelgate::custom::Record;
/// use pixelgate::errors::RecordError;
///
/// assert_eq!(Record::decode(b"").unwrap_err(), RecordError::Truncated);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum RecordError {
    /// The version byte is not 1 to 3: another version of this program wrote the record, or the
    /// bytes are not a record.
    #[error("unknown record version {0}")]
    UnknownVersion(u8),
    /// The flags contradict each other, or an unused flag is set.
    #[error("contradictory flags")]
    Flags,
    /// The bytes end before the record does.
    #[error("record cut short")]
    Truncated,
    /// Bytes follow the record's end.
    #[error("bytes after the record's end")]
    TrailingBytes,
    /// The time is after the year 9999.
    #[error("time of receipt out of range")]
    ReceivedAt,
    /// The portal is 0 or above 10¹⁵ − 1.
    #[error("portal out of range")]
    Portal,
    /// The JSON is not that of an event of this portal.
    #[error("not the JSON of an event")]
    Json,
    /// The user agent is longer than 1024 bytes or not UTF-8.
    #[error("user agent too long or not UTF-8")]
    UserAgent,
    /// The referer is longer than 2048 bytes or not UTF-8.
    #[error("referer too long or not UTF-8")]
    Referer,
    /// The further members of the context are too long, or are not the JSON of such members.
    #[error("further context is too long or not JSON")]
    Members,
}
