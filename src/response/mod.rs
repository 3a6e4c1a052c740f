//! The answers to event requests (SPEC 4). This room does no I/O and is not async.

pub mod accept;
pub mod answers;
pub mod pixel;
pub(crate) mod title_case;
