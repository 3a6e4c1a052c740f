//! Reads a list in TOML.
//!
//! The general parser makes a tree of the whole document, which for a million ids is ten times
//! what the list itself takes. So `portals = [...]`, where it comes first, is read here as a
//! stream of digits, and the general parser gets the rest: the same text with the ids taken out
//! and the line ends left in, so that the lines it names are right. What is read here is a subset of
//! TOML: an id is written in plain digits, not as `0xF433` or `62_515`.

use std::io::{self, BufRead};

use super::{
    document,
    parse::{Draft, Ids, ParseError, read_id},
};

/// The most text left for the general parser, in bytes: 100,000 portals with rules of their own.
pub const RULES_BYTES_MAX: usize = 16 << 20;

pub(super) fn read(reader: impl BufRead, draft: &mut Draft) -> Result<(), ParseError> {
    let mut scan = Scan { bytes: reader.bytes(), peeked: None, line: 1, column: 1 };
    let mut rest = Vec::new();
    if scan.enters_ids(&mut rest)? {
        scan.ids(&mut rest, &mut draft.ids)?;
    }
    while let Some(byte) = scan.next()? {
        if rest.len() == RULES_BYTES_MAX {
            let what = "too much beside the ids (16 MiB); `portals` must come first in the list";
            return Err(ParseError::at(scan.line, scan.column, what));
        }
        rest.push(byte);
    }
    let rest = String::from_utf8(rest).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let (line, column) = document::place(&String::from_utf8_lossy(valid), usize::MAX);
        ParseError::at(line, column, "not UTF-8")
    })?;
    document::read_toml(&rest, draft)
}

/// Bytes with their place.
struct Scan<R> {
    bytes: io::Bytes<R>,
    peeked: Option<u8>,
    line: u64,
    column: u64,
}

impl<R: BufRead> Scan<R> {
    #[inline]
    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.peeked.is_none() {
            self.peeked = self.bytes.next().transpose()?;
        }
        Ok(self.peeked)
    }

    #[inline]
    fn next(&mut self) -> io::Result<Option<u8>> {
        let next = self.peek()?;
        self.peeked = None;
        match next {
            Some(b'\n') => (self.line, self.column) = (self.line + 1, 1),
            // A continuation byte of UTF-8 is not a character of its own.
            Some(byte) if byte & 0xc0 != 0x80 => self.column += 1,
            _ => {}
        }
        Ok(next)
    }

    fn error<T>(&self, what: &str) -> Result<T, ParseError> {
        Err(ParseError::at(self.line, self.column, what))
    }

    /// Whether the list begins with `portals = [`, apart from blanks and comments. Copies what it
    /// reads; where it is something else, the general parser shall judge it.
    fn enters_ids(&mut self, rest: &mut Vec<u8>) -> io::Result<bool> {
        while let Some(byte) = self.peek()? {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => rest.extend(self.next()?),
                b'#' => self.copy_line(rest)?,
                _ => break,
            }
        }
        let key = rest.len();
        while let Some(b'a'..=b'z') = self.peek()? {
            rest.extend(self.next()?);
        }
        if &rest[key..] != b"portals" {
            return Ok(false);
        }
        for sought in [b'=', b'['] {
            while let Some(b' ' | b'\t') = self.peek()? {
                rest.extend(self.next()?);
            }
            if self.peek()? != Some(sought) {
                return Ok(false);
            }
            rest.extend(self.next()?);
        }
        Ok(true)
    }

    fn copy_line(&mut self, rest: &mut Vec<u8>) -> io::Result<()> {
        while let Some(byte) = self.peek()? {
            if byte == b'\n' {
                break;
            }
            // A comment too long to copy is cut: nobody reads it.
            if rest.len() < RULES_BYTES_MAX {
                rest.push(byte);
            }
            self.next()?;
        }
        Ok(())
    }

    /// The ids up to and with the `]`. Leaves in `rest` an empty array of as many lines.
    fn ids(&mut self, rest: &mut Vec<u8>, ids: &mut Ids) -> Result<(), ParseError> {
        loop {
            if self.blank(rest)? == Some(b']') {
                break;
            }
            self.id(ids)?;
            match self.blank(rest)? {
                Some(b',') => self.next()?,
                Some(b']') => break,
                None => return self.error("the list of ids is not closed with `]`"),
                Some(_) => return self.error("expected `,` or `]` after a portal id"),
            };
        }
        rest.extend(self.next()?);
        Ok(())
    }

    /// Skips blanks and comments, keeping line ends, and peeks at what comes then.
    fn blank(&mut self, rest: &mut Vec<u8>) -> Result<Option<u8>, ParseError> {
        loop {
            match self.peek()? {
                Some(b'\n') => rest.extend(self.next()?),
                Some(b'\r') => {
                    self.next()?;
                    if self.peek()? != Some(b'\n') {
                        return self.error("a carriage return without a line feed");
                    }
                }
                Some(b' ' | b'\t') => _ = self.next()?,
                Some(b'#') => {
                    while !matches!(self.peek()?, None | Some(b'\n')) {
                        self.next()?;
                    }
                }
                other => return Ok(other),
            }
        }
    }

    fn id(&mut self, ids: &mut Ids) -> Result<(), ParseError> {
        let (line, column) = (self.line, self.column);
        // One more than an id may have, and still an error.
        let mut digits = [0; 16];
        let mut count = 0;
        while let Some(byte) = self.peek()? {
            if matches!(byte, b',' | b']' | b'#' | b' ' | b'\t' | b'\r' | b'\n') {
                break;
            }
            if count == digits.len() {
                break;
            }
            digits[count] = byte;
            count += 1;
            self.next()?;
        }
        if count == 0 {
            return match self.peek()? {
                None => self.error("the list of ids is not closed with `]`"),
                Some(_) => self.error("expected a portal id"),
            };
        }
        let taken = read_id(&digits[..count]).and_then(|id| ids.take(id));
        taken.map_err(|what| ParseError::at(line, column, what))
    }
}
