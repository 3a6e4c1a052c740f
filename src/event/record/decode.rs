//! Reads a stored record and checks all of it.
//!
//! A record comes from a disk, or from a file that was copied from another machine. A record that
//! passes the check gives valid JSON of the right shape, so it cannot corrupt the batch that
//! contains it. `encode.rs` specifies the layout, and `raw.rs` finds the fields.

use std::borrow::Cow;

use super::encode::write_members;
use super::error::RecordError;
use super::raw::{RawRecord, WireWriter};
use super::wire;
use crate::event::context::Context;
use crate::event::event::Event;

/// An accepted event as stored.
///
/// ```
/// use pixelgate::Batch;
/// use pixelgate::custom::is_bot;
///
/// /// The events of a batch as lines of JSON.
/// fn lines(batch: &Batch) -> Result<Vec<u8>, pixelgate::errors::RecordError> {
///     let mut out = Vec::new();
///     for record in batch.events() {
///         let record = record?;
///         record.write_json(&mut out, is_bot(record.context.user_agent.as_deref()));
///         out.push(b'\n');
///     }
///     Ok(out)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Record<'a> {
    /// The event's UUIDv7.
    pub id: [u8; 16],
    /// The time of receipt, in milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// The account that the event belongs to.
    pub portal: u64,
    /// The event as a JSON object, as `write_event_json` wrote it.
    pub event_json: &'a str,
    /// The context of the request.
    pub context: Context<'a>,
}

impl<'a> Record<'a> {
    /// Reads a record and checks all of it.
    ///
    /// # Errors
    ///
    /// The first fault that is found. No input makes this panic.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let record = Record::decode_sound(bytes)?;
        let event = wire::read(record.event_json).map_err(|_| RecordError::Json)?;
        if event.portal != record.portal {
            return Err(RecordError::Json);
        }
        Ok(record)
    }

    /// Does what [`Record::decode`] does without parsing the JSON of the event. Use it for a record
    /// whose checksum the spool has just verified: parsing the JSON again would cost more than all
    /// else in its delivery.
    ///
    /// # Errors
    ///
    /// Any [`RecordError`]. JSON in braces that is not the JSON of an event is not detected.
    pub fn decode_sound(bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let raw = RawRecord::read(bytes)?;
        let further = wire::read_members(raw.members).map_err(|_| RecordError::Members)?;
        Ok(Record {
            id: raw.id,
            received_at_ms: raw.received_at_ms,
            portal: raw.portal,
            event_json: text(raw.event_json, RecordError::Json)?,
            context: Context {
                ip: raw.ip,
                user_agent: optional_text(raw.user_agent, RecordError::UserAgent)?,
                referer: optional_text(raw.referer, RecordError::Referer)?,
                gpc: raw.gpc,
                dnt: raw.dnt,
                prefetch: raw.prefetch,
                further,
            },
        })
    }

    /// Appends the record as one JSON object (SPEC 7), without a newline.
    ///
    /// `bot` is not stored, because it follows from the user agent: see
    /// [`custom::is_bot`](crate::custom::is_bot).
    pub fn write_json(&self, out: &mut Vec<u8>, bot: bool) {
        let mut members = Vec::new();
        write_members(&mut members, self.context.further());
        let raw = RawRecord {
            id: self.id,
            received_at_ms: self.received_at_ms,
            portal: self.portal,
            event_json: self.event_json.as_bytes(),
            ip: self.context.ip,
            user_agent: self.context.user_agent.as_deref().map(str::as_bytes),
            referer: self.context.referer.as_deref().map(str::as_bytes),
            gpc: self.context.gpc,
            dnt: self.context.dnt,
            prefetch: self.context.prefetch,
            members: &members,
        };
        WireWriter::default().write(out, &raw, bot);
    }

    /// The accepted event.
    ///
    /// # Errors
    ///
    /// [`RecordError::Json`] if the JSON is not that of an event. [`Record::decode`] has ruled that
    /// out.
    pub fn event(&self) -> Result<Event<'static>, RecordError> {
        let event = wire::read(self.event_json).map_err(|_| RecordError::Json)?;
        Ok(event.into_owned())
    }
}

fn text(bytes: &[u8], fault: RecordError) -> Result<&str, RecordError> {
    std::str::from_utf8(bytes).map_err(|_| fault)
}

fn optional_text(
    bytes: Option<&[u8]>,
    fault: RecordError,
) -> Result<Option<Cow<'_, str>>, RecordError> {
    bytes.map(|bytes| text(bytes, fault).map(Cow::Borrowed)).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::encode::encode_record;
    use super::*;
    use crate::event::config::Rules;
    use crate::event::context::FurtherContext;
    use crate::event::parse::parse;

    const QUERY: &[u8] = b"_a=62515&_n=000000001625&email=Person@company.com&id=ext-77&_m=20.50\
        &favorite_color=orange&note=%22a%22%0A%E2%80%A8b";

    fn encoded(context: &Context<'_>) -> Vec<u8> {
        let judged = parse(QUERY, &Rules::default()).expect("a good query");
        let mut bytes = Vec::new();
        let id = *b"\x01\x97\x01\x02\x03\x04\x75\x06\x87\x08\x09\x0a\x0b\x0c\x0d\x0e";
        encode_record(&mut bytes, &id, 1_795_401_913_123, &judged.event, context);
        bytes
    }

    fn json(bytes: &[u8], bot: bool) -> String {
        let mut out = Vec::new();
        Record::decode(bytes).expect("a good record").write_json(&mut out, bot);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn the_wire_form_is_that_of_the_contract() {
        let context = Context {
            ip: Some("203.0.113.7".parse().expect("an address")),
            user_agent: Some("curl/8 \"x\"".into()),
            referer: Some("https://company.com/".into()),
            gpc: true,
            dnt: true,
            prefetch: true,
            further: FurtherContext {
                host: Some("track.company.com:8443".into()),
                added: Vec::new(),
                utk: Some("1f\"".into()),
                headers: vec![("CF-IPCountry".into(), "DE".into()), ("X-Y".into(), "\\".into())],
            }
            .boxed(),
        };
        let event = r#"{"id":"01970102-0304-7506-8708-090a0b0c0d0e","received_at":"#.to_owned()
            + r#""2026-11-23T02:45:13.123Z","portal":62515,"event":"000000001625","#
            + r#""email":"person@company.com","external_id":"ext-77","revenue":20.5,"#
            + r#""properties":{"favorite_color":"orange","note":"\"a\"\n"#
            + "\u{2028}b\"},";
        let full = r#""context":{"ip":"203.0.113.7","user_agent":"curl/8 \"x\"","#.to_owned()
            + r#""referer":"https://company.com/","host":"track.company.com:8443","utk":"1f\"","#
            + r#""headers":{"CF-IPCountry":"DE","X-Y":"\\"},"#
            + r#""gpc":true,"dnt":true,"prefetch":true,"#
            + r#""bot":true}}"#;
        assert_eq!(json(&encoded(&context), true), event.clone() + &full);
        assert_eq!(json(&encoded(&Context::default()), false), event.clone() + r#""context":{}}"#);
        let bot = event + r#""context":{"bot":true}}"#;
        assert_eq!(json(&encoded(&Context::default()), true), bot);
    }

    #[test]
    fn the_layout_is_that_of_the_table() {
        let ip = Some("2001:db8::1".parse().expect("an address"));
        let context = Context { ip, referer: Some("r".into()), dnt: true, ..Context::default() };
        let bytes = encoded(&context);
        assert_eq!(bytes[..2], [1, 0b0101_0010]);
        assert_eq!(bytes[2..10], 1_795_401_913_123u64.to_le_bytes());
        assert_eq!(bytes[10..12], [0x01, 0x97]);
        assert_eq!(bytes[26..34], 62515u64.to_le_bytes());
        let json_bytes = u32::from_le_bytes([bytes[34], bytes[35], bytes[36], bytes[37]]) as usize;
        let after = 38 + json_bytes;
        assert_eq!(bytes[38], b'{');
        assert_eq!(bytes[after - 2..after], *b"}}");
        assert_eq!(bytes[after..after + 3], [0x20, 0x01, 0x0d]);
        assert_eq!(bytes[after + 16..], [1, 0, b'r']);
    }

    #[test]
    fn long_headers_are_cut_between_characters() {
        for (unit, user_agent_bytes, referer_bytes) in [("a", 1024, 2048), ("\u{20AC}", 1023, 2046)]
        {
            let long: Cow<'_, str> = unit.repeat(3000).into();
            let context = Context {
                user_agent: Some(long.clone()),
                referer: Some(long),
                ..Context::default()
            };
            let bytes = encoded(&context);
            let context = Record::decode(&bytes).expect("a good record").context;
            assert_eq!(context.user_agent.map(|text| text.len()), Some(user_agent_bytes));
            assert_eq!(context.referer.map(|text| text.len()), Some(referer_bytes));
        }
    }

    #[test]
    fn each_fault_of_a_record_is_found() {
        let good = encoded(&Context { user_agent: Some("u".into()), ..Context::default() });
        let after_json = good.len() - 3;
        let fault = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Record::decode(&bytes).expect_err("a fault")
        };
        assert_eq!(fault(&|b| b[0] = 0), RecordError::UnknownVersion(0));
        assert_eq!(fault(&|b| b[0] = 2), RecordError::Truncated, "without its members");
        assert_eq!(fault(&|b| b[0] = 4), RecordError::UnknownVersion(4));
        assert_eq!(fault(&|b| b[1] |= 0x80), RecordError::Flags);
        assert_eq!(fault(&|b| b[1] |= 0x18), RecordError::Flags);
        assert_eq!(fault(&|b| b[9] = 1), RecordError::ReceivedAt);
        assert_eq!(fault(&|b| b[26..34].fill(0)), RecordError::Portal);
        assert_eq!(fault(&|b| b[33] = 1), RecordError::Portal);
        assert_eq!(fault(&|b| b[26] ^= 1), RecordError::Json);
        assert_eq!(fault(&|b| b[34] += 1), RecordError::Json);
        assert_eq!(fault(&|b| b[38] = b' '), RecordError::Json);
        assert_eq!(fault(&|b| b[40] = 0xFF), RecordError::Json);
        assert_eq!(fault(&|b| b[after_json + 1] = 5), RecordError::UserAgent);
        assert_eq!(fault(&|b| b[after_json] = 2), RecordError::Truncated);
        assert_eq!(fault(&|b| b[after_json + 2] = 0xFF), RecordError::UserAgent);
        assert_eq!(fault(&|b| b.push(0)), RecordError::TrailingBytes);
        for length in 0..good.len() {
            assert_eq!(Record::decode(&good[..length]), Err(RecordError::Truncated), "{length}");
        }
    }

    #[test]
    fn further_members_are_read_back_and_their_faults_are_found() {
        let check = |context: &Context<'_>, version: u8| {
            let bytes = encoded(context);
            assert_eq!(bytes[0], version);
            assert_eq!(Record::decode(&bytes).map(|record| record.context).as_ref(), Ok(context));
            for length in 0..bytes.len() {
                assert_eq!(Record::decode(&bytes[..length]), Err(RecordError::Truncated));
            }
        };
        let with = |further: FurtherContext<'static>| Context {
            further: further.boxed(),
            ..Context::default()
        };
        let none = FurtherContext::default;
        let utk = || FurtherContext { utk: Some("a\u{20ac}\n".into()), ..none() };
        let headers = vec![("A".into(), "".into()), ("B".into(), "x".into())];
        check(&Context::default(), 1);
        check(&with(utk()), 2);
        check(&with(FurtherContext { host: Some("h".into()), ..none() }), 3);
        check(&with(FurtherContext { headers: headers.clone(), ..none() }), 2);
        let all = with(FurtherContext { headers, ..utk() });
        check(&Context { referer: Some("r".into()), gpc: true, ..all }, 2);
        let added = vec![("a".into(), "\"".into()), ("b".into(), "x".into())];
        check(&with(FurtherContext { added: added.clone(), ..none() }), 3);
        check(&with(FurtherContext { added, ..utk() }), 3);

        let with = |members: &str| {
            let mut bytes = encoded(&Context::default());
            bytes[0] = 2;
            bytes.extend_from_slice(&(members.len() as u32).to_le_bytes());
            bytes.extend_from_slice(members.as_bytes());
            Record::decode(&bytes).map(|_| ())
        };
        assert_eq!(with(r#""utk":"x","#), Ok(()));
        let long = format!(r#""utk":"{}","#, "x".repeat(128 << 10));
        for members in [
            "",
            ",",
            r#""utk":"x""#,
            r#""utk":7,"#,
            r#""utk":"x","utk":"y","#,
            r#""host":"x","host":"y","#,
            r#""more":"x","#,
            r#""headers":{"B":"1","A":"2"},"#,
            r#""headers":{}},"#,
            r#""added":{"b":"1","a":"2"},"#,
            &long,
        ] {
            assert_eq!(with(members), Err(RecordError::Members), "{members:.40}");
        }
    }

    #[test]
    fn json_of_another_shape_is_refused() {
        let with = |json: &str| {
            let mut bytes = encoded(&Context::default())[..34].to_vec();
            bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
            bytes.extend_from_slice(json.as_bytes());
            Record::decode(&bytes).map(|_| ())
        };
        assert_eq!(with(r#"{"portal":62515,"event":"x","properties":{}}"#), Ok(()));
        for json in [
            "",
            "{}",
            "null",
            r#"{"portal":62515,"event":"x"}"#,
            r#"{"portal":62516,"event":"x","properties":{}}"#,
            r#"{"portal":62515,"event":"x","properties":{},"more":1}"#,
            r#"{"portal":62515,"event":"x","event":"y","properties":{}}"#,
            r#"{"portal":62515,"event":7,"properties":{}}"#,
            r#"{"portal":62515,"event":"x","revenue":1e12,"properties":{}}"#,
            r#"{"portal":62515,"event":"x","properties":{"b":"1","a":"2"}}"#,
            r#"{"portal":62515,"event":"x","properties":{"a":"1","a":"2"}}"#,
            r#"{"portal":62515,"event":"x","properties":{"a":1}}"#,
            r#"{"portal":62515,"event":"x","properties":{}} "#,
            r#" {"portal":62515,"event":"x","properties":{}}"#,
            r#"{"portal":62515,"event":"x","properties":{}}{}"#,
        ] {
            assert_eq!(with(json), Err(RecordError::Json), "{json}");
        }
    }
}
