//! Reads the portal and the event name of a query without judging it.
//!
//! The live page shows both for samples of rejected events, so that the author of a link finds it
//! there. A rejection does not hold them, so the query of each sample is read a second time. The
//! access log reads the portals of a request that was rejected before its portal was judged.

use std::borrow::Cow;

use super::config::Rules;
use super::param::Reserved;
use super::query::{Piece, Plus, Text, encode_non_ascii, pieces};
use super::validate;

/// The portal and the event name of a query. A field that is missing or breaks its rule is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peek {
    /// The account (`_a`).
    pub portal: Option<u64>,
    /// The event's id or name (`_n`), as decoded.
    pub name: Option<String>,
}

/// Reads at most `query_bytes_max` bytes and `params_max` parameters of a query. If a parameter has
/// several values, the first valid one counts.
pub fn peek(query: &[u8], rules: &Rules) -> Peek {
    let limits = rules.limits();
    let query = text(&query[..query.len().min(limits.query_bytes_max)]);
    let mut seen = Peek::default();
    for piece in pieces(&query).take(limits.params_max) {
        match reserved(&piece) {
            Some(Reserved::Portal) if seen.portal.is_none() => {
                seen.portal = value(&piece).as_ref().and_then(validate::portal);
            }
            Some(Reserved::Event) if seen.name.is_none() => {
                let name = value(&piece).filter(validate::is_event_name);
                seen.name = name.map(|name| name.text.into_owned());
            }
            _ => {}
        }
    }
    seen
}

/// Each valid portal in a query, which may be longer than a query that is judged: the first
/// `params_max` values of `_a` count.
pub fn named_portals(query: &[u8], rules: &Rules) -> Vec<u64> {
    let query = text(query);
    let named = pieces(&query).filter(|piece| reserved(piece) == Some(Reserved::Portal));
    let values = named.take(rules.limits().params_max);
    values.filter_map(|piece| value(&piece).as_ref().and_then(validate::portal)).collect()
}

fn text(query: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(query).map_or_else(|_| encode_non_ascii(query).into(), Cow::Borrowed)
}

fn reserved(piece: &Piece<'_>) -> Option<Reserved> {
    piece.key().ok().and_then(|key| Reserved::of(key.as_bytes()))
}

fn value<'a>(piece: &Piece<'a>) -> Option<Text<'a>> {
    piece.value(Plus::Space).ok().filter(|value| !value.text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portal_and_name_are_read_where_valid() {
        let check = |query: &[u8], portal: Option<u64>, name: Option<&str>| {
            let seen = peek(query, &Rules::default());
            assert_eq!((seen.portal, seen.name.as_deref()), (portal, name), "{query:?}");
        };
        check(b"_a=62515&_n=buy&email=nobody", Some(62515), Some("buy"));
        check(b"_A=0062515&_n=a%20b", Some(62515), Some("a b"));
        check(b"_a=x&_n=buy", None, Some("buy"));
        check(b"_a=&_a=7&_a=8", Some(7), None);
        check(b"_a=7&_n=%FF", Some(7), None);
        check(b"_a=7&_n=\xff", Some(7), None);
        check(b"", None, None);
        let beyond = ["x=1&"; 100].concat() + "_a=7";
        check(beyond.as_bytes(), None, None);
    }

    #[test]
    fn every_valid_portal_is_named_however_long_the_query_is() {
        let check = |query: &[u8], expect: &[u64]| {
            assert_eq!(named_portals(query, &Rules::default()), expect, "{query:?}");
        };
        check(b"_a=x&_A=007&_n=\xff&_a=8", &[7, 8]);
        check(b"a=7&_n=_a", &[]);
        let long = ["x=1&"; 9999].concat() + "%5Fa=7";
        check(long.as_bytes(), &[7]);
        check(["_a=7&"; 9999].concat().as_bytes(), &[7; 100]);
    }
}
