//! Reports upstreams that older lanes hold back.
//!
//! The limit of open files lets this process hold only a number of adopted lanes at a time
//! (`recovery/adoption.rs`): the oldest ones, each until all upstreams have its events. So an
//! upstream that takes nothing also delays the events that other upstreams have in later lanes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::state::SpoolState;
use crate::plural::counted;
use crate::telemetry::faults::FaultKind;

/// The upstreams that are held back, each with the number of its events.
#[derive(Default)]
pub struct HeldBack(BTreeMap<String, u64>);

impl HeldBack {
    /// Looks at all lanes, raises a fault for each upstream that is held back, and clears the
    /// faults of those that are not any more.
    pub fn report(&mut self, state: &SpoolState) {
        let before = std::mem::replace(&mut self.0, held_back(state));
        for upstream in &state.upstreams {
            upstream.held_back.store(self.0.contains_key(&upstream.name), Relaxed);
        }
        for (name, events) in &self.0 {
            let text = format!(
                "the limit of open files holds back {} of upstream {name}, until older lanes are \
                 delivered to all upstreams",
                counted(*events, "event")
            );
            let advice = "Repair the upstreams that take nothing, or give up the events of one \
                          that was removed. Or raise the limit of open files (LimitNOFILE), and \
                          restart the edge.";
            if !before.contains_key(name) {
                ::log::error!("spool: {text}. {advice}");
            }
            state.faults.raise(FaultKind::SpoolLane, name, text, advice);
        }
        for name in before.keys().filter(|name| !self.0.contains_key(*name)) {
            state.faults.clear(FaultKind::SpoolLane, name);
            ::log::info!("spool: the limit of open files holds back no events of upstream {name}");
        }
    }
}

/// The upstreams that have events in lanes that are not held, and none in the adopted lanes that
/// are held. Empty if an adopted lane is done, because another lane soon takes its place.
fn held_back(state: &SpoolState) -> BTreeMap<String, u64> {
    let lanes = state.lanes();
    let own = state.own().map(|own| own.id);
    let adopted: Vec<_> = lanes.iter().filter(|lane| Some(lane.id) != own).collect();
    if adopted.is_empty() || adopted.iter().any(|lane| lane.state().is_done()) {
        return BTreeMap::new();
    }
    let unheld = state.unheld.lock();
    let waiting = state.upstreams.iter().enumerate().map(|(number, upstream)| {
        let counts = unheld.iter().filter_map(|lane| lane.counts.get(number));
        (number, upstream.name.clone(), counts.map(|counts| counts.pending()).sum())
    });
    let waiting: Vec<(usize, String, u64)> = waiting.filter(|(_, _, events)| *events > 0).collect();
    drop(unheld);
    let has_work = |number: usize| {
        adopted.iter().any(|lane| {
            let state = lane.state();
            let position = state.positions.get(number);
            position.is_some_and(|position| position.totals(state.end()).pending() > 0)
        })
    };
    let idle = waiting.into_iter().filter(|(number, _, _)| !has_work(*number));
    idle.map(|(_, name, events)| (name, events)).collect()
}
