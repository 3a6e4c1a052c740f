//! The path guard: which requests are events (SPEC 2).
//!
//! Servers disagree about what a path says: they decode once, twice or never, fold case, merge
//! slashes, drop path parameters, take backslashes for slashes. An event that slips past in a
//! spelling that only the origin understands has evaded every rule. So a path is read as the most
//! lenient of them would read it, its *loosest reading*, and whatever that finds at the event path
//! is judged here and never proxied.
//!
//! The guard changes no request: what is not an event is passed on in its own spelling.

use std::fmt;

use smallvec::SmallVec;

/// How often a path is percent-decoded at most, while that changes it.
const DECODINGS_MAX: usize = 3;
/// Paths up to so many bytes are read without allocating.
const PATH_BYTES_INLINE: usize = 256;

type Bytes = SmallVec<[u8; PATH_BYTES_INLINE]>;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The event path.
    Event,
    /// Begins with the event path and goes on: `unknown_path`.
    Below,
    /// Not ours.
    Other,
}

/// An event path that no guard can stand at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// It is `/`, or nothing: every request would be an event.
    Root,
    /// It is not its own loosest reading, so it would never be found.
    NotCanonical,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathError::Root => "must name something below /",
            PathError::NotCanonical => {
                "must begin with / and be in its simplest form: lower case, nothing encoded, no \
                 . or .. or empty segments, no ; ? # \\ or spaces"
            }
        })
    }
}

impl std::error::Error for PathError {}

/// Stands at one event path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Canonical, without the slash at the end.
    path: Box<[u8]>,
}

impl Guard {
    /// A guard at `event_path`. A slash at its end makes no difference.
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

    /// Reads the path of a request target, as it came: no query, no authority.
    ///
    /// Takes time linear in the path's length, and allocates nothing for a path of up to 256 bytes
    /// or one without special characters.
    pub fn read(&self, raw_path: &[u8]) -> Reading {
        // As nearly all events come; a canonical path is its own loosest reading.
        if raw_path.strip_suffix(b"/").unwrap_or(raw_path) == &*self.path {
            return Reading::Event;
        }
        if is_plain(raw_path) { self.compare(raw_path) } else { self.compare(&loosest(raw_path)) }
    }

    /// Upper and lower case are the same: a plain path comes here as it is.
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

/// L(P) of SPEC 2, step by step. Each step writes over what the one before it left.
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

/// Percent-decodes in place, once. Says whether that changed anything.
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

/// Backslashes to slashes, path parameters, control characters and spaces away, lower case.
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
