//! Translates an event of the legacy API for HubSpot's API of custom events. The translation does
//! no I/O, reads no clock and has no state, so that `explain` shows exactly what would be sent.
//!
//! `docs/hubspot.md` lists the data that is lost, with the reasons. An event that cannot be
//! translated is [`Untranslatable`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::names::{EventNames, NameFault};
use crate::event::{Context, Event, Properties};

/// HubSpot's default event property for the user agent.
pub const USER_AGENT_PROPERTY: &str = "hs_user_agent";
/// HubSpot's default event property for the referrer.
pub const REFERRER_PROPERTY: &str = "hs_referrer";

/// The checked settings of an upstream, by which events are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translator {
    pub(super) event_names: EventNames,
    pub(super) contacts: bool,
    pub(super) revenue_property: String,
    pub(super) external_id_property: String,
    pub(super) external_id_contact_property: String,
    pub(super) match_external_id: bool,
    pub(super) context_properties: bool,
}

/// An event as HubSpot's API takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation<'a> {
    /// The event's name at HubSpot, `pe{portal}_{name}`.
    pub event_name: String,
    /// The email address, by which HubSpot finds and writes the contact.
    pub email: Option<Cow<'a, str>>,
    /// The value of HubSpot's cookie, by which it finds the visitor's contact.
    pub utk: Option<String>,
    /// Event properties by name. HubSpot takes every value as a string.
    pub properties: BTreeMap<String, String>,
    /// Contact properties besides the address. `None` if no contact is written.
    pub contact: Option<Properties<'a>>,
}

/// The reason why an event cannot be sent to HubSpot with this configuration. The event becomes a
/// dead letter, which can be replayed after a change of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untranslatable {
    /// The event has nothing by which HubSpot would find its contact.
    NoContact,
    /// HubSpot does not allow the event's name.
    EventName(NameFault),
}

/// One of the `inputs` of `POST /events/v3/send/batch`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventInput<'a> {
    event_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utk: Option<&'a str>,
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
            Untranslatable::NoContact => {
                "it has no email address, no stored cookie of HubSpot's, and no id that \
                 match_external_id lets it match"
            }
            Untranslatable::EventName(fault) => fault.as_str(),
        }
    }
}

impl Translator {
    /// Translates one event that came in this context.
    ///
    /// # Errors
    ///
    /// The event cannot be translated. Its name is checked first, then whether it names a contact.
    pub fn translate<'a>(
        &self,
        event: Event<'a>,
        context: &Context<'_>,
    ) -> Result<Translation<'a>, Untranslatable> {
        let event_name = self
            .event_names
            .qualify(event.portal, &event.name)
            .map_err(Untranslatable::EventName)?;
        let is_matched = self.match_external_id && event.external_id.is_some();
        if event.email.is_none() && context.further().utk.is_none() && !is_matched {
            return Err(Untranslatable::NoContact);
        }
        let contact = (self.contacts && event.email.is_some())
            .then(|| self.contact(event.properties, event.external_id.as_ref()));
        let mut properties = BTreeMap::new();
        if self.context_properties {
            let default = |name: &str, value: &Option<Cow<'_, str>>| {
                value.as_ref().map(|value| (name.to_owned(), value.to_string()))
            };
            properties.extend(default(USER_AGENT_PROPERTY, &context.user_agent));
            properties.extend(default(REFERRER_PROPERTY, &context.referer));
        }
        if let Some(revenue) = event.revenue {
            properties.insert(self.revenue_property.clone(), revenue.to_string());
        }
        if let Some(id) = event.external_id {
            properties.insert(self.external_id_property.clone(), id.into_owned());
        }
        // An empty name means that the value is left out.
        properties.remove("");
        let utk = context.further().utk.as_ref().map(|utk| utk.to_string());
        Ok(Translation { event_name, email: event.email, utk, properties, contact })
    }

    /// The contact's properties: those of the event, and the sender's own id of the contact.
    fn contact<'a>(&self, mut all: Properties<'a>, id: Option<&Cow<'a, str>>) -> Properties<'a> {
        let name = &self.external_id_contact_property;
        if let Some(id) = id.filter(|_| !name.is_empty()) {
            all.retain(|(other, _)| *other != name.as_str());
            all.push((name.clone().into(), id.clone()));
        }
        all
    }
}

impl Translation<'_> {
    /// The translation as one of the `inputs` of a request. `occurred_at` is a time by RFC 3339;
    /// HubSpot drops a second occurrence with the same `uuid`.
    pub fn input<'s>(
        &'s self,
        occurred_at: Option<&'s str>,
        uuid: Option<&'s str>,
    ) -> EventInput<'s> {
        EventInput {
            event_name: &self.event_name,
            email: self.email.as_deref(),
            utk: self.utk.as_deref(),
            occurred_at,
            uuid,
            properties: &self.properties,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FurtherContext, Rules, parse};
    use serde_json::{Value, json};

    fn translator() -> Translator {
        let map = BTreeMap::from([("000000001625".to_owned(), "bought".to_owned())]);
        Translator {
            event_names: EventNames::new(&map).unwrap(),
            contacts: true,
            revenue_property: "revenue".into(),
            external_id_property: "external_id".into(),
            external_id_contact_property: String::new(),
            match_external_id: false,
            context_properties: false,
        }
    }

    const QUERY: &str = "_a=62515&_n=000000001625&email=Person@company.com&_m=20.50&id=ext-77\
                         &favorite_color=orange&favorite_color=blue&note=a";

    fn event(query: &str) -> Event<'_> {
        parse(query.as_bytes(), &Rules::default()).unwrap().event
    }

    #[test]
    fn every_part_of_an_event_finds_its_place() {
        let translation = translator().translate(event(QUERY), &Context::default()).unwrap();
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
        let context = Context { user_agent: Some("Tester/1".into()), ..Context::default() };
        let translation = translator.translate(event(QUERY), &context).unwrap();
        assert_eq!((translation.properties.len(), translation.contact), (0, None));
    }

    #[test]
    fn an_event_that_does_not_fit_says_why() {
        let check = |query: &str, expect: Untranslatable| {
            let translation = translator().translate(event(query), &Context::default());
            assert_eq!(translation, Err(expect), "{query}");
        };
        check("_a=62515&_n=signup&id=7", Untranslatable::NoContact);
        let fault = NameFault::NoLetterFirst;
        check("_a=62515&_n=000000000001&email=a@b.example", Untranslatable::EventName(fault));
    }

    #[test]
    fn an_event_is_tied_by_its_address_its_cookie_or_an_id_that_is_matched() {
        let translator = Translator {
            match_external_id: true,
            external_id_contact_property: "legacy_id".into(),
            ..translator()
        };
        let check = |query: &str, utk: Option<&'static str>, input: Value, contact: Value| {
            let further = FurtherContext { utk: utk.map(Into::into), ..Default::default() };
            let context = Context { further: further.boxed(), ..Context::default() };
            let translation = translator.translate(event(query), &context).unwrap();
            assert_eq!(serde_json::to_value(translation.input(None, None)).unwrap(), input);
            let said = translation.contact.map(|said| said.into_iter().collect());
            let said: Option<BTreeMap<Cow<'_, str>, Cow<'_, str>>> = said;
            assert_eq!(json!(said), contact, "{query}");
        };
        let with_id = json!({ "external_id": "7" });
        check(
            "_a=1&_n=buy&id=7&color=red",
            None,
            json!({ "eventName": "pe1_buy", "properties": with_id }),
            Value::Null,
        );
        check(
            "_a=1&_n=buy&color=red",
            Some("1f"),
            json!({ "eventName": "pe1_buy", "utk": "1f", "properties": {} }),
            Value::Null,
        );
        check(
            "_a=1&_n=buy&id=7&email=a@b.example&legacy_id=8&color=red",
            Some("1f"),
            json!({
                "eventName": "pe1_buy", "email": "a@b.example", "utk": "1f", "properties": with_id
            }),
            json!({ "color": "red", "legacy_id": "7" }),
        );
    }

    #[test]
    fn the_default_properties_hold_the_context_where_that_is_wanted() {
        let translator = Translator { context_properties: true, ..translator() };
        let context = Context {
            user_agent: Some("Tester/1".into()),
            referer: Some("https://shop.example".into()),
            ip: Some("203.0.113.7".parse().unwrap()),
            ..Context::default()
        };
        let properties = |context: &Context<'_>| {
            json!(
                translator
                    .translate(event("_a=1&_n=a&email=a@b.example"), context)
                    .unwrap()
                    .properties
            )
        };
        let expect = json!({ "hs_user_agent": "Tester/1", "hs_referrer": "https://shop.example" });
        assert_eq!(properties(&context), expect);
        assert_eq!(properties(&Context::default()), json!({}));
    }
}
