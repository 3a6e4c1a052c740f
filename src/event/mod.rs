//! Judging: from the bytes of a query to an [`Event`] or a [`Rejection`].
//!
//! Pure: no I/O, no clock, no async, no state. The same function judges a request, the answer of
//! `explain` and the tests, so the three cannot differ. The rules are SPEC 3; every limit of theirs
//! stands in `param.rs`, and nowhere else.
//!
//! What it does not do: it knows no path, no method (SPEC 2), no portal policy (SPEC 5) and no
//! answer (SPEC 4). Those reasons are listed in [`Reason`] only so that there is one list.
//!
//! The way through: `query.rs` splits and decodes, `hit.rs` gathers what belongs together,
//! `validate.rs`, `email.rs` and `revenue.rs` hold the rule of each field, `normalize.rs` makes the
//! canonical form. `encode.rs` and `record.rs` write an event down and read it back, `raw.rs`
//! writes it as the backend gets it; `advice.rs` tells people what they probably meant.
//!
//! A plain query (no `%`, no `+`, lower-case keys) is judged without allocating: what is kept
//! borrows from the query.

mod config;
mod email;
mod hints;
mod hit;
mod normalize;
mod param;
mod peek;
mod query;
mod record;
mod revenue;
mod validate;
mod verdict;

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

pub use config::{Config, Limits, Rules};
pub use hints::{Hint, Hints, advice};
pub use normalize::canonical_query;
pub use param::*;
pub use peek::{Peek, peek};
pub use record::encode::{Context, encode_record, write_event_json};
pub use record::raw::{RawRecord, WireWriter};
pub use record::{Record, RecordError};
pub use revenue::Revenue;
pub use verdict::{Ignored, Reason, Rejection};

/// Contact properties as (name, value), sorted by name, each name once.
///
/// So many fit without allocating; more are kept on the heap.
pub type Properties<'a> = SmallVec<[(Cow<'a, str>, Cow<'a, str>); 8]>;

/// The ignored parameters as (name as decoded, cause), in order of appearance. Names only: what a
/// dropped parameter held is nobody's business.
pub type IgnoredParams<'a> = SmallVec<[(Cow<'a, str>, Ignored); 4]>;

/// A hit that passed: the canonical form of SPEC 3.
///
/// Its `Debug` form shows what is there but no personal data, so that an event that slips into a
/// log line does no harm.
#[derive(Clone, Eq)]
pub struct Event<'a> {
    /// The account it belongs to (`_a`), 1 to 999 999 999 999 999.
    pub portal: u64,
    /// The event's id or name (`_n`), opaque, 1 to 255 characters.
    pub name: Cow<'a, str>,
    /// The contact's address (`email`), lower case, the domain in Unicode.
    pub email: Option<Cow<'a, str>>,
    /// What the event is worth (`_m`).
    pub revenue: Option<Revenue>,
    /// The caller's own id of the contact (`id`), opaque, at most 255 characters.
    pub external_id: Option<Cow<'a, str>>,
    /// Everything else, sorted by name.
    pub properties: Properties<'a>,
}

impl Event<'_> {
    /// No event yet: a place to read one into.
    pub(crate) fn blank() -> Self {
        Event {
            portal: 0,
            name: Cow::Borrowed(""),
            email: None,
            revenue: None,
            external_id: None,
            properties: Properties::new(),
        }
    }

    /// The same event, borrowing from nothing: for any lifetime, `'static` included.
    pub fn into_owned<'any>(self) -> Event<'any> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Event {
            portal: self.portal,
            name: own(self.name),
            email: self.email.map(own),
            revenue: self.revenue,
            external_id: self.external_id.map(own),
            properties: self.properties.into_iter().map(|(n, v)| (own(n), own(v))).collect(),
        }
    }

    /// Takes away who it was: only portal, name and revenue stay (SPEC 7, `privacy.gpc`).
    pub fn anonymize(&mut self) {
        self.email = None;
        self.external_id = None;
        self.properties.clear();
    }
}

// By hand, so that events that borrow from different places can be compared.
impl<'b> PartialEq<Event<'b>> for Event<'_> {
    fn eq(&self, other: &Event<'b>) -> bool {
        self.portal == other.portal
            && self.name == other.name
            && self.email == other.email
            && self.revenue == other.revenue
            && self.external_id == other.external_id
            && self.properties.len() == other.properties.len()
            && self.properties.iter().zip(&other.properties).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("portal", &self.portal)
            .field("email", &self.email.is_some())
            .field("revenue", &self.revenue.is_some())
            .field("external_id", &self.external_id.is_some())
            .field("properties", &self.properties.len())
            .finish_non_exhaustive()
    }
}

/// A query that passed: its event, and what of it was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged<'a> {
    /// What the query says, in canonical form.
    pub event: Event<'a>,
    /// What was dropped on the way, and why.
    pub ignored: IgnoredParams<'a>,
}

/// Judges a query (what follows the `?`, without it) by SPEC 3.
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

/// As [`parse`], into places that are blank: an event is large, and moving it about costs more than
/// some checks. After an error what is there means nothing.
pub(crate) fn parse_into<'a>(
    query: &'a [u8],
    rules: &Rules,
    event: &mut Event<'a>,
    ignored: &mut IgnoredParams<'a>,
) -> Result<(), Rejection> {
    if query.len() > rules.limits().query_bytes_max {
        return Err(Rejection::of(Reason::QueryTooLong));
    }
    match std::str::from_utf8(query) {
        Ok(query) => parse_text(query, rules, event, ignored),
        Err(_) => {
            // Rare, and never what a browser sends: it may cost an allocation or two.
            let query = query::encode_wide(query);
            let (mut read, mut dropped) = (Event::blank(), IgnoredParams::new());
            parse_text(&query, rules, &mut read, &mut dropped)?;
            *event = read.into_owned();
            let own = |(name, why): (Cow<'_, str>, Ignored)| (name.into_owned().into(), why);
            ignored.extend(dropped.into_iter().map(own));
            Ok(())
        }
    }
}

fn parse_text<'a>(
    query: &'a str,
    rules: &Rules,
    event: &mut Event<'a>,
    ignored: &mut IgnoredParams<'a>,
) -> Result<(), Rejection> {
    let mut hit = hit::Hit::new(event, ignored);
    for (count, piece) in query::pieces(query).enumerate() {
        if count == rules.limits().params_max {
            return Err(Rejection::of(Reason::TooManyParams));
        }
        hit.take(piece, rules);
    }
    hit.judge()
}
