//! Describes what an upstream would send to HubSpot for an event, for the command `explain`. Uses
//! the same translation as delivery, and sends nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config::Config;
use super::translate::{REFERRER_PROPERTY, Translation, USER_AGENT_PROPERTY, Untranslatable};
use crate::event::{Context, Event};
use crate::upstream::config::Config as Upstream;
use crate::upstream::explained::Explained;
use crate::upstream::kind::Kind;

/// The translation of `event` by each configured upstream of this kind.
pub fn explain(upstreams: &[Upstream], event: &Event<'_>) -> Vec<Explained> {
    let mut all = Vec::new();
    for upstream in upstreams {
        let Kind::Hubspot(config) = &upstream.kind else { continue };
        // Always `Ok`: validation has rejected names that cannot be used.
        let Ok(translator) = config.translator() else { continue };
        let translation = translator.translate(event.clone(), &Context::default());
        all.push(Explained {
            upstream: upstream.name.clone(),
            lines: lines(config, event, &translation),
            json: to_json(&upstream.name, &translation),
        });
    }
    all
}

fn lines(
    config: &Config,
    event: &Event<'_>,
    translation: &Result<Translation<'_>, Untranslatable>,
) -> Vec<String> {
    let translation = match translation {
        Ok(translation) => translation,
        Err(why) => return vec![format!("a dead letter: {}", why.as_str())],
    };
    let row = |name: &str, value: &str| format!("{name:<12} {value}");
    let pair = |name: &str, value: &str| format!("{name} = {value}");
    let mut lines = vec![row("eventName", &translation.event_name)];
    lines.extend(translation.email.as_ref().map(|email| row("email", email)));
    lines.extend([row("occurredAt", "when it is received"), row("uuid", "the event's id")]);
    let properties = translation.properties.iter();
    lines.extend(properties.map(|(name, value)| row("property", &pair(name, value))));
    if config.context_properties {
        lines.push(row("property", &pair(USER_AGENT_PROPERTY, "the request's User-Agent")));
        lines.push(row("property", &pair(REFERRER_PROPERTY, "the request's Referer")));
    }
    let contact = translation.contact.iter().flatten();
    lines.extend(contact.map(|(name, value)| row("contact", &pair(name, value))));
    let mut note = |is_so: bool, what: &str| lines.extend(is_so.then(|| what.to_owned()));
    note(
        event.revenue.is_some() && config.revenue_property.is_empty(),
        "revenue is left out (revenue_property is empty)",
    );
    note(
        event.external_id.is_some() && config.external_id_property.is_empty(),
        "the external id is left out (external_id_property is empty)",
    );
    note(
        !event.properties.is_empty() && !config.contacts,
        "contact properties are left out (contacts is false)",
    );
    note(
        !event.properties.is_empty() && config.contacts && event.email.is_none(),
        "contact properties are left out (no email address names the contact)",
    );
    note(event.email.is_none(), "HubSpot finds the contact by the id (match_external_id)");
    note(
        !config.has_token(event.portal),
        "it would wait: there is no token for its portal in tokens",
    );
    lines
}

fn to_json(upstream: &str, translation: &Result<Translation<'_>, Untranslatable>) -> Value {
    let translation = match translation {
        Ok(translation) => translation,
        Err(why) => return json!({ "upstream": upstream, "dead": why.as_str() }),
    };
    let mut explained = json!({ "upstream": upstream, "event": translation.input(None, None) });
    if let Some((properties, email)) = translation.contact.as_ref().zip(translation.email.as_ref())
    {
        let pairs = properties.iter().map(|(name, value)| (&**name, &**value));
        let all: BTreeMap<&str, &str> = pairs.chain([("email", &**email)]).collect();
        explained["contact"] = json!(all);
    }
    explained
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Rules, parse};

    const QUERY: &str = "_a=62515&_n=buy&email=Person@company.com&_m=20.50&id=ext-77\
                         &favorite_color=orange&favorite_color=blue&note=a";

    fn told(rest: &str, query: &str) -> Explained {
        let text =
            format!("name = 'crm'\nkind = 'hubspot'\ntokens = {{ '62515' = 't0ps3cret' }}\n{rest}");
        let upstreams = [
            toml::from_str("name = 'files'\nkind = 'file'").unwrap(),
            toml::from_str(&text).unwrap(),
        ];
        let event = parse(query.as_bytes(), &Rules::default()).unwrap().event;
        let mut all = explain(&upstreams, &event);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn all_that_would_be_sent_is_told() {
        let told = told("", QUERY);
        let lines = told.lines.join("\n");
        for part in [
            "pe62515_buy",
            "person@company.com",
            "revenue = 20.5",
            "external_id = ext-77",
            "favorite_color = orange;blue",
        ] {
            assert!(lines.contains(part), "{lines}");
        }
        let expect = json!({
            "upstream": "crm",
            "event": {
                "eventName": "pe62515_buy", "email": "person@company.com",
                "properties": { "revenue": "20.5", "external_id": "ext-77" }
            },
            "contact": {
                "email": "person@company.com", "favorite_color": "orange;blue", "note": "a"
            }
        });
        assert_eq!(told.json, expect);
    }

    #[test]
    fn what_is_left_out_or_missing_is_told() {
        let rest = "contacts = false\nrevenue_property = ''\nexternal_id_property = ''";
        let told = told(rest, &QUERY.replace("62515", "56043"));
        let lines = told.lines.join("\n");
        for part in ["revenue_property", "external_id_property", "contacts is false", "no token"] {
            assert!(lines.contains(part), "{lines}");
        }
        assert_eq!(told.json.get("contact"), None);
    }

    #[test]
    fn an_event_whose_id_is_matched_is_told_without_a_contact() {
        let rest = "match_external_id = true\ncontext_properties = true\n\
                    external_id_contact_property = 'legacy_id'";
        let by_id = told(rest, "_a=62515&_n=buy&id=ext-77&color=red");
        let lines = by_id.lines.join("\n");
        for part in ["external_id = ext-77", "by the id", "no email address", "hs_user_agent"] {
            assert!(lines.contains(part), "{lines}");
        }
        let event =
            json!({ "eventName": "pe62515_buy", "properties": { "external_id": "ext-77" } });
        assert_eq!(by_id.json, json!({ "upstream": "crm", "event": event }));
        let both = told(rest, "_a=62515&_n=buy&id=ext-77&email=a@b.example");
        let contact = json!({ "email": "a@b.example", "legacy_id": "ext-77" });
        assert_eq!(both.json["contact"], contact);
    }

    #[test]
    fn a_dead_letter_says_why() {
        let told = told("", "_a=62515&_n=buy");
        let why = Untranslatable::NoContact.as_str();
        assert_eq!(told.lines, [format!("a dead letter: {why}")]);
        assert_eq!(told.json, json!({ "upstream": "crm", "dead": why }));
    }
}
