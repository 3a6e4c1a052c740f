//! `nats`: each event is one message in a JetStream stream (SPEC 7).
//!
//! The payload is the event's wire form. The header `Nats-Msg-Id` is the event's id, by which the
//! stream drops repeats within its `duplicate_window`. An event counts as delivered when the stream
//! has acknowledged it. The configuration of the stream decides how safely it is stored then.
//!
//! Events are published without waiting, with up to [`UNANSWERED_MAX`] unacknowledged events per
//! batch. An event whose acknowledgement does not arrive within `timeout_seconds`, or whose
//! connection breaks, has an unknown result and is sent again with the same id.
//!
//! No order is promised: several batches are in flight at once.

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
