//! One translated event of a batch, as `contacts.rs` merges it and `send.rs` sends it.

use uuid::Uuid;

use super::translate::Translation;
use crate::clock::timestamp;

/// One translated event.
#[derive(Debug)]
pub struct Item {
    /// The index of the event in the batch.
    pub place: usize,
    /// The event's id. HubSpot drops a second occurrence with the same `uuid`.
    pub uuid: String,
    /// The time of receipt by RFC 3339, with milliseconds, in UTC.
    pub occurred_at: String,
    /// The event's name, address and properties as HubSpot takes them.
    pub translation: Translation<'static>,
}

impl Item {
    /// `place` is the event's index in the batch; `id` and `received_at_ms` (milliseconds since
    /// the Unix epoch) are those of its spool record.
    pub fn new(
        place: usize,
        id: [u8; 16],
        received_at_ms: u64,
        translation: Translation<'static>,
    ) -> Item {
        let time = timestamp(received_at_ms);
        let uuid = Uuid::from_bytes(id).to_string();
        Item { place, uuid, occurred_at: format!("{time:.3}"), translation }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::event::{Context, Rules, parse};

    /// Items of portal 1, from the rest of their queries.
    pub fn items(queries: &[&str]) -> Vec<Item> {
        let translator = super::super::Config::default().translator().unwrap();
        let item = |(place, rest): (usize, &&str)| {
            let query = format!("_a=1&_n=a&{rest}");
            let event = parse(query.as_bytes(), &Rules::default()).unwrap().event.into_owned();
            let translation = translator.translate(event, &Context::default()).unwrap();
            Item::new(place, [7; 16], 1_795_401_913_123, translation)
        };
        queries.iter().enumerate().map(item).collect()
    }
}
