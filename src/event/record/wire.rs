//! Parses the JSON of an event, of its context's further members, and of its whole wire form, as
//! `encode.rs` and `raw.rs` write them.
//!
//! The parser is strict: unknown, missing or repeated fields, and properties out of order, are
//! errors.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::event::context::{Context, FurtherContext};
use crate::event::event::{Event, Properties};
use crate::event::revenue::Revenue;

/// Reads an event's JSON.
pub(super) fn read(json: &str) -> Result<Event<'_>, serde_json::Error> {
    let wire: Wire<'_> = serde_json::from_str(json)?;
    if wire.id.is_some() || wire.received_at.is_some() || wire.context.is_some() {
        return Err(serde_json::Error::custom("more than the event"));
    }
    Ok(wire.into_event())
}

/// The whole wire form of an event.
pub(super) struct Whole<'a> {
    pub id: Cow<'a, str>,
    pub received_at: Cow<'a, str>,
    pub event: Event<'a>,
    pub context: Context<'a>,
}

/// Reads the whole wire form of an event (SPEC 7), and checks its shape. Lengths are not checked.
pub(super) fn read_whole<'a>(json: &'a [u8]) -> Result<Whole<'a>, serde_json::Error> {
    let mut wire: Wire<'a> = serde_json::from_slice(json)?;
    let (Some(id), Some(received_at)) = (wire.id.take(), wire.received_at.take()) else {
        return Err(serde_json::Error::custom("without an id or a time"));
    };
    let context = wire.context.take().unwrap_or_default();
    let text = |text: Option<Text<'a>>| text.map(|text| text.0);
    let pairs =
        |pairs: Option<Pairs<'a>>| pairs.map(|pairs| pairs.0.into_vec()).unwrap_or_default();
    let context = Context {
        ip: context.ip,
        user_agent: text(context.user_agent),
        referer: text(context.referer),
        gpc: context.gpc,
        dnt: context.dnt,
        prefetch: context.prefetch,
        further: FurtherContext {
            host: text(context.host),
            utk: text(context.utk),
            headers: pairs(context.headers),
            added: pairs(context.added),
        }
        .boxed(),
    };
    Ok(Whole { id: id.0, received_at: received_at.0, event: wire.into_event(), context })
}

impl<'a> Wire<'a> {
    fn into_event(self) -> Event<'a> {
        Event {
            portal: self.portal,
            name: self.event,
            email: self.email.map(|text| text.0),
            revenue: self.revenue.map(|amount| amount.0),
            external_id: self.external_id.map(|text| text.0),
            properties: self.properties.0,
        }
    }
}

/// Reads the further members of a context, which have a comma after each.
pub(super) fn read_members(
    members: &[u8],
) -> Result<Option<Box<FurtherContext<'static>>>, serde_json::Error> {
    let Some((b',', members)) = members.split_last() else { return Ok(None) };
    // JSON needs braces around the members, so they are copied, and the result owns its texts.
    let json = [&b"{"[..], members, b"}"].concat();
    let Further { host, utk, headers, added } = serde_json::from_slice(&json)?;
    let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    let pairs = |pairs: Option<Pairs<'_>>| {
        let pairs = pairs.map(|pairs| pairs.0).unwrap_or_default();
        pairs.into_iter().map(|(name, value)| (own(name), own(value))).collect()
    };
    let (host, utk) = (host.map(|text| own(text.0)), utk.map(|text| own(text.0)));
    let (headers, added) = (pairs(headers), pairs(added));
    Ok(FurtherContext { host, utk, headers, added }.boxed())
}

// Of a stored record's context these members alone are JSON. Serde cannot embed them in
// `WireContext` and refuse unknown fields, too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Further<'a> {
    #[serde(borrow)]
    host: Option<Text<'a>>,
    #[serde(borrow)]
    utk: Option<Text<'a>>,
    #[serde(borrow)]
    headers: Option<Pairs<'a>>,
    #[serde(borrow)]
    added: Option<Pairs<'a>>,
}

// Borrows every text without escapes. The JSON of a stored event has no `id`, `received_at` and
// `context`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    received_at: Option<Text<'a>>,
    portal: u64,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    email: Option<Text<'a>>,
    #[serde(borrow)]
    external_id: Option<Text<'a>>,
    revenue: Option<Amount>,
    #[serde(borrow)]
    properties: Pairs<'a>,
    #[serde(borrow)]
    context: Option<WireContext<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WireContext<'a> {
    ip: Option<IpAddr>,
    #[serde(borrow)]
    user_agent: Option<Text<'a>>,
    #[serde(borrow)]
    referer: Option<Text<'a>>,
    #[serde(borrow)]
    host: Option<Text<'a>>,
    #[serde(borrow)]
    utk: Option<Text<'a>>,
    #[serde(borrow)]
    headers: Option<Pairs<'a>>,
    #[serde(borrow)]
    added: Option<Pairs<'a>>,
    gpc: bool,
    dnt: bool,
    prefetch: bool,
    /// Read and dropped, because it follows from the user agent.
    #[serde(rename = "bot")]
    _bot: bool,
}

// Serde borrows a `Cow` only if the field itself is one, and not inside an `Option`. Hence this
// wrapper.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Amount(Revenue);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        // Exact, because the shortest text of the double that is nearest to a decimal of at most 15
        // digits is that decimal.
        let number = f64::deserialize(deserializer)?;
        let amount = Revenue::parse(&number.to_string());
        amount.map(Amount).ok_or_else(|| D::Error::custom("not an amount"))
    }
}

/// Properties in strictly rising order of their names.
struct Pairs<'a>(Properties<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs<'a>, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for PairsVisitor<'a> {
    type Value = Pairs<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("properties sorted by name")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs<'a>, M::Error> {
        let mut pairs = Properties::new();
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            if pairs.last().is_some_and(|(last, _)| *last >= name) {
                return Err(M::Error::custom("properties out of order"));
            }
            pairs.push((name, value));
        }
        Ok(Pairs(pairs))
    }
}
