//! Delivery: from the spool to the upstreams, one route for each upstream.
//!
//! A [`Route`] reads the spool, closes batches, and keeps a bounded number of them in flight until
//! each event is delivered or a dead letter. Only then is the event acknowledged. Routes share no
//! state and no thread: a route that is stuck delays no other route. Nor does a batch that fails
//! delay another one: it waits in the route's schedule and holds nothing that others need.
//!
//! The delivery worker decides what follows from an attempt's outcome (SPEC 7), the same for every
//! kind of upstream: wait and retry, split, halve, or write dead letters. This room knows neither
//! HTTP nor the files of an upstream.
//!
//! Bounded for each route: batches in flight ([`Upstream::concurrency_max`]), bytes of the events
//! that wait in memory ([`HELD_BYTES_MAX`] and one open batch for each queue), the waits, and the
//! rate of log lines. The amount of data in the spool changes none of these.
//!
//! [`Upstream::concurrency_max`]: crate::upstream::Upstream::concurrency_max

pub mod backfill;
mod batches;
mod bounded_line;
mod breaker;
mod conclude;
pub mod dead_letters;
mod feedback;
mod forwarder;
mod health;
mod in_flight_batch;
mod letter_queue;
mod limiter;
mod monitor;
mod newer_records;
mod options;
mod probe;
mod retries;
mod schedule;
mod status;
pub(crate) mod threads;
mod tracker;
mod worker;

pub use crate::upstream::BatchConfig;
pub use forwarder::{Forwarder, prepare, start};
pub use health::State;
pub use monitor::HELD_BYTES_MAX;
pub use options::{Meters, Options, Route, RouteLimits};
pub use retries::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, Backoff};
pub use status::Status;
pub use worker::{CLOSE_MS_MAX, CUT_OFF_MS_MAX, DeliveryWorker};
