//! Upstreams: where batches go.
//!
//! An [`Upstream`] makes one attempt to deliver one [`Batch`] and returns its [`Outcome`]. Retries,
//! waits, splits and metrics are the same for every kind and belong to `delivery`. This keeps a
//! new kind small and its failures predictable.
//!
//! The trait is the one extension point of the delivery path: an embedding program may pass its
//! own implementation. The built-in kinds are chosen by `kind` in `[[upstream]]`, see [`Config`].

mod answer;
mod batch;
mod bot;
mod client;
mod config;
mod contract;
mod encode;
pub mod file;
pub mod http;
pub mod hubspot;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod legacy;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod merge_outcomes;
#[cfg(feature = "nats")]
pub mod nats;
mod outcome;
mod sign;

pub(crate) use bot::is_bot;

pub use crate::env::Secret;
pub use batch::{Batch, BatchConfig, BatchOverride, Body};
pub use config::{
    ATTEMPTS_MAX_DEFAULT, ATTEMPTS_MAX_MAX, Config, Kind, NAME_CHARS_MAX, UPSTREAMS_MAX, check_name,
};
pub use contract::Upstream;
pub use encode::{Compression, Format};
pub use outcome::{Failure, Outcome, Part};
