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
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt::{Arguments, Display};
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

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

/// A line of the format `json`. Fields without a value are left out.
#[derive(Serialize)]
struct Line<'a> {
    time: Arguments<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    protocol: &'a str,
    status: u16,
    bytes: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "is_false")]
    aborted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    portal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "displayed")]
    event_id: Option<&'a dyn Display>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
}

fn json(record: &AccessRecord, now: Timestamp, out: &mut Vec<u8>) {
    let of_event = record.verdict.as_ref();
    let reason = of_event.and_then(Verdict::reason);
    let verdict = of_event.map(|verdict| match (verdict.is_accepted(), reason) {
        (true, _) => "accepted",
        (false, Some(_)) => "rejected",
        (false, None) => "not_judged",
    });
    let event_id = of_event.and_then(Verdict::event_id);
    let millisecond = now.subsec_millisecond();
    with_second(Format::Json, now, |second| {
        let line = Line {
            time: format_args!("{second}.{millisecond:03}Z"),
            client: record.client,
            method: record.method.as_ref().map(|method| method.as_str()),
            path: record.path.as_deref().map(|path| String::from_utf8_lossy(shortened(path))),
            protocol: protocol(record.version),
            status: status(record),
            bytes: record.body_bytes,
            seconds: seconds(record.began.elapsed()),
            aborted: !record.is_whole,
            verdict,
            reason: reason.map(|reason| reason.as_str()),
            portal: of_event.and_then(Verdict::portal),
            event_id: event_id.as_ref().map(|id| id as &dyn Display),
            origin: record.origin.as_deref(),
            origin_seconds: record.origin_time.map(seconds),
            trace_id: record.trace_id.as_ref().and_then(|id| std::str::from_utf8(id).ok()),
            referer: record.referer.as_deref().map(shortened_text),
            user_agent: record.user_agent.as_deref().map(shortened_text),
        };
        // Serializing fails only for a map whose keys are not texts.
        let line = serde_json::to_string(&line).unwrap_or_default();
        out.extend_from_slice(escape_hidden(&line).as_bytes());
    });
}

fn combined(record: &AccessRecord, now: Timestamp, out: &mut Vec<u8>) {
    match record.client {
        Some(client) => put(out, format_args!("{client}")),
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

/// The seconds of a duration, with the precision of a microsecond.
fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

fn shortened(text: &[u8]) -> &[u8] {
    &text[..text.len().min(TEXT_BYTES_MAX)]
}

fn shortened_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn displayed<S: Serializer>(
    value: &Option<&dyn Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
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
