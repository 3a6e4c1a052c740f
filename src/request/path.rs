//! The path guard, which finds the requests that are events (SPEC 2).
//!
//! Servers read paths differently: they decode once, twice or never, fold case, merge slashes, drop
//! path parameters, take backslashes for slashes, and resolve dot segments before or after all
//! that. An event in a spelling that only the origin understands would evade every rule. So a path
//! is *ours* if any of its readings is the event path or continues below it, and such a path is
//! never proxied. It is judged if its *loosest reading* is the event path, and refused otherwise.
//!
//! The guard changes no request: any other request is proxied with its path as received.

use super::readings::{DECODINGS_MAX, EVENT_PATH_BYTES_MAX, Pattern, SEGMENTS_MAX, hex};
use smallvec::SmallVec;
use thiserror::Error;

/// The longest path whose loosest reading allocates nothing, in bytes.
const PATH_BYTES_INLINE: usize = 256;

/// The longest path with special characters whose readings are all compared, in bytes. A longer
/// path is judged by its loosest reading or refused (SPEC 2). The limit bounds the work, and no
/// client needs more: nginx and Apache refuse longer request lines.
pub const READ_BYTES_MAX: usize = 8 << 10;

type Bytes = SmallVec<[u8; PATH_BYTES_INLINE]>;

/// How a path relates to the event path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The path is the event path: the request is judged.
    Event,
    /// The path continues below the event path, or is the event path in some readings only, or has
    /// special characters and more than [`READ_BYTES_MAX`] bytes: the request is rejected as
    /// `unknown_path`.
    Unknown,
    /// The path is any other one: the request is proxied to the origin.
    Other,
}

/// Why an event path cannot be guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PathError {
    /// The path is `/` or empty: every request would be an event.
    #[error("must name something below /")]
    Root,
    /// The path is not its own loosest reading, so no request would match it.
    #[error(
        "must begin with / and be in its simplest form: lower case, nothing encoded, no . or .. or \
         empty segments, no ; ? # \\ or spaces"
    )]
    NotCanonical,
    /// The path has more than 127 bytes or 8 segments.
    #[error("must have at most {EVENT_PATH_BYTES_MAX} bytes and {SEGMENTS_MAX} segments")]
    TooLong,
}

/// Recognizes one event path in any of its readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pattern: Pattern,
}

impl Guard {
    /// A guard of `event_path`. A slash at the end makes no difference.
    ///
    /// # Errors
    ///
    /// [`PathError`] if the path is not canonical, is the root, or is too long.
    pub fn new(event_path: &str) -> Result<Guard, PathError> {
        let path = event_path.strip_suffix('/').unwrap_or(event_path).as_bytes();
        if path.is_empty() {
            return Err(PathError::Root);
        }
        if path.ends_with(b"/") || loosest(path).as_slice() != path {
            return Err(PathError::NotCanonical);
        }
        let pattern = Pattern::new(path).ok_or(PathError::TooLong)?;
        Ok(Guard { pattern })
    }

    /// Reads the path of a request target as received, without query and authority.
    ///
    /// Takes time linear in the path's length, and allocates nothing for a path of up to 256 bytes
    /// or one without special characters.
    pub fn read(&self, raw_path: &[u8]) -> Reading {
        // Nearly all events have this form. A canonical path is its own loosest reading.
        if raw_path.strip_suffix(b"/").unwrap_or(raw_path) == self.pattern.path() {
            return Reading::Event;
        }
        if is_plain(raw_path) { self.compare(raw_path) } else { self.compare_readings(raw_path) }
    }

    /// Compares one reading of a path. Ignores the case of letters, so that a plain path need not
    /// be copied to lower-case it.
    fn compare(&self, path: &[u8]) -> Reading {
        match path.split_at_checked(self.pattern.path().len()) {
            Some((start, rest)) if start.eq_ignore_ascii_case(self.pattern.path()) => match rest {
                [] | [b'/'] => Reading::Event,
                [b'/', ..] => Reading::Unknown,
                _ => Reading::Other,
            },
            _ => Reading::Other,
        }
    }

    fn compare_readings(&self, path: &[u8]) -> Reading {
        match self.compare(&loosest(path)) {
            Reading::Other if path.len() > READ_BYTES_MAX => Reading::Unknown,
            Reading::Other if self.pattern.is_any_reading_of(path) => Reading::Unknown,
            reading => reading,
        }
    }
}

/// Whether a path has one reading only, apart from the case of letters.
fn is_plain(path: &[u8]) -> bool {
    if path.first() != Some(&b'/') {
        return false;
    }
    let mut previous = 0;
    for &byte in path {
        let is_special = match byte {
            b'%' | b'\\' | b';' | b'?' | b'#' | 0x7F | 0..=b' ' => true,
            // Empty segments, and segments that may be `.` or `..`.
            b'/' | b'.' => previous == b'/',
            _ => false,
        };
        if is_special {
            return false;
        }
        previous = byte;
    }
    true
}

/// The loosest reading of SPEC 2: every step is taken wherever it applies.
fn loosest(raw: &[u8]) -> Bytes {
    let mut path = Bytes::from_slice(raw);
    for _ in 0..DECODINGS_MAX {
        if !decode(&mut path) {
            break;
        }
    }
    if let Some(end) = path.iter().position(|byte| matches!(byte, b'?' | b'#')) {
        path.truncate(end);
    }
    clean(&mut path);
    resolve(&path)
}

/// Percent-decodes in place, once. Returns whether that changed anything.
fn decode(path: &mut Bytes) -> bool {
    let (mut read, mut write) = (0, 0);
    while read < path.len() {
        path[write] = match (path[read], path.get(read + 1), path.get(read + 2)) {
            (b'%', Some(&high), Some(&low)) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    read += 2;
                    high << 4 | low
                }
                _ => b'%',
            },
            (byte, ..) => byte,
        };
        read += 1;
        write += 1;
    }
    path.truncate(write);
    write < read
}

/// Turns backslashes into slashes, removes path parameters, control characters and spaces, and
/// lower-cases.
fn clean(path: &mut Bytes) {
    let mut in_parameters = false;
    path.retain(|byte| {
        match *byte {
            b'/' | b'\\' => {
                *byte = b'/';
                in_parameters = false;
                return true;
            }
            b';' => in_parameters = true,
            0..=b' ' | 0x7F => return false,
            _ => byte.make_ascii_lowercase(),
        }
        !in_parameters
    });
}

/// Drops empty segments, resolves `.` and `..`, and begins the path with a slash. The result ends
/// in a slash if the path ends in a slash, `.` or `..` (RFC 3986, section 5.2.4).
fn resolve(path: &[u8]) -> Bytes {
    let mut resolved = Bytes::new();
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = resolved.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                resolved.truncate(parent);
            }
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(segment);
                continue;
            }
        }
        if is_last {
            resolved.push(b'/');
        }
    }
    resolved
}
