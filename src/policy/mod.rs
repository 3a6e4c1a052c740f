//! Policy: from an event request to a decision.

pub mod gate;
pub mod inspect;
pub mod portals;
pub mod privacy;
mod referer;
