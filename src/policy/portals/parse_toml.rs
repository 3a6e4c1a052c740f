//! Reads a list in TOML.
//!
//! The general TOML parser makes a tree of the whole document, which for a million ids takes ten
//! times the memory of the list. So if `portals = [...]` comes first, this file reads it as a
//! stream of digits, and the general parser gets the same text with an empty array in its place.
//! This reader accepts a subset of TOML: an id is written in plain digits, not as `0xF433` or
//! `62_515`.

use std::io::{self, BufRead, Read};

use super::document;
use super::draft::{Draft, Ids, ParseError, read_id};
use super::terms::Bounds;

/// The longest text for the general parser, in bytes: enough for 100,000 portals with rules of
/// their own.
pub const RULES_BYTES_MAX: usize = 16 << 20;

pub(super) fn read(
    reader: impl BufRead,
    bounds: &Bounds,
    draft: &mut Draft,
) -> Result<(), ParseError> {
    let mut scan = Scan { reader, line: 1, column: 1 };
    let mut rest = Vec::new();
    let mut cut = None;
    if scan.enters_ids(&mut rest)? {
        let begin = scan.line;
        scan.ids(&mut draft.ids)?;
        cut = Some(Cut { begin, end: scan.line });
        // The line break keeps the text after the ids off the line where the ids begin, so that
        // `Cut::undo` can tell the two apart.
        rest.extend_from_slice(b"\n]");
    }
    let limit = RULES_BYTES_MAX as u64 + 1;
    scan.reader.take(limit.saturating_sub(rest.len() as u64)).read_to_end(&mut rest)?;
    if rest.len() > RULES_BYTES_MAX {
        let what = "more than 16 MiB beside the ids; `portals` must come first in the list";
        return Err(ParseError::new(what));
    }
    let parsed = match str::from_utf8(&rest) {
        Ok(rest) => document::read_toml(rest, bounds, draft),
        Err(error) => {
            let valid = String::from_utf8_lossy(&rest[..error.valid_up_to()]);
            let (line, column) = document::place(&valid, valid.len());
            Err(ParseError::at(line, column, "not UTF-8"))
        }
    };
    parsed.map_err(|error| match cut {
        Some(cut) => cut.undo(error),
        None => error,
    })
}

/// The first and the last line of the ids, which the text for the general parser lacks.
struct Cut {
    begin: u64,
    end: u64,
}

impl Cut {
    /// Turns the position of an error in the shortened text into its position in the whole text.
    fn undo(self, mut error: ParseError) -> ParseError {
        if let Some(line) = error.line.as_mut().filter(|line| **line > self.begin) {
            *line = *line - 1 - self.begin + self.end;
            if *line == self.end {
                error.column = None;
            }
        }
        error
    }
}

/// Reads bytes and counts lines and columns.
struct Scan<R> {
    reader: R,
    line: u64,
    column: u64,
}

impl<R: BufRead> Scan<R> {
    #[inline]
    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    #[inline]
    fn next(&mut self) -> io::Result<Option<u8>> {
        let next = self.peek()?;
        match next {
            None => return Ok(None),
            Some(b'\n') => (self.line, self.column) = (self.line + 1, 1),
            // Columns count characters, so the continuation bytes of UTF-8 do not count.
            Some(byte) => self.column += u64::from(byte & 0xc0 != 0x80),
        }
        self.reader.consume(1);
        Ok(next)
    }

    fn error<T>(&self, what: &str) -> Result<T, ParseError> {
        Err(ParseError::at(self.line, self.column, what))
    }

    /// Reads up to and including `portals = [`, if the list begins with it apart from blanks and
    /// comments. Returns whether it does. Copies the bytes that it reads into `rest`, because the
    /// general parser needs them.
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
            // A comment that is too long to copy is cut: the parser ignores comments.
            if rest.len() < RULES_BYTES_MAX {
                rest.push(byte);
            }
            self.next()?;
        }
        Ok(())
    }

    /// Reads the ids up to and including the `]`.
    fn ids(&mut self, ids: &mut Ids) -> Result<(), ParseError> {
        loop {
            if self.blank()? == Some(b']') {
                break;
            }
            self.id(ids)?;
            match self.blank()? {
                Some(b',') => self.next()?,
                Some(b']') => break,
                None => return self.error("the list of ids is not closed with `]`"),
                Some(_) => return self.error("expected `,` or `]` after a portal id"),
            };
        }
        self.next()?;
        Ok(())
    }

    /// Skips blanks and comments, and returns the next byte without reading it.
    fn blank(&mut self) -> Result<Option<u8>, ParseError> {
        loop {
            match self.peek()? {
                Some(b'\r') => {
                    self.next()?;
                    if self.peek()? != Some(b'\n') {
                        return self.error("a carriage return without a line feed");
                    }
                }
                Some(b' ' | b'\t' | b'\n') => _ = self.next()?,
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
        // Room for one digit more than an id may have, so that a longer number is an error.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Meaning = (Vec<u64>, Vec<u64>, bool);

    fn meaning(draft: Draft) -> Meaning {
        let tables = draft.tables.iter().map(|&(id, _)| id).collect();
        (draft.ids.list, tables, draft.names_portals)
    }

    fn scanned(text: &str) -> Result<Meaning, ParseError> {
        let mut draft = Draft::default();
        read(text.as_bytes(), &Bounds::default(), &mut draft).map(|()| meaning(draft))
    }

    fn general(text: &str) -> Result<Meaning, ParseError> {
        let mut draft = Draft::default();
        document::read_toml(text, &Bounds::default(), &mut draft).map(|()| meaning(draft))
    }

    fn blank() -> impl Strategy<Value = String> {
        "([ \t\n]|\r\n|#[a-z0-9,\\[\\] ]{0,5}\r?\n){0,3}"
    }

    /// Lists as people and programs write them.
    fn list() -> impl Strategy<Value = String> {
        let id = (blank(), 1..1_000_000_000_000_000_u64, blank());
        let ids = prop::collection::vec(id, 0..8);
        let tail = prop::sample::select(vec![
            "",
            " # end",
            "\n[[portal]]\nid = 7\n",
            "\ndefaults.events = [\"a\"]\n[[portal]]\nid = 8",
        ]);
        let blanks = "[ \t]{0,2}";
        (blank(), blanks, blanks, ids, any::<bool>(), blank(), tail).prop_map(
            |(before, left, right, ids, comma, end, tail)| {
                let count = ids.len();
                let mut text = format!("{before}portals{left}={right}[");
                for (nth, (before, id, after)) in ids.into_iter().enumerate() {
                    let comma = if nth + 1 < count || comma { "," } else { "" };
                    text += &format!("{before}{id}{after}{comma}");
                }
                text + &end + "]" + tail
            },
        )
    }

    /// Texts that are rarely a list.
    fn rubble() -> impl Strategy<Value = String> {
        let pieces = [
            "portals",
            "portal",
            "=",
            "[",
            "]",
            ",",
            "\n",
            " ",
            "\r",
            "\r\n",
            "# c",
            "11",
            "22",
            "0",
            "1000000000000000",
            "999999999999999",
            "portals = [",
            "[[portal]]\nid = 7",
            "\"",
            "-",
            ".",
            "portals=[]",
            "[defaults]",
            "x",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn a_list_means_what_the_general_parser_says(text in list()) {
            let expect = general(&text);
            prop_assert!(expect.is_ok(), "{expect:?}");
            prop_assert_eq!(scanned(&text), expect);
        }

        #[test]
        fn what_is_no_list_is_none_to_either(text in rubble()) {
            let (scanned, general) = (scanned(&text), general(&text));
            match (&scanned, &general) {
                (Ok(scanned), Ok(general)) => prop_assert_eq!(scanned, general),
                (Err(_), Err(_)) => {}
                _ => prop_assert!(false, "{scanned:?} but {general:?}"),
            }
        }
    }

    #[test]
    fn only_plain_digits_are_scanned() {
        // TOML has more ways to write a number; a list does not.
        for number in ["+11", "0xb", "1_1", "0b11", "0o13"] {
            assert!(general(&format!("portals = [{number}]")).is_ok(), "{number}");
            assert!(scanned(&format!("portals = [{number}]")).is_err(), "{number}");
        }
    }
}
