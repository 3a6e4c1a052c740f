//! Reads a line of the header `Forwarded` (RFC 7239) from its end to its beginning.
//!
//! A proxy appends its element to what the client sent. Read from the end, the elements that
//! proxies wrote are whole whatever stands before them: a quote that a client left open hides none
//! of them.

use std::borrow::Cow;

/// The elements of a line, from the last to the first. Empty ones are among them.
pub(super) fn elements_from_end(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    parts_from_end(line, b',')
}

/// The value of the only `for` parameter of an element, without quotes. `None` if there is none, or
/// if there are several: they contradict each other.
pub(super) fn for_node(element: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut nodes = parts_from_end(element, b';').filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        let name = pair[..equals].trim_ascii();
        name.eq_ignore_ascii_case(b"for").then(|| pair[equals + 1..].trim_ascii())
    });
    let (node, None) = (nodes.next()?, nodes.next()) else { return None };
    unquoted(node)
}

/// A node without its port, where that is an obfuscated one (RFC 7239, section 6.3), such as `_p1`.
pub(super) fn without_obfuscated_port(node: &str) -> &str {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match node.rsplit_once(":_") {
        Some((host, name)) if !name.is_empty() && name.bytes().all(is_part) => host,
        _ => node,
    }
}

/// The parts of `text` between separators that are in no quoted string, from the last to the first.
fn parts_from_end(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let at = last_separator(text, separator);
        rest = at.map(|at| &text[..at]);
        Some(at.map_or(text, |at| &text[at + 1..]))
    })
}

/// The last separator that is in no quoted string. A quote without a partner ends the search.
fn last_separator(text: &[u8], separator: u8) -> Option<usize> {
    let mut end = text.len();
    loop {
        let at = memchr::memrchr2(separator, b'"', &text[..end])?;
        if text[at] == separator {
            return Some(at);
        }
        end = opening_quote(&text[..at])?;
    }
}

/// The quote that opens the string whose closing quote stands behind `text`: the last one that no
/// backslash escapes.
fn opening_quote(text: &[u8]) -> Option<usize> {
    let mut end = text.len();
    loop {
        let at = memchr::memrchr(b'"', &text[..end])?;
        let backslashes = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 0 {
            return Some(at);
        }
        end = at;
    }
}

/// A token as it is, and the content of a quoted string (RFC 9110, section 5.6.4). `None`: the
/// string has no end.
fn unquoted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(rest) = value.strip_prefix(b"\"") else { return Some(value.into()) };
    let content = rest.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', content).is_none() {
        return Some(content.into());
    }
    let mut text = Vec::with_capacity(content.len());
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        text.push(*if *byte == b'\\' { bytes.next()? } else { byte });
    }
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_end_at_commas_outside_of_strings() {
        let check = |line: &str, expect: &[&str]| {
            let elements = elements_from_end(line.as_bytes()).map(std::str::from_utf8);
            assert_eq!(elements.collect::<Result<Vec<_>, _>>().as_deref(), Ok(expect), "{line}");
        };
        check("", &[""]);
        check("a,b", &["b", "a"]);
        check(",a,", &["", "a", ""]);
        check(r#"a="1,2",b"#, &["b", r#"a="1,2""#]);
        check(r#"a="\",",b="\\",c="\\\",""#, &[r#"c="\\\",""#, r#"b="\\""#, r#"a="\",""#]);
        // A string that a client left open, before an element that a proxy wrote.
        check(r#"a="1,b="2,3""#, &[r#"b="2,3""#, r#"a="1"#]);
        check(r#"a="\,b="2,3""#, &[r#"b="2,3""#, r#"a="\"#]);
    }

    #[test]
    fn the_node_of_an_element_is_that_of_its_only_for_parameter() {
        let check = |element: &str, expect: Option<&str>| {
            let node = for_node(element.as_bytes());
            assert_eq!(node.as_deref(), expect.map(str::as_bytes), "{element}");
        };
        check("for=a", Some("a"));
        check("proto=http;FOR=a;", Some("a"));
        check(" for = \"a\" ; by=b", Some("a"));
        check(r#"host="x;for=b";for=a"#, Some("a"));
        check(r#"for="a\.b\"c\\";x="\"for=b""#, Some(r#"a.b"c\"#));
        check("for=", Some(""));
        check("for=\"\"", Some(""));
        check("for=a;for=b", None);
        check("for=\"a", None);
        check("for=\"a\\\"", None);
        check("proto=http", None);
        check("", None);
    }

    #[test]
    fn an_obfuscated_port_is_no_part_of_an_address() {
        let check = |node: &str, expect: &str| assert_eq!(without_obfuscated_port(node), expect);
        check("203.0.113.7:_p.1-x", "203.0.113.7");
        check("[2001:db8::7]:_", "[2001:db8::7]:_");
        check("[2001:db8::7]:_p", "[2001:db8::7]");
        check("203.0.113.7:_p 1", "203.0.113.7:_p 1");
        check("203.0.113.7:80", "203.0.113.7:80");
    }
}
