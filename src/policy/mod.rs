//! The policy: turns an event request into a decision (SPEC 2 to 5).
//!
//! `gate.rs` is the judge. `portals/` has the portal list and its rules, `privacy.rs` and
//! `referer.rs` reduce personal data, and `inspect.rs` lets the code of a host look at each event.
//! This room knows no connection and no spool.

pub mod gate;
pub mod inspect;
pub mod portals;
pub mod privacy;
mod referer;
