//! The state that all handles to one portal policy share: the list in use, its source and its
//! health.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::config::Mode;
use super::list::List;
use super::quota::AcceptedByDay;
use super::source::Source;
use super::status::Health;
use super::terms::Terms;
use crate::clock::Clock;

/// The shared part of a [`Portals`](super::Portals).
pub(super) struct PortalsState {
    pub mode: Mode,
    /// `portals.refresh_seconds`.
    pub refresh: Duration,
    /// `portals.stale_seconds_max`. `None`: a list of any age is used.
    pub stale_after: Option<Duration>,
    /// The clock, and the configuration that the rules of a new list must fit.
    pub terms: Arc<Terms>,
    /// `None` until a list has been loaded.
    pub current: ArcSwapOption<List>,
    /// When the source last confirmed the list in use: milliseconds of the monotonic
    /// clock, negative for a time before it began.
    pub confirmed_ms: AtomicI64,
    /// Whether the lists come from the host.
    pub is_hosts: bool,
    pub source: Arc<tokio::sync::Mutex<Source>>,
    pub health: Mutex<Health>,
    /// The source as messages name it: a path, or a URL without its query.
    pub source_name: String,
    /// The longest time for a look at the source. A longer one counts as failed until it ends.
    pub look_max: Duration,
    /// The counts of accepted events by day, once they are known.
    pub accepted: OnceLock<Arc<dyn AcceptedByDay>>,
    /// Notified when the source must be read at once.
    pub reload: tokio::sync::Notify,
}

impl PortalsState {
    /// Whether the list in use is older than `portals.stale_seconds_max`.
    pub(super) fn is_stale(&self) -> bool {
        let Some(after) = self.stale_after else {
            return false;
        };
        let confirmed = self.confirmed_ms.load(Ordering::Relaxed);
        let age = monotonic_ms(&*self.terms.clock).saturating_sub(confirmed);
        u128::try_from(age).is_ok_and(|age| age > after.as_millis())
    }
}

/// The monotonic clock, in milliseconds.
pub(super) fn monotonic_ms(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.monotonic().as_millis()).unwrap_or(i64::MAX)
}
