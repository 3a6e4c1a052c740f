//! Encodes a batch's body: the wire form of SPEC 7 in one of three formats, optionally compressed.

use std::cell::RefCell;
use std::io::Write;

use bytes::Bytes;
use flate2::write::GzEncoder;
use serde::Deserialize;
use uuid::Uuid;

use super::batch::{Batch, Body};
use super::bot;
use crate::event::{RawRecord, WireWriter};

/// gzip level (0 to 9). Higher levels hardly reduce the size of batches of similar events.
const GZIP_LEVEL: u32 = 3;
/// zstd level (1 to 22). For batches of similar events, 3 (the library's default) costs 50 % more
/// and is no smaller.
const ZSTD_LEVEL: i32 = 1;

/// The format of a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON array.
    #[default]
    Json,
    /// One JSON object per line.
    Ndjson,
    /// CloudEvents 1.0 in JSON batch format: each event is the `data` of an envelope.
    CloudEvents,
}

/// The compression of a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip (RFC 1952), which every backend can read.
    #[default]
    Gzip,
    /// zstd (RFC 8878): smaller, and several times cheaper than gzip.
    Zstd,
    /// No compression.
    None,
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

impl Compression {
    /// The `Content-Encoding` of a body. `None` if it is not compressed.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
            Compression::None => None,
        }
    }
}

/// The body of a batch. `None` if a record cannot be read.
pub fn encode(records: &[Bytes], format: Format, compression: Compression) -> Option<Body> {
    let plain = lay_out(records, format)?;
    let plain_bytes = plain.len();
    let bytes = match compression {
        Compression::None => plain,
        Compression::Gzip => gzip(&plain)?,
        Compression::Zstd => zstd(&plain)?,
    };
    Some(Body { bytes: bytes.into(), plain_bytes })
}

fn lay_out(records: &[Bytes], format: Format) -> Option<Vec<u8>> {
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
        // Not checksummed again: the spool verified the record when it read it.
        let record = RawRecord::read(bytes).ok()?;
        if format == Format::CloudEvents {
            open_envelope(&mut out, &record)?;
        }
        writer.write(&mut out, &record, bot::is_bot(record.user_agent));
        if format == Format::CloudEvents {
            out.push(b'}');
        }
    }
    out.extend_from_slice(after);
    Some(out)
}

/// Writes the CloudEvents envelope up to the value of `data`.
fn open_envelope(out: &mut Vec<u8>, record: &RawRecord<'_>) -> Option<()> {
    let time = i64::try_from(record.received_at_ms).ok()?;
    let time = jiff::Timestamp::from_millisecond(time).ok()?;
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

// Writing to a `Vec` cannot fail. If a compressor fails nevertheless, the batch is rejected like
// an unreadable one, and its events stay recoverable as dead letters.

fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let out = Vec::with_capacity(plain.len() / 4);
    let mut encoder = GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL));
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

thread_local! {
    // Reused, because creating a compressor takes longer than compressing a small batch.
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

fn zstd(plain: &[u8]) -> Option<Vec<u8>> {
    ZSTD.with_borrow_mut(|kept| {
        let mut compressor = match kept.take() {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?,
        };
        let out = compressor.compress(plain).ok()?;
        *kept = Some(compressor);
        Some(out)
    })
}
