//! The metric `pixelgate_portal_events_total`: the totals of the busiest portals. They are set each
//! time metrics are read.
//!
//! Its label `portal` is the only label with a value from requests. `metrics.portals_max` limits
//! its values, and a portal appears only if it is in the portal list or had an event accepted.

use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts, Result};
use std::sync::Arc;

/// The values of the label `outcome`.
const OUTCOMES: [&str; 3] = ["accepted", "rejected", "delivered"];

/// A handle to the metric. All values change at once.
#[derive(Clone)]
pub struct PortalEvents {
    opts: Opts,
    descs: Vec<Desc>,
    families: Arc<RwLock<Vec<MetricFamily>>>,
}

impl PortalEvents {
    /// A metric without values.
    ///
    /// # Errors
    ///
    /// The name or a label of `opts` is not valid.
    pub fn new(opts: Opts) -> Result<Self> {
        let empty = counters(&opts)?;
        let descs = empty.desc().into_iter().cloned().collect();
        Ok(Self { opts, descs, families: Arc::default() })
    }

    /// Replaces all values by the totals of these portals: accepted, rejected and delivered events.
    pub fn set(&self, totals: impl IntoIterator<Item = (String, [u64; 3])>) {
        // Cannot fail: the same options were used before.
        let Ok(counters) = counters(&self.opts) else { return };
        let mut is_empty = true;
        for (portal, counts) in totals {
            is_empty = false;
            for (outcome, count) in OUTCOMES.iter().zip(counts) {
                counters.with_label_values(&[portal.as_str(), outcome]).inc_by(count);
            }
        }
        // A family without values cannot be written as text.
        *self.families.write() = if is_empty { Vec::new() } else { counters.collect() };
    }
}

impl Collector for PortalEvents {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families.read().clone()
    }
}

fn counters(opts: &Opts) -> Result<IntCounterVec> {
    IntCounterVec::new(opts.clone(), &["portal", "outcome"])
}
