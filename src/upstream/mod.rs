//! Upstreams, the destinations of batches (SPEC 7).
//!
//! An [`Upstream`] makes one attempt to deliver one [`Batch`] and returns its [`Outcome`]. Retries,
//! waits, splits and metrics are the same for every kind and belong to the room `delivery`. So a
//! new kind is small, and its failures are predictable.
//!
//! The trait is the one extension point of the delivery path: a host may bring an implementation of
//! its own. The key `kind` of `[[upstream]]` selects a built-in kind, see [`Config`].

#[cfg(feature = "http")]
pub mod answer;
mod batch;
mod bot;
#[cfg(feature = "http")]
pub(crate) mod client;
#[cfg(feature = "http")]
mod compress;
mod config;
mod contract;
mod encode;
mod explained;
pub mod file;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http")]
pub mod hubspot;
#[cfg(feature = "kafka")]
pub mod kafka;
mod kind;
#[cfg(feature = "http")]
pub mod legacy;
mod limits;
#[cfg(any(feature = "kafka", feature = "nats"))]
mod merge_outcomes;
#[cfg(feature = "http")]
mod names;
#[cfg(feature = "nats")]
pub mod nats;
mod outcome;
mod replaceable;
#[cfg(feature = "http")]
mod sign;
#[cfg(any(feature = "http", feature = "nats"))]
mod tls;

pub use bot::is_bot;

pub use crate::env::Secret;
pub use batch::{Batch, BatchConfig, BatchOverride, Body};
#[cfg(feature = "http")]
pub use compress::Compression;
pub use config::{
    ATTEMPTS_MAX_DEFAULT, ATTEMPTS_MAX_MAX, Config, NAME_CHARS_MAX, UPSTREAMS_MAX, ValidConfig,
    check_name,
};
pub use contract::Upstream;
pub use encode::Format;
pub use explained::Explained;
#[cfg(feature = "http")]
pub use hubspot::explain;
pub use kind::Kind;
pub use outcome::{Failure, Outcome, Part};
pub(crate) use replaceable::{Replaceable, Replacement};

/// The translations of `event`. There are none in this build, which lacks the feature `http`.
#[cfg(not(feature = "http"))]
pub fn explain(_: &[Config], _: &crate::event::Event<'_>) -> Vec<Explained> {
    Vec::new()
}
