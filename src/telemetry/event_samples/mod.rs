//! Samples of single events, for the admin page and the log.
//!
//! Counters show that events are rejected; an operator who looks for one event needs examples. The
//! sampler therefore stores a few events of each second, already masked: the portal, the event's
//! name, the verdict, and an address as `p…@c….com`. Values of properties and queries are never
//! stored (`mask.rs` decides what is shown).
//!
//! The request path takes no lock here. The sampler opens a number of slots for each second
//! ([`EventSamples::open`]). A request that finds no slot costs one atomic load. A request that
//! takes a slot puts its sample into a bounded queue. Accepted and rejected events have separate
//! slots, so that a single rejection is seen among any number of accepted events.
//!
//! [`TopPortals`] counts all accepted events of each portal, and the parameters that were dropped
//! from them, at the cost of one more counter per event.

mod mask;
mod top_portals;

use crate::clock::Clock;
use crate::event;
use crate::event::{Event, EventId, Reason, Rules};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub use mask::{NAME_CHARS_MAX, email, name};
pub use top_portals::{PortalCounts, Ranking, TOP_PORTALS_MAX, TopPortals};

/// The most accepted events, and the most rejected events, that are sampled in a second. The queue
/// holds twice as many samples; a sample that finds the queue full is dropped.
pub const SAMPLES_PER_SECOND_MAX: u32 = 1000;

/// One event as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSample {
    /// When the event was judged, in milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// The event's id, under which upstreams receive it. `None`: the event was rejected.
    pub id: Option<EventId>,
    /// Why the event was rejected. `None`: the event was accepted.
    pub rejected: Option<Reason>,
    /// The portal, if the request names one.
    pub portal: Option<u64>,
    /// The event's name, if the request gives one that may be shown ([`name`]).
    pub name: Option<String>,
    /// The contact's address, masked ([`email`]).
    pub email: Option<String>,
    /// Whether the event carries a revenue; the amount is not stored.
    pub has_revenue: bool,
    /// The number of contact properties.
    pub properties: usize,
}

/// The data of an event that is needed between its append to the spool and its commit.
pub(crate) struct PendingSample {
    portal: u64,
    sample: Option<Box<EventSample>>,
}

/// A bounded queue of event samples, and the slots that limit how many are taken.
pub struct EventSamples {
    /// Slots left in this second for accepted events.
    accepted: AtomicU32,
    /// Slots left in this second for rejected events.
    rejected: AtomicU32,
    sender: SyncSender<Box<EventSample>>,
    receiver: Mutex<Receiver<Box<EventSample>>>,
    top_portals: TopPortals,
    clock: Arc<dyn Clock>,
}

impl EventSamples {
    /// An empty queue without slots: no event is sampled before [`EventSamples::open`].
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (sender, receiver) = sync_channel(2 * SAMPLES_PER_SECOND_MAX as usize);
        Self {
            accepted: AtomicU32::new(0),
            rejected: AtomicU32::new(0),
            sender,
            receiver: Mutex::new(receiver),
            top_portals: TopPortals::default(),
            clock,
        }
    }

    /// Sets the number of slots of each kind, at most [`SAMPLES_PER_SECOND_MAX`]; unused slots of
    /// the last second end. Call this once a second, after [`EventSamples::drain`].
    pub fn open(&self, accepted: u32, rejected: u32) {
        self.accepted.store(accepted.min(SAMPLES_PER_SECOND_MAX), Relaxed);
        self.rejected.store(rejected.min(SAMPLES_PER_SECOND_MAX), Relaxed);
    }

    /// Takes the samples since the last call, in the order of their verdicts.
    pub fn drain(&self) -> Vec<EventSample> {
        self.receiver.lock().try_iter().map(|sample| *sample).collect()
    }

    /// The accepted events of each portal.
    pub fn top_portals(&self) -> &TopPortals {
        &self.top_portals
    }

    /// Samples an event that was rejected before it reached the spool.
    pub(crate) fn rejected(&self, reason: Reason, query: &[u8], rules: &Rules) {
        if !take(&self.rejected) {
            return;
        }
        let peek = event::peek(query, rules);
        self.push(Box::new(EventSample {
            at_ms: self.clock.unix_ms(),
            id: None,
            rejected: Some(reason),
            portal: peek.portal,
            name: peek.name.as_deref().and_then(name),
            email: None,
            has_revenue: false,
            properties: 0,
        }));
    }

    /// Samples an event that was appended to the spool and is not committed yet.
    pub(crate) fn appended(&self, event: &Event<'_>, id: EventId) -> PendingSample {
        let sample = take(&self.accepted).then(|| {
            Box::new(EventSample {
                at_ms: self.clock.unix_ms(),
                id: Some(id),
                rejected: None,
                portal: Some(event.portal),
                name: name(&event.name),
                email: event.email.as_deref().map(email),
                has_revenue: event.revenue.is_some(),
                properties: event.properties.len(),
            })
        });
        PendingSample { portal: event.portal, sample }
    }

    /// Completes a sample by the outcome of the commit. If `rejected` is `None`, the event was
    /// accepted, and `ignored` parameters were dropped from it.
    pub(crate) fn committed(
        &self,
        pending: &mut PendingSample,
        rejected: Option<Reason>,
        ignored: usize,
    ) {
        if rejected.is_none() {
            self.top_portals.count(pending.portal, ignored);
        }
        if let Some(mut sample) = pending.sample.take() {
            sample.rejected = rejected;
            sample.id = sample.id.filter(|_| rejected.is_none());
            self.push(sample);
        }
    }

    fn push(&self, sample: Box<EventSample>) {
        // The queue is full if slots were opened and it was not drained. The sample is dropped,
        // because a request must not wait for it.
        let _ = self.sender.try_send(sample);
    }
}

/// Takes a slot, if one is left.
fn take(slots: &AtomicU32) -> bool {
    slots.load(Relaxed) > 0
        && slots.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn event(query: &str) -> Event<'_> {
        event::parse(query.as_bytes(), &Rules::default()).unwrap().event
    }

    #[test]
    fn nothing_is_sampled_before_slots_are_opened() {
        let samples = EventSamples::new(Arc::new(SystemClock));
        let mut pending = samples.appended(&event("_a=1&_n=a"), EventId::default());
        samples.committed(&mut pending, None, 2);
        samples.rejected(Reason::InvalidEmail, b"_a=1&_n=a&email=x", &Rules::default());
        assert_eq!(samples.drain(), []);
        assert_eq!(
            samples.top_portals().ranking().portals,
            [PortalCounts { portal: 1, accepted: 1, ignored: 2 }],
            "the event is counted all the same"
        );
    }

    #[test]
    fn accepted_and_rejected_events_have_separate_slots() {
        let samples = EventSamples::new(Arc::new(SystemClock));
        samples.open(2, 1);
        for _ in 0..5 {
            let mut pending = samples.appended(&event("_a=1&_n=a"), EventId::default());
            samples.committed(&mut pending, None, 0);
        }
        samples.rejected(Reason::InvalidPortal, b"_a=x&_n=buy", &Rules::default());
        let taken = samples.drain();
        assert_eq!(taken.len(), 3);
        assert_eq!((taken[2].rejected, taken[2].portal), (Some(Reason::InvalidPortal), None));
        assert_eq!(taken[2].name.as_deref(), Some("buy"));
        samples.open(u32::MAX, 0);
        assert_eq!(samples.accepted.load(Relaxed), SAMPLES_PER_SECOND_MAX);
    }

    #[test]
    fn a_sample_is_masked_when_it_is_taken() {
        let samples = EventSamples::new(Arc::new(SystemClock));
        samples.open(1, 1);
        let query = "_a=1&_n=buy&email=person@company.com&id=secret&color=secret&_m=2e1";
        let mut pending = samples.appended(&event(query), EventId::default());
        samples.committed(&mut pending, Some(Reason::Overloaded), 0);
        let sample = &samples.drain()[0];
        assert_eq!((sample.id, sample.email.as_deref()), (None, Some("p…@c….com")));
        assert_eq!((sample.has_revenue, sample.properties), (true, 1));
        assert_eq!(sample.rejected, Some(Reason::Overloaded), "the commit decides the verdict");
        let text = format!("{sample:?}");
        assert!(!text.contains("secret") && !text.contains("erson"), "{text}");
        assert_eq!(samples.top_portals().ranking().portals, []);
    }
}
