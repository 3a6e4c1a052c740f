//! The answers to event requests. No I/O and no async.

pub mod answers;
pub mod pixel;
pub(crate) mod title_case;
