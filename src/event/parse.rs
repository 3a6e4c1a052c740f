//! Judges a query (SPEC 3). These are the entry points of this room.

use std::borrow::Cow;

use super::collector::ParamCollector;
use super::config::Rules;
use super::event::Event;
use super::query::{encode_non_ascii, pieces};
use super::verdict::{Ignored, IgnoredParams, Reason, Rejection};

/// An accepted query: its event and the parameters that were left out of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged<'a> {
    /// The event in canonical form.
    pub event: Event<'a>,
    /// The ignored parameters and the cause of each.
    pub ignored: IgnoredParams<'a>,
}

/// Judges a query (the part after the `?`) by SPEC 3.
///
/// Takes time linear in the length of the query, for a given `params_max`.
///
/// # Errors
///
/// The first failing check in the order of SPEC 3, from [`Reason::QueryTooLong`] to
/// [`Reason::InvalidExternalId`].
pub fn parse<'a>(query: &'a [u8], rules: &Rules) -> Result<Judged<'a>, Rejection> {
    let mut judged = Judged { event: Event::blank(), ignored: IgnoredParams::new() };
    parse_into(query, rules, &mut judged.event, &mut judged.ignored)?;
    Ok(judged)
}

/// Does what [`parse`] does, but fills in the caller's `event` and `ignored`, which must be empty:
/// an event is large, and moving it costs more than some checks. After an error, the event holds
/// the portal and the name that were found valid; all other content is unspecified.
pub(crate) fn parse_into<'a>(
    query: &'a [u8],
    rules: &Rules,
    event: &mut Event<'a>,
    ignored: &mut IgnoredParams<'a>,
) -> Result<(), Rejection> {
    if !fits(query, rules.limits().query_bytes_max) {
        return Err(Rejection::of(Reason::QueryTooLong));
    }
    match std::str::from_utf8(query) {
        Ok(query) => parse_text(query, rules, event, ignored),
        Err(_) => {
            // Browsers never send raw bytes that are not UTF-8, so this path may allocate.
            let query = encode_non_ascii(query);
            let (mut read, mut dropped) = (Event::blank(), IgnoredParams::new());
            let judged = parse_text(&query, rules, &mut read, &mut dropped);
            *event = read.into_owned();
            let own = |(name, why): (Cow<'_, str>, Ignored)| (name.into_owned().into(), why);
            ignored.extend(dropped.into_iter().map(own));
            judged
        }
    }
}

/// Whether a query has at most `max` bytes after every byte that RFC 3986 does not allow is
/// percent-encoded, which takes three bytes. So the length of a query does not depend on whether
/// the client encodes such bytes (SPEC 2).
fn fits(query: &[u8], max: usize) -> bool {
    if query.len() <= max / 3 {
        return true;
    }
    let must_be_encoded = |byte: &&u8| match byte {
        b'"' | b'<' | b'>' | b'[' | b'\\' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => true,
        byte => !byte.is_ascii_graphic(),
    };
    query.len() + 2 * query.iter().filter(must_be_encoded).count() <= max
}

fn parse_text<'a>(
    query: &'a str,
    rules: &Rules,
    event: &mut Event<'a>,
    ignored: &mut IgnoredParams<'a>,
) -> Result<(), Rejection> {
    let mut params = ParamCollector::new(event, ignored);
    for (count, piece) in pieces(query).enumerate() {
        if count == rules.limits().params_max {
            return Err(Rejection::of(Reason::TooManyParams));
        }
        params.take(piece, rules);
    }
    params.judge()
}
