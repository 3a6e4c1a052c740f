//! The rules of a portal: its event names, dropped properties, upstreams, privacy, rate, quota and
//! expiry.
//!
//! Values are checked while a list is read, so that a [`Rules`] never holds a pattern that cannot
//! match or a rate of zero. A rule that a portal lacks is taken from the defaults; if they lack it
//! too, nothing is restricted. A portal's own rule replaces the default of the same name; the two
//! are not combined.

use std::{fmt, num::NonZeroU32, sync::Arc};

use jiff::{SignedDuration, civil};
use serde::{
    Deserialize,
    de::{Deserializer, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::pattern::Pattern;
use super::terms::Bounds;
use crate::event::{Route, is_property_name};
use crate::policy::privacy::Stricter;

/// The most patterns in one `events`, and the most names in one `drop_properties`.
pub const RULE_ENTRIES_MAX: usize = 1_000;

/// The day on which Unix time begins.
const UNIX_EPOCH: civil::Date = civil::date(1970, 1, 1);

/// The greatest `per_second` and `burst` of a rate, in events.
pub const RATE_MAX: u32 = 1_000_000;

/// The greatest `per_day` of a quota, in events.
pub const QUOTA_MAX: u32 = 1_000_000_000;

/// The rules of one portal, or the defaults.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    pub events: Option<Events>,
    pub drop_properties: Option<DropProperties>,
    pub upstreams: Option<Upstreams>,
    pub privacy: Option<Privacy>,
    pub rate: Option<Rate>,
    pub quota: Option<Quota>,
    pub expires: Option<Expires>,
}

impl Rules {
    /// These rules, with the default for each rule that is missing.
    pub(super) fn or(mut self, defaults: &Rules) -> Rules {
        self.events = self.events.or_else(|| defaults.events.clone());
        self.drop_properties = self.drop_properties.or_else(|| defaults.drop_properties.clone());
        self.upstreams = self.upstreams.or_else(|| defaults.upstreams.clone());
        self.privacy = self.privacy.or(defaults.privacy);
        self.rate = self.rate.or(defaults.rate);
        self.quota = self.quota.or(defaults.quota);
        self.expires = self.expires.or(defaults.expires);
        self
    }
}

/// The event names that a portal may use; at least one pattern.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct Events {
    /// Patterns without a wildcard, sorted.
    exact: Arc<[Box<str>]>,
    wild: Arc<[Pattern]>,
}

impl Events {
    /// Whether an event name matches a pattern.
    pub(super) fn allow(&self, name: &str) -> bool {
        self.exact.binary_search_by(|exact| exact.as_ref().cmp(name)).is_ok()
            || self.wild.iter().any(|pattern| pattern.matches(name))
    }

    /// The text of the pattern that an event name matches.
    pub(super) fn matching_pattern(&self, name: &str) -> Option<&str> {
        match self.exact.binary_search_by(|exact| exact.as_ref().cmp(name)) {
            Ok(index) => Some(&self.exact[index]),
            Err(_) => self.wild.iter().find(|p| p.matches(name)).map(Pattern::as_str),
        }
    }
}

impl TryFrom<Vec<String>> for Events {
    type Error = String;

    fn try_from(patterns: Vec<String>) -> Result<Events, String> {
        check_count("events", patterns.len())?;
        if patterns.is_empty() {
            return Err(
                "`events` names none; to allow none, take the portal out of the list, and \
                        to allow all say [\"*\"]"
                    .to_owned(),
            );
        }
        let (mut exact, mut wild) = (Vec::new(), Vec::new());
        for pattern in patterns {
            let pattern = Pattern::new(&pattern)?;
            match pattern.is_exact() {
                true => exact.push(pattern.as_str().into()),
                false => wild.push(pattern),
            }
        }
        exact.sort_unstable();
        Ok(Events { exact: exact.into(), wild: wild.into() })
    }
}

/// The names that are removed from events: properties, `email` and `id`. Empty if a portal lifts
/// the default.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct DropProperties(Arc<[Box<str>]>);

impl DropProperties {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.binary_search_by(|dropped| dropped.as_ref().cmp(name)).is_ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<String>> for DropProperties {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<DropProperties, String> {
        check_count("drop_properties", names.len())?;
        let mut dropped: Vec<Box<str>> = Vec::with_capacity(names.len());
        for name in names {
            check_property(&name)?;
            dropped.push(name.into());
        }
        dropped.sort_unstable();
        Ok(DropProperties(dropped.into()))
    }
}

/// The upstreams that get a portal's events. `None`: all, which is how a portal lifts the default.
#[derive(Debug, Clone)]
pub(super) struct Upstreams(pub Option<Route>);

impl Upstreams {
    pub(super) fn new(names: Vec<String>, bounds: &Bounds) -> Result<Upstreams, String> {
        if names.is_empty() {
            return Ok(Upstreams(None));
        }
        if let Some(unknown) = names.iter().find(|name| !bounds.upstreams.contains(name)) {
            let known = match bounds.upstreams.is_empty() {
                true => "there are none".to_owned(),
                false => format!("there are `{}`", bounds.upstreams.join("`, `")),
            };
            return Err(format!("`upstreams` names {unknown:?}, which is no upstream; {known}"));
        }
        let mut names = names;
        names.sort_unstable();
        names.dedup();
        let too_long = "`upstreams` is too long";
        Route::to(&names).map(|route| Upstreams(Some(route))).ok_or_else(|| too_long.to_owned())
    }
}

/// The portal's `privacy`, which is stricter than `[privacy]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Privacy(pub Stricter);

impl Privacy {
    pub(super) fn new(stricter: Stricter, bounds: &Bounds) -> Result<Privacy, String> {
        match stricter.looser_than(&bounds.privacy) {
            None => Ok(Privacy(stricter)),
            Some(key) => Err(format!(
                "`privacy.{key}` is looser than `{key}` in the [privacy] of the configuration; a \
                 portal can only be stricter"
            )),
        }
    }
}

/// Refuses a name that no property can have, because such a rule would drop nothing and the
/// operator would rely on it.
fn check_property(name: &str) -> Result<(), String> {
    match is_property_name(name) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no property's name: a small letter, then up to 99 small letters, digits \
             and `_`"
        )),
    }
}

fn check_count(rule: &str, count: usize) -> Result<(), String> {
    match count <= RULE_ENTRIES_MAX {
        true => Ok(()),
        false => {
            Err(format!("`{rule}` has {count} entries; at most {RULE_ENTRIES_MAX} are allowed"))
        }
    }
}

/// The most events of a portal that one process accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "RawRate")]
pub(super) struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    per_second: u64,
    burst: Option<u64>,
}

impl TryFrom<RawRate> for Rate {
    type Error = String;

    fn try_from(raw: RawRate) -> Result<Rate, String> {
        let check = |key: &str, value: u64| {
            let value = u32::try_from(value).ok().filter(|&value| value <= RATE_MAX);
            let value = value.and_then(NonZeroU32::new);
            value.ok_or_else(|| format!("`rate.{key}` must be a whole number, 1 to {RATE_MAX}"))
        };
        let per_second = check("per_second", raw.per_second)?;
        // Default burst: the events of one second.
        let burst = raw.burst.map_or(Ok(per_second), |burst| check("burst", burst))?;
        Ok(Rate { per_second, burst })
    }
}

/// The most events of a portal that one process accepts in a UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawQuota")]
pub(super) struct Quota {
    pub per_day: NonZeroU32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuota {
    per_day: u64,
}

impl TryFrom<RawQuota> for Quota {
    type Error = String;

    fn try_from(raw: RawQuota) -> Result<Quota, String> {
        let per_day = u32::try_from(raw.per_day).ok().filter(|&per_day| per_day <= QUOTA_MAX);
        let per_day = per_day.and_then(NonZeroU32::new);
        let wrong = || format!("`quota.per_day` must be a whole number, 1 to {QUOTA_MAX}");
        per_day.map(|per_day| Quota { per_day }).ok_or_else(wrong)
    }
}

/// The day from which a portal is not allowed, beginning at 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Expires {
    pub unix_ms: u64,
}

impl Expires {
    fn from_date(date: &str) -> Result<Expires, String> {
        let wrong = || format!("{date:?} is not a date such as 2027-01-01, without a time");
        // The parser alone would also accept other forms of ISO 8601, such as a time of day.
        if date.len() != "2027-01-01".len() {
            return Err(wrong());
        }
        let day: civil::Date = date.parse().map_err(|_| wrong())?;
        // Not `jiff::Timestamp`, whose range ends a day before that of dates.
        let unix_ms = day.duration_since(UNIX_EPOCH).as_millis();
        // A date before 1970 has passed, so 0 means the same.
        Ok(Expires { unix_ms: u64::try_from(unix_ms).unwrap_or(0) })
    }
}

impl fmt::Display for Expires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = i64::try_from(self.unix_ms).map(SignedDuration::from_millis);
        let day = since.ok().and_then(|since| UNIX_EPOCH.checked_add(since).ok());
        // Always `Some`: the time was made from a date.
        day.ok_or(fmt::Error)?.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Expires {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expires, D::Error> {
        deserializer.deserialize_any(ExpiresVisitor)
    }
}

struct ExpiresVisitor;

impl<'de> Visitor<'de> for ExpiresVisitor {
    type Value = Expires;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a date such as 2027-01-01")
    }

    /// A date in JSON is a string. A quoted date in TOML is accepted as well.
    fn visit_str<E: Error>(self, date: &str) -> Result<Expires, E> {
        Expires::from_date(date).map_err(E::custom)
    }

    /// A TOML date arrives as a map that only the `toml` crate's own type understands.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Expires, A::Error> {
        let date = toml::value::Datetime::deserialize(MapAccessDeserializer::new(map))?;
        Expires::from_date(&date.to_string()).map_err(A::Error::custom)
    }
}
