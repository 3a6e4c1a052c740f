//! What a spool takes from its surroundings: a file system, a clock, one histogram, and the list
//! of faults.

use std::sync::Arc;

use super::fs::{Fs, SystemFs};
use crate::clock::{Clock, SystemClock};
use crate::telemetry::faults::Faults;

/// The surroundings of a spool; tests put a simulated disk and clock here.
#[derive(Clone)]
pub struct Env {
    /// The file system.
    pub fs: Arc<dyn Fs>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// `pixelgate_spool_commit_seconds`: seconds from a group's first append to its answer,
    /// observed once for each group.
    pub commit_seconds: Option<prometheus::Histogram>,
    /// Where the spool raises its faults.
    pub faults: Faults,
}

impl Env {
    /// The machine's own file system and clock, without a histogram, and with faults of its own.
    pub fn system() -> Env {
        Env {
            fs: Arc::new(SystemFs),
            clock: Arc::new(SystemClock),
            commit_seconds: None,
            faults: Faults::unregistered(),
        }
    }
}
