//! What the gate reports about itself: counters, faults, samples of single events, requests in
//! flight, and the limit on log lines.

pub mod event_samples;
pub mod faults;
pub mod in_flight;
pub mod log_throttle;
pub mod metrics;
pub mod portal_events;
