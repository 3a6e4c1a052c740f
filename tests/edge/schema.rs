//! Validates delivered events against `docs/event.schema.json` with an independent validator.

use crate::backend::Backend;
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command};
use jsonschema::Validator;
use pixelgate::internals::event::{self, Rules, is_hidden};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../docs/event.schema.json");
const WIRE: &str = include_str!("../../docs/wire.md");

/// Queries and header lines of events of every shape.
const EVENTS: &[(&str, &str)] = &[
    ("_a=62515&_n=a", ""),
    ("_a=0062515&_n=000000001625&email=Person%2BX@B%C3%BCcher.example&_m=%2B20.50&id=ext-77", ""),
    ("_a=62515&_n=b&_m=-999999999999.125&plan=pro&plan=free&note=a%0D%0A%09b", "DNT: 1\r\n"),
    ("_a=62515&_n=%F0%9F%9B%92%20%22q%22&z9_=%5C&a=1&t=1&_x=2&Bad-Name=3", "Sec-GPC: 1\r\n"),
    ("_a=62515&_n=c", "User-Agent: Googlebot/2.1\r\nReferer: https://a.test/?q=1\r\n"),
    ("_a=62515&_n=d&_m=1e-6", "Sec-Purpose: prefetch\r\nUser-Agent: ü\r\n"),
    ("_a=62515&_n=e&_m=0&email=a@b.example", "X-Forwarded-For: 2001:db8::7\r\n"),
    ("_a=62515&_n=f", "Cookie: utk=1f\"\r\nX-Region: eu\r\n"),
];

fn schema() -> Validator {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn check_all(events: &[Value]) {
    assert_eq!(events.len(), EVENTS.len());
    let schema = schema();
    for event in events {
        let errors: Vec<String> = schema.iter_errors(event).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {event}");
    }
}

fn send_all(edge: &Edge) {
    for (query, lines) in EVENTS {
        let response = edge.connect().get(&format!("/v1/event/?{query}"), lines);
        assert_eq!(response.verdict(), "accepted", "{query}");
    }
}

/// An edge that trusts this test as a proxy, so that events can have IPv6 addresses and further
/// headers.
fn setup() -> Setup {
    let names = "[events]\nutk_cookie = \"utk\"\ncontext_headers = [\"X-Region\"]";
    Setup::default().edge("trusted_proxies = [\"127.0.0.1\"]").sections(names)
}

fn deliver(upstream: &str, sections: &str) -> Backend {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = setup().sections(sections).upstreams(&http_upstream(&backend, upstream)).start();
    send_all(&edge);
    edge.wait_delivered("collector");
    backend
}

#[test]
fn every_format_delivers_what_the_schema_says() {
    for (upstream, sections) in [
        ("", ""),
        ("format = \"ndjson\"", "[privacy]\nip = \"truncated\"\nreferer = \"origin\""),
        ("format = \"cloudevents\"\ncompression = \"zstd\"", "[privacy]\ngpc = \"anonymize\""),
        ("compression = \"none\"", "[privacy]\nip = \"none\"\nreferer = \"none\""),
    ] {
        check_all(&deliver(upstream, sections).events());
    }
}

#[test]
fn an_envelope_is_a_cloudevent_around_an_event() {
    let backend = deliver("format = \"cloudevents\"", "");
    let (schema, mut count) = (schema(), 0);
    for request in backend.taken() {
        let batch: Vec<Value> = serde_json::from_slice(&request.plain()).unwrap();
        for envelope in batch {
            let data = &envelope["data"];
            assert!(schema.is_valid(data), "{data}");
            let expect = json!({
                "specversion": "1.0", "type": "pixelgate.event",
                "source": format!("/pixelgate/portals/{}", data["portal"]),
                "id": data["id"], "time": data["received_at"],
                "datacontenttype": "application/json", "data": data
            });
            assert_eq!(envelope, expect);
            count += 1;
        }
    }
    assert_eq!(count, EVENTS.len());
}

#[test]
fn files_and_the_dump_hold_what_the_schema_says() {
    let edge = setup().start();
    send_all(&edge);
    edge.wait_delivered("file");
    let delivered = Edge::events_in_files(edge.dir());
    check_all(&delivered);
    let dump = command(&edge.dir().join("edge.toml"), &["spool", "dump"]).output().unwrap();
    assert_eq!(dump.status.code(), Some(0));
    let lines = String::from_utf8(dump.stdout).unwrap();
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check_all(&events);
    assert!(events.iter().all(|event| delivered.contains(event)), "with `bot`, as delivered");
}

#[test]
fn the_examples_of_the_page_are_valid() {
    let schema = schema();
    let blocks: Vec<&str> = WIRE.split("```json\n").skip(1).collect();
    assert!(blocks.len() >= 2, "an event and an envelope");
    for block in blocks {
        let text = block.split("```").next().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let event = value.get("data").unwrap_or(&value);
        let errors: Vec<String> = schema.iter_errors(event).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {event}");
    }
}

#[test]
fn an_address_is_one_to_the_judge_and_to_the_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let email = jsonschema::validator_for(&schema["properties"]["email"]).unwrap();
    let mut accepted = 0;
    for c in '\0'..='\u{FFFF}' {
        let address = format!("a{c}b@c.example");
        let query = format!("_a=1&_n=x&email={}", encoded(&address));
        let judged = event::parse(query.as_bytes(), &Rules::default());
        let judged = judged.ok().and_then(|judged| judged.event.email);
        if let Some(canonical) = &judged {
            accepted += 1;
            assert!(email.is_valid(&json!(canonical)), "U+{:04X}", u32::from(c));
        }
        if is_hidden(c) {
            assert!(judged.is_none(), "U+{:04X}", u32::from(c));
            assert!(!email.is_valid(&json!(address)), "U+{:04X}", u32::from(c));
        }
    }
    assert!(accepted > 50_000, "{accepted}");
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn the_schema_refuses_what_is_no_event() {
    let schema = schema();
    let whole = json!({
        "id": "0197c1f0-5b1a-7c3e-9d2f-0123456789ab", "received_at": "2026-11-23T02:45:13.123Z",
        "portal": 62515, "event": "buy", "email": "person@company.com", "external_id": "ext-77",
        "revenue": 20.5, "properties": { "color": "orange" },
        "context": { "ip": "203.0.113.7", "user_agent": "x", "referer": "y", "gpc": true }
    });
    assert!(schema.is_valid(&whole));
    assert!(!schema.is_valid(&json!([whole])), "a batch is an array of these");

    let required = ["id", "received_at", "portal", "event", "properties", "context"];
    for field in whole.as_object().unwrap().keys() {
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove(field);
        assert_eq!(schema.is_valid(&without), !required.contains(&field.as_str()), "{field}");
        let mut null = whole.clone();
        null[field] = Value::Null;
        assert!(!schema.is_valid(&null), "{field}");
    }
    for (at, wrong) in wrong_values() {
        let mut event = whole.clone();
        match event.pointer_mut(at) {
            Some(value) => *value = wrong.clone(),
            None => {
                let (parent, name) = at.rsplit_once('/').unwrap();
                event.pointer_mut(parent).unwrap()[name] = wrong.clone();
            }
        }
        assert!(!schema.is_valid(&event), "{at}: {wrong}");
    }
}

/// A place in an event, and a value that no event has there.
fn wrong_values() -> Vec<(&'static str, Value)> {
    vec![
        ("/id", json!("0197c1f0-5b1a-4c3e-9d2f-0123456789ab")), // Version 4.
        ("/id", json!("0197C1F0-5B1A-7C3E-9D2F-0123456789AB")),
        ("/received_at", json!("2026-11-23T02:45:13Z")),
        ("/received_at", json!("2026-11-23T02:45:13.123+00:00")),
        ("/received_at", json!("2026-13-23T02:45:13.123Z")),
        ("/portal", json!("62515")),
        ("/portal", json!(0)),
        ("/portal", json!(1_000_000_000_000_000_u64)),
        ("/event", json!("")),
        ("/event", json!(1625)),
        ("/event", json!("x".repeat(256))),
        ("/event", json!("a\nb")),
        ("/email", json!("nobody")),
        ("/email", json!("a b@c.example")),
        ("/email", json!("a\u{200b}b@c.example")),
        ("/external_id", json!("x".repeat(256))),
        ("/revenue", json!("20.5")),
        ("/revenue", json!(1e12)),
        ("/properties/Color", json!("red")),
        ("/properties/9lives", json!("x")),
        ("/properties/color", json!(["red"])),
        ("/properties/color", json!("")),
        ("/properties/color", json!("a\u{0}b")),
        ("/context/ip", json!("localhost")),
        ("/context/user_agent", json!("a\u{9b}31m")),
        ("/context/gpc", json!(false)),
        ("/context/bot", json!("yes")),
        ("/context/cookie", json!("x")),
        ("/context/utk", json!("")),
        ("/context/headers", json!({ "X-Region": 7 })),
        ("/hapikey", json!("x")),
    ]
}
