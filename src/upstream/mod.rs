//! Upstreams: where batches go.
//!
//! An [`Upstream`] makes one attempt to hand over one [`Batch`] and says how it ended, as an
//! [`Outcome`]. It does not retry, wait, split, count or remember: `delivery` does, the same for
//! every kind, which keeps a new kind small and its failures predictable.
//!
//! The trait is the one extension point of the delivery path: a host may hand in a kind of
//! its own. The kinds built in are chosen by `kind` in `[[upstream]]`, see [`Config`].

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
pub use config::{Config, Kind, NAME_CHARS_MAX, UPSTREAMS_MAX, check_name};
pub use contract::Upstream;
pub use encode::{Compression, Format};
pub use outcome::{Failure, Outcome, Part};
