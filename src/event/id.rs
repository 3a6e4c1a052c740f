//! The id of an accepted event.

use std::fmt;
use uuid::Uuid;

/// The id of an accepted event: a UUIDv7 (RFC 9562).
///
/// It is the same in `X-Event-Id`, in every delivery attempt and after every restart (SPEC 7).
/// Displays in the usual form, as `01970102-0304-7fff-bfff-ffffffffffff`: lower case, with hyphens.
///
/// ```
/// use pixelgate::EventId;
///
/// let id = EventId::from([1, 0x97, 1, 2, 3, 4, 0x7f, 0, 0x80, 0, 0, 0, 0, 0, 0, 1]);
/// assert_eq!(id.to_string(), "01970102-0304-7f00-8000-000000000001");
/// assert_eq!(id.received_at_ms(), 0x0197_0102_0304);
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// The bytes of an id as text.
    pub(crate) const TEXT_BYTES: usize = uuid::fmt::Hyphenated::LENGTH;

    /// An id that begins with the time of receipt, in milliseconds since 1970, UTC.
    pub(crate) fn new(received_at_ms: u64, random: &[u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(received_at_ms, random).into_uuid())
    }

    /// The 16 bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When the event was received, in milliseconds since 1970, UTC.
    pub fn received_at_ms(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = *self.as_bytes();
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The id as text, written into `buffer`.
    pub(crate) fn encode<'b>(&self, buffer: &'b mut [u8; Self::TEXT_BYTES]) -> &'b str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl From<[u8; 16]> for EventId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.encode(&mut [0; Self::TEXT_BYTES]))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_begins_with_its_time_and_is_a_uuid_of_version_7() {
        let id = EventId::new(0x0197_0102_0304, &[0xFF; 10]);
        assert_eq!(id.received_at_ms(), 0x0197_0102_0304);
        assert_eq!(id.to_string(), "01970102-0304-7fff-bfff-ffffffffffff");
        assert_eq!(format!("{id:?}"), id.to_string());
        assert_eq!(EventId::from(*id.as_bytes()), id);
    }
}
