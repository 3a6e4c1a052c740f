//! Encodes a batch's body: the wire form of SPEC 7 in one of three formats.

use std::io::Write;

use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use super::batch::Batch;
use super::bot;
use crate::clock::timestamp;
use crate::event::{RawRecord, WireWriter};

/// The format of a body.
///
/// ```
/// use pixelgate::config::BatchFormat;
///
/// assert_eq!(BatchFormat::default(), BatchFormat::Json);
/// assert_eq!(BatchFormat::Ndjson.content_type(), "application/x-ndjson");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Format {
    /// One JSON array.
    #[default]
    Json,
    /// One JSON object per line.
    Ndjson,
    /// CloudEvents 1.0 in JSON batch format: each event is the `data` of an envelope.
    CloudEvents,
}

impl Format {
    /// The `Content-Type` of a body.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Ndjson => "application/x-ndjson",
            Format::CloudEvents => "application/cloudevents-batch+json",
        }
    }
}

/// The body of a batch, before compression. `None` if a record cannot be read.
pub fn encode(records: &[Bytes], format: Format) -> Option<Vec<u8>> {
    let size = records.iter().map(|r| r.len() + Batch::EVENT_OVERHEAD_BYTES).sum::<usize>();
    let mut out = Vec::with_capacity(size + 2);
    let (before, between, after): (&[u8], &[u8], &[u8]) = match format {
        Format::Json | Format::CloudEvents => (b"[", b",", b"]"),
        Format::Ndjson => (b"", b"\n", b"\n"),
    };
    let mut writer = WireWriter::default();
    out.extend_from_slice(before);
    for (place, bytes) in records.iter().enumerate() {
        if place > 0 {
            out.extend_from_slice(between);
        }
        // The spool verified the checksum of the record when it read it, so the texts are not
        // checked.
        let record = RawRecord::read(bytes).ok()?;
        if format == Format::CloudEvents {
            open_envelope(&mut out, &record)?;
        }
        writer.write(&mut out, &record, bot::is_bot_bytes(record.user_agent));
        if format == Format::CloudEvents {
            out.push(b'}');
        }
    }
    out.extend_from_slice(after);
    Some(out)
}

/// Writes the CloudEvents envelope up to the value of `data`.
fn open_envelope(out: &mut Vec<u8>, record: &RawRecord<'_>) -> Option<()> {
    let time = timestamp(record.received_at_ms);
    write!(
        out,
        "{{\"specversion\":\"1.0\",\"type\":\"pixelgate.event\",\
         \"source\":\"/pixelgate/portals/{}\",\"id\":\"{}\",\"time\":\"{time:.3}\",\
         \"datacontenttype\":\"application/json\",\"data\":",
        record.portal,
        Uuid::from_bytes(record.id),
    )
    .ok()
}
