//! Delivery: from the spool to the upstreams, one route for each upstream.
//!
//! A [`Route`] reads the spool, closes batches, and keeps a bounded number of them in flight until
//! each event is delivered or a dead letter. Only then is the event acknowledged, and the spool's
//! cursor moves. Routes share no state: a route that is stuck delays no other route.
//!
//! The delivery worker decides what follows from an attempt's outcome (SPEC 7), the same for every
//! kind of upstream: wait and retry, split, halve, or write dead letters. This room knows neither
//! HTTP nor the files of an upstream.
//!
//! Bounded for each route: batches in flight ([`Upstream::concurrency_max`]), events read ahead of
//! them (one batch and one message), the waits, and the rate of log lines. The amount of data in
//! the spool changes none of these.
//!
//! [`Upstream::concurrency_max`]: crate::upstream::Upstream::concurrency_max

mod batches;
mod breaker;
pub mod dead_letters;
mod feedback;
mod forwarder;
mod health;
mod in_flight_batch;
mod lag;
mod limiter;
mod newer_records;
mod options;
mod retries;
mod status;
pub(crate) mod threads;
mod worker;

pub use crate::upstream::BatchConfig;
pub use forwarder::{Forwarder, start};
pub use health::State;
pub use options::{Meters, Options, Route};
pub use retries::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
pub use status::Status;
pub use worker::STOP_ATTEMPT_MS_MAX;
