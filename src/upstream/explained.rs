//! What an upstream that translates events would send; the command `explain` prints it.

use serde_json::Value;

/// The translation of an event by one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The upstream's name.
    pub upstream: String,
    /// Text output, one statement per line. Holds the event's texts unescaped.
    pub lines: Vec<String>,
    /// JSON output: `{"upstream":…,"event":{…},"contact":{…}}` with HubSpot's keys, or
    /// `{"upstream":…,"dead":"why"}`. `event` lacks the fields that are set at receipt.
    pub json: Value,
}
