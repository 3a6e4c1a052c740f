//! The history that a newly opened page shows: the counters of each second of the last ten minutes,
//! the latest event samples, and the rejections of each portal.
//!
//! All of it is bounded, none of it is written by the request path, and none of it is personal
//! ([`crate::telemetry::event_samples`]).

use crate::event::Reason;
use crate::telemetry::event_samples::{EventSample, TOP_PORTALS_MAX};
use std::collections::{HashMap, VecDeque};

/// Length of the history, in seconds.
pub const PAST_SECONDS: usize = 600;
/// Event samples in the history.
pub const RECENT_EVENTS: usize = 60;
/// Length of a period of the portals' ranking, in seconds. The ranking covers the current period
/// and the previous one.
const RANKING_PERIOD_SECONDS: u64 = 300;

/// The number of reasons: arrays by reason are indexed by the reason's number.
pub const REASONS: usize = Reason::ALL.len();
/// Reasons that do not lie in the event.
const TURNED_AWAY: [Reason; 2] = [Reason::RateLimited, Reason::Overloaded];

/// The counters at one second.
#[derive(Debug, Clone, Default)]
pub struct Second {
    /// Seconds since 1970, UTC.
    pub at: u64,
    /// Events accepted since start.
    pub accepted: u64,
    /// Events rejected since start, by the reason's number.
    pub by_reason: [u64; REASONS],
    /// Deliveries since start, summed over the upstreams.
    pub delivered: u64,
    /// Pending events of the upstream that has most of them.
    pub pending: u64,
    /// Bytes in the spool.
    pub bytes: u64,
    /// Age of the oldest event that is not delivered yet, in seconds.
    pub lag_seconds: u64,
}

/// The difference between the counters at two seconds.
#[derive(Debug, Clone, Default)]
pub struct Span {
    /// Time between the two, in seconds.
    pub seconds: u64,
    /// Events accepted.
    pub accepted: u64,
    /// Events rejected, by the reason's number.
    pub by_reason: [u64; REASONS],
    /// Deliveries, summed over the upstreams.
    pub delivered: u64,
}

/// The sampled rejections of one portal.
#[derive(Debug, Clone, Default)]
pub struct Rejections {
    /// Their number.
    pub count: u64,
    /// The same by the reason's number.
    pub by_reason: [u64; REASONS],
}

/// See the module.
#[derive(Default)]
pub struct History {
    /// Oldest first.
    seconds: VecDeque<Second>,
    /// Newest first, each with its number since start.
    recent: VecDeque<(u64, EventSample)>,
    samples: u64,
    /// By portal: in the current period of the ranking, and in the previous one.
    rejections: [HashMap<u64, Rejections>; 2],
    rotated_at: u64,
}

impl History {
    /// Adds a second. If its time is not after the last one's (an early tick, or a clock that was
    /// set back), it gets the next second's number: readers ask for the seconds after their last.
    pub fn push_second(&mut self, mut second: Second) {
        if let Some(last) = self.seconds.back() {
            second.at = second.at.max(last.at + 1);
        }
        // N spans lie between N + 1 seconds.
        while self.seconds.len() > PAST_SECONDS {
            self.seconds.pop_front();
        }
        self.seconds.push_back(second);
    }

    /// Adds samples, in the order of their verdicts.
    pub fn push_samples(&mut self, samples: Vec<EventSample>) {
        for sample in samples {
            if let (Some(reason), Some(portal)) = (sample.rejected, sample.portal) {
                let current = &mut self.rejections[0];
                if current.len() < TOP_PORTALS_MAX || current.contains_key(&portal) {
                    current.entry(portal).or_default().add(reason);
                }
            }
            self.samples += 1;
            self.recent.push_front((self.samples, sample));
        }
        self.recent.truncate(RECENT_EVENTS);
    }

    /// Begins a new period of the ranking if the current one is over at `now` (seconds since
    /// 1970); returns whether it did.
    pub fn rotate_if_due(&mut self, now: u64) -> bool {
        let due = now.saturating_sub(self.rotated_at) >= RANKING_PERIOD_SECONDS;
        if due {
            self.rotated_at = now;
            self.rotate();
        }
        due
    }

    fn rotate(&mut self) {
        self.rejections.swap(0, 1);
        self.rejections[0].clear();
    }

    /// The latest samples, newest first, each with its number since start.
    pub fn recent(&self) -> Vec<(u64, EventSample)> {
        self.recent.iter().cloned().collect()
    }

    /// The sampled rejections of each portal, over the same time as the ranking of accepted events.
    pub fn rejections(&self) -> HashMap<u64, Rejections> {
        let mut all = self.rejections[0].clone();
        for (&portal, older) in &self.rejections[1] {
            all.entry(portal).or_default().add_all(older);
        }
        all
    }

    /// The difference over the whole history.
    pub fn lately(&self) -> Span {
        match (self.seconds.front(), self.seconds.back()) {
            (Some(first), Some(last)) => Span::between(first, last),
            _ => Span::default(),
        }
    }

    /// The seconds after `at`, each with the difference to the second before it.
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

    /// Events rejected although nothing is wrong with them: too many, or the gate is overloaded.
    pub fn turned_away(&self) -> u64 {
        TURNED_AWAY.iter().map(|&reason| self.by_reason[reason as usize]).sum()
    }

    /// Events rejected because of their content.
    pub fn refused(&self) -> u64 {
        self.by_reason.iter().sum::<u64>().saturating_sub(self.turned_away())
    }

    /// The reasons that occurred with their counts, most frequent first.
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

    /// The most frequent reason. `None`: there was no rejection.
    pub fn most_frequent(&self) -> Option<Reason> {
        ranked(&self.by_reason).first().map(|&(reason, _)| reason)
    }
}

fn ranked(by_reason: &[u64; REASONS]) -> Vec<(Reason, u64)> {
    let mut ranked: Vec<_> = Reason::ALL.into_iter().zip(*by_reason).filter(|r| r.1 > 0).collect();
    // A stable sort keeps equal counts in the order in which the reasons are checked.
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
    fn the_history_is_bounded() {
        let mut history = History::default();
        for at in 0..2000 {
            history.push_second(second(at, 3 * at));
        }
        assert_eq!(history.since(0).count(), PAST_SECONDS);
        assert_eq!(history.lately().seconds, PAST_SECONDS as u64);
        assert_eq!(history.lately().accepted, 3 * PAST_SECONDS as u64);
        let latest: Vec<_> = history.since(1997).map(|(s, span)| (s.at, span.accepted)).collect();
        assert_eq!(latest, [(1998, 3), (1999, 3)]);
    }

    #[test]
    fn no_second_appears_twice_or_never() {
        let mut history = History::default();
        for (at, accepted) in [(7, 1), (7, 2), (8, 4), (3, 8), (20, 16)] {
            history.push_second(second(at, accepted));
        }
        let all: Vec<_> = history.since(7).map(|(s, span)| (s.at, span.accepted)).collect();
        assert_eq!(all, [(8, 1), (9, 2), (10, 4), (20, 8)]);
    }

    #[test]
    fn rejections_for_the_content_are_told_from_the_others() {
        let mut later = second(1, 5);
        later.by_reason[Reason::InvalidEmail as usize] = 7;
        later.by_reason[Reason::Overloaded as usize] = 2;
        let span = Span::between(&second(0, 0), &later);
        assert_eq!((span.accepted, span.refused(), span.turned_away()), (5, 7, 2));
        assert_eq!(span.ranked(), [(Reason::InvalidEmail, 7), (Reason::Overloaded, 2)]);
    }

    #[test]
    fn only_the_latest_samples_are_kept() {
        let sample = |portal| EventSample {
            id: None,
            at_ms: 0,
            rejected: Some(Reason::PortalNotAllowed),
            portal: Some(portal),
            name: None,
            email: None,
            has_revenue: false,
            properties: 0,
        };
        let mut history = History::default();
        history.push_samples((1..=5000).map(sample).collect());
        assert_eq!(history.recent.len(), RECENT_EVENTS);
        assert_eq!(history.recent[0].0, 5000);
        assert_eq!(history.rejections().len(), TOP_PORTALS_MAX);
        history.push_samples(vec![sample(1)]);
        history.rotate();
        history.push_samples(vec![sample(1)]);
        assert_eq!(history.rejections()[&1].count, 3);
        let most_frequent = history.rejections()[&1].most_frequent();
        assert_eq!(most_frequent, Some(Reason::PortalNotAllowed));
        history.rotate();
        history.rotate();
        assert!(history.rejections().is_empty());
    }
}
