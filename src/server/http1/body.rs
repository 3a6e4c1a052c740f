//! Finds where a request's body ends, by the strict grammar of RFC 9112, sections 6 and 7.
//!
//! Pingora's reader forgives what other readers do not: an empty chunk size, a bare LF. Two parties
//! that read a body differently disagree about where the next request begins. So every byte of a
//! body passes this check before Pingora or an origin sees it.

use super::grammar::{is_field_byte, is_token_byte};
use thiserror::Error;

/// The most digits of a chunk size, zeros in front included.
const SIZE_DIGITS_MAX: u8 = 16;
/// The largest chunk size is below 2 to the power of this number. Pingora adds to a size, and
/// closes the connection without an answer where the sum has more than 64 bits.
const SIZE_BITS_MAX: u32 = 63;
/// The longest chunk line after its size, in bytes (RFC 9112, section 7.1.1). Pingora takes 8 KiB.
const EXTENSION_BYTES_MAX: u16 = 4096;
/// The longest trailer section, in bytes. Pingora takes 64 KiB.
const TRAILER_BYTES_MAX: u16 = 32 << 10;

/// A body violates the grammar, or its parts exceed a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the body is malformed")]
pub struct BodyError;

/// What is left of a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// This number of bytes (`Content-Length`); 0 if there is no body.
    Length(u64),
    /// Chunks; the state says what may come next.
    Chunked(Chunks),
}

/// What may come next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// The first digit of a chunk size.
    Start,
    /// Another digit, or the end of the size.
    Size { digits: u8, size: u64 },
    /// White space before an extension; only `;` may end it.
    Blank { size: u64, bytes: u16 },
    /// A chunk extension. Its content is ignored, as RFC 9112 allows.
    Extension { size: u64, bytes: u16 },
    /// The LF of a chunk line.
    LineEnd { size: u64 },
    /// This number of bytes of data.
    Data { left: u64 },
    /// The CR after the data.
    DataCr,
    /// The LF after the data.
    DataLf,
    /// A trailer line, or the last CRLF. `bytes`: length of the trailer section so far.
    Trailer { bytes: u16 },
    /// More of a trailer's name, or its colon.
    TrailerName { bytes: u16 },
    /// More of a trailer's value, or its CR.
    TrailerValue { bytes: u16 },
    /// The LF of a trailer line.
    TrailerLf { bytes: u16 },
    /// The last LF of the body.
    LastLf,
    /// Nothing: the body is whole.
    End,
}

impl Body {
    /// A chunked body from its first byte on.
    pub const CHUNKED: Self = Self::Chunked(Chunks::Start);

    /// Whether the body is whole.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunks::End))
    }

    /// How many of the received `bytes` belong to the body: all, unless it ends within them.
    /// Appends the lines of its trailers, each with its CRLF, to `trailers`.
    pub fn take(&mut self, bytes: &[u8], trailers: &mut Vec<u8>) -> Result<usize, BodyError> {
        match self {
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes, trailers),
        }
    }
}

impl Chunks {
    /// Does what [`Body::take`] does.
    pub fn take(&mut self, bytes: &[u8], trailers: &mut Vec<u8>) -> Result<usize, BodyError> {
        self.take_by(Self::after, bytes, trailers)
    }

    /// Does what [`Chunks::take`] does for the answer of an origin, where blanks may follow a chunk
    /// size: some origins fill the line of a chunk with them.
    pub fn take_of_origin(
        &mut self,
        bytes: &[u8],
        trailers: &mut Vec<u8>,
    ) -> Result<usize, BodyError> {
        self.take_by(Self::after_of_origin, bytes, trailers)
    }

    /// How many bytes of the answer of an origin follow the grammar.
    pub fn sound_bytes_of_origin(mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len()
            && let Ok(taken) = self.step(Self::after_of_origin, &bytes[at..])
        {
            at += taken;
        }
        at
    }

    fn take_by(
        &mut self,
        after: fn(Self, u8) -> Option<Self>,
        bytes: &[u8],
        trailers: &mut Vec<u8>,
    ) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < bytes.len() && *self != Self::End {
            let was_in_line = self.is_in_trailer_line();
            let taken = self.step(after, &bytes[at..])?;
            if was_in_line || self.is_in_trailer_line() {
                trailers.extend_from_slice(&bytes[at..at + taken]);
            }
            at += taken;
        }
        Ok(at)
    }

    /// How many of `bytes` come before the place of the trailers: all, unless it is within them.
    pub fn before_trailers(mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_before_trailers() {
            at += self.step(Self::after, &bytes[at..])?;
        }
        Ok(at)
    }

    /// Whether the last chunk was read, and no byte behind it.
    pub fn is_before_trailers(&self) -> bool {
        *self == Self::Trailer { bytes: 0 }
    }

    /// Whether the last chunk was read, and with it all data of the body.
    pub fn is_behind_last_chunk(&self) -> bool {
        let is_in_section = matches!(self, Self::Trailer { .. } | Self::LastLf | Self::End);
        is_in_section || self.is_in_trailer_line()
    }

    fn is_in_trailer_line(&self) -> bool {
        matches!(
            self,
            Self::TrailerName { .. } | Self::TrailerValue { .. } | Self::TrailerLf { .. }
        )
    }

    /// Reads one byte, or at once all data of a chunk that is in `bytes`. Returns the number of
    /// bytes read. `bytes` must not be empty. `after` gives the state after a byte that is no data.
    fn step(
        &mut self,
        after: fn(Self, u8) -> Option<Self>,
        bytes: &[u8],
    ) -> Result<usize, BodyError> {
        if let Self::Data { left } = self {
            let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= taken as u64;
            if *left == 0 {
                *self = Self::DataCr;
            }
            return Ok(taken);
        }
        *self = after(*self, bytes[0]).ok_or(BodyError)?;
        Ok(1)
    }

    fn after_of_origin(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Blank { size, .. }, b'\r') => Some(Self::LineEnd { size }),
            _ => self.after(byte),
        }
    }

    /// The state after one byte that is not data. `None`: the byte may not stand here.
    fn after(self, byte: u8) -> Option<Self> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Some(match (self, byte) {
            (Self::Start, _) => Self::Size { digits: 1, size: digit? },
            (Self::Size { size, .. }, b'\r') => Self::LineEnd { size },
            (Self::Size { size, .. }, b';') => Self::Extension { size, bytes: 0 },
            (Self::Size { size, .. }, b' ' | b'\t') => Self::Blank { size, bytes: 0 },
            (Self::Size { digits, size }, _)
                if digits < SIZE_DIGITS_MAX && size >> (SIZE_BITS_MAX - 4) == 0 =>
            {
                Self::Size { digits: digits + 1, size: size << 4 | digit? }
            }
            (Self::Blank { size, bytes }, b' ' | b'\t') if bytes < EXTENSION_BYTES_MAX => {
                Self::Blank { size, bytes: bytes + 1 }
            }
            (Self::Blank { size, bytes }, b';') => Self::Extension { size, bytes },
            (Self::Extension { size, .. }, b'\r') => Self::LineEnd { size },
            (Self::Extension { size, bytes }, _)
                if is_field_byte(byte) && bytes < EXTENSION_BYTES_MAX =>
            {
                Self::Extension { size, bytes: bytes + 1 }
            }
            (Self::LineEnd { size: 0 }, b'\n') => Self::Trailer { bytes: 0 },
            (Self::LineEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Start,
            (Self::Trailer { .. }, b'\r') => Self::LastLf,
            (Self::LastLf, b'\n') => Self::End,
            (Self::Trailer { bytes } | Self::TrailerName { bytes }, _)
                if is_token_byte(byte) && bytes < TRAILER_BYTES_MAX =>
            {
                Self::TrailerName { bytes: bytes + 1 }
            }
            (Self::TrailerName { bytes }, b':') => Self::TrailerValue { bytes },
            (Self::TrailerValue { bytes }, b'\r') => Self::TrailerLf { bytes },
            (Self::TrailerValue { bytes }, _)
                if is_field_byte(byte) && bytes < TRAILER_BYTES_MAX =>
            {
                Self::TrailerValue { bytes: bytes + 1 }
            }
            (Self::TrailerLf { bytes }, b'\n') => Self::Trailer { bytes },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the body at the beginning of `bytes`, received in pieces of `piece` bytes.
    /// `Ok(None)`: it is not whole.
    fn length(mut body: Body, bytes: &[u8], piece: usize) -> Result<Option<usize>, BodyError> {
        let mut length = 0;
        for piece in bytes.chunks(piece) {
            let taken = body.take(piece, &mut Vec::new())?;
            length += taken;
            if body.is_whole() {
                return Ok(Some(length));
            }
            assert_eq!(taken, piece.len());
        }
        Ok(None)
    }

    fn check(bytes: &str, expect: Result<Option<usize>, BodyError>) {
        for piece in 1..=bytes.len() {
            let found = length(Body::CHUNKED, bytes.as_bytes(), piece);
            assert_eq!(found, expect, "{bytes:?} in pieces of {piece}");
        }
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        for piece in 1..9 {
            assert_eq!(length(Body::Length(5), b"hello/next", piece), Ok(Some(5)));
            assert_eq!(length(Body::Length(5), b"hell", piece), Ok(None));
        }
        assert!(Body::Length(0).is_whole() && !Body::CHUNKED.is_whole());
        assert_eq!(Body::Length(u64::MAX).take(b"hello", &mut Vec::new()), Ok(5));
    }

    #[test]
    fn chunks_end_with_their_trailers_however_they_are_cut() {
        for whole in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "00005\r\nhello\r\n0\r\n\r\n",
            "B\r\nhello\r\n0\r\n\r\r\n0\r\n\r\n",
            "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n",
            "5 \t;a\r\nhello\r\n0\r\n\r\n",
            "0\r\nX-Sum: 1\r\nY:\t\u{e9}\r\n\r\n",
        ] {
            check(&format!("{whole}GET /next"), Ok(Some(whole.len())));
            check(&whole[..whole.len() - 1], Ok(None));
        }
    }

    #[test]
    fn a_chunk_that_two_readers_could_read_differently_is_refused() {
        for bytes in [
            "zz",
            "\r\nhello",
            "\n",
            ";a\r\n",
            " 5\r\nhello",
            "5 \r\nhello",
            "5 5\r\nhello",
            "5\nhello",
            "5\rhello",
            "5;a\nb\r\nhello",
            "5;a\rb\r\nhello",
            "5;a\0\r\nhello",
            "0x5\r\nhello",
            "+5\r\nhello",
            "-5\r\nhello",
            "5_0\r\nhello",
            "5\0\r\nhello",
            "5,5\r\nhello",
            "00000000000000005\r\nhello",
            "FFFFFFFFFFFFFFFFF\r\nhello",
            "ffffffffffffffff\r\nhello",
            "8000000000000000\r\nhello",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "4\r\nhello\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\n\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n",
            "0\r\nX: y\nZ: a\r\n\r\n",
            "0\r\nX: y\rz\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        ] {
            check(bytes, Err(BodyError));
        }
    }

    #[test]
    fn sizes_are_taken_up_to_their_limit() {
        let mut body = Body::CHUNKED;
        let bytes = b"7fffffffffffffff\r\nhello";
        assert_eq!(body.take(bytes, &mut Vec::new()), Ok(bytes.len()));
        assert_eq!(body, Body::Chunked(Chunks::Data { left: (1 << SIZE_BITS_MAX) - 1 - 5 }));
    }

    #[test]
    fn extensions_and_trailers_have_limits() {
        let taken = |bytes: String| {
            let mut body = Body::CHUNKED;
            body.take(bytes.as_bytes(), &mut Vec::new()).map(drop)
        };
        let extended = |bytes: u16| format!("5;{}\r\n", "x".repeat(bytes.into()));
        assert_eq!(taken(extended(EXTENSION_BYTES_MAX)), Ok(()));
        assert_eq!(taken(extended(EXTENSION_BYTES_MAX + 1)), Err(BodyError));
        let trailers = format!("0\r\n{}", "X: y\r\n".repeat(usize::from(TRAILER_BYTES_MAX)));
        assert_eq!(taken(trailers), Err(BodyError));
    }
}
