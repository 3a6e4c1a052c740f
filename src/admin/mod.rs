//! The operator's listener (SPEC 8): `/metrics`, `/livez`, `/readyz`, `/status`, `/explain` and the
//! live page at `/`.
//!
//! [`Sampler`] takes a snapshot of the gate once a second and stores a history of ten minutes.
//! [`Admin`] answers requests from both: `status.rs` makes `/status`, `health_summary.rs` the
//! sentence in it that says how the gate is, `readiness.rs` `/readyz`, and `page.rs` the live page.
//! With the feature `otlp`, the metrics can also be sent to a collector. This room does not change
//! the gate.

mod access;
mod config;
mod connections;
mod health_summary;
mod history;
mod metrics_config;
#[cfg(feature = "otlp")]
mod otlp;
mod otlp_config;
mod page;
mod portal_totals;
mod readiness;
mod rfc3339;
mod sampler;
mod service;
mod snapshot;
mod status;
#[cfg(test)]
mod test_gate;

pub use access::TokenHandle;
pub use config::{Config, TOKEN_BYTES_MIN};
pub use connections::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX};
pub use history::{PAST_SECONDS, RECENT_EVENTS};
pub use metrics_config::Config as MetricsConfig;
#[cfg(feature = "otlp")]
pub use otlp::{OtlpExport, OtlpTarget};
pub use otlp_config::Config as OtlpConfig;
pub use sampler::{SAMPLED_ACCEPTED_MAX, SAMPLED_REJECTED_MAX, Sampler, VERDICT_TARGET};
pub use service::{Admin, EXPLAIN_BYTES_MAX, STREAMS_MAX};
