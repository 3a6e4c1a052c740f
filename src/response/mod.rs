//! What an event request is answered.

pub mod answers;
pub mod pixel;
pub(crate) mod title_case;
