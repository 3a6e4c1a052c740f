//! Takes a [`Snapshot`] of the gate once a second and keeps the [`History`].
//!
//! The history is stored here and not in the page, because a page shows the last ten minutes as
//! soon as it is opened. The log lines about single verdicts are written here as well, from the
//! same samples.
//!
//! Open pages receive each snapshot through a channel that holds only the latest one. A slow page
//! misses snapshots and catches up on seconds from the history.

use super::history::{History, REASONS, Second};
use super::readiness;
use super::snapshot::Snapshot;
use crate::clock::{Clock, SystemClock};
use crate::plugin::PixelGate;
use crate::telemetry::event_samples::{EventSample, SAMPLES_PER_SECOND_MAX};
use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// The most accepted events that are sampled in a second for the page.
pub const SAMPLED_ACCEPTED_MAX: u32 = 10;
/// The most rejected events that are sampled in a second for the page. They are more than the
/// accepted ones, because operators look for rejections.
pub const SAMPLED_REJECTED_MAX: u32 = 20;
/// The most portals whose totals are in `/status`.
const TOTALS_SHOWN_MAX: usize = 20;
/// The log target of single verdicts, for filters.
pub const VERDICT_TARGET: &str = "pixelgate::verdict";

/// Takes a snapshot of the gate once a second, for the pages and for [`OtlpExport`], and logs
/// single verdicts. Runs as a background service of Pingora, and never blocks a request.
///
/// [`OtlpExport`]: crate::admin_pages
///
/// ```
/// # use pixelgate::PixelGate;
/// # use pixelgate::admin_pages::Sampler;
/// fn sample(gate: PixelGate) -> Sampler {
///     let sampler = Sampler::new(gate, 0); // logs no single verdict
///     sampler.set_verdicts(10);
///     sampler
/// }
/// ```
pub struct Sampler {
    gate: PixelGate,
    started: Instant,
    verdicts_per_second: AtomicU32,
    portals_max: AtomicUsize,
    history: Mutex<History>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Sampler {
    /// Samples `gate`, and logs at most `verdicts_per_second` accepted and as many rejected events
    /// a second; at most [`SAMPLES_PER_SECOND_MAX`] of each.
    pub fn new(gate: PixelGate, verdicts_per_second: u32) -> Self {
        let started = Instant::now();
        let verdicts_per_second = verdicts_per_second.min(SAMPLES_PER_SECOND_MAX);
        // The slots are opened here, because an event may arrive before the first tick.
        open_slots(&gate, verdicts_per_second);
        let mut history = History::default();
        let mut before = second(&gate);
        before.at = before.at.saturating_sub(1);
        history.push_second(before);
        let portals_max = super::metrics_config::Config::default().portals_max;
        let first = snapshot(&gate, started, &history, portals_max);
        let snapshots = watch::Sender::new(Arc::new(first));
        let verdicts_per_second = AtomicU32::new(verdicts_per_second);
        Self {
            gate,
            started,
            verdicts_per_second,
            portals_max: AtomicUsize::new(portals_max),
            history: Mutex::new(history),
            snapshots,
        }
    }

    /// Logs at most `per_second` accepted and as many rejected events a second from now on, with
    /// the limit of [`Sampler::new`].
    pub fn set_verdicts(&self, per_second: u32) {
        self.verdicts_per_second.store(per_second.min(SAMPLES_PER_SECOND_MAX), Relaxed);
    }

    /// Shows `portals_max` of the busiest portals from now on (`metrics.portals_max`; 20 before the
    /// first call).
    pub fn set_portals_max(&self, portals_max: usize) {
        self.portals_max.store(portals_max, Relaxed);
    }

    pub(super) fn portals_max(&self) -> usize {
        self.portals_max.load(Relaxed)
    }

    pub(super) fn gate(&self) -> &PixelGate {
        &self.gate
    }

    /// A receiver that gets the snapshot of each tick from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock()
    }

    /// Takes a snapshot now.
    pub(super) fn snapshot(&self) -> Snapshot {
        snapshot(&self.gate, self.started, &self.history(), self.portals_max())
    }

    /// Adds the samples and counters of the last second to the history, and publishes a snapshot.
    fn tick(&self) {
        let samples = self.gate.event_samples().drain();
        let verdicts = self.verdicts_per_second.load(Relaxed);
        open_slots(&self.gate, verdicts);
        Self::log_verdicts(&samples, verdicts as usize);
        readiness::note_faults(&self.gate);
        let second = second(&self.gate);
        let mut history = self.history();
        let at = second.at;
        history.push_second(second);
        history.push_samples(samples);
        if history.rotate_if_due(at) {
            self.gate.event_samples().top_portals().rotate();
        }
        drop(history);
        if self.snapshots.receiver_count() > 0 {
            self.snapshots.send_replace(Arc::new(self.snapshot()));
        }
    }

    /// Logs at most `most` accepted and as many rejected events, each with its portal, verdict and
    /// reason, and no other data of the request.
    fn log_verdicts(samples: &[EventSample], most: usize) {
        for rejected in [false, true] {
            let of_kind = samples.iter().filter(|sample| sample.rejected.is_some() == rejected);
            for sample in of_kind.take(most) {
                let portal = sample.portal.map_or_else(|| "-".to_owned(), |id| id.to_string());
                match sample.rejected {
                    None => log::info!(
                        target: VERDICT_TARGET, portal = portal.as_str(), verdict = "accepted";
                        "event"
                    ),
                    Some(reason) => log::info!(
                        target: VERDICT_TARGET, portal = portal.as_str(), verdict = "rejected",
                        reason = reason.as_str();
                        "event"
                    ),
                }
            }
        }
    }
}

/// Opens enough slots for the samples that page and log need in the next second.
fn open_slots(gate: &PixelGate, verdicts_per_second: u32) {
    let slots = |page: u32| page.max(verdicts_per_second);
    gate.event_samples().open(slots(SAMPLED_ACCEPTED_MAX), slots(SAMPLED_REJECTED_MAX));
}

/// The present values of the counters.
fn second(gate: &PixelGate) -> Second {
    let (accepted, reasons) = gate.metrics().verdicts();
    let spool = gate.spool().status();
    let routes = gate.delivery().status();
    let mut by_reason = [0; REASONS];
    reasons.iter().for_each(|&(reason, count)| by_reason[reason as usize] = count);
    Second {
        at: SystemClock.unix_ms() / 1000,
        accepted,
        by_reason,
        delivered: spool.upstreams.iter().map(|upstream| upstream.delivered).sum(),
        pending: spool.upstreams.iter().map(|upstream| upstream.pending).max().unwrap_or(0),
        bytes: spool.bytes,
        lag_seconds: routes.iter().map(|route| route.lag_seconds).max().unwrap_or(0),
    }
}

fn snapshot(gate: &PixelGate, started: Instant, history: &History, portals_max: usize) -> Snapshot {
    let (accepted, rejected) = gate.metrics().verdicts();
    let routes = gate.delivery().status();
    readiness::note_faults(gate);
    Snapshot {
        at_ms: SystemClock.unix_ms(),
        uptime: started.elapsed(),
        accepted,
        rejected,
        not_judged: gate.metrics().not_judged(),
        draining: gate.is_draining(),
        spool: gate.spool().status(),
        spool_bytes_max: gate.spool().bytes_max(),
        portals: gate.gate().portals().status(),
        faults: gate.faults().list(),
        routes,
        lately: history.lately(),
        top_portals: gate.event_samples().top_portals().ranking(),
        rejections: history.rejections(),
        portal_totals: gate.spool().busiest_portals(portals_max.min(TOTALS_SHOWN_MAX)),
        portals_since_ms: gate.spool().portals_since_ms(),
        recent: history.recent(),
        recent_rejected: history.recent_rejected(),
    }
}

#[async_trait]
impl BackgroundService for Sampler {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = seconds.tick() => {}
                _ = shutdown.changed() => return,
            }
            self.tick();
            // A logger that leaves out repeated lines reports their number when it is flushed.
            log::logger().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_before_the_first_tick_are_in_the_history() {
        let dir = tempfile::tempdir().unwrap();
        let gate = crate::admin::test_gate::open(dir.path());
        let sampler = Sampler::new(gate.clone(), 0);
        gate.metrics().count_accepted();
        sampler.tick();
        assert_eq!(sampler.snapshot().lately.accepted, 1);
    }
}
