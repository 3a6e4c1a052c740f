//! Takes over the lanes of ended processes (SPEC 6), and serves the commands `pixelgate spool`.
//!
//! `adoption.rs` takes over the lanes of a folder, `recover.rs` a single lane (`identity.rs` says
//! whose it is), and `positions.rs` and `count_foreign.rs` restore what its upstreams have
//! acknowledged. `oldest.rs` reads how old the events are that wait in a lane which is not held,
//! and `living.rs` the totals of one whose process lives. `returned.rs` takes up segments that were
//! missing, and `quarantine.rs` copies damaged bytes. `inspect.rs`, `snapshot.rs`, `portal_sums.rs`
//! and `forget.rs` are for the commands.

pub(super) mod adoption;
pub(super) mod count_foreign;
pub mod forget;
pub(super) mod identity;
pub mod inspect;
pub(super) mod living;
mod oldest;
mod portal_sums;
mod positions;
pub(super) mod quarantine;
pub(super) mod recover;
pub(super) mod returned;
mod snapshot;
