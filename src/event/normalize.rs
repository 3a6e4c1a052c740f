//! The canonical form of an event: merges its properties, and writes the event as a query.
//!
//! Normalizing is idempotent: a canonical event that is written as a query and judged again gives
//! the same event (SPEC 3). The files that read single values make them canonical: `query.rs` trims
//! them, `email.rs` lower-cases addresses, and `revenue.rs` writes numbers.

use std::borrow::Cow;
use std::fmt::Write;

use super::event::{Event, Properties};
use super::param::Reserved;

/// Separates the values of a repeated property, as HubSpot writes multiple checkboxes.
const MULTI_VALUE_SEPARATOR: &str = ";";

/// Bytes beside letters and digits that a canonical query holds as they are.
const BARE: &[u8] = b"-._~!$()*,/:@?";

/// Sorts properties by name and joins the values of properties that share a name.
pub(super) fn sort_and_merge(properties: &mut Properties<'_>) {
    if properties.is_sorted_by(|(a, _), (b, _)| a < b) {
        return;
    }
    // Stable: the values of one name stay in order of appearance.
    properties.sort_by(|(a, _), (b, _)| a.cmp(b));
    if properties.windows(2).all(|pair| pair[0].0 != pair[1].0) {
        return;
    }
    let mut merged = Properties::with_capacity(properties.len());
    let mut rest = properties.drain(..).peekable();
    while let Some((name, first)) = rest.next() {
        let mut values = vec![first];
        while let Some((_, value)) = rest.next_if(|(next, _)| *next == name) {
            values.push(value);
        }
        merged.push((name, multi_value(values)));
    }
    drop(rest);
    *properties = merged;
}

/// Joins the distinct values in order of first appearance.
///
/// Finds the distinct values by sorting. If each value were compared with every other, a query that
/// repeats one key would take longer than any other query.
fn multi_value<'a>(mut values: Vec<Cow<'a, str>>) -> Cow<'a, str> {
    let mut firsts: Vec<usize> = (0..values.len()).collect();
    firsts.sort_by(|&a, &b| values[a].cmp(&values[b])); // stable: the first of equals stays first
    firsts.dedup_by(|later, first| values[*later] == values[*first]);
    firsts.sort_unstable();
    match firsts.as_slice() {
        [only] => values.swap_remove(*only),
        many => {
            let distinct: Vec<&str> = many.iter().map(|&first| &*values[first]).collect();
            Cow::Owned(distinct.join(MULTI_VALUE_SEPARATOR))
        }
    }
}

/// Writes an event as a query. If that query is judged again, the event is the same and no
/// parameter is ignored, unless the query is longer than the limits allow: percent-encoding can
/// make it up to three times as long as the query that was judged.
///
/// Encodes every byte that RFC 3986 does not allow in a query; also `&`, `=`, `;` and `+`, which
/// separate parameters or mean a space, and `'`, which the URL standard encodes.
pub fn canonical_query(event: &Event<'_>) -> String {
    let mut query = String::with_capacity(128);
    push(&mut query, Reserved::Portal.key(), &event.portal.to_string());
    push(&mut query, Reserved::Event.key(), &event.name);
    if let Some(email) = &event.email {
        push(&mut query, Reserved::Email.key(), email);
    }
    if let Some(revenue) = event.revenue {
        push(&mut query, Reserved::Revenue.key(), &revenue.to_string());
    }
    if let Some(id) = &event.external_id {
        push(&mut query, Reserved::ExternalId.key(), id);
    }
    for (name, value) in &event.properties {
        push(&mut query, name, value);
    }
    query
}

/// Appends a parameter. A key consists of `[a-z0-9_]`, which encoding does not change. It is
/// encoded all the same, so that a record that another program has altered cannot add parameters.
fn push(query: &mut String, key: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    push_encoded(query, key);
    query.push('=');
    push_encoded(query, value);
}

fn push_encoded(query: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || BARE.contains(&byte) {
            query.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(query, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_propertys_adds_no_parameter() {
        let mut event = Event::blank();
        event.properties.push(("bad name&_m=9".into(), "v".into()));
        assert_eq!(canonical_query(&event), "_a=0&_n=&bad%20name%26_m%3D9=v");
    }
}
