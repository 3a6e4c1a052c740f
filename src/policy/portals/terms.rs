//! The configuration that the rules of a portal list must fit.

use std::sync::Arc;

use crate::clock::Clock;
use crate::policy::privacy;

/// The configuration that a list's rules must fit.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// The names of all upstreams, which the rule `upstreams` may name.
    pub upstreams: Vec<String>,
    /// `[privacy]`: a portal's `privacy` must not be looser.
    pub privacy: privacy::Config,
}

/// The inputs that reading a list needs besides its text.
pub(super) struct Terms {
    pub bounds: Bounds,
    pub clock: Arc<dyn Clock>,
}
