//! What a portal list is read against: the configuration that its rules must fit.

use std::sync::Arc;

use crate::clock::Clock;
use crate::policy::privacy;

/// The configuration that a list's rules must fit.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// The names of all upstreams: those that `upstreams` may name.
    pub upstreams: Vec<String>,
    /// `[privacy]`: a portal's `privacy` must not be looser.
    pub privacy: privacy::Config,
}

/// What reading a list needs besides its text.
pub(super) struct Terms {
    pub bounds: Bounds,
    pub clock: Arc<dyn Clock>,
}
