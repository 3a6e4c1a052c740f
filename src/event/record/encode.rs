//! Encodes an accepted event as a record for the spool. The record holds the JSON of the event.
//!
//! The JSON is written once, when the event is accepted, and only copied afterwards: delivering a
//! batch costs one copy per event and no parsing.
//!
//! # The record, versions 1 to 3
//!
//! Integers are little-endian. There is no checksum and no total length: the spool adds both.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version |
//! | 1 | 1 | flags, see below |
//! | 2 | 8 | `received_at`, milliseconds since 1970 UTC, before the year 10000 |
//! | 10 | 16 | `id`, a UUIDv7 as its 16 bytes |
//! | 26 | 8 | portal, 1 to 10¹⁵ − 1 |
//! | 34 | 4 | J, the length of the JSON |
//! | 38 | J | the event as a JSON object, UTF-8: what [`write_event_json`] writes |
//! | 38 + J | 0, 4 or 16 | the client's address, if any: IPv4 or IPv6 |
//! | … | 2 | U, the length of the user agent, if there is one, at most 1024 |
//! | … | U | the user agent, UTF-8 |
//! | … | 2 | R, the length of the referer, if there is one, at most 2048 |
//! | … | R | the referer, UTF-8 |
//! | … | 4 | not in version 1: M, the length of the further members, 1 to 131,072 |
//! | … | M | not in version 1: further members of `context` as JSON, a comma after each |
//!
//! Further members are `host`, `utk`, `headers` and `added`; the last two are objects that are
//! sorted by name. A record with `host` or `added` has version 3, a record with other further
//! members version 2, and any other record version 1. So an earlier version of this program can
//! read every record whose members it knows.
//!
//! Flags, from the lowest bit: `Sec-GPC`, `DNT`, prefetch, address is IPv4, address is IPv6, has a
//! user agent, has a referer. The highest bit is 0.
//!
//! Every version has the version and the time at these offsets, so that a reader can say how long a
//! record of a newer version has waited. A reader rejects a version that it does not know. A new
//! field increments the version, up to 127: a greater first byte begins a record that is not meant
//! for every upstream, see `route.rs`.

use std::borrow::Cow;
use std::net::IpAddr;

use super::timestamp::UNIX_MS_MAX;
use crate::event::context::{Context, FurtherContext};
use crate::event::event::Event;
use crate::event::param::{
    ADDED_MEMBERS_MAX, ADDED_VALUE_BYTES_MAX, CONTEXT_HEADER_BYTES_MAX, CONTEXT_HEADERS_MAX,
    HOST_BYTES_MAX, REFERER_BYTES_MAX, USER_AGENT_BYTES_MAX, UTK_BYTES_MAX,
};

/// The newest version.
pub(super) const VERSION: u8 = 3;
/// The version of a record with further members, of which none is `host` or `added`.
pub(super) const VERSION_MEMBERS: u8 = 2;
/// The version of a record without further members.
pub(super) const VERSION_SHORT: u8 = 1;
/// The greatest length of the further members, in bytes: each value at its limit and fully escaped.
pub(super) const MEMBERS_BYTES_MAX: usize = 128 << 10;
/// The offset of the JSON in a record.
pub(super) const JSON_OFFSET: usize = 38;

pub(super) mod flag {
    pub(in super::super) const GPC: u8 = 1;
    pub(in super::super) const DNT: u8 = 1 << 1;
    pub(in super::super) const PREFETCH: u8 = 1 << 2;
    pub(in super::super) const IPV4: u8 = 1 << 3;
    pub(in super::super) const IPV6: u8 = 1 << 4;
    pub(in super::super) const USER_AGENT: u8 = 1 << 5;
    pub(in super::super) const REFERER: u8 = 1 << 6;
    pub(in super::super) const UNUSED: u8 = 1 << 7;
}

impl Context<'_> {
    fn version(&self) -> u8 {
        match &self.further {
            None => VERSION_SHORT,
            Some(further) if further.host.is_some() || !further.added.is_empty() => VERSION,
            Some(further) if further.utk.is_some() || !further.headers.is_empty() => {
                VERSION_MEMBERS
            }
            Some(_) => VERSION_SHORT,
        }
    }

    fn flags(&self) -> u8 {
        let address = match self.ip {
            Some(IpAddr::V4(_)) => flag::IPV4,
            Some(IpAddr::V6(_)) => flag::IPV6,
            None => 0,
        };
        [
            (self.gpc, flag::GPC),
            (self.dnt, flag::DNT),
            (self.prefetch, flag::PREFETCH),
            (self.user_agent.is_some(), flag::USER_AGENT),
            (self.referer.is_some(), flag::REFERER),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(address, |flags, (_, bit)| flags | bit)
    }
}

/// Appends the record of an accepted event. `id` is a UUIDv7; `received_at_ms` counts from 1970,
/// UTC.
pub fn encode_record(
    out: &mut Vec<u8>,
    id: &[u8; 16],
    received_at_ms: u64,
    event: &Event<'_>,
    context: &Context<'_>,
) {
    let mut head = [0; JSON_OFFSET];
    let version = context.version();
    head[..2].copy_from_slice(&[version, context.flags()]);
    head[2..10].copy_from_slice(&received_at_ms.min(UNIX_MS_MAX).to_le_bytes());
    head[10..26].copy_from_slice(id);
    head[26..34].copy_from_slice(&event.portal.to_le_bytes());
    // The length of the JSON is not known yet and is filled in below.
    out.extend_from_slice(&head);
    let json_offset = out.len();
    write_event_json(out, event);
    // Fits: a query has at most 64 KiB, and JSON turns one byte into at most six.
    let json_bytes = (out.len() - json_offset) as u32;
    out[json_offset - 4..json_offset].copy_from_slice(&json_bytes.to_le_bytes());
    match context.ip {
        Some(IpAddr::V4(ip)) => out.extend_from_slice(&ip.octets()),
        Some(IpAddr::V6(ip)) => out.extend_from_slice(&ip.octets()),
        None => {}
    }
    push_text(out, context.user_agent.as_deref(), USER_AGENT_BYTES_MAX);
    push_text(out, context.referer.as_deref(), REFERER_BYTES_MAX);
    if version != VERSION_SHORT {
        push_members(out, context.further());
    }
}

/// Appends the length of the further members, then the members.
#[cold]
fn push_members(out: &mut Vec<u8>, further: &FurtherContext<'_>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write_members(out, further);
    // At most `MEMBERS_BYTES_MAX`.
    let bytes = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

/// Appends the further members of a context as JSON, with a comma after each.
pub(super) fn write_members(out: &mut Vec<u8>, further: &FurtherContext<'_>) {
    let mut write = |key: &[u8], value: &str| {
        out.extend_from_slice(key);
        write_json_chars(out, value.as_bytes());
        out.extend_from_slice(b"\",");
    };
    if let Some(host) = &further.host {
        write(b"\"host\":\"", cut(host, HOST_BYTES_MAX));
    }
    if let Some(utk) = &further.utk {
        write(b"\"utk\":\"", cut(utk, UTK_BYTES_MAX));
    }
    let headers = further.headers.iter().take(CONTEXT_HEADERS_MAX);
    write_pairs(out, b"\"headers\":{", headers, CONTEXT_HEADER_BYTES_MAX);
    let added = further.added.iter().take(ADDED_MEMBERS_MAX);
    write_pairs(out, b"\"added\":{", added, ADDED_VALUE_BYTES_MAX);
}

/// Appends an object that begins with `open`, then a comma. Appends nothing if there are no pairs.
fn write_pairs<'p, 'a: 'p>(
    out: &mut Vec<u8>,
    open: &[u8],
    pairs: impl ExactSizeIterator<Item = &'p (Cow<'a, str>, Cow<'a, str>)>,
    value_bytes_max: usize,
) {
    if pairs.len() == 0 {
        return;
    }
    out.extend_from_slice(open);
    for (name, value) in pairs {
        out.push(b'"');
        write_json_chars(out, name.as_bytes());
        out.extend_from_slice(b"\":\"");
        write_json_chars(out, cut(value, value_bytes_max).as_bytes());
        out.extend_from_slice(b"\",");
    }
    close_json_object(out);
    out.push(b',');
}

/// Appends an event as a JSON object: the wire form of SPEC 7 without `id`, `received_at` and
/// `context`.
pub fn write_event_json(out: &mut Vec<u8>, event: &Event<'_>) {
    out.extend_from_slice(b"{\"portal\":");
    out.extend_from_slice(itoa::Buffer::new().format(event.portal).as_bytes());
    out.extend_from_slice(b",\"event\":\"");
    write_json_chars(out, event.name.as_bytes());
    if let Some(email) = &event.email {
        out.extend_from_slice(b"\",\"email\":\"");
        write_json_chars(out, email.as_bytes());
    }
    if let Some(id) = &event.external_id {
        out.extend_from_slice(b"\",\"external_id\":\"");
        write_json_chars(out, id.as_bytes());
    }
    out.push(b'"');
    if let Some(revenue) = event.revenue {
        out.extend_from_slice(b",\"revenue\":");
        out.extend_from_slice(revenue.write(&mut Default::default()));
    }
    out.extend_from_slice(b",\"properties\":{");
    for (name, value) in &event.properties {
        out.push(b'"');
        write_json_chars(out, name.as_bytes());
        out.extend_from_slice(b"\":\"");
        write_json_chars(out, value.as_bytes());
        out.extend_from_slice(b"\",");
    }
    close_json_object(out);
    out.push(b'}');
}

/// Closes an object whose members each end in a comma: the last comma becomes the closing brace.
pub(super) fn close_json_object(out: &mut Vec<u8>) {
    match out.last_mut() {
        Some(last @ b',') => *last = b'}',
        _ => out.push(b'}'),
    }
}

/// Appends the content of a JSON string, without its quotes (RFC 8259, section 7). Escapes only the
/// characters that must be escaped; most texts have none. `text` is UTF-8.
pub(super) fn write_json_chars(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        write_escaped(out, text);
    }
}

#[cold]
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(place) = rest.iter().position(must_escape) {
        out.extend_from_slice(&rest[..place]);
        push_escaped(out, rest[place]);
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
}

fn must_escape(byte: &u8) -> bool {
    // Flipping bit 1 maps the quote, 0x22, to 0x20, next to the control characters, and the space
    // to 0x22. So one comparison finds quotes and control characters.
    byte ^ 2 <= b' ' || *byte == b'\\'
}

/// Whether no byte must be escaped. Tests sixteen bytes at a time; the last sixteen may overlap the
/// bytes before them. Of 4 to 15 bytes, it tests two halves that may overlap.
fn is_plain(bytes: &[u8]) -> bool {
    if let Some(last) = bytes.last_chunk::<16>() {
        let (chunks, _) = bytes.as_chunks();
        chunks.iter().all(is_plain_chunk::<16>) && is_plain_chunk(last)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        is_plain_chunk(first) & is_plain_chunk(last)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        is_plain_chunk(first) & is_plain_chunk(last)
    } else {
        !bytes.iter().any(must_escape)
    }
}

/// The loop has no early end, so that the compiler tests the whole chunk with a few instructions.
#[inline]
fn is_plain_chunk<const N: usize>(chunk: &[u8; N]) -> bool {
    chunk.iter().fold(0, |found, byte| found | u8::from(must_escape(byte))) == 0
}

fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0C => b'f',
        _ => {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[high], HEX[low]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn push_text(out: &mut Vec<u8>, text: Option<&str>, bytes_max: usize) {
    let Some(text) = text else { return };
    let text = cut(text, bytes_max);
    // Both limits are far below 64 KiB.
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_those_of_serde_json() {
        for c in (0..=0x2FFF).filter_map(char::from_u32).chain(['\u{FFFF}', '\u{10FFFF}', '😀']) {
            for text in [String::from(c), format!("a{c}b"), format!("{c}{c}\"\\")] {
                check(&text);
            }
        }
        // Of every length, and with what must be escaped at every place.
        for (length, place) in (0..70).flat_map(|length| (0..=length).map(move |at| (length, at))) {
            for c in ['x', '"', '\\', '\0', '\x1F', ' ', '\x7F', '\u{80}', '\u{FFFF}'] {
                check(&format!("{}{c}{}", "a".repeat(place), "~".repeat(length - place)));
            }
        }
    }

    fn check(text: &str) {
        let mut out = Vec::new();
        out.push(b'"');
        write_json_chars(&mut out, text.as_bytes());
        out.push(b'"');
        let expected = serde_json::to_string(text).expect("a string is JSON");
        assert_eq!(String::from_utf8(out).as_deref(), Ok(&*expected));
    }
}
