//! `hubspot`: HubSpot's API for custom events, the successor of the legacy events API (SPEC 7).
//! Events become occurrences of custom events (`POST /events/v3/send/batch`), and contact
//! properties become an upsert of contacts.
//!
//! A batch holds events of many portals. Each portal has its own token and limits, so its events
//! are sent in requests of their own (`send.rs`), and a failure of one portal stops no other. A
//! portal that is rate limited, or whose token is rejected, is paused (`pauses.rs`), and its
//! events are retried while those of other portals are delivered, until [`BATCHES_MAX`] batches
//! wait.
//!
//! An event that cannot be translated (`translate.rs`) becomes a dead letter. `answers.rs` maps
//! the API's responses to outcomes. `docs/hubspot.md` is the operator's guide.

mod answers;
mod config;
mod contacts;
mod explain;
mod item;
mod names;
mod pauses;
mod send;
mod translate;
mod upstream;

pub use answers::PAUSE_SECONDS;
pub use config::Config;
pub use explain::explain;
pub use names::{EVENT_NAME_CHARS_MAX, NameFault};
pub(in crate::upstream) use pauses::Known;
pub use send::{CONTACTS_MAX, EVENTS_MAX};
pub use translate::{EventInput, Translation, Translator, Untranslatable};
pub use upstream::{BATCHES_MAX, Hubspot};
