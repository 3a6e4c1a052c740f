//! Glimpses: what an operator gets to see of single events.
//!
//! A counter says that events are rejected; whoever asks "why does mine not count?" wants to see
//! theirs. So a few events of each second are kept for the admin page and the log, masked from the
//! start: the portal, the event's name, the verdict, and of an address as much as `p…@c….com`.
//! Values of properties and queries are never here (`mask.rs` says what is).
//!
//! The request path pays one load of an atomic for this, and no lock that workers share. There are
//! a number of places for each second, opened by whoever watches ([`EventSamples::open`]). A hit that
//! finds none left has paid all it pays, and so has every hit where nobody watches. One that takes
//! a place writes its glimpse into a bounded queue without a lock. Accepted and rejected events
//! have places of their own, so that a single rejection shows among any number of accepted ones.
//!
//! Beside it [`TopPortals`] counts the accepted events of each portal, exactly, at the price of one
//! more counter.

mod mask;
mod top_portals;

use crate::clock::Clock;
use crate::event;
use crate::event::{Event, Reason, Rules};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

pub use mask::{NAME_CHARS_MAX, email, name};
pub use top_portals::{Ranking, TALLIED_PORTALS_MAX, TopPortals};

/// Most places of one kind that can be opened for a second. Twice as many glimpses can wait to be
/// drained; what comes while the queue is full is not seen.
pub const PLACES_MAX: u32 = 1000;

/// One event as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSample {
    /// When it was judged: milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// Why it does not count; `None`: it counts.
    pub rejected: Option<Reason>,
    /// Its portal, where the request names one.
    pub portal: Option<u64>,
    /// Its name, where the request gives one and it may be shown.
    pub name: Option<String>,
    /// Its contact's address, masked.
    pub email: Option<String>,
    /// Whether it is worth something; what, is not shown.
    pub has_revenue: bool,
    /// How many contact properties it has.
    pub properties: usize,
}

/// An event that waits for the disk, as far as it has been seen.
pub(crate) struct Note {
    portal: u64,
    glimpse: Option<Box<EventSample>>,
}

/// See the module.
pub struct EventSamples {
    accepted: AtomicU32,
    rejected: AtomicU32,
    sender: SyncSender<Box<EventSample>>,
    receiver: Mutex<Receiver<Box<EventSample>>>,
    tally: TopPortals,
    clock: Arc<dyn Clock>,
}

impl EventSamples {
    /// No places are open: nobody watches yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (sender, receiver) = sync_channel(2 * PLACES_MAX as usize);
        Self {
            accepted: AtomicU32::new(0),
            rejected: AtomicU32::new(0),
            sender,
            receiver: Mutex::new(receiver),
            tally: TopPortals::default(),
            clock,
        }
    }

    /// Opens this many places of each kind, at most [`PLACES_MAX`], whatever is left of earlier
    /// ones. To be called once a second, together with [`EventSamples::drain`].
    pub fn open(&self, accepted: u32, rejected: u32) {
        self.accepted.store(accepted.min(PLACES_MAX), Relaxed);
        self.rejected.store(rejected.min(PLACES_MAX), Relaxed);
    }

    /// What was seen since the last call, in the order of the verdicts.
    pub fn drain(&self) -> Vec<EventSample> {
        // Nothing panics while it is held.
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.try_iter().map(|glimpse| *glimpse).collect()
    }

    /// The accepted events of each portal.
    pub fn tally(&self) -> &TopPortals {
        &self.tally
    }

    /// An event was rejected.
    pub(crate) fn rejected(&self, reason: Reason, query: &[u8], rules: &Rules) {
        if !take(&self.rejected) {
            return;
        }
        let seen = event::peek(query, rules);
        self.show(Box::new(EventSample {
            at_ms: self.clock.unix_ms(),
            rejected: Some(reason),
            portal: seen.portal,
            name: seen.name.as_deref().and_then(name),
            email: None,
            has_revenue: false,
            properties: 0,
        }));
    }

    /// An event is good and waits for the disk.
    pub(crate) fn kept(&self, event: &Event<'_>) -> Note {
        let glimpse = take(&self.accepted).then(|| {
            Box::new(EventSample {
                at_ms: self.clock.unix_ms(),
                rejected: None,
                portal: Some(event.portal),
                name: name(&event.name),
                email: event.email.as_deref().map(email),
                has_revenue: event.revenue.is_some(),
                properties: event.properties.len(),
            })
        });
        Note { portal: event.portal, glimpse }
    }

    /// What became of an event that waited for the disk.
    pub(crate) fn settled(&self, note: Note, rejected: Option<Reason>) {
        if rejected.is_none() {
            self.tally.count(note.portal);
        }
        if let Some(mut glimpse) = note.glimpse {
            glimpse.rejected = rejected;
            self.show(glimpse);
        }
    }

    fn show(&self, glimpse: Box<EventSample>) {
        // Full: somebody opened places and does not drain. It is not for the request to wait.
        let _ = self.sender.try_send(glimpse);
    }
}

/// Takes a place, if there is one.
fn take(places: &AtomicU32) -> bool {
    places.load(Relaxed) > 0
        && places.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn event(query: &str) -> Event<'_> {
        event::parse(query.as_bytes(), &Rules::default()).unwrap().event
    }

    #[test]
    fn nothing_is_seen_until_somebody_watches() {
        let glimpses = EventSamples::new(Arc::new(SystemClock));
        let note = glimpses.kept(&event("_a=1&_n=a"));
        glimpses.settled(note, None);
        glimpses.rejected(Reason::InvalidEmail, b"_a=1&_n=a&email=x", &Rules::default());
        assert_eq!(glimpses.drain(), []);
        assert_eq!(glimpses.tally().ranking().portals, [(1, 1)], "but it is counted");
    }

    #[test]
    fn a_second_has_so_many_places_and_a_rejection_has_its_own() {
        let glimpses = EventSamples::new(Arc::new(SystemClock));
        glimpses.open(2, 1);
        for _ in 0..5 {
            let note = glimpses.kept(&event("_a=1&_n=a"));
            glimpses.settled(note, None);
        }
        glimpses.rejected(Reason::InvalidPortal, b"_a=x&_n=buy", &Rules::default());
        let seen = glimpses.drain();
        assert_eq!(seen.len(), 3);
        assert_eq!((seen[2].rejected, seen[2].portal), (Some(Reason::InvalidPortal), None));
        assert_eq!(seen[2].name.as_deref(), Some("buy"));
        glimpses.open(u32::MAX, 0);
        assert_eq!(glimpses.accepted.load(Relaxed), PLACES_MAX);
    }

    #[test]
    fn it_is_masked_from_the_start() {
        let glimpses = EventSamples::new(Arc::new(SystemClock));
        glimpses.open(1, 1);
        let query = "_a=1&_n=buy&email=person@company.com&id=secret&color=secret&_m=2e1";
        let note = glimpses.kept(&event(query));
        glimpses.settled(note, Some(Reason::Overloaded));
        let seen = &glimpses.drain()[0];
        assert_eq!(seen.email.as_deref(), Some("p…@c….com"));
        assert_eq!((seen.has_revenue, seen.properties), (true, 1));
        assert_eq!(seen.rejected, Some(Reason::Overloaded), "the disk has the last word");
        let text = format!("{seen:?}");
        assert!(!text.contains("secret") && !text.contains("erson"), "{text}");
        assert_eq!(glimpses.tally().ranking().portals, []);
    }
}
