//! The operator's listener (SPEC 8): `/metrics`, `/livez`, `/readyz`, `/status`, `/explain` and the
//! live page at `/`.
//!
//! [`Sampler`] takes a snapshot of the gate once a second and keeps a short history; [`Admin`]
//! answers requests from both. Nothing here changes the gate.

mod access;
mod health_summary;
mod page;
mod sampler;
mod service;
mod status;

pub use sampler::{
    GLIMPSED_ACCEPTED_MAX, GLIMPSED_REJECTED_MAX, PAST_SECONDS, RECENT_EVENTS, Sampler,
    VERDICT_TARGET,
};
pub use service::{
    Admin, CONNECTIONS_MAX, Config, EXPLAIN_BYTES_MAX, TOKEN_BYTES_MIN, WATCHERS_MAX,
};
