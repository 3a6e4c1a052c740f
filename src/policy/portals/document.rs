//! The shape that TOML and JSON share: `portals`, `[[portal]]` and `[defaults]`.
//!
//! It is read with serde's seeds, so that ids go straight into the [`Draft`] without a copy, and so
//! that the second place of a duplicate id becomes an error at the parser's own position.

use std::{fmt, io::BufRead};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor},
};

use super::draft::{Draft, Ids, ParseError, check_id};
use super::rules::{DropProperties, Events, Expires, Rate, Rules};

pub(super) fn read_json(reader: impl BufRead, draft: &mut Draft) -> Result<(), ParseError> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = Document(draft).deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|error| {
        let what = error.to_string();
        // The caller reports the place, so it is cut off here.
        let end = what.rfind(" at line ").unwrap_or(what.len());
        match error.line() {
            0 => ParseError::new(&what[..end]),
            line => ParseError::at(line as u64, error.column() as u64, &what[..end]),
        }
    })
}

pub(super) fn read_toml(text: &str, draft: &mut Draft) -> Result<(), ParseError> {
    let read = toml::Deserializer::parse(text).and_then(|toml| Document(draft).deserialize(toml));
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

/// The line and column, from 1, of a byte of a text.
pub(super) fn place(text: &str, byte: usize) -> (u64, u64) {
    let before = &text.as_bytes()[..byte.min(text.len())];
    let line = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    let column = before[line..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    (memchr::memchr_iter(b'\n', before).count() as u64 + 1, column as u64 + 1)
}

struct Document<'d>(&'d mut Draft);

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
        let Document(draft) = self;
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
                Key::Portal => map.next_value_seed(Tables(draft))?,
                Key::Defaults => draft.defaults = map.next_value()?,
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
        while seq.next_element_seed(Listed(ids))?.is_some() {}
        Ok(())
    }
}

/// One id in `portals`. Taken while it is visited, so that an error gets the id's own place.
struct Listed<'d>(&'d mut Ids);

impl<'de> DeserializeSeed<'de> for Listed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl<'de> Visitor<'de> for Listed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a portal id")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<(), E> {
        let Listed(ids) = self;
        check_id(id).and_then(|id| ids.take(id)).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<(), E> {
        self.visit_u64(u64::try_from(id).unwrap_or(0))
    }
}

/// The `[[portal]]` tables.
struct Tables<'d>(&'d mut Draft);

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
        let Tables(draft) = self;
        while let Some(portal) = seq.next_element::<Portal>()? {
            draft.ids.see(portal.id).map_err(A::Error::custom)?;
            let Portal { id, events, drop_properties, rate, expires } = portal;
            draft.tables.push((id, Rules { events, drop_properties, rate, expires }));
        }
        Ok(())
    }
}

/// One `[[portal]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Portal {
    #[serde(deserialize_with = "portal_id")]
    id: u64,
    events: Option<Events>,
    drop_properties: Option<DropProperties>,
    rate: Option<Rate>,
    expires: Option<Expires>,
}

fn portal_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let mut ids = Ids::default();
    Listed(&mut ids).deserialize(deserializer)?;
    ids.list.pop().ok_or_else(|| D::Error::custom("a portal id is missing"))
}
