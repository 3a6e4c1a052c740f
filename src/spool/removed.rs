//! Upstreams that are not configured any more, and for which events wait.
//!
//! Their events stay in the lanes in which they waited, and take room of `spool.bytes_max`. New
//! events are not meant for them. Configured again, they go on where they were.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lane::Lane;
use super::read::counts::Counts;
use crate::telemetry::faults::{FaultKind, Faults};

/// Names each removed upstream in the log and among the faults. In each lane its position stands
/// behind those of the configured upstreams.
pub fn report(lanes: &[Arc<Lane>], configured: usize, faults: &Faults) {
    let mut waiting: BTreeMap<String, Counts> = BTreeMap::new();
    for lane in lanes {
        let state = lane.state();
        for position in state.positions.iter().skip(configured) {
            let counts = waiting.entry(position.name.clone()).or_default();
            counts.add(position.totals(state.end()));
        }
    }
    let pending = waiting.into_iter().map(|(name, counts)| (name, counts.pending()));
    for (name, events) in pending.filter(|(_, events)| *events > 0) {
        let text = format!("{events} events wait for upstream {name}, which is not configured");
        let advice = format!(
            "Configure {name} again, or stop the edge and give them up with `pixelgate spool \
             forget {name}`. Until then they take room of spool.bytes_max."
        );
        ::log::warn!("spool: {text}. {advice}");
        faults.raise(FaultKind::UpstreamRemoved, &name, text, advice);
    }
}
