//! Recovery: what a process finds on disk, at its start and when another has died.

pub(super) mod adoption;
pub(super) mod count_foreign;
pub mod forget;
pub mod inspect;
mod portal_sums;
pub(super) mod quarantine;
pub(super) mod recover;
