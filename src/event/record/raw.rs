//! Finds the fields of a stored record, and writes the JSON that upstreams receive (SPEC 7).
//!
//! This file is for records whose checksum the spool has just verified. Since this program wrote
//! them, their texts are UTF-8 and their JSON is that of an event; so the lengths of the fields are
//! checked and the texts are not. `decode.rs` reads records from any other source. `encode.rs`
//! specifies the layout.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::encode::{
    JSON_OFFSET, MEMBERS_BYTES_MAX, VERSION, VERSION_SHORT, close_json_object, flag,
    write_json_chars,
};
use super::error::RecordError;
use super::route;
use super::timestamp::{RFC3339_BYTES, Stamp, UNIX_MS_MAX};
use crate::event::param::{PORTAL_MAX, REFERER_BYTES_MAX, USER_AGENT_BYTES_MAX};

/// The start of the JSON of each event, and the offsets of the id and the time in it.
const HEAD: [u8; 86] = *b"{\"id\":\"00000000-0000-0000-0000-000000000000\",\
    \"received_at\":\"0000-00-00T00:00:00.000Z\",";
const HEAD_ID: usize = 7;
const HEAD_TIME: usize = 60;

/// The bytes of the time of receipt, in a record of any version.
const RECEIVED_AT: std::ops::Range<usize> = 2..10;
/// The bytes of the portal, in a record of a version that this program reads.
const PORTAL: std::ops::Range<usize> = 26..34;

/// The fields of a stored record. Texts are not checked to be UTF-8.
#[derive(Clone, Copy)]
pub struct RawRecord<'a> {
    /// The event's UUIDv7.
    pub id: [u8; 16],
    /// The time of receipt, in milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// The account that the event belongs to.
    pub portal: u64,
    /// The `User-Agent` header, if any.
    pub user_agent: Option<&'a [u8]>,
    /// The event's JSON object, braces included.
    pub(super) event_json: &'a [u8],
    pub(super) ip: Option<IpAddr>,
    pub(super) referer: Option<&'a [u8]>,
    pub(super) gpc: bool,
    pub(super) dnt: bool,
    pub(super) prefetch: bool,
    /// Further members of `context`, with a comma after each; empty if there are none.
    pub(super) members: &'a [u8],
}

/// Writes records as upstreams receive them. Keeps the text of the last record's time to the
/// second, which most consecutive records share.
pub struct WireWriter {
    head: [u8; HEAD.len()],
    stamp: Stamp,
}

impl<'a> RawRecord<'a> {
    /// Finds the fields of a record.
    ///
    /// # Errors
    ///
    /// Any [`RecordError`]. Texts that are not UTF-8 are not detected, nor is JSON in braces that
    /// is not the JSON of an event.
    pub fn read(bytes: &'a [u8]) -> Result<RawRecord<'a>, RecordError> {
        let (_, bytes) = route::split(bytes)?;
        let &[version, flags, ..] = bytes else { return Err(RecordError::Truncated) };
        if !(VERSION_SHORT..=VERSION).contains(&version) {
            return Err(RecordError::UnknownVersion(version));
        }
        let both = flag::IPV4 | flag::IPV6;
        if flags & flag::UNUSED != 0 || flags & both == both {
            return Err(RecordError::Flags);
        }
        let (head, rest) =
            bytes.split_first_chunk::<JSON_OFFSET>().ok_or(RecordError::Truncated)?;
        let mut head = Reader { rest: &head[2..] };
        let received_at_ms = u64::from_le_bytes(head.array()?);
        if received_at_ms > UNIX_MS_MAX {
            return Err(RecordError::ReceivedAt);
        }
        let id = head.array()?;
        let portal = u64::from_le_bytes(head.array()?);
        if !(1..=PORTAL_MAX).contains(&portal) {
            return Err(RecordError::Portal);
        }
        let json_bytes = u32::from_le_bytes(head.array()?);
        let mut rest = Reader { rest };
        let event_json =
            rest.take(usize::try_from(json_bytes).map_err(|_| RecordError::Truncated)?)?;
        if !matches!(event_json, [b'{', .., b'}']) {
            return Err(RecordError::Json);
        }
        let has = |bit: u8| flags & bit != 0;
        let record = RawRecord {
            id,
            received_at_ms,
            portal,
            event_json,
            ip: rest.ip(flags)?,
            user_agent: has(flag::USER_AGENT)
                .then(|| rest.text(USER_AGENT_BYTES_MAX, RecordError::UserAgent))
                .transpose()?,
            referer: has(flag::REFERER)
                .then(|| rest.text(REFERER_BYTES_MAX, RecordError::Referer))
                .transpose()?,
            gpc: has(flag::GPC),
            dnt: has(flag::DNT),
            prefetch: has(flag::PREFETCH),
            members: if version == VERSION_SHORT { &[] } else { rest.members()? },
        };
        if rest.rest.is_empty() { Ok(record) } else { Err(RecordError::TrailingBytes) }
    }
}

/// Whether a newer version of this program wrote a record. Such a record is not damaged, and that
/// version can deliver it.
pub fn is_newer_record(bytes: &[u8]) -> bool {
    // A record that is cut short is damaged, not newer.
    let record = route::split(bytes).map_or(&[][..], |(_, record)| record);
    record.first().is_some_and(|version| *version > VERSION)
}

/// The time of receipt of a record of any version, in milliseconds since 1970, UTC. `None` if the
/// record is too short to hold it.
pub fn received_ms(bytes: &[u8]) -> Option<u64> {
    let (_, record) = route::split(bytes).ok()?;
    record.get(RECEIVED_AT).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
}

/// The portal and the time of receipt of a stored record, in milliseconds since 1970, UTC. `None`
/// for a record of a newer version, and for bytes that are not a record.
pub fn portal_and_time(bytes: &[u8]) -> Option<(u64, u64)> {
    let (_, record) = route::split(bytes).ok()?;
    let head = record.get(..JSON_OFFSET)?;
    if !(VERSION_SHORT..=VERSION).contains(&head[0]) {
        return None;
    }
    let received_at = head[RECEIVED_AT].try_into().map(u64::from_le_bytes).ok()?;
    let portal = head[PORTAL].try_into().map(u64::from_le_bytes).ok()?;
    (1..=PORTAL_MAX).contains(&portal).then_some((portal, received_at))
}

impl Default for WireWriter {
    fn default() -> WireWriter {
        WireWriter { head: HEAD, stamp: Stamp::default() }
    }
}

impl WireWriter {
    /// Appends a record as one JSON object (SPEC 7), without a newline. The JSON is UTF-8 if the
    /// texts of the record are.
    ///
    /// `bot` says whether the delivery worker takes the user agent for a bot; it is not stored.
    pub fn write(&mut self, out: &mut Vec<u8>, record: &RawRecord<'_>, bot: bool) {
        let id = uuid::Uuid::from_bytes(record.id).hyphenated();
        id.encode_lower(&mut self.head[HEAD_ID..][..uuid::fmt::Hyphenated::LENGTH]);
        let time = self.stamp.rfc3339(record.received_at_ms);
        self.head[HEAD_TIME..][..RFC3339_BYTES].copy_from_slice(time);
        out.extend_from_slice(&self.head);
        // The fields of the event's own object stand among the others, so its braces are left out.
        if let [b'{', fields @ .., b'}'] = record.event_json {
            out.extend_from_slice(fields);
        }
        out.extend_from_slice(b",\"context\":{");
        write_context(out, record, bot);
        out.push(b'}');
    }
}

fn write_context(out: &mut Vec<u8>, record: &RawRecord<'_>, bot: bool) {
    if let Some(ip) = record.ip {
        out.extend_from_slice(b"\"ip\":\"");
        write_ip(out, ip);
        out.extend_from_slice(b"\",");
    }
    if let Some(user_agent) = record.user_agent {
        out.extend_from_slice(b"\"user_agent\":\"");
        write_json_chars(out, user_agent);
        out.extend_from_slice(b"\",");
    }
    if let Some(referer) = record.referer {
        out.extend_from_slice(b"\"referer\":\"");
        write_json_chars(out, referer);
        out.extend_from_slice(b"\",");
    }
    out.extend_from_slice(record.members);
    if record.gpc {
        out.extend_from_slice(b"\"gpc\":true,");
    }
    if record.dnt {
        out.extend_from_slice(b"\"dnt\":true,");
    }
    if record.prefetch {
        out.extend_from_slice(b"\"prefetch\":true,");
    }
    if bot {
        out.extend_from_slice(b"\"bot\":true,");
    }
    close_json_object(out);
}

/// Writes an address as its `Display` does. Writes IPv4 without `fmt`, which every delivered event
/// would pay for.
fn write_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => write_ipv4(out, ip),
        // Writing to a `Vec` cannot fail.
        IpAddr::V6(ip) => _ = write!(out, "{ip}"),
    }
}

fn write_ipv4(out: &mut Vec<u8>, ip: Ipv4Addr) {
    /// Each number followed by a point, padded to four bytes.
    static NUMBERS: [[u8; 4]; 256] = {
        let mut numbers = [[0; 4]; 256];
        let mut n = 0;
        while n < numbers.len() {
            let [a, b, c] = [n / 100, n / 10 % 10, n % 10];
            let [a, b, c] = [b'0' + a as u8, b'0' + b as u8, b'0' + c as u8];
            numbers[n] = match n {
                0..10 => [c, b'.', 0, 0],
                10..100 => [b, c, b'.', 0],
                _ => [a, b, c, b'.'],
            };
            n += 1;
        }
        numbers
    };
    let (mut text, mut end) = ([0; 16], 0);
    for octet in ip.octets() {
        text[end..end + 4].copy_from_slice(&NUMBERS[usize::from(octet)]);
        end += 2 + usize::from(octet >= 10) + usize::from(octet >= 100);
    }
    // The last point is left out.
    out.extend_from_slice(&text[..end - 1]);
}

/// The unread rest of a record.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn ip(&mut self, flags: u8) -> Result<Option<IpAddr>, RecordError> {
        Ok(if flags & flag::IPV4 != 0 {
            Some(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)))
        } else if flags & flag::IPV6 != 0 {
            Some(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)))
        } else {
            None
        })
    }

    fn text(&mut self, bytes_max: usize, fault: RecordError) -> Result<&'a [u8], RecordError> {
        let bytes = usize::from(u16::from_le_bytes(self.array()?));
        if bytes > bytes_max { Err(fault) } else { self.take(bytes) }
    }

    fn members(&mut self) -> Result<&'a [u8], RecordError> {
        let bytes = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        if bytes > MEMBERS_BYTES_MAX {
            return Err(RecordError::Members);
        }
        let members = self.take(bytes)?;
        // Members that begin or end otherwise would break the JSON around them.
        if matches!(members, [b'"', .., b',']) { Ok(members) } else { Err(RecordError::Members) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        let v4 = (0..=u8::MAX).flat_map(|n| [[n, 0, 9, 10], [99, n, 100, 255]]).map(IpAddr::from);
        let v6 = ["::", "::1", "2001:db8::1", "::ffff:1.2.3.4", "1:0:0:2::3", "fe80::a:b:c:d"];
        for ip in v4.chain(v6.map(|text| text.parse().expect("an address"))) {
            let mut out = Vec::new();
            write_ip(&mut out, ip);
            assert_eq!(String::from_utf8(out).as_deref(), Ok(&*ip.to_string()));
        }
    }
}
