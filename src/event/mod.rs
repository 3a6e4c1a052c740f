//! Turns the bytes of a query into an [`Event`] or a [`Rejection`].
//!
//! This room does no I/O, reads no clock, is not async and has no state. A request, the command
//! `explain` and the tests call the same function, so their verdicts cannot differ. SPEC 3 has the
//! rules, and `param.rs` all of their limits, which other rooms take from there.
//!
//! The path and the method (SPEC 2), the portal policy (SPEC 5) and the answer (SPEC 4) belong to
//! other rooms. [`Reason`] lists the reasons of their checks as well, so that there is one list.
//!
//! `parse.rs` is the entry. `query.rs` splits and decodes, `collector.rs` collects the parameters
//! by their meaning, `validate.rs`, `email.rs` and `revenue.rs` have the rule of each field, and
//! `normalize.rs` makes the canonical form. `record/` stores an event, reads it back and writes it
//! as upstreams receive it. `hints.rs` finds likely mistakes in a query, which `hint.rs` lists;
//! `peek.rs` reads portal and event name of a query that is rejected. `hidden.rs` recognizes the
//! characters that a reader does not see. `verdict.rs` lists the reasons, with their texts.
//!
//! A plain query (no `%`, no `+`, lower-case keys) is judged without allocating: the event borrows
//! from the query.

mod collector;
mod config;
mod context;
mod context_names;
mod dropped_names;
mod email;
#[allow(clippy::module_inception)] // The room is named after its central type.
mod event;
mod hidden;
mod hint;
mod hints;
mod id;
mod normalize;
mod param;
mod parse;
mod peek;
mod query;
mod record;
mod revenue;
mod validate;
mod verdict;

pub use config::{Config, Limits, Rules};
pub use context::{Context, FurtherContext};
pub use context_names::ContextNames;
pub use event::{Event, Properties};
pub use hidden::{escape_hidden, is_hidden, without_hidden};
pub use hint::{Hint, ParamHint};
pub use hints::hints;
pub use id::EventId;
pub use normalize::canonical_query;
pub use param::*;
pub(crate) use parse::parse_into;
pub use parse::{Judged, parse};
pub use peek::{Peek, named_portals, peek};
pub use record::decode::Record;
pub use record::encode::{encode_record, write_event_json};
pub use record::error::RecordError;
pub use record::from_wire::{FromWire, WireError};
pub use record::raw::{RawRecord, WireWriter, is_newer_record, portal_and_time, received_ms};
pub use record::route::{Route, is_routed, names_upstream};
pub use revenue::Revenue;
pub use validate::is_property_name;
pub use verdict::{Ignored, IgnoredParams, Reason, Rejection};
