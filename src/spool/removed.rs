//! Reports upstreams that are not configured any more and for which events wait.
//!
//! These events stay in their lanes, and use up `spool.bytes_max`. New events are not meant for a
//! removed upstream. When the upstream is configured again, it goes on at its position.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lane::Lane;
use super::recovery::adoption::Unheld;
use crate::telemetry::faults::{FaultKind, Faults};

/// Logs each removed upstream and raises a fault for it. `configured` is the number of configured
/// upstreams, whose positions come first in each lane.
pub fn report(lanes: &[Arc<Lane>], unheld: &[Unheld], configured: usize, faults: &Faults) {
    let mut waiting: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |(name, events)| *waiting.entry(name).or_default() += events;
    for lane in lanes {
        lane.state().waiting_for_removed(configured).for_each(&mut add);
    }
    unheld.iter().for_each(|lane| lane.removed.iter().cloned().for_each(&mut add));
    for (name, events) in waiting.into_iter().filter(|(_, events)| *events > 0) {
        let waiting = match events {
            1 => "1 event waits".to_owned(),
            _ => format!("{events} events wait"),
        };
        let text = format!("{waiting} for upstream {name}, which is not configured");
        let advice = format!(
            "Configure {name} again, or stop the edge and give its events up with `pixelgate spool \
         forget {name}`. Until then they use up spool.bytes_max."
        );
        ::log::warn!("spool: {text}. {advice}");
        faults.raise(FaultKind::UpstreamRemoved, &name, text, advice);
    }
}
