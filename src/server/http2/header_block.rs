//! Reads header blocks (HPACK, RFC 7541) before the `h2` crate does, and writes anew those that the
//! crate must not see as they are.
//!
//! **Why.** The crate ends a stream whose `:path` has bytes that `http::Uri` does not hold,
//! although an HTTP/1 request with them is served. It ends the whole connection at a malformed name
//! or value, which RFC 9113, section 8.1.1, calls an error of the stream. So such a `:path` is
//! encoded here as that of an HTTP/1 request is, and a malformed field is replaced by one at which
//! the crate ends the stream alone ([`MALFORMED`]).
//!
//! **How.** Blocks pass as they are received until one holds such a field. From that field on, all
//! fields of the connection are written as literals without indexing. The dynamic table of the
//! crate lacks entries from then on, and nothing that is written refers to it. Strings stay
//! encoded: only a string with bytes that are not plain is decoded.
//!
//! **A block that cannot be read** ends the connection. While blocks pass as they are received,
//! this block passes as well, and no later block is read here: the dynamic table of the crate is
//! still that of the client, so the crate finds the fault itself. Once fields are written anew, the
//! two tables differ, and the block is replaced by [`UNREADABLE`]. So no fault in a block can turn
//! one request into another.
//!
//! **Order and size.** The crate does not check that trailers hold no pseudo-header, and drops
//! those trailers that exceed the size of a list of fields. It ends the connection if a block of
//! several frames is malformed before its last frame. So the order and the size of the fields are
//! checked here for trailers and for blocks of several frames.

use super::dynamic_table::{Entry, Kind, Name, Table};
use super::hpack::{Rest, Text};
use crate::server::http1::grammar::is_value;
use crate::server::http1::target::encoded;
use http::{Method, StatusCode};
use std::borrow::Cow;

/// The first bits of the representation of a field (RFC 7541, section 6). A literal without
/// indexing has none of them. A literal that is never indexed is read in the same way.
const INDEXED: u8 = 0x80;
const WITH_INDEXING: u8 = 0x40;
const SIZE_UPDATE: u8 = 0x20;
/// A block that every reader refuses: a field with the index 0 (RFC 7541, section 6.1).
const UNREADABLE: &[u8] = &[INDEXED];
/// A field at which the `h2` crate ends the stream and not the connection: `connection` with an
/// empty value, which HTTP/2 forbids (RFC 9113, section 8.2.2).
const MALFORMED: &[u8] = b"\x00\x0aconnection\x00";
/// The least bytes that a field counts for in a list of fields (RFC 9113, section 6.5.2).
const FIELD_BYTES_MIN: usize = 32;

/// A header block.
pub struct Block<'b> {
    pub fields: Cow<'b, [u8]>,
    /// Whether the block is not the first one of its stream.
    pub are_trailers: bool,
    /// The number of frames of the block.
    pub frames: usize,
    /// Whether the stream must be ended, whatever the fields are.
    pub is_malformed: bool,
}

/// The header blocks of one connection, in their order.
#[derive(Debug)]
pub struct HeaderBlocks {
    table: Table,
    /// The greatest size of a list of fields, in bytes, as the `h2` crate counts it.
    list_bytes_max: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All blocks so far passed as they were received, so the dynamic table of the `h2` crate is
    /// the same as the one here.
    AsReceived,
    /// Fields are written anew.
    Anew,
    /// All blocks passed as they were received, and one of them could not be read. Later blocks are
    /// not read.
    Unread,
    /// [`UNREADABLE`] took the place of a block, which ends the connection.
    Refused,
}

/// A block that is written anew.
struct Written {
    block: Vec<u8>,
    /// The size of its list of fields, in bytes, or less: the `h2` crate counts at least as much.
    list_bytes: usize,
    list_bytes_max: usize,
    /// Whether the stream must be ended.
    is_malformed: bool,
}

/// The fields of a block that were read so far, for the check of their order and size.
struct Order {
    are_trailers: bool,
    has_fields: bool,
    /// A bit for each [`Kind`] of pseudo-header that was read.
    pseudo: u16,
    /// The size of the list of fields.
    list_bytes: usize,
    list_bytes_max: usize,
}

impl Order {
    /// Notes a field. Returns whether it may stand here.
    fn note(&mut self, kind: Kind, list_bytes: usize) -> bool {
        self.list_bytes += list_bytes;
        if self.are_trailers && self.list_bytes >= self.list_bytes_max {
            return false;
        }
        if !kind.is_pseudo() {
            self.has_fields = true;
            return kind != Kind::Malformed;
        }
        let bit = 1 << kind as u8;
        let is_first = self.pseudo & bit == 0;
        self.pseudo |= bit;
        is_first && !self.has_fields && !self.are_trailers
    }
}

impl Written {
    /// Adds a field, unless the list of fields is too long already: the `h2` crate then refuses the
    /// stream whatever follows. This bounds the memory, because a byte of a client's block may
    /// stand for an entry of 4 KiB.
    fn push(&mut self, field: &[u8], list_bytes: usize) {
        if self.list_bytes < self.list_bytes_max {
            self.block.extend_from_slice(field);
        }
        self.list_bytes += list_bytes;
    }

    fn push_entry(&mut self, entry: &Entry) {
        if entry.is_malformed {
            self.is_malformed = true;
        } else {
            self.push(&entry.literal, entry.list_bytes);
        }
    }

    /// The block. If the stream must be ended, the field that ends it comes last: at the end of a
    /// frame that cuts a field, the `h2` crate forgets that an earlier field was malformed.
    fn finish(mut self) -> Vec<u8> {
        if self.is_malformed {
            self.block.extend_from_slice(MALFORMED);
        }
        self.block
    }
}

impl HeaderBlocks {
    /// The blocks of a connection whose lists of fields may have `list_bytes_max` bytes.
    pub fn new(list_bytes_max: usize) -> Self {
        Self { table: Table::new(), list_bytes_max, state: State::AsReceived }
    }

    /// Whether the blocks that follow must be passed to [`HeaderBlocks::read`].
    pub fn are_read(&self) -> bool {
        self.state != State::Unread
    }

    /// Whether [`UNREADABLE`] was written, which ends the connection.
    pub fn are_refused(&self) -> bool {
        self.state == State::Refused
    }

    /// Reads the next block. Returns the block to pass on in its place. `None`: it passes as it was
    /// received.
    pub fn read(&mut self, block: &Block<'_>) -> Option<Vec<u8>> {
        if matches!(self.state, State::Unread | State::Refused) {
            return self.give_up();
        }
        let begins_anew = self.state == State::Anew || block.is_malformed;
        let mut written = begins_anew.then(|| self.written(b"", block.is_malformed));
        let mut order = (block.are_trailers || block.frames > 1).then_some(Order {
            are_trailers: block.are_trailers,
            has_fields: false,
            pseudo: 0,
            list_bytes: 0,
            list_bytes_max: self.list_bytes_max,
        });
        match self.read_fields(&block.fields, &mut order, &mut written) {
            Some(()) => written.map(Written::finish),
            None => self.give_up(),
        }
    }

    /// Gives up a block that cannot be read. Returns the block to pass on in its place. `None`: it
    /// passes as it was received.
    pub fn give_up(&mut self) -> Option<Vec<u8>> {
        match self.state {
            State::AsReceived | State::Unread => {
                self.state = State::Unread;
                None
            }
            State::Anew | State::Refused => Some(self.refuse()),
        }
    }

    /// Ends the connection. Returns the block that does so.
    pub fn refuse(&mut self) -> Vec<u8> {
        self.state = State::Refused;
        UNREADABLE.to_vec()
    }

    /// Begins to write fields anew, behind the fields `as_received`, which stay as they are.
    fn written(&mut self, as_received: &[u8], is_malformed: bool) -> Written {
        self.state = State::Anew;
        let (block, list_bytes_max) = (as_received.to_vec(), self.list_bytes_max);
        Written { block, list_bytes: 0, list_bytes_max, is_malformed }
    }

    fn read_fields(
        &mut self,
        block: &[u8],
        order: &mut Option<Order>,
        written: &mut Option<Written>,
    ) -> Option<()> {
        let mut rest = Rest(block);
        // The offset at which the changes of the table's size end. They must come first.
        let mut resized = 0;
        loop {
            if written.is_none() && order.is_none() {
                // Fields by a short index need no check here: the `h2` crate looks them up.
                rest.skip_while(is_short_index);
            }
            let before = block.len() - rest.0.len();
            let Some(&first) = rest.0.first() else { return Some(()) };
            if first & INDEXED != 0 {
                let index = rest.integer(7)?;
                if let Some(order) = order {
                    let (kind, list_bytes) = self.table.field(index)?;
                    self.note(order, kind, list_bytes, &block[..before], written);
                }
                if let Some(written) = written {
                    self.write_indexed(index, written)?;
                }
            } else if first & (WITH_INDEXING | SIZE_UPDATE) == SIZE_UPDATE {
                (before == resized).then_some(())?;
                self.table.resize(rest.integer(5)?)?;
                resized = block.len() - rest.0.len();
            } else {
                let (kind, list_bytes) = self.read_literal(&mut rest, &block[..before], written)?;
                if let Some(order) = order {
                    self.note(order, kind, list_bytes, &block[..before], written);
                }
            }
        }
    }

    /// Checks the order and the size with the next field, which stands behind `before` in its
    /// block. A field that may not stand there makes the block malformed.
    fn note(
        &mut self,
        order: &mut Order,
        kind: Kind,
        list_bytes: usize,
        before: &[u8],
        written: &mut Option<Written>,
    ) {
        if !order.note(kind, list_bytes) {
            written.get_or_insert_with(|| self.written(before, false)).is_malformed = true;
        }
    }

    fn write_indexed(&self, index: usize, written: &mut Written) -> Option<()> {
        match index {
            0 => return None,
            1..=Table::STATIC => written.push(&[INDEXED | index as u8], FIELD_BYTES_MIN),
            _ => written.push_entry(self.table.entry(index)?),
        }
        Some(())
    }

    /// Reads a literal, which is a field whose value is spelled out. Returns its kind, and its size
    /// in a list of fields, in bytes.
    fn read_literal(
        &mut self,
        rest: &mut Rest<'_>,
        before: &[u8],
        written: &mut Option<Written>,
    ) -> Option<(Kind, usize)> {
        let is_indexed = rest.0[0] & WITH_INDEXING != 0;
        let spelled;
        let name = match rest.integer(if is_indexed { 6 } else { 4 })? {
            0 => {
                let text = rest.text()?;
                spelled = text.decoded()?;
                Name::literal(&spelled, text.encoded)
            }
            index => self.table.name(index)?,
        };
        let value = rest.text()?;
        let (length, checked) = check(name.kind, &value)?;
        let noted = (name.kind, name.list_bytes(length));
        let is_odd = !matches!(checked, Checked::Sound);
        if !is_indexed && !is_odd && written.is_none() {
            return Some(noted);
        }
        let is_malformed = matches!(checked, Checked::Malformed);
        let entry = match &checked {
            Checked::Encoded(text) => Entry::new(&name, length, &Text::encode(text), false),
            Checked::Sound | Checked::Malformed => {
                Entry::new(&name, length, value.encoded, is_malformed)
            }
        };
        if is_odd && written.is_none() {
            *written = Some(self.written(before, false));
        }
        if let Some(written) = written {
            written.push_entry(&entry);
        }
        if is_indexed {
            self.table.insert(entry);
        }
        Some(noted)
    }
}

/// Whether a representation is this byte alone: a field with an index below 127.
fn is_short_index(byte: u8) -> bool {
    byte & INDEXED != 0 && byte != u8::MAX
}

/// The result of the check of a value.
enum Checked {
    /// The value stays as it is.
    Sound,
    /// The value is replaced by this one.
    Encoded(Vec<u8>),
    /// The stream must be ended.
    Malformed,
}

/// Checks a value. Returns its decoded length in bytes, and the result. `None`: the value cannot be
/// decoded.
fn check(kind: Kind, value: &Text<'_>) -> Option<(usize, Checked)> {
    let is_plain_enough = !matches!(kind, Kind::Method | Kind::Status | Kind::Te | Kind::Malformed);
    if is_plain_enough && let Some(length) = value.plain_length() {
        return Some((length, Checked::Sound));
    }
    let text = value.decoded()?;
    let length = text.len();
    let is_sound = match kind {
        Kind::Path => {
            return Some(match encoded(text) {
                // Encoding a byte makes a target longer, so one of equal length is unchanged.
                same if same.len() == length => (length, Checked::Sound),
                longer => (length, Checked::Encoded(longer.into_owned())),
            });
        }
        Kind::Authority | Kind::Scheme | Kind::Protocol => std::str::from_utf8(&text).is_ok(),
        Kind::Method => Method::from_bytes(&text).is_ok(),
        Kind::Status => StatusCode::from_bytes(&text).is_ok(),
        Kind::Te => *text == *b"trailers",
        Kind::Field => is_value(&text),
        Kind::Malformed => false,
    };
    Some((length, if is_sound { Checked::Sound } else { Checked::Malformed }))
}
