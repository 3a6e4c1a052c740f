//! A batch: events that are sent together, under one idempotency key.
//!
//! A batch never changes. Its body is encoded and compressed once and stored, so that every attempt
//! sends the same bytes under the same key. A batch that is split becomes two new batches with new
//! keys, and one whose encoding is changed by a reload gets a new key.

use crate::clock::{Clock, SystemClock};
use crate::config_error::ConfigError;
use crate::event::{Record, RecordError};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use bytesize::ByteSize;
use parking_lot::Mutex;
use serde::Deserialize;
use uuid::Uuid;

/// Maximum of `events_max`.
pub const BATCH_EVENTS_MAX: usize = 100_000;
/// Maximum of `bytes_max`: several batches are in memory at once.
pub const BATCH_BYTES_MAX: u64 = 64 << 20;
/// Maximum of `linger_ms`.
pub const BATCH_LINGER_MS_MAX: u64 = 600_000;

/// The `[batch]` section (SPEC 7): when a batch is closed.
///
/// ```
/// use pixelgate::config::Batch;
///
/// let mut batch = Batch::default();
/// batch.events_max = 1000;
/// assert!(batch.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct BatchConfig {
    /// Maximum number of events in a batch, 1 to 100,000. Default: 500.
    pub events_max: usize,
    /// Maximum number of bytes in a batch before compression: the spool records plus
    /// [`Batch::EVENT_OVERHEAD_BYTES`] each; at most 64 MiB. A larger event is sent alone. Default:
    /// 1 MiB.
    pub bytes_max: ByteSize,
    /// How long the first event of a batch waits for further events, in milliseconds, at most
    /// 600,000. Default: 1000.
    pub linger_ms: u64,
}

/// The `[upstream.batch]` table: the keys of `[batch]` that one upstream overrides.
///
/// ```
/// use pixelgate::config::{Batch, BatchOverride};
///
/// let mut own = BatchOverride::default();
/// own.events_max = Some(10);
/// let batch = own.over(&Batch::default());
/// assert_eq!((batch.events_max, batch.linger_ms), (10, 1000));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct BatchOverride {
    /// Overrides [`BatchConfig::events_max`].
    pub events_max: Option<usize>,
    /// Overrides [`BatchConfig::bytes_max`].
    pub bytes_max: Option<ByteSize>,
    /// Overrides [`BatchConfig::linger_ms`].
    pub linger_ms: Option<u64>,
}

/// Events that one upstream receives together.
///
/// ```
/// use pixelgate::Batch;
///
/// /// The portals that a batch has events of.
/// fn portals(batch: &Batch) -> Vec<u64> {
///     batch.events().filter_map(Result::ok).map(|event| event.portal).collect()
/// }
/// # assert!(portals(&Batch::new(Vec::new())).is_empty());
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    id: Uuid,
    records: Arc<[Bytes]>,
    body: Arc<OnceLock<Option<Body>>>,
    encoded: Arc<Mutex<Option<Encoded>>>,
}

/// The body of a batch in one encoding, and the key under which it is sent.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    /// A number for the encoding, which the upstream's kind chooses.
    encoding: u8,
    /// The idempotency key: other bytes never come under the same one.
    pub id: Uuid,
    /// `None` if a record cannot be read.
    pub body: Option<Body>,
}

/// An encoded batch, ready to be sent any number of times.
///
/// ```
/// use pixelgate::Batch;
/// use pixelgate::custom::Body;
///
/// /// The records, joined once for all attempts.
/// fn body(batch: &Batch) -> Option<&Body> {
///     batch.body_or_encode(|records| {
///         let bytes = records.concat();
///         Some(Body { plain_bytes: bytes.len(), bytes: bytes.into() })
///     })
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Body {
    /// The bytes of the request body, compressed.
    pub bytes: Bytes,
    /// The size of the body before compression, in bytes.
    pub plain_bytes: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { events_max: 500, bytes_max: ByteSize::mib(1), linger_ms: 1000 }
    }
}

impl BatchConfig {
    /// Checks every limit. The error names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let within = |key, value: u64, min: u64, max: u64| {
            let reason = || format!("must be {min} to {max}");
            if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::new(key, reason())) }
        };
        within("batch.events_max", self.events_max as u64, 1, BATCH_EVENTS_MAX as u64)?;
        within("batch.bytes_max", self.bytes_max.as_u64(), 1, BATCH_BYTES_MAX)?;
        within("batch.linger_ms", self.linger_ms, 0, BATCH_LINGER_MS_MAX)
    }
}

impl BatchOverride {
    /// The limits of an upstream: those that it overrides, and those of `base` for the rest.
    pub fn over(&self, base: &BatchConfig) -> BatchConfig {
        BatchConfig {
            events_max: self.events_max.unwrap_or(base.events_max),
            bytes_max: self.bytes_max.unwrap_or(base.bytes_max),
            linger_ms: self.linger_ms.unwrap_or(base.linger_ms),
        }
    }
}

/// A new UUIDv7 with the present time.
fn new_id() -> Uuid {
    let now_ms = SystemClock.unix_ms();
    uuid::Builder::from_unix_timestamp_millis(now_ms, &rand::random()).into_uuid()
}

impl Batch {
    /// The estimated number of bytes by which the wire form of an event is longer than its spool
    /// record: keys, braces, id and time.
    pub const EVENT_OVERHEAD_BYTES: usize = 192;

    /// A new batch with a new key. Each record is one encoded `event::Record`.
    pub fn new(records: Vec<Bytes>) -> Batch {
        let (body, encoded) = (Arc::default(), Arc::default());
        Batch { id: new_id(), records: records.into(), body, encoded }
    }

    /// The idempotency key of this batch, the same for every attempt.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no event in it. A batch that an upstream gets has one at least.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The spool records of the events, in order.
    pub fn records(&self) -> &[Bytes] {
        &self.records
    }

    /// The events, in order. A damaged record gives an error in its place.
    pub fn events(&self) -> impl Iterator<Item = Result<Record<'_>, RecordError>> {
        self.records.iter().map(|record| Record::decode_sound(record))
    }

    /// Whether the body is encoded already, so that `body_or_encode` returns at once.
    pub fn is_encoded(&self) -> bool {
        self.body.get().is_some()
    }

    /// Whether the body is encoded in this way already, so that `encoded` returns at once.
    pub(super) fn is_encoded_as(&self, encoding: u8) -> bool {
        self.encoded.lock().as_ref().is_some_and(|encoded| encoded.encoding == encoding)
    }

    /// The body in this encoding, which `encode` makes at the first call, and again if the last
    /// call asked for another encoding; then the key is a new one.
    pub(super) fn encoded(
        &self,
        encoding: u8,
        encode: impl FnOnce(&[Bytes]) -> Option<Body>,
    ) -> Encoded {
        let mut last = self.encoded.lock();
        match &*last {
            Some(encoded) if encoded.encoding == encoding => encoded.clone(),
            other => {
                let id = if other.is_none() { self.id } else { new_id() };
                let encoded = Encoded { encoding, id, body: encode(&self.records) };
                last.insert(encoded).clone()
            }
        }
    }

    /// The body, which `encode` makes at the first call. `None` if a record cannot be read, which a
    /// retry does not change.
    pub fn body_or_encode(&self, encode: impl FnOnce(&[Bytes]) -> Option<Body>) -> Option<&Body> {
        self.body.get_or_init(|| encode(&self.records)).as_ref()
    }
}
