//! Writes the line of a request in one of the two formats of the access log (SPEC 8).
//!
//! Clients choose parts of a line. So a line holds no byte that could end it early or change what
//! a terminal shows, and at most [`TEXT_BYTES_MAX`] bytes of each text that a client sent.

use super::config::Format;
use super::time::with_second;
use http::Version;
use jiff::Timestamp;
use pixelgate::Verdict;
use pixelgate::custom::AccessRecord;
use pixelgate::tools::escape_hidden;
use std::fmt::Arguments;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;
use uuid::Uuid;

/// The most bytes of a path, a referer or a user agent in a line.
const TEXT_BYTES_MAX: usize = 2048;
/// The status of a request whose client closed the connection before its response began. nginx
/// logs the same one.
const CLIENT_GONE: u16 = 499;
/// The address in the combined format where `privacy.ip` forbids the client's. Programs that read
/// the format need an address.
const NO_ADDRESS: &str = "0.0.0.0";

/// Appends to `out` the line of a request that ended at `now`.
pub fn write(format: Format, record: &AccessRecord, now: Timestamp, out: &mut Vec<u8>) {
    match format {
        Format::Json => json(record, now, out),
        Format::Combined => combined(record, now, out),
    }
    out.push(b'\n');
}

/// Appends one JSON object. Fields without a value are left out.
fn json(record: &AccessRecord, now: Timestamp, out: &mut Vec<u8>) {
    let verdict = record.verdict.as_ref();
    out.extend_from_slice(b"{\"time\":\"");
    with_second(Format::Json, now, |second| out.extend_from_slice(second.as_bytes()));
    put_fraction(out, now.subsec_millisecond().unsigned_abs(), 3);
    out.extend_from_slice(b"Z\"");
    if let Some(client) = record.client {
        out.extend_from_slice(b",\"client\":\"");
        put_address(out, client);
        out.push(b'"');
    }
    put_text(out, b",\"method\":", record.method.as_ref().map(|method| method.as_str().as_bytes()));
    put_text(out, b",\"path\":", record.path.as_deref().map(shortened));
    put_text(out, b",\"protocol\":", Some(protocol(record.version).as_bytes()));
    put_number(out, b",\"status\":", Some(status(record).into()));
    put_number(out, b",\"bytes\":", Some(record.body_bytes));
    put_seconds(out, b",\"seconds\":", Some(record.began.elapsed()));
    if !record.is_whole {
        out.extend_from_slice(b",\"aborted\":true");
    }
    if let Some(verdict) = verdict {
        put_verdict(out, verdict);
    }
    put_text(out, b",\"origin\":", record.origin.as_deref().map(str::as_bytes));
    put_seconds(out, b",\"origin_seconds\":", record.origin_time);
    put_text(out, b",\"trace_id\":", record.trace_id.as_ref().map(|id| &id[..]));
    put_text(out, b",\"referer\":", record.referer.as_deref().map(shortened_text));
    put_text(out, b",\"user_agent\":", record.user_agent.as_deref().map(shortened_text));
    out.push(b'}');
}

fn put_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    let reason = verdict.reason();
    let text: &[u8] = match (verdict.is_accepted(), reason) {
        (true, _) => b"accepted",
        (false, Some(_)) => b"rejected",
        (false, None) => b"not_judged",
    };
    put_text(out, b",\"verdict\":", Some(text));
    put_text(out, b",\"reason\":", reason.map(|reason| reason.as_str().as_bytes()));
    put_number(out, b",\"portal\":", verdict.portal());
    let id = verdict.event_id().map(|id| Uuid::from_bytes(*id.as_bytes()).hyphenated());
    let mut buffer = Uuid::encode_buffer();
    put_text(out, b",\"event_id\":", id.map(|id| id.encode_lower(&mut buffer).as_bytes()));
}

/// Appends `key`, with its comma and its colon, and the text. `None`: appends nothing.
fn put_text(out: &mut Vec<u8>, key: &[u8], text: Option<&[u8]>) {
    let Some(text) = text else { return };
    out.extend_from_slice(key);
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        // Serializing a text does not fail.
        let json = serde_json::to_string(&String::from_utf8_lossy(text)).unwrap_or_default();
        out.extend_from_slice(escape_hidden(&json).as_bytes());
    }
}

/// Whether a text is its own JSON: printable ASCII without a quotation mark or a backslash. The
/// loop has no early end, so that the compiler can test sixteen bytes at a time.
fn is_plain(text: &[u8]) -> bool {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') & (*byte != b'"') & (*byte != b'\\');
    text.iter().fold(true, |all, byte| all & is_plain(byte))
}

fn put_number(out: &mut Vec<u8>, key: &[u8], number: Option<u64>) {
    let Some(number) = number else { return };
    out.extend_from_slice(key);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a duration in seconds, with the precision of a microsecond.
fn put_seconds(out: &mut Vec<u8>, key: &[u8], time: Option<Duration>) {
    let Some(time) = time else { return };
    put_number(out, key, Some(time.as_secs()));
    put_fraction(out, time.subsec_micros(), 6);
}

/// Appends a dot and the last `digits` digits of a number.
fn put_fraction(out: &mut Vec<u8>, number: u32, digits: usize) {
    let mut text = *b".000000000";
    let mut rest = number;
    for digit in text[1..=digits].iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&text[..=digits]);
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (place, octet) in v4.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(v6) => put(out, format_args!("{v6}")),
    }
}

fn combined(record: &AccessRecord, now: Timestamp, out: &mut Vec<u8>) {
    match record.client {
        Some(client) => put_address(out, client),
        None => put(out, format_args!("{NO_ADDRESS}")),
    }
    with_second(Format::Combined, now, |second| put(out, format_args!(" - - [{second}] \"")));
    match (&record.method, &record.path) {
        (None, _) => out.push(b'-'),
        (Some(method), path) => {
            escape(method.as_str().as_bytes(), out);
            out.push(b' ');
            escape(path.as_deref().unwrap_or(b"-"), out);
            put(out, format_args!(" {}", protocol(record.version)));
        }
    }
    put(out, format_args!("\" {} {} \"", status(record), record.body_bytes));
    escape(record.referer.as_deref().unwrap_or("-").as_bytes(), out);
    out.extend_from_slice(b"\" \"");
    escape(record.user_agent.as_deref().unwrap_or("-").as_bytes(), out);
    out.push(b'"');
}

fn put(out: &mut Vec<u8>, text: Arguments<'_>) {
    // Writing to a vector does not fail.
    let _ = out.write_fmt(text);
}

/// Appends `text` to `out` as nginx's `log_format` does by default: quotation marks, backslashes,
/// control characters and all bytes outside of ASCII become `\xHH`.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in shortened(text) {
        match byte {
            b'"' | b'\\' | ..=0x1f | 0x7f.. => {
                let digit = |value: u8| DIGITS[usize::from(value & 0xf)];
                out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte)]);
            }
            _ => out.push(byte),
        }
    }
}

fn status(record: &AccessRecord) -> u16 {
    record.status.unwrap_or(CLIENT_GONE)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn shortened(text: &[u8]) -> &[u8] {
    &text[..text.len().min(TEXT_BYTES_MAX)]
}

/// Shortens a text as [`shortened`] does, but never within a character.
fn shortened_text(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use pixelgate::custom::AccessLog;

    /// The line of a request for this path by this user agent.
    fn line(format: Format, path: &[u8], user_agent: &str) -> String {
        let mut record = AccessLog::new(|_| {}).begin();
        record.method = Some(Method::GET);
        record.path = Some(path.to_vec().into());
        record.user_agent = Some(user_agent.to_owned());
        let mut out = Vec::new();
        write(format, &record, Timestamp::UNIX_EPOCH, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_byte_of_a_client_ends_a_line_or_is_hidden_in_it() {
        let path = "/a\n\"\\\u{9b}31m\u{202e}\u{0}".as_bytes();
        let json = line(Format::Json, &[path, b"\xff"].concat(), "b\r\n");
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expect = "/a\n\"\\\u{9b}31m\u{202e}\u{0}\u{fffd}";
        assert_eq!((parsed["path"].as_str(), json.lines().count()), (Some(expect), 1));
        assert!(json.contains("\\u202e") && !json.contains('\u{202e}'), "{json}");
        let combined = line(Format::Combined, path, "b\r\n");
        let expect =
            r#""GET /a\x0A\x22\x5C\xC2\x9B31m\xE2\x80\xAE\x00 HTTP/1.1" 499 0 "-" "b\x0D\x0A""#;
        assert_eq!(combined, format!("0.0.0.0 - - [01/Jan/1970:00:00:00 +0000] {expect}\n"));
    }

    #[test]
    fn a_line_is_what_a_json_library_writes() {
        for client in [None, Some("203.0.113.70"), Some("2001:db8::7")] {
            let mut record = AccessLog::new(|_| {}).begin();
            record.client = client.map(|client| client.parse().unwrap());
            record.method = Some(Method::GET);
            record.path = Some("/v1/\u{e9}vent/".into());
            (record.status, record.body_bytes) = (Some(200), 43);
            record.origin = Some("http://10.0.0.1:80".to_owned());
            record.origin_time = Some(Duration::from_micros(1_020_300));
            record.trace_id = Some(*b"4bf92f3577b34da6a3ce929d0e0e4736");
            let mut out = Vec::new();
            json(&record, Timestamp::new(1_764_000_000, 7_000_000).unwrap(), &mut out);
            let mut found: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let seconds = found["seconds"].take();
            assert!(seconds.as_f64().is_some_and(|seconds| (0.0..60.0).contains(&seconds)));
            let mut expect = serde_json::json!({
                "time": "2025-11-24T16:00:00.007Z", "method": "GET", "path": "/v1/\u{e9}vent/",
                "protocol": "HTTP/1.1", "status": 200, "bytes": 43, "seconds": null,
                "aborted": true, "origin": "http://10.0.0.1:80", "origin_seconds": 1.0203,
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            });
            if let Some(client) = client {
                expect["client"] = client.into();
            }
            assert_eq!(found, expect);
        }
    }

    #[test]
    fn a_plain_text_is_its_own_json() {
        for byte in 0..=u8::MAX {
            for text in [vec![byte], [&b"sixteen bytes or"[..], b" more ", &[byte]].concat()] {
                let mut out = Vec::new();
                put_text(&mut out, b"", Some(&text));
                let expect = serde_json::to_string(&String::from_utf8_lossy(&text)).unwrap();
                assert_eq!(String::from_utf8(out).unwrap(), escape_hidden(&expect), "{byte:#x}");
            }
        }
    }

    #[test]
    fn seconds_have_the_precision_of_a_microsecond() {
        for (nanoseconds, expect) in [
            (0, "0.000000"),
            (1_999, "0.000001"),
            (120_304_050, "0.120304"),
            (61_000_000_999, "61.000000"),
            (9_999_999_999, "9.999999"),
        ] {
            let mut out = Vec::new();
            put_seconds(&mut out, b"", Some(Duration::from_nanos(nanoseconds)));
            assert_eq!(String::from_utf8(out).unwrap(), expect);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let path = "/".repeat(2 * TEXT_BYTES_MAX);
        let agent = format!("a{}", "\u{e9}".repeat(TEXT_BYTES_MAX));
        let json = line(Format::Json, path.as_bytes(), &agent);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        let length = |key: &str| parsed[key].as_str().unwrap().len();
        assert_eq!((length("path"), length("user_agent")), (TEXT_BYTES_MAX, TEXT_BYTES_MAX - 1));
        let combined = line(Format::Combined, path.as_bytes(), &agent);
        assert!(combined.len() < 6 * TEXT_BYTES_MAX, "{}", combined.len());
    }
}
