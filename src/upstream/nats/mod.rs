//! `nats`: each event is a message of its own in a JetStream stream (SPEC 7).
//!
//! The payload is the event's wire form, the header `Nats-Msg-Id` its id: within its
//! `duplicate_window` the stream itself drops what it has already. An event counts as delivered
//! when the stream has acknowledged it: it is stored as safely as the stream is configured to.
//!
//! Events are published one after another without waiting, up to [`UNANSWERED_MAX`] of a batch at
//! once, and each acknowledgement decides about its own event. None within `timeout_seconds`, or a
//! connection that breaks, means that nobody knows; such an event is sent again under its id.
//!
//! No order is promised: batches are on their way side by side.

mod config;
mod connection;
mod outcome;
mod setup;
mod subject;
mod upstream;

pub use config::{Config, STREAM_CHARS_MAX, URLS_MAX};
pub use setup::UNANSWERED_MAX;
pub use subject::SUBJECT_CHARS_MAX;
pub use upstream::Nats;
