//! Whether events or the upstream are to blame, where an order is kept.
//!
//! A single event that fails again and again becomes a dead letter once the upstream has taken
//! another one meanwhile. Where portals keep their order, a queue waits for its first event. If
//! each queue has one that the upstream never takes, nothing would be delivered, and nothing
//! proven. So when the first event of a queue is stuck, or the last attempts all failed, its next
//! event *of another portal* goes alone before what has failed: the order within each portal stays.
//! If it is delivered, the upstream works, and what is stuck becomes a dead letter at its next
//! failure, or is delivered. If it fails as well, an event of a third portal goes before both. So
//! where the first events of N portals fail, about N probes find a portal that the upstream takes.
//!
//! An event cannot be the probe for an older one of its own portal. If it were delivered, the older
//! one would come out of order, or would become a dead letter untried; and after an outage, the
//! upstream would take the older one. So where all events that fit into memory are of portals whose
//! first event has failed, these first events are tried again in turn.

use std::collections::HashSet;

use super::in_flight_batch::InFlightBatch;
use super::schedule::Work;
use super::worker::{DeliveryWorker, portal_of};

impl DeliveryWorker {
    /// Puts the probe in front of a queue's work, if it is not known whether the upstream or the
    /// first events of the work are to blame. The probe is the next event of a portal of which none
    /// was tried alone; if there is none, the next of the events that were tried alone.
    pub(super) fn bring_probe(&mut self, work: &mut Work) {
        let queue = &mut self.queues[work.queue];
        queue.seeks_probe = false;
        let Some(first) = work.parts.front() else { return };
        if !first.is_stuck && !self.breaker.takes_nothing() {
            return;
        }
        // The portals of the events at the front that failed alone, each the first of its portal.
        let mut portals = HashSet::new();
        let is_first_alone = |part: &&InFlightBatch| {
            part.len() == 1 && part.failures > 0 && portals.insert(portal_of_first(part))
        };
        let failed = work.parts.iter().take_while(is_first_alone).count();
        let is_other = |record: &[u8]| !portals.contains(&portal_of(record));
        let find = |part: &InFlightBatch| part.batch.records().iter().position(|r| is_other(r));
        let place = (failed..work.parts.len()).find_map(|at| Some((at, find(&work.parts[at])?)));
        if let Some((at, place)) = place
            && let Some(part) = work.parts.remove(at)
        {
            let (probe, others) = part.take_out(place);
            if let Some(others) = others {
                work.parts.insert(at, others);
            }
            work.parts.push_front(probe);
        } else if let Some(arrival) = queue.batcher.take_first(|event| is_other(&event.record)) {
            let first = queue.batcher.first().map(|arrival| &arrival.record);
            self.monitor.tracker.set_open(work.queue, first);
            work.parts.push_front(InFlightBatch::new(vec![arrival], &self.monitor.tracker));
        } else {
            queue.seeks_probe = true;
            work.parts.make_contiguous()[..failed].rotate_left(failed.min(1));
        }
    }
}

/// The portal of a batch's first event.
fn portal_of_first(part: &InFlightBatch) -> u64 {
    part.batch.records().first().map_or(0, |record| portal_of(record))
}
