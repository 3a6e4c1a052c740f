//! From the bytes of a list to a [`Draft`]: what the list says, not yet put in order.
//!
//! Three formats, one meaning (SPEC 5). All are read as a stream, since a list of a million ids is
//! larger as text than in memory. Reading is strict: whatever is not understood is an error with
//! its place, because a rule that is silently skipped lets in, or keeps out, the wrong portal.
//!
//! Duplicates are found later, when the ids are sorted and their places forgotten. To name the
//! place all the same, the list is read a second time with the id to look out for ([`Ids`]).

use std::{
    fmt,
    io::{self, BufRead},
};

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use super::set::Duplicate;
use super::{document, parse_toml};

/// The largest list that is read, in bytes: four million ids of 15 digits.
pub const LIST_BYTES_MAX: u64 = 64 << 20;

/// The most digits a portal id has (SPEC 3, `_a`).
const ID_DIGITS_MAX: usize = 15;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `portals = [62515]`, `[[portal]]` and `[defaults]`.
    Toml,
    /// The same shape in JSON, dates as strings.
    Json,
    /// One id a line; `#` begins a comment.
    Text,
}

impl Format {
    /// The format that a file name or URL path ends in.
    pub(super) fn of_name(name: &str) -> Option<Format> {
        let (_, extension) = name.rsplit_once('.')?;
        [Format::Toml, Format::Json, Format::Text]
            .into_iter()
            .find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }

    /// What stands between two ids.
    pub(super) const fn separator(self) -> u8 {
        match self {
            Format::Toml | Format::Json => b',',
            Format::Text => b'\n',
        }
    }

    /// The ending of such files' names, without the dot.
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Format::Toml => "toml",
            Format::Json => "json",
            Format::Text => "txt",
        }
    }
}

/// What a list says.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub ids: Ids,
    pub tables: Vec<(u64, Rules)>,
    pub defaults: Rules,
    /// Whether there was a `portals` key at all.
    pub names_portals: bool,
}

/// Where and why a list cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParseError {
    /// From 1; none where the fault is not at one place.
    pub line: Option<u64>,
    /// From 1, in characters; none where only the line is known.
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

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, "line {line}, column {column}: {}", self.what),
            (Some(line), None) => write!(f, "line {line}: {}", self.what),
            (None, _) => f.write_str(&self.what),
        }
    }
}

/// Takes the ids as they are read, or looks out for one that comes twice.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pub list: Vec<u64>,
    duplicate_id: Option<u64>,
    seen: bool,
}

impl Ids {
    /// Takes an id; fails where it is the hunted one and comes for the second time.
    #[inline]
    pub(super) fn take(&mut self, id: u64) -> Result<(), &'static str> {
        self.see(id)?;
        if self.duplicate_id.is_none() {
            self.list.push(id);
        }
        Ok(())
    }

    /// Like `take`, for an id that is kept elsewhere.
    pub(super) fn see(&mut self, id: u64) -> Result<(), &'static str> {
        if self.duplicate_id == Some(id) && std::mem::replace(&mut self.seen, true) {
            return Err("this portal id is already in the list");
        }
        Ok(())
    }
}

/// Reads a list. `separators` is how many ids it has at most, for all that is known.
pub(super) fn parse(
    format: Format,
    reader: impl BufRead,
    separators: usize,
) -> Result<Draft, ParseError> {
    let mut draft = Draft::default();
    draft.ids.list.reserve_exact(separators);
    read(format, reader, &mut draft)?;
    if draft.ids.list.is_empty() && draft.tables.is_empty() && !draft.names_portals {
        let what = "there is no portal in it; a list that allows none must say `portals = []`";
        return Err(ParseError::new(match format {
            Format::Toml => what,
            Format::Json => {
                "there is no portal in it; a list that allows none says \"portals\": []"
            }
            Format::Text => "there is no portal in it; only .toml and .json can allow none",
        }));
    }
    Ok(draft)
}

/// Reads a list again to say where an id comes for the second time.
pub(super) fn locate(format: Format, reader: impl BufRead, twice: Duplicate) -> ParseError {
    let Duplicate(id) = twice;
    let ids = Ids { duplicate_id: Some(id), ..Ids::default() };
    let mut draft = Draft { ids, ..Draft::default() };
    let found = read(format, reader, &mut draft).err();
    let mut error = found.unwrap_or_else(|| ParseError::new("a portal id is in the list twice"));
    error.what = format!("portal {id}: {}", error.what);
    error
}

fn read(format: Format, mut reader: impl BufRead, draft: &mut Draft) -> Result<(), ParseError> {
    // Some editors begin every file with a byte order mark.
    if reader.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
        reader.consume("\u{feff}".len());
    }
    match format {
        Format::Toml => parse_toml::read(reader, draft),
        Format::Json => document::read_json(reader, draft),
        Format::Text => read_text(reader, &mut draft.ids),
    }
}

fn read_text(mut reader: impl BufRead, ids: &mut Ids) -> Result<(), ParseError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let end = memchr::memchr(b'#', &line).unwrap_or(line.len());
        let indent = line.len() - line.trim_ascii_start().len();
        let digits = line[..end].trim_ascii();
        if digits.is_empty() {
            continue;
        }
        let taken = read_id(digits).and_then(|id| ids.take(id));
        taken.map_err(|what| ParseError::at(number, indent as u64 + 1, what))?;
    }
    Ok(())
}

/// A portal id in plain digits, the only way it is written in a list.
pub(super) fn read_id(digits: &[u8]) -> Result<u64, &'static str> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err("not a portal id: it is written in plain digits");
    }
    match digits {
        [] | [b'0'] => Err("not a portal id: it begins at 1"),
        [b'0', ..] => Err("not a portal id: it has no leading zero"),
        _ if digits.len() > ID_DIGITS_MAX => Err("not a portal id: it has at most 15 digits"),
        _ => Ok(digits.iter().fold(0, |id, digit| id * 10 + u64::from(digit - b'0'))),
    }
}

/// A portal id that a parser has already read as a number.
pub(super) fn check_id(id: u64) -> Result<u64, &'static str> {
    match id {
        0 => Err("not a portal id: it begins at 1"),
        _ if id >= 10_u64.pow(ID_DIGITS_MAX as u32) => {
            Err("not a portal id: it has at most 15 digits")
        }
        _ => Ok(id),
    }
}
