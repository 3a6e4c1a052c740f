//! Merges the contact properties of several events of one person into one upsert.
//!
//! HubSpot rejects a request that names a contact twice, so the events of a request are merged
//! first, in their order. If a property has two values, the later one is sent.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::item::Item;

/// A contact, merged from one or more events.
#[derive(Debug)]
pub struct Contact<'a> {
    email: &'a str,
    properties: BTreeMap<&'a str, &'a str>,
    /// Indices of the merged items.
    pub members: Vec<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Input<'a> {
    id: &'a str,
    id_property: &'static str,
    /// HubSpot's response repeats this id in an error about this input.
    object_write_trace_id: String,
    properties: &'a BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Inputs<'a> {
    inputs: Vec<Input<'a>>,
}

/// The contacts of `items`, in order of first appearance. An item without an address names no
/// contact that could be written.
pub fn merge(items: &[Item]) -> Vec<Contact<'_>> {
    let mut contacts: Vec<Contact<'_>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some(email) = item.translation.email.as_deref() else { continue };
        let at = *known.entry(email).or_insert_with(|| {
            let properties = BTreeMap::from([("email", email)]);
            contacts.push(Contact { email, properties, members: Vec::new() });
            contacts.len() - 1
        });
        let contact = &mut contacts[at];
        contact.members.push(index);
        let properties = item.translation.contact.iter().flatten();
        contact.properties.extend(properties.map(|(name, value)| (&**name, &**value)));
    }
    contacts
}

/// The body of `POST /crm/v3/objects/contacts/batch/upsert`. The trace id of a
/// contact is its index.
pub fn body(contacts: &[Contact<'_>]) -> serde_json::Result<Vec<u8>> {
    let inputs = contacts.iter().enumerate().map(|(index, contact)| Input {
        id: contact.email,
        id_property: "email",
        object_write_trace_id: index.to_string(),
        properties: &contact.properties,
    });
    serde_json::to_vec(&Inputs { inputs: inputs.collect() })
}

#[cfg(test)]
mod tests {
    use super::super::item::tests::items;
    use super::*;

    #[test]
    fn events_of_one_person_are_merged_in_their_order() {
        let items = items(&[
            "email=a@b.example&plan=free&color=red",
            "email=c@d.example",
            "email=A@b.example&plan=pro",
            "email=a@b.example&size=1",
        ]);
        let contacts = merge(&items);
        let members: Vec<_> = contacts.iter().map(|c| (c.email, c.members.clone())).collect();
        assert_eq!(members, [("a@b.example", vec![0, 2, 3]), ("c@d.example", vec![1])]);
        let body: serde_json::Value = serde_json::from_slice(&body(&contacts).unwrap()).unwrap();
        let expect = serde_json::json!({ "inputs": [
            {
                "id": "a@b.example", "idProperty": "email", "objectWriteTraceId": "0",
                "properties":
                    { "email": "a@b.example", "color": "red", "plan": "pro", "size": "1" }
            },
            {
                "id": "c@d.example", "idProperty": "email", "objectWriteTraceId": "1",
                "properties": { "email": "c@d.example" }
            }
        ]});
        assert_eq!(body, expect);
    }
}
