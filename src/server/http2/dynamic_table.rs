//! The dynamic table of a client (RFC 7541, section 2.3), with its entries as literals.

use http::HeaderName;
use std::collections::VecDeque;

/// The largest size of a table in bytes. The edge announces no other (RFC 9113, section 6.5.2).
const TABLE_BYTES_MAX: usize = 4096;
/// What an entry counts for, beside its name and value (section 4.1).
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
/// From this index on, a literal without indexing whose name is in the static table begins with two
/// bytes: this number, and what the index has more (RFC 7541, section 5.1, with 4 bits).
const FIRST_BITS: usize = 15;
/// The second of these bytes, for each index.
const SECOND_BYTES: [u8; Table::STATIC - FIRST_BITS + 1] = {
    let mut bytes = [0; Table::STATIC - FIRST_BITS + 1];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// What the value of a field must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A target, which can be encoded.
    Path,
    /// Text, as of the next two.
    Authority,
    Scheme,
    Protocol,
    Method,
    Status,
    /// Nothing but `trailers` (RFC 9113, section 8.2.2).
    Te,
    /// That of a field of the message.
    Field,
    /// Any: no field may have this name.
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
            // These concern one HTTP/1 connection (RFC 9113, section 8.2.2).
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
    /// Its length in bytes, decoded.
    length: usize,
    /// How a literal without indexing begins that has this name: its first byte, and the others.
    first: u8,
    others: &'n [u8],
}

impl<'n> Name<'n> {
    /// The name `name`, which is spelled out in a block as `encoded`.
    pub fn literal(name: &[u8], encoded: &'n [u8]) -> Self {
        Self { kind: Kind::of(name), length: name.len(), first: 0, others: encoded }
    }

    /// Size in a list of fields of one whose value has `length` bytes, decoded.
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
    /// The length of its name in bytes, decoded.
    name_length: usize,
    /// As a literal without indexing.
    pub literal: Box<[u8]>,
    /// The number of bytes of `literal` that are the name.
    name_bytes: usize,
    /// Whether the stream must be ended whose header has this field.
    pub is_malformed: bool,
    /// Its size in the table and in a list of fields, in bytes.
    pub list_bytes: usize,
}

impl Entry {
    /// The field with this name and the value `text`, an encoded string. Decoded, the client's
    /// value has `length` bytes.
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

    /// The entry with an index behind those of the static table.
    pub fn entry(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index.checked_sub(Self::STATIC + 1)?)
    }

    /// The kind of the field with an index above 0, of either table, and its size in a list of
    /// fields, in bytes. That of a pseudo-header of the static table counts without its value.
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

    /// The name with an index above 0, of either table.
    pub fn name(&self, index: usize) -> Option<Name<'_>> {
        match index {
            1..=Self::STATIC => Some(Name::of_static(index)),
            _ => self.entry(index)?.name(),
        }
    }

    /// Adds an entry; drops the oldest ones that it leaves no room for (section 4.4).
    pub fn insert(&mut self, entry: Entry) {
        self.shrink_to(self.bytes_max.saturating_sub(entry.list_bytes));
        if entry.list_bytes <= self.bytes_max {
            self.bytes += entry.list_bytes;
            self.entries.push_front(entry);
        }
    }

    /// Changes the size. `None`: it is larger than the edge allows.
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
