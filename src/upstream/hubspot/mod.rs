//! `hubspot`: HubSpot's successor of the legacy events API. Events become occurrences of custom
//! events (`POST /events/v3/send/batch`), contact properties an upsert of contacts.
//!
//! A batch holds events of many portals. Each portal has a token, limits and troubles of its own,
//! so its events travel apart (`send.rs`), and what happens to one portal stops no other: a
//! portal that is limited, or whose token is refused, is left alone for a while (`pauses.rs`),
//! and its events are tried again while the others arrive. How long the others have is told by
//! [`BATCHES_MAX`].
//!
//! What does not fit the successor (`translate.rs`) becomes a dead letter. What the API answers
//! is read in `answers.rs`; an operator's side of all this is `docs/hubspot.md`.

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
pub use explain::{Explained, explain};
pub use names::{EVENT_NAME_CHARS_MAX, NameFault};
pub use send::{CONTACTS_MAX, EVENTS_MAX};
pub use translate::{EventInput, Translation, Translator, Untranslatable};
pub use upstream::{BATCHES_MAX, Hubspot};
