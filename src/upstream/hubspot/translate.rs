//! Translates an event of the legacy API for HubSpot's API of custom events. Pure: no I/O, no
//! clock, no state, so that `explain` shows exactly what would be sent.
//!
//! `docs/hubspot.md` lists what is lost, and why. An event that cannot be translated at all is
//! [`Untranslatable`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::names::{EventNames, NameFault};
use crate::event::{Event, Properties};

/// Translates events by the checked settings of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translator {
    pub(super) event_names: EventNames,
    pub(super) contacts: bool,
    pub(super) revenue_property: String,
    pub(super) external_id_property: String,
}

/// An event in HubSpot's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation<'a> {
    /// `pe{portal}_{name}`.
    pub event_name: String,
    /// The email address, which identifies the contact.
    pub email: Cow<'a, str>,
    /// Event properties by name. HubSpot takes every value as a string.
    pub properties: BTreeMap<String, String>,
    /// Contact properties besides the address. `None` if contacts are not written.
    pub contact: Option<Properties<'a>>,
}

/// Why an event cannot be sent to HubSpot with this configuration. It becomes a dead letter, which
/// can be replayed after a change of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untranslatable {
    /// The event has no email address. It has no record id or cookie of HubSpot instead.
    NoEmail,
    /// See [`NameFault`].
    EventName(NameFault),
}

/// One of the `inputs` of `POST /events/v3/send/batch`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventInput<'a> {
    event_name: &'a str,
    email: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<&'a str>,
    properties: &'a BTreeMap<String, String>,
}

impl Untranslatable {
    /// The reason as text, for dead letters and `explain`. Does not contain data of the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Untranslatable::NoEmail => "it has no email address, which HubSpot knows contacts by",
            Untranslatable::EventName(fault) => fault.as_str(),
        }
    }
}

impl Translator {
    /// Translates one event.
    ///
    /// # Errors
    ///
    /// Why the event cannot be translated. The name is checked before the address.
    pub fn translate<'a>(&self, event: Event<'a>) -> Result<Translation<'a>, Untranslatable> {
        let event_name = self
            .event_names
            .qualify(event.portal, &event.name)
            .map_err(Untranslatable::EventName)?;
        let email = event.email.ok_or(Untranslatable::NoEmail)?;
        let mut properties = BTreeMap::new();
        if let Some(revenue) = event.revenue {
            properties.insert(self.revenue_property.clone(), revenue.to_string());
        }
        if let Some(id) = event.external_id {
            properties.insert(self.external_id_property.clone(), id.into_owned());
        }
        // An empty name means that the value is left out.
        properties.remove("");
        let contact = self.contacts.then_some(event.properties);
        Ok(Translation { event_name, email, properties, contact })
    }
}

impl Translation<'_> {
    /// As one of the `inputs`. `occurred_at` is RFC 3339, `uuid` what HubSpot drops repeats by.
    pub fn input<'s>(
        &'s self,
        occurred_at: Option<&'s str>,
        uuid: Option<&'s str>,
    ) -> EventInput<'s> {
        EventInput {
            event_name: &self.event_name,
            email: &self.email,
            occurred_at,
            uuid,
            properties: &self.properties,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Rules, parse};
    use serde_json::json;

    fn translator() -> Translator {
        let map = BTreeMap::from([("000000001625".to_owned(), "bought".to_owned())]);
        Translator {
            event_names: EventNames::new(&map).unwrap(),
            contacts: true,
            revenue_property: "revenue".into(),
            external_id_property: "external_id".into(),
        }
    }

    const QUERY: &str = "_a=62515&_n=000000001625&email=Person@company.com&_m=20.50&id=ext-77\
                         &favorite_color=orange&favorite_color=blue&note=a";

    fn event(query: &str) -> Event<'_> {
        parse(query.as_bytes(), &Rules::default()).unwrap().event
    }

    #[test]
    fn every_part_of_an_event_finds_its_place() {
        let translation = translator().translate(event(QUERY)).unwrap();
        let input = serde_json::to_value(translation.input(Some("then"), Some("u"))).unwrap();
        let expect = json!({
            "eventName": "pe62515_bought", "email": "person@company.com",
            "occurredAt": "then", "uuid": "u",
            "properties": { "revenue": "20.5", "external_id": "ext-77" }
        });
        assert_eq!(input, expect);
        let contact = translation.contact.unwrap();
        let contact: Vec<_> = contact.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(contact, [("favorite_color", "orange;blue"), ("note", "a")]);
    }

    #[test]
    fn what_the_operator_does_not_want_is_left_out() {
        let translator = Translator {
            contacts: false,
            revenue_property: String::new(),
            external_id_property: String::new(),
            ..translator()
        };
        let translation = translator.translate(event(QUERY)).unwrap();
        assert_eq!((translation.properties.len(), translation.contact), (0, None));
    }

    #[test]
    fn an_event_that_does_not_fit_says_why() {
        let check = |query: &str, expect: Untranslatable| {
            assert_eq!(translator().translate(event(query)), Err(expect), "{query}");
        };
        check("_a=62515&_n=signup&id=7", Untranslatable::NoEmail);
        let fault = NameFault::NoLetterFirst;
        check("_a=62515&_n=000000000001&email=a@b.example", Untranslatable::EventName(fault));
    }
}
