//! Reads from a header which bytes follow it, in the messages that Pingora reads and writes.
//!
//! This is needed for a few things only: where the trailers of a message stand, where an answer
//! ends, and its `Date`. Pingora frames each message itself, and refuses a message whose framing is
//! not sound.

use super::body::Chunks;
use super::header_check::{length, trimmed};
use std::ops::Range;

/// How much of a message has passed, and what follows.
#[derive(Debug, Default)]
pub enum Framing {
    /// The header has not begun, or is not whole.
    #[default]
    Header,
    Chunks(Chunks),
    /// This number of bytes follows, and no trailers.
    Length(u64),
    /// No chunks follow, or none that have trailers. The end of the message is not known.
    Other,
}

impl Framing {
    /// What follows a header. After the header of an informational answer this is another header.
    /// `may_have_chunks` is false if the caller knows that no chunks follow.
    pub fn behind(head: &[u8], may_have_chunks: bool) -> Self {
        match status(head) {
            Some(b"101" | b"204" | b"304") => Self::Other,
            Some([b'1', ..]) => Self::Header,
            _ if !may_have_chunks => Self::Other,
            _ if values(head, "transfer-encoding").any(is_chunked) => Self::Chunks(Chunks::Start),
            _ => Self::Other,
        }
    }

    /// Does what [`Framing::behind`] does for the header of an answer, and reads its length too.
    pub fn of_answer(head: &[u8], has_no_body: bool) -> Self {
        match (Self::behind(head, true), status(head)) {
            (Self::Header, _) => Self::Header,
            (_, Some(b"204" | b"304")) => Self::Length(0),
            _ if has_no_body => Self::Length(0),
            (Self::Other, _) => values(head, "content-length")
                .next()
                .and_then(length)
                .map_or(Self::Other, Self::Length),
            (framing, _) => framing,
        }
    }
}

/// The status of an answer. `None`: the header is that of a request.
fn status(head: &[u8]) -> Option<&[u8]> {
    head.strip_prefix(b"HTTP/1.")?.get(2..5)
}

/// Whether an answer is informational (RFC 9110, section 15.2), which 101 is, too.
pub fn is_informational(head: &[u8]) -> bool {
    matches!(status(head), Some([b'1', ..]))
}

/// Where the header lines of this name stand, each with its end.
pub fn lines<'h>(head: &'h [u8], name: &'h str) -> impl Iterator<Item = Range<usize>> + 'h {
    let mut from = 0;
    memchr::memchr_iter(b'\n', head).filter_map(move |end| {
        let line = from..end + 1;
        from = line.end;
        let (found, rest) = head[line.clone()].split_at_checked(name.len())?;
        (rest.starts_with(b":") && found.eq_ignore_ascii_case(name.as_bytes())).then_some(line)
    })
}

/// The values of the header lines of this name.
fn values<'h>(head: &'h [u8], name: &'h str) -> impl Iterator<Item = &'h [u8]> {
    let value = |line: Range<usize>| trimmed(head[line][name.len() + 1..].trim_ascii_end());
    lines(head, name).map(value)
}

/// Whether a `Transfer-Encoding` says that chunks follow.
fn is_chunked(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"chunked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_is_that_of_its_header() {
        let check = |status: &str, lines: &str, has_no_body, expect: Option<u64>| {
            let head = format!("HTTP/1.1 {status} x\r\nX: y\r\n{lines}\r\n");
            let left = match Framing::of_answer(head.as_bytes(), has_no_body) {
                Framing::Length(left) => Some(left),
                _ => None,
            };
            assert_eq!(left, expect, "{status} {lines:?} {has_no_body}");
        };
        check("200", "Content-Length: 5\r\n", false, Some(5));
        check("200", "CONTENT-LENGTH:\t5 \r\n", false, Some(5));
        check("200", "Content-Length: 5\r\n", true, Some(0));
        check("200", "Transfer-Encoding: chunked\r\n", true, Some(0));
        check("200", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", false, None);
        check("200", "Content-Length: five\r\n", false, None);
        check("200", "Content-Lengths: 5\r\nX: Content-Length: 5\r\n", false, None);
        check("200", "", false, None);
        check("204", "Content-Length: 5\r\n", false, Some(0));
        check("304", "Content-Length: 5\r\n", false, Some(0));
        check("101", "", false, None);
        check("100", "Content-Length: 5\r\n", false, None);
    }
}
