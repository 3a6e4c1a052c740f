//! Reads the portal and the event name of a query without judging it.
//!
//! The live page shows both for samples of rejected events, so that the author of a link finds it
//! there. A rejection does not hold them, so the query of each sample is read a second time.

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
    let query = &query[..query.len().min(limits.query_bytes_max)];
    let query =
        std::str::from_utf8(query).map_or_else(|_| encode_non_ascii(query).into(), Cow::Borrowed);
    let mut seen = Peek::default();
    for piece in pieces(&query).take(limits.params_max) {
        match piece.key().ok().and_then(|key| Reserved::of(key.as_bytes())) {
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
}
