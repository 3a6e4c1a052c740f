//! What the gate counts, and what may be seen of single events.

pub mod event_samples;
pub mod in_flight;
pub mod metrics;
