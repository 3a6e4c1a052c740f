//! The lookout: looks at the gate once a second, and remembers.
//!
//! A page that is opened shall show the past, so the past is kept here and not in the page: a
//! second each for the last ten minutes, the last events that could be glimpsed, and who had
//! rejections. All of it is bounded, none of it is kept by the request path, and nothing of it is
//! personal ([`crate::telemetry::event_samples`]). What is logged of single verdicts is logged
//! here, too.
//!
//! Who watches is told of each look by a channel that holds the latest alone: one that is slow
//! misses looks, and makes up for them from the past that is kept.

use super::status;
use crate::delivery;
use crate::event::Reason;
use crate::plugin::PixelGate;
use crate::policy::portals;
use crate::spool;
use crate::telemetry::event_samples::{EventSample, PLACES_MAX, TALLIED_PORTALS_MAX};
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How far the past goes back, in seconds.
pub const PAST_SECONDS: usize = 600;
/// How many events are remembered.
pub const RECENT_EVENTS: usize = 60;
/// Most accepted and most rejected events that are glimpsed in a second, for the page.
pub const GLIMPSED_ACCEPTED_MAX: u32 = 10;
/// See [`GLIMPSED_ACCEPTED_MAX`]; rejections are what people look for.
pub const GLIMPSED_REJECTED_MAX: u32 = 20;
/// How often the portals' ranking forgets its older half, in seconds.
const TURN_SECONDS: u64 = 300;
/// The target under which single verdicts are logged, for filters.
pub const VERDICT_TARGET: &str = "pixelgate::verdict";

const REASONS: usize = Reason::ALL.len();
/// Turned away: through no fault of the event.
const TURNED_AWAY: [Reason; 2] = [Reason::RateLimited, Reason::Overloaded];

/// What the counters said at one second.
#[derive(Debug, Clone, Default)]
pub struct Second {
    /// Seconds since 1970.
    pub at: u64,
    accepted: u64,
    by_reason: [u64; REASONS],
    delivered: u64,
    /// Events that wait for the upstream that has most to get.
    pub pending: u64,
    /// Bytes in the spool.
    pub bytes: u64,
    /// Age in seconds of the oldest event on its way.
    pub lag_seconds: u64,
}

/// What happened between two seconds.
#[derive(Debug, Clone, Default)]
pub struct Span {
    /// How long it was, in seconds.
    pub seconds: u64,
    /// Events accepted.
    pub accepted: u64,
    /// Events rejected, by the number of the reason.
    pub by_reason: [u64; REASONS],
    /// Hand-overs to upstreams.
    pub delivered: u64,
}

/// A portal's rejections, as far as they were glimpsed.
#[derive(Debug, Clone, Default)]
pub struct Rejections {
    /// How many.
    pub count: u64,
    /// By the number of the reason.
    pub by_reason: [u64; REASONS],
}

/// How everything is, at one moment.
pub struct Snapshot {
    /// The spool.
    pub spool: spool::Status,
    /// The portal list.
    pub portals: portals::Status,
    /// The routes.
    pub routes: Vec<delivery::Status>,
    /// What happened in the time that is remembered.
    pub lately: Span,
}

/// See the module.
pub struct Sampler {
    gate: PixelGate,
    started: Instant,
    verdicts_per_second: u32,
    past: Mutex<Past>,
    told: watch::Sender<Arc<str>>,
}

/// What is remembered.
#[derive(Default)]
pub struct Past {
    /// Oldest first.
    seconds: VecDeque<Second>,
    /// Newest first, each with its number.
    pub recent: VecDeque<(u64, EventSample)>,
    seen: u64,
    /// By portal: since the last turn, and between it and the one before.
    rejections: [HashMap<u64, Rejections>; 2],
    turned_at: u64,
}

impl Sampler {
    /// Looks at `gate`, and logs at most `verdicts_per_second` accepted and as many rejected
    /// events a second.
    pub fn new(gate: PixelGate, verdicts_per_second: u32) -> Self {
        let lookout = Self {
            gate,
            started: Instant::now(),
            verdicts_per_second: verdicts_per_second.min(PLACES_MAX),
            past: Mutex::default(),
            told: watch::Sender::new(Arc::from("null")),
        };
        // The very first event may come before the first look.
        lookout.open_places();
        let mut before = lookout.second();
        before.at = before.at.saturating_sub(1);
        lookout.past().remember(before);
        lookout
    }

    fn open_places(&self) {
        let places = |page: u32| page.max(self.verdicts_per_second);
        let (accepted, rejected) = (places(GLIMPSED_ACCEPTED_MAX), places(GLIMPSED_REJECTED_MAX));
        self.gate.glimpses().open(accepted, rejected);
    }

    pub(super) fn gate(&self) -> &PixelGate {
        &self.gate
    }

    /// Tells the status, as JSON, of each look from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<str>> {
        self.told.subscribe()
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing panics while it is held, and each step leaves it whole.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How everything is now.
    pub(super) fn look(&self) -> Snapshot {
        Snapshot {
            spool: self.gate.spool().status(),
            portals: self.gate.gate().portals().status(),
            routes: self.gate.forwarder().status(),
            lately: self.past().lately(),
        }
    }

    /// One look: what was glimpsed is taken in, the second is remembered, who watches is told.
    fn tick(&self) {
        let glimpses = self.gate.glimpses();
        let seen = glimpses.drain();
        self.open_places();
        self.log(&seen);
        let second = self.second();
        let mut past = self.past();
        let at = second.at;
        past.remember(second);
        past.take_in(seen);
        if at.saturating_sub(past.turned_at) >= TURN_SECONDS {
            past.turned_at = at;
            past.turn();
            glimpses.tally().turn();
        }
        drop(past);
        if self.told.receiver_count() > 0 {
            self.told.send_replace(status::status(self).to_string().into());
        }
    }

    fn second(&self) -> Second {
        let (accepted, reasons) = self.gate.metrics().verdicts();
        let spool = self.gate.spool().status();
        let routes = self.gate.forwarder().status();
        let mut by_reason = [0; REASONS];
        reasons.iter().for_each(|&(reason, count)| by_reason[reason as usize] = count);
        Second {
            at: jiff::Timestamp::now().as_second().unsigned_abs(),
            accepted,
            by_reason,
            delivered: spool.upstreams.iter().map(|held| held.delivered).sum(),
            pending: spool.upstreams.iter().map(|held| held.pending).max().unwrap_or(0),
            bytes: spool.bytes,
            lag_seconds: routes.iter().map(|route| route.lag_seconds).max().unwrap_or(0),
        }
    }

    /// Portal, verdict and reason: what `[log]` says a verdict's line holds, and no more.
    fn log(&self, seen: &[EventSample]) {
        for rejected in [false, true] {
            let of_kind = seen.iter().filter(|glimpse| glimpse.rejected.is_some() == rejected);
            for glimpse in of_kind.take(self.verdicts_per_second as usize) {
                let portal = glimpse.portal.map_or_else(|| "-".to_owned(), |id| id.to_string());
                match glimpse.rejected {
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
            // A logger that holds back repetitions tells of them now.
            log::logger().flush();
        }
    }
}

impl Past {
    /// A second that comes too early, or after the clock was put back, counts as the next one:
    /// whoever watches asks for those after the last that they have.
    fn remember(&mut self, mut second: Second) {
        if let Some(last) = self.seconds.back() {
            second.at = second.at.max(last.at + 1);
        }
        // One more than the spans between them.
        while self.seconds.len() > PAST_SECONDS {
            self.seconds.pop_front();
        }
        self.seconds.push_back(second);
    }

    fn take_in(&mut self, seen: Vec<EventSample>) {
        for glimpse in seen {
            if let (Some(reason), Some(portal)) = (glimpse.rejected, glimpse.portal) {
                let known = &mut self.rejections[0];
                if known.len() < TALLIED_PORTALS_MAX || known.contains_key(&portal) {
                    known.entry(portal).or_default().add(reason);
                }
            }
            self.seen += 1;
            self.recent.push_front((self.seen, glimpse));
        }
        self.recent.truncate(RECENT_EVENTS);
    }

    fn turn(&mut self) {
        self.rejections.swap(0, 1);
        self.rejections[0].clear();
    }

    /// A portal's rejections, as far back as the tally of accepted events goes.
    pub fn rejections(&self) -> HashMap<u64, Rejections> {
        let mut all = self.rejections[0].clone();
        for (&portal, older) in &self.rejections[1] {
            all.entry(portal).or_default().add_all(older);
        }
        all
    }

    /// What happened in the time that is remembered.
    fn lately(&self) -> Span {
        match (self.seconds.front(), self.seconds.back()) {
            (Some(first), Some(last)) => Span::between(first, last),
            _ => Span::default(),
        }
    }

    /// The seconds after `at`, each with what happened since the one before it.
    pub fn since(&self, at: u64) -> impl Iterator<Item = (&Second, Span)> {
        let pairs = self.seconds.iter().zip(self.seconds.iter().skip(1));
        pairs
            .map(|(before, second)| (second, Span::between(before, second)))
            .filter(move |(second, _)| second.at > at)
    }
}

impl Span {
    fn between(earlier: &Second, later: &Second) -> Self {
        let mut by_reason = later.by_reason;
        for (later, earlier) in by_reason.iter_mut().zip(earlier.by_reason) {
            *later = later.saturating_sub(earlier);
        }
        Self {
            seconds: later.at.saturating_sub(earlier.at),
            accepted: later.accepted.saturating_sub(earlier.accepted),
            by_reason,
            delivered: later.delivered.saturating_sub(earlier.delivered),
        }
    }

    /// Events turned away through no fault of theirs.
    pub fn turned_away(&self) -> u64 {
        TURNED_AWAY.iter().map(|&reason| self.by_reason[reason as usize]).sum()
    }

    /// Events rejected for what they are.
    pub fn refused(&self) -> u64 {
        self.by_reason.iter().sum::<u64>().saturating_sub(self.turned_away())
    }

    /// The reasons that occurred, most frequent first.
    pub fn ranked(&self) -> Vec<(Reason, u64)> {
        ranked(&self.by_reason)
    }
}

impl Rejections {
    fn add(&mut self, reason: Reason) {
        self.count += 1;
        self.by_reason[reason as usize] += 1;
    }

    fn add_all(&mut self, other: &Rejections) {
        self.count += other.count;
        for (sum, count) in self.by_reason.iter_mut().zip(other.by_reason) {
            *sum += count;
        }
    }

    /// The most frequent reason.
    pub fn mostly(&self) -> Option<Reason> {
        ranked(&self.by_reason).first().map(|&(reason, _)| reason)
    }
}

fn ranked(by_reason: &[u64; REASONS]) -> Vec<(Reason, u64)> {
    let mut ranked: Vec<_> = Reason::ALL.into_iter().zip(*by_reason).filter(|r| r.1 > 0).collect();
    // Stable: of equals the one that is checked first.
    ranked.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(at: u64, accepted: u64) -> Second {
        Second { at, accepted, ..Second::default() }
    }

    #[test]
    fn the_past_has_an_end() {
        let mut past = Past::default();
        for at in 0..2000 {
            past.remember(second(at, 3 * at));
        }
        assert_eq!(past.since(0).count(), PAST_SECONDS);
        assert_eq!(past.lately().seconds, PAST_SECONDS as u64);
        assert_eq!(past.lately().accepted, 3 * PAST_SECONDS as u64);
        let latest: Vec<_> = past.since(1997).map(|(s, span)| (s.at, span.accepted)).collect();
        assert_eq!(latest, [(1998, 3), (1999, 3)]);
    }

    #[test]
    fn no_second_is_told_twice_or_never() {
        let mut past = Past::default();
        for (at, accepted) in [(7, 1), (7, 2), (8, 4), (3, 8), (20, 16)] {
            past.remember(second(at, accepted));
        }
        let told: Vec<_> = past.since(7).map(|(s, span)| (s.at, span.accepted)).collect();
        assert_eq!(told, [(8, 1), (9, 2), (10, 4), (20, 8)]);
    }

    #[test]
    fn what_happens_before_the_first_look_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let gate = crate::admin::service::tests::gate(dir.path());
        let lookout = Sampler::new(gate.clone(), 0);
        gate.metrics().count_accepted();
        lookout.tick();
        assert_eq!(lookout.look().lately.accepted, 1);
    }

    #[test]
    fn what_is_the_events_fault_is_told_from_what_is_not() {
        let mut later = second(1, 5);
        later.by_reason[Reason::InvalidEmail as usize] = 7;
        later.by_reason[Reason::Overloaded as usize] = 2;
        let span = Span::between(&second(0, 0), &later);
        assert_eq!((span.accepted, span.refused(), span.turned_away()), (5, 7, 2));
        assert_eq!(span.ranked(), [(Reason::InvalidEmail, 7), (Reason::Overloaded, 2)]);
    }

    #[test]
    fn only_the_latest_events_are_remembered() {
        let glimpse = |portal| EventSample {
            at_ms: 0,
            rejected: Some(Reason::PortalNotAllowed),
            portal: Some(portal),
            name: None,
            email: None,
            has_revenue: false,
            properties: 0,
        };
        let mut past = Past::default();
        past.take_in((1..=5000).map(glimpse).collect());
        assert_eq!(past.recent.len(), RECENT_EVENTS);
        assert_eq!(past.recent[0].0, 5000);
        assert_eq!(past.rejections().len(), TALLIED_PORTALS_MAX);
        past.take_in(vec![glimpse(1)]);
        past.turn();
        past.take_in(vec![glimpse(1)]);
        assert_eq!(past.rejections()[&1].count, 3);
        assert_eq!(past.rejections()[&1].mostly(), Some(Reason::PortalNotAllowed));
        past.turn();
        past.turn();
        assert!(past.rejections().is_empty());
    }
}
