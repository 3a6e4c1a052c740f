//! The data that the gate reports about itself (SPEC 8): counters, faults, samples of single events
//! and requests in flight; and the limit on log lines.

pub mod event_samples;
pub mod faults;
pub mod in_flight;
pub mod log_throttle;
pub mod metrics;
pub mod portal_events;
