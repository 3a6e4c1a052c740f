//! The dynamic table of a client (RFC 7541, section 2.3), with its entries as literals.

use http::HeaderName;
use std::collections::VecDeque;

/// The largest size of a table in bytes. The edge announces no other (RFC 9113, section 6.5.2).
const TABLE_BYTES_MAX: usize = 4096;
/// The bytes that an entry counts for beside its name and value (section 4.1).
const ENTRY_BYTES: usize = 32;

/// Lengths of the names of the static table in bytes (appendix A).
#[rustfmt::skip]
const STATIC_NAMES: [u8; Table::STATIC] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25,
    17, 10, 4, 3, 16,
];
/// The one field of the static table that has a value and is no pseudo-header.
const ACCEPT_ENCODING: usize = 16;
/// From this index on, the name of a literal without indexing takes two bytes if it is in the
/// static table: this number, and the difference of the index to it (RFC 7541, section 5.1, with a
/// prefix of 4 bits).
const FIRST_BITS: usize = 15;
/// The second byte for each such index.
const SECOND_BYTES: [u8; Table::STATIC - FIRST_BITS + 1] = {
    let mut bytes = [0; Table::STATIC - FIRST_BITS + 1];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// The kind of a field, which says what its value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `:path`. Bytes that may not stand in a target are encoded.
    Path,
    /// `:authority`. It must be UTF-8, as the values of the next two.
    Authority,
    Scheme,
    Protocol,
    Method,
    Status,
    /// `te`. It must be `trailers` (RFC 9113, section 8.2.2).
    Te,
    /// An ordinary field. The value must follow RFC 9110, section 5.5.
    Field,
    /// A field whose name HTTP/2 does not allow. No value makes it valid.
    Malformed,
}

impl Kind {
    fn of(name: &[u8]) -> Kind {
        match name {
            b":path" => Kind::Path,
            b":authority" => Kind::Authority,
            b":scheme" => Kind::Scheme,
            b":protocol" => Kind::Protocol,
            b":method" => Kind::Method,
            b":status" => Kind::Status,
            b"te" => Kind::Te,
            // The fields of one HTTP/1 connection (RFC 9113, section 8.2.2).
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => Kind::Malformed,
            _ if HeaderName::from_lowercase(name).is_ok() => Kind::Field,
            _ => Kind::Malformed,
        }
    }

    /// Whether the field is a pseudo-header (RFC 9113, section 8.3).
    pub fn is_pseudo(self) -> bool {
        !matches!(self, Kind::Te | Kind::Field | Kind::Malformed)
    }
}

/// The name of a field.
pub struct Name<'n> {
    pub kind: Kind,
    /// The decoded length in bytes.
    length: usize,
    /// The beginning of a literal without indexing that has this name: the first byte, and the
    /// others.
    first: u8,
    others: &'n [u8],
}

impl<'n> Name<'n> {
    /// The name `name`, which is spelled out in a block as `encoded`.
    pub fn literal(name: &[u8], encoded: &'n [u8]) -> Self {
        Self { kind: Kind::of(name), length: name.len(), first: 0, others: encoded }
    }

    /// The bytes that a field of this name counts for in a list of fields. `length` is the decoded
    /// length of its value.
    pub fn list_bytes(&self, length: usize) -> usize {
        ENTRY_BYTES + self.length + length
    }

    fn of_static(index: usize) -> Self {
        let kind = match index {
            1 => Kind::Authority,
            2 | 3 => Kind::Method,
            4 | 5 => Kind::Path,
            6 | 7 => Kind::Scheme,
            8..=14 => Kind::Status,
            // `transfer-encoding`.
            57 => Kind::Malformed,
            _ => Kind::Field,
        };
        let length = usize::from(STATIC_NAMES[index - 1]);
        match index.checked_sub(FIRST_BITS) {
            None => Self { kind, length, first: index as u8, others: &[] },
            Some(at) => {
                Self { kind, length, first: FIRST_BITS as u8, others: &SECOND_BYTES[at..=at] }
            }
        }
    }
}

/// A field.
#[derive(Debug)]
pub struct Entry {
    kind: Kind,
    /// The decoded length of the name, in bytes.
    name_length: usize,
    /// The field as a literal without indexing.
    pub literal: Box<[u8]>,
    /// The number of bytes of `literal` that are the name.
    name_bytes: usize,
    /// Whether a stream with this field must be ended.
    pub is_malformed: bool,
    /// The bytes that the field counts for in the table and in a list of fields.
    pub list_bytes: usize,
}

impl Entry {
    /// The field with this name and the value `text`, an encoded string. `length` is the decoded
    /// length of the value that the client sent, in bytes.
    pub fn new(name: &Name<'_>, length: usize, text: &[u8], is_malformed: bool) -> Self {
        Self {
            kind: name.kind,
            name_length: name.length,
            literal: [&[name.first], name.others, text].concat().into(),
            name_bytes: 1 + name.others.len(),
            is_malformed,
            list_bytes: name.list_bytes(length),
        }
    }

    fn name(&self) -> Option<Name<'_>> {
        let (first, others) = self.literal[..self.name_bytes].split_first()?;
        Some(Name { kind: self.kind, length: self.name_length, first: *first, others })
    }
}

/// The entries, the newest first, and their sizes.
#[derive(Debug)]
pub struct Table {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

impl Table {
    /// The number of entries of the static table.
    pub const STATIC: usize = 61;

    pub fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }

    /// The entry of the dynamic table with this index, which is behind those of the static table.
    pub fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index.checked_sub(Self::STATIC + 1)?)
    }

    /// The kind of the field with this index, and the bytes that it counts for in a list of fields.
    /// A pseudo-header of the static table counts without its value. `None`: neither table has it.
    pub fn field(&self, index: usize) -> Option<(Kind, usize)> {
        match index {
            0 => None,
            1..=Self::STATIC => {
                let name = Name::of_static(index);
                let value = if index == ACCEPT_ENCODING { "gzip, deflate".len() } else { 0 };
                Some((name.kind, name.list_bytes(value)))
            }
            _ => self.entry(index).map(|entry| (entry.kind, entry.list_bytes)),
        }
    }

    /// The name with this index, which is above 0. `None`: neither table has it.
    pub fn name(&self, index: usize) -> Option<Name<'_>> {
        match index {
            1..=Self::STATIC => Some(Name::of_static(index)),
            _ => self.entry(index)?.name(),
        }
    }

    /// Adds an entry, and drops the oldest ones to make room for it (section 4.4).
    pub fn insert(&mut self, entry: Entry) {
        self.shrink_to(self.bytes_max.saturating_sub(entry.list_bytes));
        if entry.list_bytes <= self.bytes_max {
            self.bytes += entry.list_bytes;
            self.entries.push_front(entry);
        }
    }

    /// Changes the size of the table. `None`: the size is larger than the edge allows.
    pub fn resize(&mut self, bytes_max: usize) -> Option<()> {
        (bytes_max <= TABLE_BYTES_MAX).then_some(())?;
        self.bytes_max = bytes_max;
        self.shrink_to(bytes_max);
        Some(())
    }

    fn shrink_to(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= oldest.list_bytes;
        }
    }
}
