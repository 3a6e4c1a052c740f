//! Reads the id of the trace to which a request belongs (W3C Trace Context, Level 1), for logs.
//!
//! The id is used only if the specification calls the header valid, so that a caller cannot bring
//! arbitrary text into a log. The header itself is proxied to the origin unchanged.

use super::client::Headers;

/// The name of the header, in lower case.
const TRACEPARENT: &str = "traceparent";
/// The hexadecimal digits of a trace id.
pub const TRACE_ID_DIGITS: usize = 32;
/// The hexadecimal digits of the version, and of the flags.
const OCTET_DIGITS: usize = 2;
/// The hexadecimal digits of the parent id.
const PARENT_ID_DIGITS: usize = 16;

/// The id of a trace, as 32 lower-case hexadecimal digits.
pub type TraceId = [u8; TRACE_ID_DIGITS];

/// The trace id in the `traceparent` header of a request. `None` if the header is missing, invalid
/// or repeated.
pub fn trace_id(headers: &impl Headers) -> Option<TraceId> {
    let mut lines = headers.lines(TRACEPARENT);
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let mut fields = line.split(|byte| *byte == b'-');
    let version = fields.next().filter(|field| is_hex(field, OCTET_DIGITS) && *field != b"ff")?;
    let trace = fields.next().filter(|field| is_id(field, TRACE_ID_DIGITS))?;
    fields.next().filter(|field| is_id(field, PARENT_ID_DIGITS))?;
    fields.next().filter(|field| is_hex(field, OCTET_DIGITS))?;
    // A later version may append fields.
    (version != b"00" || fields.next().is_none()).then(|| trace.try_into().ok())?
}

fn is_hex(field: &[u8], digits: usize) -> bool {
    field.len() == digits && field.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a field is a valid id: not all its digits are zero.
fn is_id(field: &[u8], digits: usize) -> bool {
    is_hex(field, digits) && field.iter().any(|byte| *byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn id_of(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        trace_id(&headers).map(|id| String::from_utf8(id.to_vec()).unwrap())
    }

    #[test]
    fn the_id_of_a_valid_header_is_taken_and_no_other_text() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let valid = format!("00-{trace}-{parent}-01");
        let zeros = valid.replace(trace, &"0".repeat(TRACE_ID_DIGITS));
        for (line, expect) in [
            (valid.as_str(), true),
            (&valid.replace("-01", "-00"), true),
            (&valid.replace("00-", "cc-"), true),
            (&format!("{}-more", valid.replace("00-", "cc-")), true),
            (&valid.replace("00-", "ff-"), false),
            (&valid.replace("00-", "0-"), false),
            (&format!("{valid}-more"), false),
            (&format!("{valid}x"), false),
            (&valid.to_uppercase(), false),
            (&zeros, false),
            (&valid.replace(parent, &"0".repeat(PARENT_ID_DIGITS)), false),
            (&valid.replace("-01", ""), false),
            (&valid.replace(trace, "person@company.com"), false),
            (&valid.replace(trace, &trace[1..]), false),
            ("", false),
        ] {
            let expect = expect.then(|| trace.to_owned());
            assert_eq!(id_of(&[line]), expect, "{line}");
        }
        assert_eq!(id_of(&[&valid, &valid]), None, "two lines contradict the specification");
        assert_eq!(id_of(&[]), None);
    }
}
