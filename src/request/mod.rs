//! What a request says, before it is judged.

pub mod client;
pub mod context;
pub mod path;
pub(crate) mod simd;
pub mod target;
