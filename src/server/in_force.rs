//! The configuration of a request: the limits, the settings of the gate, and its access log, as
//! they were in force when the request arrived.
//!
//! Each connection holds one [`InForce`] from the arrival of a request to its answer, so that a
//! reload in between changes nothing for that request. The next request costs one atomic load to
//! learn that nothing was reloaded since.

use super::limits::Limits;
use crate::plugin::access::AccessLog;
use crate::plugin::{PixelGate, Settings};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// The limits, the settings and the access log that were in force at one moment.
pub struct InForce {
    /// The gate's count of reloads, read before the other fields: they are at least as new.
    pub reloads: u64,
    pub limits: Arc<Limits>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) access_log: Option<AccessLog>,
}

/// Replaces the limits of a running [`Server`](super::Server).
///
/// ```
/// use pixelgate::Limits;
/// use pixelgate::http_server::LimitsHandle;
///
/// fn shut_out_slow_clients(limits: &LimitsHandle) {
///     let mut strict = Limits::default();
///     strict.header_timeout = std::time::Duration::from_secs(1);
///     limits.set(strict);
/// }
/// ```
#[derive(Clone)]
pub struct LimitsHandle {
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) gate: PixelGate,
}

impl LimitsHandle {
    /// Puts `limits` in force for new connections, and for the next request of each open HTTP/1
    /// connection. An open HTTP/2 connection keeps its number of streams and its deadlines.
    pub fn set(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
        self.gate.count_reload();
    }
}

impl InForce {
    /// The configuration in force now.
    pub fn now(gate: &PixelGate, limits: &ArcSwap<Limits>) -> InForce {
        let reloads = gate.reloads();
        let (settings, access_log) = (gate.settings(), gate.access_log());
        InForce { reloads, limits: limits.load_full(), settings, access_log }
    }
}
