//! Translates the fast judge's verdicts into the naive judge's types, and checks the laws that
//! every event obeys.

use bytesize::ByteSize;
use pixelgate::internals::event::{self, Config, Context, Event, Record, Rules};

use super::Verdict;

/// The fast judge's verdict on a query, with the default configuration.
pub fn fast(query: &[u8]) -> Verdict {
    match event::parse(query, &Rules::default()) {
        Ok(judged) => {
            let ignored = judged.ignored.iter();
            let ignored = ignored.map(|(name, why)| (name.to_string(), why.as_str()));
            Ok((plain(&judged.event), ignored.collect()))
        }
        Err(reject) => Err((reject.reason.as_str(), reject.param)),
    }
}

fn plain(event: &Event<'_>) -> super::Event {
    let properties = event.properties.iter().map(|(n, v)| (n.to_string(), v.to_string()));
    super::Event {
        portal: event.portal,
        event: event.name.to_string(),
        email: event.email.as_ref().map(|email| email.to_string()),
        revenue: event.revenue.map(|revenue| revenue.to_string()),
        external_id: event.external_id.as_ref().map(|id| id.to_string()),
        properties: properties.collect(),
    }
}

/// The default rules with room for a canonical query, which percent-encoding makes longer.
pub fn roomy() -> Rules {
    let config = Config { query_bytes_max: ByteSize::kib(64), ..Config::default() };
    Rules::new(&config).expect("64 KiB may be configured")
}

/// An event is the same after being written as a query, and as a record.
pub fn check_forms(query: &[u8], context: &Context<'_>) {
    let judged = event::parse(query, &Rules::default()).expect("an accepted query");
    let canonical = event::canonical_query(&judged.event);
    let again = event::parse(canonical.as_bytes(), &roomy()).expect("a canonical query passes");
    assert!(again.event == judged.event, "not idempotent");
    assert!(again.ignored.is_empty(), "a canonical query holds nothing to ignore");
    assert_eq!(event::canonical_query(&again.event), canonical);

    let mut bytes = Vec::new();
    event::encode_record(&mut bytes, &[7; 16], 1_764_000_000_123, &judged.event, context);
    let record = Record::decode(&bytes).expect("what was encoded decodes");
    assert_eq!(record.portal, judged.event.portal);
    assert!(record.event().expect("and holds an event") == judged.event, "another in the record");
    let mut encoded_again = Vec::new();
    let (id, ms, context) = (record.id, record.received_at_ms, &record.context);
    event::encode_record(&mut encoded_again, &id, ms, &judged.event, context);
    assert_eq!(encoded_again, bytes, "a record is made of what it says");
}
