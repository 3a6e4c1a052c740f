//! A dead letter: one line of the file of its upstream.
//!
//! ```json
//! {"time":"2026-11-23T02:45:13.123Z","upstream":"collector","reason":"rejected",
//!  "detail":"answered 400","status":400,"event":{"id":"0197…","…":"…"},"record":"base64"}
//! ```
//!
//! `event` is the wire form of SPEC 7. `record` holds the spool's bytes, from which a replay sends
//! the event again under the same id.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::clock::timestamp;
use crate::event::Record;
use crate::upstream;
use crate::upstream::Failure;

/// Why an event became a dead letter.
///
/// ```
/// use pixelgate::tools::dead_letters::Reason;
///
/// assert_eq!(Reason::TooLarge.as_str(), "too_large");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The upstream refuses the event, even in a batch of one (400, 422).
    Rejected,
    /// The event is too large for the upstream, even in a batch of one (413).
    TooLarge,
    /// The event can never be delivered, or must not be sent again, as the upstream's kind knows.
    Undeliverable,
    /// This version cannot read the spool's record.
    Unreadable,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 4] =
        [Reason::Rejected, Reason::TooLarge, Reason::Undeliverable, Reason::Unreadable];

    /// The word in a letter, as a filter takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Rejected => "rejected",
            Reason::TooLarge => "too_large",
            Reason::Undeliverable => "undeliverable",
            Reason::Unreadable => "unreadable",
        }
    }
}

/// One dead letter, as it stands in the file.
///
/// ```
/// use pixelgate::custom::Failure;
/// use pixelgate::tools::dead_letters::{Letter, Reason};
///
/// let record = b"the spool's record";
/// let letter = Letter::new("collector", 0, Reason::Rejected, &Failure::answered(422), record);
/// assert_eq!(letter.time, "1970-01-01T00:00:00.000Z");
/// assert_eq!(letter.record().as_deref(), Some(&record[..]));
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Letter {
    /// When the letter was written (RFC 3339, in UTC).
    pub time: String,
    /// The name of the upstream.
    pub upstream: String,
    /// Why the event became a dead letter.
    pub reason: Reason,
    /// The failure in words. Holds no data of the event or of the upstream's answer.
    pub detail: String,
    /// The HTTP status of the answer, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The event in its wire form (SPEC 7), where the record can be read. Holds personal data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<RawValue>>,
    /// The spool's record in base64.
    pub record: String,
}

impl Letter {
    /// A letter about `record`, written at `time_ms` milliseconds since 1970.
    pub fn new(
        upstream: &str,
        time_ms: u64,
        reason: Reason,
        failure: &Failure,
        record: &[u8],
    ) -> Letter {
        Letter {
            time: format!("{:.3}", timestamp(time_ms)),
            upstream: upstream.to_owned(),
            reason,
            detail: failure.what.clone().into_owned(),
            status: failure.status,
            event: wire_form(record),
            record: STANDARD.encode(record),
        }
    }

    /// The event's id, where the record can be read.
    pub fn id(&self) -> Option<Uuid> {
        let record = self.record()?;
        Record::decode(&record).ok().map(|r| Uuid::from_bytes(r.id))
    }

    /// The spool's record; `None` where the line was damaged.
    pub fn record(&self) -> Option<Bytes> {
        STANDARD.decode(&self.record).ok().map(Bytes::from)
    }
}

fn wire_form(record: &[u8]) -> Option<Box<RawValue>> {
    let record = Record::decode(record).ok()?;
    let bot = upstream::is_bot(record.context.user_agent.as_deref());
    let mut json = Vec::new();
    record.write_json(&mut json, bot);
    RawValue::from_string(String::from_utf8(json).ok()?).ok()
}
