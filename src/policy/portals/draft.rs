//! The types that the readers of all formats share: the [`Draft`] that they fill, the ids, and the
//! error with its position.

use std::io;

use super::rules::Rules;
use crate::event::{PORTAL_DIGITS_MAX, PORTAL_MAX};

/// The content of a list, in the order in which it was read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub ids: Ids,
    pub tables: Vec<(u64, Rules)>,
    pub defaults: Rules,
    /// Whether the list has a `portals` key.
    pub names_portals: bool,
}

/// Why a list cannot be read, and where the mistake is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", place(*line, *column))]
pub(super) struct ParseError {
    /// From 1; `None` if the error is not at one place.
    pub line: Option<u64>,
    /// From 1, in characters; `None` if only the line is known.
    pub column: Option<u64>,
    pub what: String,
}

impl ParseError {
    pub(super) fn new(what: impl Into<String>) -> ParseError {
        ParseError { line: None, column: None, what: what.into() }
    }

    pub(super) fn at(line: u64, column: u64, what: impl Into<String>) -> ParseError {
        ParseError { line: Some(line), column: Some(column), what: what.into() }
    }
}

impl From<io::Error> for ParseError {
    fn from(error: io::Error) -> ParseError {
        ParseError::new(error.to_string())
    }
}

/// The position of an error, as the beginning of its message. Empty if the error has no position.
fn place(line: Option<u64>, column: Option<u64>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!("line {line}, column {column}: "),
        (Some(line), None) => format!("line {line}: "),
        (None, _) => String::new(),
    }
}

/// Collects the ids as they are read, or finds where a known duplicate occurs for the second time.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pub list: Vec<u64>,
    /// The id whose second occurrence is sought. `None`: ids are collected.
    duplicate_id: Option<u64>,
    /// Whether `duplicate_id` has been read once.
    seen: bool,
}

impl Ids {
    /// Collects no ids, and fails where `id` occurs for the second time.
    pub(super) fn looking_for(id: u64) -> Ids {
        Ids { duplicate_id: Some(id), ..Ids::default() }
    }

    /// Collects an id. Fails if it is the sought duplicate and occurs for the second time.
    #[inline]
    pub(super) fn take(&mut self, id: u64) -> Result<(), &'static str> {
        self.see(id)?;
        if self.duplicate_id.is_none() {
            self.list.push(id);
        }
        Ok(())
    }

    /// Checks an id as [`Ids::take`] does, without collecting it: the id of a table is stored with
    /// its rules.
    pub(super) fn see(&mut self, id: u64) -> Result<(), &'static str> {
        if self.duplicate_id == Some(id) && std::mem::replace(&mut self.seen, true) {
            return Err("this portal id is already in the list");
        }
        Ok(())
    }
}

/// Reads a portal id, which a list writes in plain digits.
pub(super) fn read_id(digits: &[u8]) -> Result<u64, &'static str> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err("not a portal id: it is written in plain digits");
    }
    match digits {
        [] | [b'0'] => Err("not a portal id: it begins at 1"),
        [b'0', ..] => Err("not a portal id: it has no leading zero"),
        _ if digits.len() > PORTAL_DIGITS_MAX => Err("not a portal id: it has at most 15 digits"),
        _ => Ok(digits.iter().fold(0, |id, digit| id * 10 + u64::from(digit - b'0'))),
    }
}

/// Checks the range of a portal id that a parser has already read as a number.
pub(super) fn check_id(id: u64) -> Result<u64, &'static str> {
    match id {
        0 => Err("not a portal id: it begins at 1"),
        _ if id > PORTAL_MAX => Err("not a portal id: it has at most 15 digits"),
        _ => Ok(id),
    }
}
