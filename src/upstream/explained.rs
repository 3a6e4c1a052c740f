//! The translation of an event by an upstream, as the command `explain` prints it.

use serde_json::Value;

/// The translation of an event by one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The upstream's name.
    pub upstream: String,
    /// The translation as text, one statement per line. The texts of the event are not escaped.
    pub lines: Vec<String>,
    /// The translation as JSON: `{"upstream":…,"event":{…},"contact":{…}}` with HubSpot's keys, or
    /// `{"upstream":…,"dead":"why"}`. `event` lacks the fields that are set at receipt.
    pub json: Value,
}
