//! Takes over the lanes of ended processes (SPEC 6), and serves the commands `pixelgate spool`.

pub(super) mod adoption;
pub(super) mod count_foreign;
pub mod forget;
pub mod inspect;
mod portal_sums;
mod positions;
pub(super) mod quarantine;
pub(super) mod recover;
pub(super) mod returned;
mod snapshot;
