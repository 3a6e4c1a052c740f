//! Reads the bytes of a list into a [`Draft`]: its portals and rules, not sorted yet.
//!
//! All three formats mean the same (SPEC 5). Each is read as a stream, because a list of a million
//! ids is larger as text than in memory. Reading is strict: text that is not understood is an error
//! with its line and column, because a rule that was silently skipped would accept or reject the
//! events of the wrong portal.
//!
//! Duplicates are found later, when the ids are sorted and their positions are lost. For the error,
//! [`locate`] therefore reads the list again and looks for the duplicate id.

use std::io::BufRead;

use super::draft::{Draft, Ids, ParseError, read_id};
use super::format::Format;
use super::set::Duplicate;
use super::terms::Bounds;
use super::{document, parse_toml};

/// Reads a list. `separators` is the estimated number of ids, which may be too high.
pub(super) fn parse(
    format: Format,
    reader: impl BufRead,
    separators: usize,
    bounds: &Bounds,
) -> Result<Draft, ParseError> {
    let mut draft = Draft::default();
    draft.ids.list.reserve_exact(separators);
    read(format, reader, bounds, &mut draft)?;
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

/// Finds where an id occurs for the second time, with the place of the first. `read` reads the list
/// again from its beginning.
pub(super) fn locate(
    twice: Duplicate,
    mut read: impl FnMut(&mut Draft) -> Result<(), ParseError>,
) -> ParseError {
    let Duplicate(id) = twice;
    let mut find = |before| {
        let ids = Ids::looking_for(id, before);
        read(&mut Draft { ids, ..Draft::default() }).err()
    };
    let (Some(mut first), Some(mut second)) = (find(0), find(1)) else {
        return ParseError::new(format!("portal {id} is in the list twice"));
    };
    // The TOML parser gives the keys of a table in alphabetical order.
    if (second.line, second.column) < (first.line, first.column) {
        std::mem::swap(&mut first, &mut second);
    }
    let also = first.place().map_or(String::new(), |place| format!(", also at {place}"));
    second.what = format!("portal {id}: {}{also}", second.what);
    second
}

/// Reads a list into `draft`.
pub(super) fn read(
    format: Format,
    mut reader: impl BufRead,
    bounds: &Bounds,
    draft: &mut Draft,
) -> Result<(), ParseError> {
    // Some editors begin every file with a byte order mark.
    if reader.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
        reader.consume("\u{feff}".len());
    }
    match format {
        Format::Toml => parse_toml::read(reader, bounds, draft),
        Format::Json => document::read_json(reader, bounds, draft),
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
