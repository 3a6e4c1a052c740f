//! Turns the wire form of an event (SPEC 7) into a record with the same id and time of receipt, for
//! `pixelgate send`.
//!
//! The wire form comes from a file that other programs may have changed. So all of it is checked by
//! the rules for a query (SPEC 3), and no value is cut: a value that an edge could not have written
//! is an error. `bot` is read and dropped, because it follows from the user agent.

use std::borrow::Cow;
use std::net::IpAddr;

use http::uri::Authority;
use jiff::Timestamp;
use serde_json::{Map, Value};
use thiserror::Error;
use uuid::{Uuid, Variant};

use super::decode::Record;
use super::encode::encode_record;
use super::wire;
use crate::event::context::Context;
use crate::event::email;
use crate::event::event::Event;
use crate::event::hidden::is_hidden;
use crate::event::param::{
    ADDED_MEMBERS_MAX, ADDED_NAME_BYTES_MAX, ADDED_VALUE_BYTES_MAX, CONTEXT_HEADER_BYTES_MAX,
    CONTEXT_HEADER_NAME_BYTES_MAX, CONTEXT_HEADERS_MAX, HOST_BYTES_MAX, PORTAL_MAX,
    REFERER_BYTES_MAX, Reserved, USER_AGENT_BYTES_MAX, UTK_BYTES_MAX,
};
use crate::event::query::Text;
use crate::event::revenue::Revenue;
use crate::event::validate;

/// The members that the wire form of every event has.
const REQUIRED: [&str; 5] = ["id", "received_at", "portal", "event", "properties"];

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
    /// The text is longer than any event, so it was not read to its end.
    #[error("it is longer than an event can be")]
    TooLong,
    /// The text is not a JSON object of this shape, or its names are not in rising order or are
    /// repeated.
    #[error("it is not the JSON of an event")]
    Json,
    /// A member that every event has is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A member is of another JSON type.
    #[error("{0} has the wrong type")]
    Type(&'static str),
    /// There is a member that no event has, in the event or in its context.
    #[error("it has a member that is unknown")]
    Unknown,
    /// `id` is not a UUIDv7.
    #[error("id is no UUIDv7")]
    Id,
    /// `received_at` is not a time between 1970 and the year 9999.
    #[error("received_at is no time")]
    ReceivedAt,
    /// `portal` is zero or has more than 15 digits.
    #[error("portal is no portal's number")]
    Portal,
    /// `event` is empty, too long, or holds what a query's value cannot.
    #[error("event is no event name")]
    Name,
    /// `email` is not an address.
    #[error("email is no address")]
    Email,
    /// `email` is an address that an edge would have stored in another form.
    #[error("email is not in its canonical form")]
    EmailForm,
    /// `external_id` is empty, too long, or holds what a query's value cannot.
    #[error("external_id is no id")]
    ExternalId,
    /// `revenue` has too many digits.
    #[error("revenue is no amount")]
    Revenue,
    /// `properties` has a name that is not a property's, or is reserved.
    #[error("properties has a name that is no property's")]
    PropertyName,
    /// `properties` has a value that is empty or holds what a query's value cannot.
    #[error("properties has a value that is none")]
    PropertyValue,
    /// This member of `context` is not as an edge stores it: it is empty or too long, has
    /// characters that cannot be seen, or is not what its name says.
    #[error("context.{0} is not as an edge writes it")]
    Context(&'static str),
    /// The event has another value that no edge accepts.
    #[error("a value is out of range")]
    Value,
}

impl FromWire {
    /// Reads the wire form of one event.
    ///
    /// # Errors
    ///
    /// The first fault that is found. No input makes this panic.
    pub fn read(json: &[u8]) -> Result<FromWire, WireError> {
        let whole = wire::read_whole(json).map_err(|_| shape_fault(json))?;
        let id = Uuid::parse_str(&whole.id).ok();
        let id = id.filter(|id| id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122);
        let id = id.ok_or(WireError::Id)?.into_bytes();
        let received_at = whole.received_at.parse::<Timestamp>().ok();
        let received_at = received_at.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        let received_at_ms = received_at.ok_or(WireError::ReceivedAt)?;
        check_event(&whole.event)?;
        check_context(&whole.context)?;
        let mut record = Vec::new();
        encode_record(&mut record, &id, received_at_ms, &whole.event, &whole.context);
        // The reader of records enforces their limits, so the record is read once here.
        Record::decode(&record).map_err(|_| WireError::Value)?;
        let (portal, name) = (whole.event.portal, whole.event.name.into_owned());
        Ok(FromWire { id, received_at_ms, portal, name, record })
    }
}

/// Checks that each value is in the form that judging a query would give it.
fn check_event(event: &Event<'_>) -> Result<(), WireError> {
    let check = |is_right: bool, fault: WireError| is_right.then_some(()).ok_or(fault);
    check((1..=PORTAL_MAX).contains(&event.portal), WireError::Portal)?;
    check(is_value(&event.name, validate::is_event_name), WireError::Name)?;
    if let Some(address) = event.email.as_deref() {
        let canonical = email::canonical(Cow::Borrowed(address)).ok_or(WireError::Email)?;
        check(canonical == address, WireError::EmailForm)?;
    }
    let id = event.external_id.as_deref();
    let is_id = id.is_none_or(|id| is_value(id, validate::is_external_id));
    check(is_id, WireError::ExternalId)?;
    for (name, value) in &event.properties {
        let is_reserved = Reserved::of(name.as_bytes()).is_some();
        let is_name = !is_reserved && validate::is_property_name(name);
        check(is_name, WireError::PropertyName)?;
        check(is_value(value, validate::is_property_value), WireError::PropertyValue)?;
    }
    Ok(())
}

/// Whether a text can be the value of a parameter. Such values are trimmed, and an empty one counts
/// as absent.
fn is_value(value: &str, follows_rule: fn(&Text<'_>) -> bool) -> bool {
    let text = Text { text: Cow::Borrowed(value), plain: false };
    !value.is_empty() && value.trim() == value && follows_rule(&text)
}

/// Checks that each text of the context can be stored without being cut or cleaned.
fn check_context(context: &Context<'_>) -> Result<(), WireError> {
    let check = |is_right: bool, field| is_right.then_some(()).ok_or(WireError::Context(field));
    let fits = |text: &Option<Cow<'_, str>>, bytes_max: usize| {
        text.as_deref().is_none_or(|text| is_text(text, bytes_max))
    };
    check(fits(&context.user_agent, USER_AGENT_BYTES_MAX), "user_agent")?;
    check(fits(&context.referer, REFERER_BYTES_MAX), "referer")?;
    let further = context.further();
    check(fits(&further.host, HOST_BYTES_MAX), "host")?;
    check(further.host.as_deref().is_none_or(is_host), "host")?;
    check(fits(&further.utk, UTK_BYTES_MAX), "utk")?;
    let are_headers = further.headers.iter().all(|(name, value)| {
        name.len() <= CONTEXT_HEADER_NAME_BYTES_MAX
            && http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && is_text(value, CONTEXT_HEADER_BYTES_MAX)
    });
    check(are_headers && further.headers.len() <= CONTEXT_HEADERS_MAX, "headers")?;
    let are_added = further.added.iter().all(|(name, value)| {
        name.len() <= ADDED_NAME_BYTES_MAX
            && validate::is_property_name(name)
            && is_text(value, ADDED_VALUE_BYTES_MAX)
    });
    check(are_added && further.added.len() <= ADDED_MEMBERS_MAX, "added")
}

fn is_text(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.contains(is_hidden)
}

/// Whether a text is a host with an optional port (RFC 9110, section 7.2).
fn is_host(text: &str) -> bool {
    !text.contains('@') && text.parse::<Authority>().is_ok()
}

/// Why a text does not have the shape of an event. The message of the JSON parser cannot be used,
/// because it shows content.
fn shape_fault(json: &[u8]) -> WireError {
    let Ok(members) = serde_json::from_slice::<Map<String, Value>>(json) else {
        return WireError::Json;
    };
    if let Some(name) = REQUIRED.into_iter().find(|name| !members.contains_key(*name)) {
        return WireError::Missing(name);
    }
    let mut faults = members.iter().filter_map(|(name, value)| match name.as_str() {
        "id" => (!value.is_string()).then_some(WireError::Type("id")),
        "received_at" => (!value.is_string()).then_some(WireError::Type("received_at")),
        "portal" => (!value.is_u64()).then_some(WireError::Type("portal")),
        "event" => (!value.is_string()).then_some(WireError::Type("event")),
        "email" => (!is_string_or_null(value)).then_some(WireError::Type("email")),
        "external_id" => (!is_string_or_null(value)).then_some(WireError::Type("external_id")),
        "revenue" => revenue_fault(value),
        "properties" => (!is_map_of_strings(value)).then_some(WireError::Type("properties")),
        "context" => context_fault(value),
        _ => Some(WireError::Unknown),
    });
    faults.next().unwrap_or(WireError::Json)
}

fn revenue_fault(value: &Value) -> Option<WireError> {
    match value.as_f64() {
        None => (!value.is_null()).then_some(WireError::Type("revenue")),
        Some(number) => Revenue::parse(&number.to_string()).is_none().then_some(WireError::Revenue),
    }
}

fn context_fault(value: &Value) -> Option<WireError> {
    let Some(members) = value.as_object() else {
        return (!value.is_null()).then_some(WireError::Type("context"));
    };
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    members.iter().find_map(|(name, value)| {
        let (name, is_right) = match name.as_str() {
            "ip" => ("ip", value.is_null() || value.as_str().is_some_and(is_address)),
            "user_agent" => ("user_agent", is_string_or_null(value)),
            "referer" => ("referer", is_string_or_null(value)),
            "host" => ("host", is_string_or_null(value)),
            "utk" => ("utk", is_string_or_null(value)),
            "headers" => ("headers", value.is_null() || is_map_of_strings(value)),
            "added" => ("added", value.is_null() || is_map_of_strings(value)),
            "gpc" => ("gpc", value.is_boolean()),
            "dnt" => ("dnt", value.is_boolean()),
            "prefetch" => ("prefetch", value.is_boolean()),
            "bot" => ("bot", value.is_boolean()),
            _ => return Some(WireError::Unknown),
        };
        (!is_right).then_some(WireError::Context(name))
    })
}

fn is_string_or_null(value: &Value) -> bool {
    value.is_string() || value.is_null()
}

fn is_map_of_strings(value: &Value) -> bool {
    value.as_object().is_some_and(|members| members.values().all(Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::config::Rules;
    use crate::event::context::FurtherContext;
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
            further: FurtherContext {
                host: Some("track.company.com".into()),
                utk: Some("1f".into()),
                headers,
                added: vec![("page".into(), "\"/\"".into())],
            }
            .boxed(),
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
        check("\"id\":", "\"more\":", WireError::Missing("id"));
        check("\"portal\":62515", "\"portal\":\"62515\"", WireError::Type("portal"));
        check("\"portal\":62515", "\"portal\":62515,\"more\":1", WireError::Unknown);
        check("\"color\":\"red\"", "\"color\":7", WireError::Type("properties"));
        check("\"color\":\"red\"", "\"u\":\"red\"", WireError::Json);
        check("01970102-0304-7", "01970102-0304-4", WireError::Id);
        check("7506-8", "7506-c", WireError::Id);
        check("01970102-", "nonsense-", WireError::Id);
        check("2026-11-23T", "2026-13-23T", WireError::ReceivedAt);
        check("2026-11-23T", "1926-11-23T", WireError::ReceivedAt);
        check("\"portal\":62515", "\"portal\":0", WireError::Portal);
        check("\"portal\":62515", "\"portal\":1000000000000000", WireError::Portal);
        let long = "x".repeat(256);
        for name in ["", " a", "a\\u0007", &long] {
            let event = format!("\"event\":\"{name}\"");
            check("\"event\":\"buy\"", &event, WireError::Name);
            let id = format!("\"event\":\"buy\",\"external_id\":\"{name}\"");
            check("\"event\":\"buy\"", &id, WireError::ExternalId);
        }
        for (email, expect) in [("nobody", WireError::Email), ("A@b.de", WireError::EmailForm)] {
            let email = format!("\"event\":\"buy\",\"email\":\"{email}\"");
            check("\"event\":\"buy\"", &email, expect);
        }
        for (revenue, expect) in
            [("1e12", WireError::Revenue), ("\"1\"", WireError::Type("revenue"))]
        {
            let revenue = format!("\"event\":\"buy\",\"revenue\":{revenue}");
            check("\"event\":\"buy\"", &revenue, expect);
        }
        for name in ["Bad Name&x=1", "_a", "email", "id", "", "1a"] {
            let property = format!("\"properties\":{{\"{name}\":\"v\"}},\"context\":");
            let rest = good.split_once("\"properties\":").unwrap().1;
            let rest = rest.split_once("\"context\":").unwrap().0;
            let from = format!("\"properties\":{rest}\"context\":");
            check(&from, &property, WireError::PropertyName);
        }
        for value in ["", " red", "\\u0000"] {
            let property = format!("\"color\":\"{value}\"");
            check("\"color\":\"red\"", &property, WireError::PropertyValue);
        }
    }

    #[test]
    fn a_context_that_no_edge_wrote_is_refused_by_its_member() {
        let context = Context { gpc: true, ..Context::default() };
        let (_, good) = wire_form("_a=62515&_n=buy", &context);
        let long = format!("\"utk\":\"{}\"", "x".repeat(256));
        for (member, expect) in [
            ("\"more\":1", WireError::Unknown),
            ("\"ip\":\"x\"", WireError::Context("ip")),
            ("\"dnt\":\"x\"", WireError::Context("dnt")),
            (&*long, WireError::Context("utk")),
            ("\"user_agent\":\"a\\u001b\"", WireError::Context("user_agent")),
            ("\"referer\":\"a\\r\\n\"", WireError::Context("referer")),
            ("\"host\":\"\"", WireError::Context("host")),
            ("\"host\":\"a b\"", WireError::Context("host")),
            ("\"host\":\"me@a.test\"", WireError::Context("host")),
            ("\"headers\":{\"a b\":\"1\"}", WireError::Context("headers")),
            ("\"headers\":{\"a\":\"\\u0000\"}", WireError::Context("headers")),
            ("\"added\":{\"A\":\"1\"}", WireError::Context("added")),
        ] {
            let changed = good.replacen("\"context\":{", &format!("\"context\":{{{member},"), 1);
            assert_ne!(changed, good);
            assert_eq!(FromWire::read(changed.as_bytes()), Err(expect), "{member}");
        }
    }

    #[test]
    fn what_is_no_object_is_no_event() {
        for nonsense in ["", "null", "[1]", "\u{feff}{}"] {
            assert_eq!(FromWire::read(nonsense.as_bytes()), Err(WireError::Json));
        }
        assert_eq!(FromWire::read(b"{}"), Err(WireError::Missing("id")));
    }
}
