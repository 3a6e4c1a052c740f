//! The history that a newly opened page shows: the counters of each second of the last ten minutes,
//! the latest event samples, and the rejections of each portal.
//!
//! The history is bounded and holds no personal data ([`crate::telemetry::event_samples`]). The
//! request path never writes to it.

use crate::event::Reason;
use crate::telemetry::event_samples::{EventSample, TOP_PORTALS_MAX};
use std::collections::{HashMap, VecDeque};

/// Length of the history, in seconds.
pub const PAST_SECONDS: usize = 600;
/// The most event samples in the history. As many samples of rejected events are stored beside
/// them.
pub const RECENT_EVENTS: usize = 60;
/// Length of a period of the portals' ranking, in seconds. The ranking covers the current period
/// and the previous one.
const RANKING_PERIOD_SECONDS: u64 = 300;

/// The number of reasons: arrays by reason are indexed by the reason's number.
pub const REASONS: usize = Reason::ALL.len();
/// The reasons for which an event is rejected although its content is right.
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
    /// The pending events of the upstream that has the most.
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
    /// The number of rejections.
    pub count: u64,
    /// The number of rejections for each reason, by the reason's number.
    pub by_reason: [u64; REASONS],
}

/// The history of one gate.
#[derive(Default)]
pub struct History {
    /// The counters of each second, oldest first.
    seconds: VecDeque<Second>,
    /// Samples of accepted and rejected events, in the proportion in which they arrived. Newest
    /// first, each with its number since start.
    recent: VecDeque<(u64, EventSample)>,
    /// The samples of rejected events, newest first, each with its number since start.
    recent_rejected: VecDeque<(u64, EventSample)>,
    samples: u64,
    /// The rejections of each portal in the current period of the ranking, and in the previous one.
    rejections: [HashMap<u64, Rejections>; 2],
    rotated_at: u64,
}

impl History {
    /// Adds a second. If its time is not after that of the last second, because a tick was early or
    /// the clock was set back, it gets the number after the last one: readers ask for the seconds
    /// after the last one that they have.
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

    /// Adds the samples of the last second that was pushed.
    pub fn push_samples(&mut self, mut samples: Vec<EventSample>) {
        // The samples are in the order of their verdicts, and the verdict on an accepted event
        // waits for the disk.
        samples.sort_by_key(|sample| sample.at_ms);
        let mut shown = self.proportion(&samples);
        for sample in samples {
            self.samples += 1;
            if let (Some(reason), Some(portal)) = (sample.rejected, sample.portal) {
                let current = &mut self.rejections[0];
                if current.len() < TOP_PORTALS_MAX || current.contains_key(&portal) {
                    current.entry(portal).or_default().add(reason);
                }
            }
            let left = &mut shown[usize::from(sample.rejected.is_some())];
            if *left > 0 {
                *left -= 1;
                self.recent.push_front((self.samples, sample.clone()));
            }
            if sample.rejected.is_some() {
                self.recent_rejected.push_front((self.samples, sample));
            }
        }
        self.recent.truncate(RECENT_EVENTS);
        self.recent_rejected.truncate(RECENT_EVENTS);
    }

    /// How many samples of accepted and of rejected events are shown, so that both kinds are in the
    /// proportion in which they arrived. The kind of which the smaller share was sampled sets the
    /// share of both; of each kind that occurred, at least one sample is shown.
    fn proportion(&self, samples: &[EventSample]) -> [u64; 2] {
        let rejected = samples.iter().filter(|sample| sample.rejected.is_some()).count() as u64;
        let sampled = [samples.len() as u64 - rejected, rejected];
        let last = self.seconds.iter().rev().take(2).collect::<Vec<_>>();
        let span = match last[..] {
            [later, earlier] => Span::between(earlier, later),
            _ => Span::default(),
        };
        // A sample may be taken before its event is counted.
        let all =
            [span.accepted.max(sampled[0]), span.by_reason.iter().sum::<u64>().max(sampled[1])];
        // Finds the kind with the smaller share by comparing the fractions, multiplied crosswise.
        let kinds = [0, 1].into_iter().filter(|kind| sampled[*kind] > 0);
        let part = |a: &usize, b: &usize| (sampled[*a] * all[*b]).cmp(&(sampled[*b] * all[*a]));
        let Some(least) = kinds.min_by(part) else { return [0, 0] };
        let share = |kind: usize| (all[kind] * sampled[least]).div_ceil(all[least]);
        [0, 1].map(|kind| share(kind).min(sampled[kind]))
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

    /// The latest samples of rejected events, newest first, each with its number since start.
    pub fn recent_rejected(&self) -> Vec<(u64, EventSample)> {
        self.recent_rejected.iter().cloned().collect()
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

    /// Events rejected although their content is right, because the portal sends too many or the
    /// gate is overloaded.
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

    fn sample(at_ms: u64, portal: u64, rejected: Option<Reason>) -> EventSample {
        let (name, email) = (None, None);
        EventSample {
            id: None,
            at_ms,
            rejected,
            portal: Some(portal),
            name,
            email,
            has_revenue: false,
            properties: 0,
        }
    }

    #[test]
    fn accepted_and_rejected_events_are_shown_in_proportion() {
        let check = |counted: [u64; 2], sampled: [u64; 2], expect: [usize; 2]| {
            let mut history = History::default();
            history.push_second(second(1, 0));
            let mut later = second(2, counted[0]);
            later.by_reason[Reason::PortalNotAllowed as usize] = counted[1];
            history.push_second(later);
            // All rejected ones have their verdicts before the first accepted one has.
            let rejected = (0..sampled[1]).map(|at| sample(at, 1, Some(Reason::PortalNotAllowed)));
            let accepted = (0..sampled[0]).map(|at| sample(at, 1, None));
            history.push_samples(rejected.chain(accepted).collect());
            let recent = history.recent();
            let kind =
                |rejected| recent.iter().filter(|(_, s)| s.rejected.is_some() == rejected).count();
            assert_eq!([kind(false), kind(true)], expect, "{counted:?} {sampled:?}");
            assert!(recent.windows(2).all(|pair| pair[0].1.at_ms >= pair[1].1.at_ms));
            assert_eq!(history.recent_rejected().len() as u64, sampled[1]);
        };
        check([3, 5], [3, 5], [3, 5]);
        check([3, 0], [3, 0], [3, 0]);
        check([0, 3], [0, 3], [0, 3]);
        check([0, 0], [1, 0], [1, 0]);
        check([1000, 1000], [10, 20], [10, 10]);
        check([990, 10], [10, 10], [10, 1]);
        check([10, 1990], [10, 20], [1, 20]);
        check([1, 1_000_000], [1, 20], [1, 20]);
        check([500, 1500], [10, 20], [7, 20]);
        check([1000, 1], [10, 0], [10, 0]);
    }

    #[test]
    fn only_the_latest_samples_are_kept() {
        let sample = |portal| sample(0, portal, Some(Reason::PortalNotAllowed));
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
