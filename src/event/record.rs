//! Reading a record back, and writing it as the backend gets it (SPEC 7).
//!
//! A record comes from a disk, or from a file that somebody carried here. So everything is checked
//! before anything is believed: a record that decodes makes valid JSON of the right shape, and can
//! never spoil the batch it travels in. The layout is told in `encode.rs`.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::encode::{JSON_OFFSET, RECEIVED_AT_MS_MAX, VERSION, flag, write_json_string};
use super::param::{PORTAL_MAX, REFERER_BYTES_MAX, USER_AGENT_BYTES_MAX};
use super::{Context, Event, Properties, Revenue};

/// An accepted event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// The event's UUIDv7.
    pub id: [u8; 16],
    /// When it came, in milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// The account it belongs to.
    pub portal: u64,
    /// The event as a JSON object, as [`write_event_json`](super::write_event_json) wrote it.
    pub event_json: &'a str,
    /// What is known of the request.
    pub context: Context<'a>,
}

/// What is wrong with a record. Says where, never what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordError {
    /// Written by another version of this program, or no record at all.
    UnknownVersion(u8),
    /// Flags that contradict each other or mean nothing.
    Flags,
    /// The bytes end before the record does.
    Truncated,
    /// The bytes go on after the record.
    TrailingBytes,
    /// The time is after the year 9999.
    ReceivedAt,
    /// No portal has this number.
    Portal,
    /// The JSON is not that of an event of this portal.
    Json,
    /// The user agent is too long or not UTF-8.
    UserAgent,
    /// The referer is too long or not UTF-8.
    Referer,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::UnknownVersion(version) => write!(f, "unknown record version {version}"),
            RecordError::Flags => f.write_str("contradictory flags"),
            RecordError::Truncated => f.write_str("record cut short"),
            RecordError::TrailingBytes => f.write_str("bytes after the record's end"),
            RecordError::ReceivedAt => f.write_str("time of receipt out of range"),
            RecordError::Portal => f.write_str("portal out of range"),
            RecordError::Json => f.write_str("not the JSON of an event"),
            RecordError::UserAgent => f.write_str("user agent too long or not UTF-8"),
            RecordError::Referer => f.write_str("referer too long or not UTF-8"),
        }
    }
}

impl std::error::Error for RecordError {}

impl<'a> Record<'a> {
    /// Reads a record and checks all of it.
    ///
    /// # Errors
    ///
    /// The first thing found wrong, for any bytes whatever.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let mut rest = Reader { rest: bytes };
        let [version, flags] = rest.array()?;
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let both = flag::IPV4 | flag::IPV6;
        if flags & flag::UNUSED != 0 || flags & both == both {
            return Err(RecordError::Flags);
        }
        let received_at_ms = u64::from_le_bytes(rest.array()?);
        if received_at_ms > RECEIVED_AT_MS_MAX {
            return Err(RecordError::ReceivedAt);
        }
        let id = rest.array()?;
        let portal = u64::from_le_bytes(rest.array()?);
        if !(1..=PORTAL_MAX).contains(&portal) {
            return Err(RecordError::Portal);
        }
        let json_bytes = u32::from_le_bytes(rest.array()?);
        debug_assert_eq!(bytes.len() - rest.rest.len(), JSON_OFFSET);
        let json = rest.take(usize::try_from(json_bytes).map_err(|_| RecordError::Truncated)?)?;
        let event_json = std::str::from_utf8(json).map_err(|_| RecordError::Json)?;
        let wire: Wire<'_> = serde_json::from_str(event_json).map_err(|_| RecordError::Json)?;
        if wire.portal != portal || !event_json.starts_with('{') || !event_json.ends_with('}') {
            return Err(RecordError::Json);
        }
        let context = rest.context(flags)?;
        if !rest.rest.is_empty() {
            return Err(RecordError::TrailingBytes);
        }
        Ok(Record {
            id,
            received_at_ms,
            portal,
            event_json,
            context,
        })
    }

    /// Appends the record as one JSON object (SPEC 7), without a line's end.
    ///
    /// `bot` is the deliverer's judgement of the user agent; it is not kept.
    pub fn write_json(&self, out: &mut Vec<u8>, bot: bool) {
        out.extend_from_slice(b"{\"id\":\"");
        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = uuid::Uuid::from_bytes(self.id)
            .hyphenated()
            .encode_lower(&mut id);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b"\",\"received_at\":\"");
        out.extend_from_slice(&rfc3339(self.received_at_ms));
        out.extend_from_slice(b"\",");
        // The event's object is opened here and closed below: its fields stand among the others.
        let fields = self
            .event_json
            .strip_prefix('{')
            .and_then(|json| json.strip_suffix('}'));
        out.extend_from_slice(fields.unwrap_or_default().as_bytes());
        out.extend_from_slice(b",\"context\":{");
        self.write_context(out, bot);
        out.extend_from_slice(b"}}");
    }

    fn write_context(&self, out: &mut Vec<u8>, bot: bool) {
        let start = out.len();
        let key = |out: &mut Vec<u8>, key: &str| {
            if out.len() > start {
                out.push(b',');
            }
            write_json_string(out, key);
            out.push(b':');
        };
        if let Some(ip) = self.context.ip {
            key(out, "ip");
            // Writing to a `Vec` cannot fail.
            let _ = write!(out, "\"{ip}\"");
        }
        let texts = [
            ("user_agent", &self.context.user_agent),
            ("referer", &self.context.referer),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                key(out, name);
                write_json_string(out, text);
            }
        }
        let Context {
            gpc, dnt, prefetch, ..
        } = self.context;
        for (name, is_set) in [
            ("gpc", gpc),
            ("dnt", dnt),
            ("prefetch", prefetch),
            ("bot", bot),
        ] {
            if is_set {
                key(out, name);
                out.extend_from_slice(b"true");
            }
        }
    }

    /// The event, as it was when it was accepted.
    ///
    /// # Errors
    ///
    /// [`RecordError::Json`] if the JSON is not that of an event; never for a decoded record.
    pub fn event(&self) -> Result<Event<'static>, RecordError> {
        let wire: Wire<'_> =
            serde_json::from_str(self.event_json).map_err(|_| RecordError::Json)?;
        let event = Event {
            portal: wire.portal,
            name: wire.event,
            email: wire.email.map(|text| text.0),
            revenue: wire.revenue.map(|amount| amount.0),
            external_id: wire.external_id.map(|text| text.0),
            properties: wire.properties.0,
        };
        Ok(event.into_owned())
    }
}

/// The shape of an event's JSON. Borrows what has no escapes in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    portal: u64,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    email: Option<Text<'a>>,
    #[serde(borrow)]
    external_id: Option<Text<'a>>,
    revenue: Option<Amount>,
    #[serde(borrow)]
    properties: Pairs<'a>,
}

// Serde borrows a `Cow` only where the field itself is one, hence the wrapper.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Amount(Revenue);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        // Exact: a decimal of at most 15 digits survives the way through a double, and a double's
        // shortest text is that decimal again.
        let number = f64::deserialize(deserializer)?;
        let amount = Revenue::parse(&number.to_string());
        amount
            .map(Amount)
            .ok_or_else(|| D::Error::custom("not an amount"))
    }
}

/// Properties in strictly rising order of their names.
struct Pairs<'a>(Properties<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs<'a>, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for PairsVisitor<'a> {
    type Value = Pairs<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("properties sorted by name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs<'a>, M::Error> {
        let mut pairs = Properties::new();
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            if pairs.last().is_some_and(|(last, _)| *last >= name) {
                return Err(M::Error::custom("properties out of order"));
            }
            pairs.push((name, value));
        }
        Ok(Pairs(pairs))
    }
}

/// What is left of a record.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (array, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .ok_or(RecordError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self, bytes_max: usize, fault: RecordError) -> Result<Cow<'a, str>, RecordError> {
        let bytes = usize::from(u16::from_le_bytes(self.array()?));
        if bytes > bytes_max {
            return Err(fault);
        }
        std::str::from_utf8(self.take(bytes)?)
            .map(Cow::Borrowed)
            .map_err(|_| fault)
    }

    fn context(&mut self, flags: u8) -> Result<Context<'a>, RecordError> {
        let has = |bit: u8| flags & bit != 0;
        let mut context = Context {
            gpc: has(flag::GPC),
            dnt: has(flag::DNT),
            prefetch: has(flag::PREFETCH),
            ..Context::default()
        };
        if has(flag::IPV4) {
            context.ip = Some(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)));
        } else if has(flag::IPV6) {
            context.ip = Some(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)));
        }
        if has(flag::USER_AGENT) {
            context.user_agent = Some(self.text(USER_AGENT_BYTES_MAX, RecordError::UserAgent)?);
        }
        if has(flag::REFERER) {
            context.referer = Some(self.text(REFERER_BYTES_MAX, RecordError::Referer)?);
        }
        Ok(context)
    }
}

/// `2026-11-23T02:45:13.123Z`, for a time before the year 10000.
fn rfc3339(unix_ms: u64) -> [u8; 24] {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |place: usize, digits: usize, mut number: u64| {
        for digit in text[place..place + digits].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, ms / 3_600_000);
    put(14, 2, ms / 60_000 % 60);
    put(17, 2, ms / 1000 % 60);
    put(20, 3, ms % 1000);
    text
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day comes last and the months before it have
/// lengths that repeat: 153 days in five months.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let leap_days_before = day_of_era / 1460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leap_days_before) / 365;
    let first_day = 365 * year_of_era + year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - first_day;
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (400 * era + year_of_era + next, month, day)
}
