//! What an event request is answered.

pub mod answer;
pub mod pixel;
pub(crate) mod title_case;
