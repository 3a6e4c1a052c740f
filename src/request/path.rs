//! The path guard: which requests are events (SPEC 2).
//!
//! Servers read paths differently: they decode once, twice or never, fold case, merge
//! slashes, drop path parameters, take backslashes for slashes. An event in a spelling that only
//! the origin understands would evade every rule. So a path is read as the most lenient server
//! would
//! read it, its *loosest reading*; a request whose loosest reading is the event path is judged here
//! and never proxied.
//!
//! The guard changes no request: any other request is proxied with its path as received.

use smallvec::SmallVec;
use thiserror::Error;

/// A path is percent-decoded until decoding changes nothing, at most this many times.
const DECODINGS_MAX: usize = 3;
/// Paths of up to this many bytes are read without allocating.
const PATH_BYTES_INLINE: usize = 256;

type Bytes = SmallVec<[u8; PATH_BYTES_INLINE]>;

/// How a path relates to the event path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The event path.
    Event,
    /// Continues below the event path: rejected as `unknown_path`.
    Below,
    /// Any other path: proxied to the origin.
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
}

/// Recognises one event path in any spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Canonical, without the slash at the end.
    path: Box<[u8]>,
}

impl Guard {
    /// A guard of `event_path`. A slash at the end makes no difference.
    ///
    /// # Errors
    ///
    /// [`PathError`] if the path is not canonical or is the root.
    pub fn new(event_path: &str) -> Result<Guard, PathError> {
        let path = event_path.strip_suffix('/').unwrap_or(event_path).as_bytes();
        if path.is_empty() {
            return Err(PathError::Root);
        }
        if path.ends_with(b"/") || loosest(path).as_slice() != path {
            return Err(PathError::NotCanonical);
        }
        Ok(Guard { path: path.into() })
    }

    /// Reads the path of a request target as received, without query and authority.
    ///
    /// Takes time linear in the path's length, and allocates nothing for a path of up to 256 bytes
    /// or one without special characters.
    pub fn read(&self, raw_path: &[u8]) -> Reading {
        // Nearly all events have this form; a canonical path is its own loosest reading.
        if raw_path.strip_suffix(b"/").unwrap_or(raw_path) == &*self.path {
            return Reading::Event;
        }
        if is_plain(raw_path) { self.compare(raw_path) } else { self.compare(&loosest(raw_path)) }
    }

    /// Ignores the case of letters, because a plain path is compared without being copied.
    fn compare(&self, path: &[u8]) -> Reading {
        match path.split_at_checked(self.path.len()) {
            Some((start, rest)) if start.eq_ignore_ascii_case(&self.path) => match rest {
                [] | [b'/'] => Reading::Event,
                [b'/', ..] => Reading::Below,
                _ => Reading::Other,
            },
            _ => Reading::Other,
        }
    }
}

/// Whether the loosest reading would change nothing but the case.
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

/// L(P) of SPEC 2, step by step, mostly in place.
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

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
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

/// One slash between segments, `.` and `..` resolved, a slash at the start. A path that ends in a
/// slash, `.` or `..` ends in a slash (RFC 3986, 5.2.4).
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
