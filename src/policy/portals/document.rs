//! Reads the shape that TOML and JSON lists share: `portals`, `[[portal]]` and `[defaults]`.
//!
//! It uses the seeds of serde, so that ids go into the [`Draft`] without a copy, and so that the
//! parser reports the position of a duplicate id.

use std::{fmt, io::BufRead};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor},
};

use super::draft::{Draft, Ids, ParseError, check_id};
use super::rules::{Privacy, Rules, Upstreams};
use super::terms::Bounds;

pub(super) fn read_json(
    reader: impl BufRead,
    bounds: &Bounds,
    draft: &mut Draft,
) -> Result<(), ParseError> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = Document(bounds, draft).deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|error| {
        let what = error.to_string();
        // The caller reports the position, so it is removed from the message.
        let end = what.rfind(" at line ").unwrap_or(what.len());
        match error.line() {
            0 => ParseError::new(&what[..end]),
            line => ParseError::at(line as u64, error.column() as u64, &what[..end]),
        }
    })
}

pub(super) fn read_toml(text: &str, bounds: &Bounds, draft: &mut Draft) -> Result<(), ParseError> {
    let toml = toml::Deserializer::parse(text);
    let read = toml.and_then(|toml| Document(bounds, draft).deserialize(toml));
    read.map_err(|error| {
        let what = error.message().trim().replace('\n', ", ");
        match error.span() {
            None => ParseError::new(what),
            Some(span) => {
                let (line, column) = place(text, span.start);
                ParseError::at(line, column, what)
            }
        }
    })
}

/// The line and the column of a byte in a text, both counted from 1.
pub(super) fn place(text: &str, byte: usize) -> (u64, u64) {
    let before = &text.as_bytes()[..byte.min(text.len())];
    let line = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    let column = before[line..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    (memchr::memchr_iter(b'\n', before).count() as u64 + 1, column as u64 + 1)
}

struct Document<'d>(&'d Bounds, &'d mut Draft);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`portals`, `portal` and `defaults`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Document(bounds, draft) = self;
        let (mut tables, mut defaults) = (false, false);
        while let Some(key) = map.next_key::<Key>()? {
            let again = match key {
                Key::Portals => std::mem::replace(&mut draft.names_portals, true),
                Key::Portal => std::mem::replace(&mut tables, true),
                Key::Defaults => std::mem::replace(&mut defaults, true),
            };
            if again {
                return Err(A::Error::custom("this key is already in the list"));
            }
            match key {
                Key::Portals => map.next_value_seed(IdList(&mut draft.ids))?,
                Key::Portal => map.next_value_seed(Tables(bounds, draft))?,
                Key::Defaults => {
                    let table = Table { bounds, ids: None };
                    (_, draft.defaults) = map.next_value_seed(table)?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Portals,
    Portal,
    Defaults,
}

struct IdList<'d>(&'d mut Ids);

impl<'de> DeserializeSeed<'de> for IdList<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IdList<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of portal ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let IdList(ids) = self;
        while seq.next_element_seed(PortalId { ids, is_listed: true })?.is_some() {}
        Ok(())
    }
}

/// The id of a portal, in `portals` (`is_listed`) or in its table. It is checked while it is
/// visited, so that an error has the position of the id.
struct PortalId<'d> {
    ids: &'d mut Ids,
    is_listed: bool,
}

impl<'de> DeserializeSeed<'de> for PortalId<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl<'de> Visitor<'de> for PortalId<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a portal id")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<u64, E> {
        let PortalId { ids, is_listed } = self;
        let taken = check_id(id).and_then(|id| if is_listed { ids.take(id) } else { ids.see(id) });
        taken.map(|()| id).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<u64, E> {
        self.visit_u64(u64::try_from(id).unwrap_or(0))
    }
}

/// The `[[portal]]` tables.
struct Tables<'d>(&'d Bounds, &'d mut Draft);

impl<'de> DeserializeSeed<'de> for Tables<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Tables<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of tables, one a portal")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Tables(bounds, draft) = self;
        loop {
            let table = Table { bounds, ids: Some(&mut draft.ids) };
            match seq.next_element_seed(table)? {
                Some(table) => draft.tables.push(table),
                None => return Ok(()),
            }
        }
    }
}

/// Reads a `[[portal]]`, which has an id, or `[defaults]` (without `ids`), which has none and gives
/// 0.
struct Table<'b> {
    bounds: &'b Bounds,
    ids: Option<&'b mut Ids>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Rule {
    Id,
    Events,
    DropProperties,
    Upstreams,
    Privacy,
    Rate,
    Quota,
    Expires,
}

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = (u64, Rules);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = (u64, Rules);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of rules")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Table { bounds, mut ids } = self;
        let is_portal = ids.is_some();
        let (mut id, mut rules) = (None, Rules::default());
        while let Some(rule) = map.next_key_seed(RuleName { is_portal })? {
            match rule {
                Rule::Id => {
                    let Some(ids) = ids.take() else {
                        return Err(A::Error::custom("this rule is already in the table"));
                    };
                    id = Some(map.next_value_seed(PortalId { ids, is_listed: false })?);
                }
                Rule::Events => put(&mut rules.events, map.next_value()?)?,
                Rule::DropProperties => put(&mut rules.drop_properties, map.next_value()?)?,
                Rule::Upstreams => {
                    let check = Upstreams::new;
                    put(&mut rules.upstreams, map.next_value_seed(Bounded { bounds, check })?)?;
                }
                Rule::Privacy => {
                    let check = Privacy::new;
                    put(&mut rules.privacy, map.next_value_seed(Bounded { bounds, check })?)?;
                }
                Rule::Rate => put(&mut rules.rate, map.next_value()?)?,
                Rule::Quota => put(&mut rules.quota, map.next_value()?)?,
                Rule::Expires => put(&mut rules.expires, map.next_value()?)?,
            }
        }
        match (id, is_portal) {
            (None, true) => Err(A::Error::missing_field("id")),
            (id, _) => Ok((id.unwrap_or(0), rules)),
        }
    }
}

/// Reads the name of a rule. `[defaults]` must have no `id`.
struct RuleName {
    is_portal: bool,
}

impl<'de> DeserializeSeed<'de> for RuleName {
    type Value = Rule;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Rule, D::Error> {
        match Rule::deserialize(deserializer)? {
            Rule::Id if !self.is_portal => Err(D::Error::unknown_field("id", &[])),
            rule => Ok(rule),
        }
    }
}

fn put<T, E: Error>(slot: &mut Option<T>, value: T) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::custom("this rule is already in the table")),
    }
}

/// Reads a rule that must fit the configuration. It is checked while it is read, so that an error
/// has the position of the rule.
struct Bounded<'b, V, T> {
    bounds: &'b Bounds,
    check: fn(V, &Bounds) -> Result<T, String>,
}

impl<'de, V: Deserialize<'de>, T> DeserializeSeed<'de> for Bounded<'_, V, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        let value = V::deserialize(deserializer)?;
        (self.check)(value, self.bounds).map_err(D::Error::custom)
    }
}
