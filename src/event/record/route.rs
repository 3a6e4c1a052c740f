//! The route: the prefix of a stored record that names the upstreams which it is meant for.
//!
//! Only a record that is not meant for every upstream has a route. The record as `encode.rs`
//! specifies it follows. Integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | 128, with which no record without a route begins |
//! | 1 | 2 | N, the length of the names |
//! | 3 | N | for each upstream the length of its name, 1 byte, and its name, UTF-8 |
//!
//! A version of this program that knows no routes takes such a record for one of a newer version,
//! and leaves it in the spool.

use std::sync::Arc;

use super::error::RecordError;

/// The first byte of a record with a route. Versions of records stay below it.
pub(super) const ROUTED: u8 = 128;
const HEAD_BYTES: usize = 3;

/// The upstreams that an event is meant for, encoded as the prefix of its record. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Route(Arc<[u8]>);

impl Route {
    /// A route to the upstreams of these names. `None` if a name has more than 255 bytes, or if all
    /// names together, each with one byte for its length, have more than 65,535.
    pub fn to<S: AsRef<str>>(upstreams: &[S]) -> Option<Route> {
        let mut names = Vec::new();
        for name in upstreams {
            let name = name.as_ref().as_bytes();
            names.push(u8::try_from(name.len()).ok()?);
            names.extend_from_slice(name);
        }
        let bytes = u16::try_from(names.len()).ok()?.to_le_bytes();
        Some(Route([&[ROUTED], &bytes[..], &names].concat().into()))
    }

    /// The names of the upstreams.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        // Every name is UTF-8, because `to` takes texts only.
        names(&self.0[HEAD_BYTES..]).filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Appends the route; the record follows.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Whether a record names the upstreams that it is meant for.
#[inline]
pub fn is_routed(record: &[u8]) -> bool {
    record.first() == Some(&ROUTED)
}

/// Whether a routed record names this upstream. True for a record that is cut short, so that the
/// delivery of that upstream finds the fault and reports it.
pub fn names_upstream(record: &[u8], upstream: &str) -> bool {
    match split(record) {
        Ok((route, _)) => names(route).any(|name| name == upstream.as_bytes()),
        Err(_) => true,
    }
}

/// Splits a record into the names of its route, empty if it has none, and the record after it.
pub(super) fn split(record: &[u8]) -> Result<(&[u8], &[u8]), RecordError> {
    if !is_routed(record) {
        return Ok((&[], record));
    }
    let (head, rest) = record.split_first_chunk::<HEAD_BYTES>().ok_or(RecordError::Truncated)?;
    let bytes = usize::from(u16::from_le_bytes([head[1], head[2]]));
    rest.split_at_checked(bytes).ok_or(RecordError::Truncated)
}

fn names(mut route: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (bytes, rest) = route.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*bytes))?;
        route = rest;
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{
        Context, Event, RawRecord, Record, encode_record, is_newer_record, portal_and_time,
        received_ms,
    };

    fn record(route: Option<&Route>) -> Vec<u8> {
        let event = Event { portal: 7, name: "buy".into(), ..Event::blank() };
        let mut out = Vec::new();
        if let Some(route) = route {
            route.write(&mut out);
        }
        encode_record(&mut out, &[7; 16], 1_795_401_913_123, &event, &Context::default());
        out
    }

    #[test]
    fn a_routed_record_is_the_record_and_names_its_upstreams() {
        let route = Route::to(&["eu", "warehouse"]).unwrap();
        assert_eq!(route.names().collect::<Vec<_>>(), ["eu", "warehouse"]);
        let (plain, routed) = (record(None), record(Some(&route)));
        assert_eq!(Record::decode(&routed), Record::decode(&plain));
        assert_eq!(RawRecord::read(&routed).unwrap().portal, 7);
        for record in [&plain, &routed] {
            assert_eq!(portal_and_time(record), Some((7, 1_795_401_913_123)));
            (0..38).for_each(|bytes| assert_eq!(portal_and_time(&record[..bytes]), None));
        }
        assert!(is_routed(&routed) && !is_routed(&plain));
        for (upstream, named) in [("eu", true), ("warehouse", true), ("e", false), ("euw", false)] {
            assert_eq!(names_upstream(&routed, upstream), named, "{upstream}");
        }
        for bytes in 0..routed.len() {
            assert!(Record::decode(&routed[..bytes]).is_err(), "{bytes} bytes");
            _ = names_upstream(&routed[..bytes], "eu");
        }
    }

    #[test]
    fn a_newer_record_behind_a_route_is_a_newer_record() {
        let mut routed = record(Route::to(&["eu"]).as_ref());
        assert!(!is_newer_record(&routed));
        let at = routed.len() - record(None).len();
        routed[at] = 100;
        assert!(is_newer_record(&routed));
        assert_eq!(received_ms(&routed), Some(1_795_401_913_123));
        routed[0] = ROUTED + 1;
        assert!(is_newer_record(&routed));
    }

    #[test]
    fn names_that_do_not_fit_make_no_route() {
        assert!(Route::to(&["x".repeat(255)]).is_some());
        assert!(Route::to(&["x".repeat(256)]).is_none());
        assert!(Route::to(&vec!["x".repeat(255); 256]).is_none());
        assert_eq!(Route::to::<&str>(&[]).unwrap().names().count(), 0);
    }
}
