//! Makes a record of an event's wire form (SPEC 7), with the id and the time that it has.
//!
//! The wire form comes from a file that other programs may have changed, so all of it is checked,
//! and nothing is cut: what an edge could not have written is an error. `bot` is read and dropped,
//! because it follows from the user agent.

use std::borrow::Cow;

use jiff::Timestamp;
use thiserror::Error;
use uuid::{Uuid, Variant};

use super::decode::Record;
use super::encode::{Context, encode_record};
use super::wire;
use crate::event::param::{
    ADDED_MEMBERS_MAX, ADDED_VALUE_BYTES_MAX, CONTEXT_HEADER_BYTES_MAX, CONTEXT_HEADERS_MAX,
    HOST_BYTES_MAX, REFERER_BYTES_MAX, USER_AGENT_BYTES_MAX, UTK_BYTES_MAX,
};

/// An event that was read from its wire form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromWire {
    /// The event's UUIDv7.
    pub id: [u8; 16],
    /// The time of receipt, in milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// The account that the event belongs to.
    pub portal: u64,
    /// The event's name.
    pub name: String,
    /// The event as the spool would have stored it.
    pub record: Vec<u8>,
}

/// Why a text is not the wire form of an event. Names the field and never shows its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// It is not JSON of this shape.
    #[error("not the JSON of an event")]
    Json,
    /// `id` is not a UUIDv7.
    #[error("id is not a UUIDv7")]
    Id,
    /// `received_at` is not a time between 1970 and the year 9999.
    #[error("received_at is not a time")]
    ReceivedAt,
    /// A text of `context` is longer than an edge stores it.
    #[error("a text of context is too long")]
    Context,
    /// The event has a value that no edge accepts.
    #[error("a value is out of range")]
    Value,
}

impl FromWire {
    /// Reads the wire form of one event.
    ///
    /// # Errors
    ///
    /// The first fault found. Any bytes may be given; none make this panic.
    pub fn read(json: &[u8]) -> Result<FromWire, WireError> {
        let whole = wire::read_whole(json).map_err(|_| WireError::Json)?;
        let id = Uuid::parse_str(&whole.id).ok();
        let id = id.filter(|id| id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122);
        let id = id.ok_or(WireError::Id)?.into_bytes();
        let received_at = whole.received_at.parse::<Timestamp>().ok();
        let received_at = received_at.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        let received_at_ms = received_at.ok_or(WireError::ReceivedAt)?;
        if !fits(&whole.context) {
            return Err(WireError::Context);
        }
        let mut record = Vec::new();
        encode_record(&mut record, &id, received_at_ms, &whole.event, &whole.context);
        // The limits of a record are those of its reader.
        Record::decode(&record).map_err(|_| WireError::Value)?;
        let (portal, name) = (whole.event.portal, whole.event.name.into_owned());
        Ok(FromWire { id, received_at_ms, portal, name, record })
    }
}

/// Whether an edge would store every text as it is.
fn fits(context: &Context<'_>) -> bool {
    let within = |text: &Option<Cow<'_, str>>, bytes_max: usize| {
        text.as_ref().is_none_or(|text| text.len() <= bytes_max)
    };
    within(&context.user_agent, USER_AGENT_BYTES_MAX)
        && within(&context.referer, REFERER_BYTES_MAX)
        && within(&context.host, HOST_BYTES_MAX)
        && within(&context.utk, UTK_BYTES_MAX)
        && context.headers.len() <= CONTEXT_HEADERS_MAX
        && context.headers.iter().all(|(_, value)| value.len() <= CONTEXT_HEADER_BYTES_MAX)
        && context.added.len() <= ADDED_MEMBERS_MAX
        && context.added.iter().all(|(_, value)| value.len() <= ADDED_VALUE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::config::Rules;
    use crate::event::parse::parse;

    const ID: [u8; 16] = *b"\x01\x97\x01\x02\x03\x04\x75\x06\x87\x08\x09\x0a\x0b\x0c\x0d\x0e";

    fn wire_form(query: &str, context: &Context<'_>) -> (Vec<u8>, String) {
        let event = parse(query.as_bytes(), &Rules::default()).unwrap().event;
        let mut record = Vec::new();
        encode_record(&mut record, &ID, 1_795_401_913_123, &event, context);
        let mut json = Vec::new();
        Record::decode(&record).unwrap().write_json(&mut json, true);
        (record, String::from_utf8(json).unwrap())
    }

    #[test]
    fn the_wire_form_gives_the_record_that_it_was_made_of() {
        let all = "_a=62515&_n=000000001625&email=p@company.com&id=ext%22&_m=-20.50&z=1&b=%0A";
        let headers = vec![("CF-IPCountry".into(), "DE".into()), ("X".into(), "\\".into())];
        let full = Context {
            ip: Some("2001:db8::1".parse().unwrap()),
            user_agent: Some("curl \"8\" \u{e9}".into()),
            referer: Some("https://company.com/".into()),
            gpc: true,
            dnt: true,
            prefetch: true,
            host: Some("track.company.com".into()),
            utk: Some("1f".into()),
            headers,
            added: vec![("page".into(), "\"/\"".into())],
        };
        for query in [all, "_a=1&_n=a"] {
            for context in [&full, &Context::default()] {
                let (record, json) = wire_form(query, context);
                let read = FromWire::read(json.as_bytes()).unwrap();
                assert_eq!((read.id, read.record), (ID, record), "{json}");
            }
        }
        let (_, json) = wire_form(all, &full);
        let read = FromWire::read(json.as_bytes()).unwrap();
        assert_eq!((read.portal, &*read.name), (62515, "000000001625"));
        assert_eq!(read.received_at_ms, 1_795_401_913_123);
    }

    #[test]
    fn what_no_edge_wrote_is_refused_by_its_fault() {
        let (_, good) = wire_form("_a=62515&_n=buy&color=red&size=1", &Context::default());
        assert!(FromWire::read(good.as_bytes()).is_ok());
        let check = |from: &str, to: &str, expect: WireError| {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{from}");
            assert_eq!(FromWire::read(changed.as_bytes()), Err(expect), "{to}");
        };
        check("}", "", WireError::Json);
        check("\"id\"", "\"more\"", WireError::Json);
        check("\"portal\":62515", "\"portal\":\"62515\"", WireError::Json);
        check("\"portal\":62515", "\"portal\":62515,\"more\":1", WireError::Json);
        check("\"color\":\"red\"", "\"u\":\"red\"", WireError::Json);
        check("\"context\":{", "\"context\":{\"more\":1,", WireError::Json);
        check("\"context\":{", "\"context\":{\"ip\":\"x\",", WireError::Json);
        check("01970102-0304-7", "01970102-0304-4", WireError::Id);
        check("7506-8", "7506-c", WireError::Id);
        check("01970102-", "nonsense-", WireError::Id);
        check("2026-11-23T", "2026-13-23T", WireError::ReceivedAt);
        check("2026-11-23T", "1926-11-23T", WireError::ReceivedAt);
        check("\"portal\":62515", "\"portal\":0", WireError::Value);
        let long = format!("\"context\":{{\"utk\":\"{}\",", "x".repeat(256));
        check("\"context\":{", &long, WireError::Context);
        for nonsense in ["", "{}", "null", "[1]", "\u{feff}{}"] {
            assert_eq!(FromWire::read(nonsense.as_bytes()), Err(WireError::Json));
        }
    }
}
