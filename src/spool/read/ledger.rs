//! The position of one upstream in one lane: which records have ended, and how.
//!
//! Acknowledgements come in any order. Every record before the low watermark (`low`) has ended; the
//! records above it that have ended are stored as runs. So one event that is stuck holds back no
//! other, and costs little memory: the number of *runs* is bounded, not that of events. The counts
//! below `low` and the runs are written together, so that after a crash
//! `low - start = delivered + dead + lost + foreign` holds, and with it the identity of SPEC 7. All
//! other records are pending, and are read again.
//!
//! A record that is not meant for this upstream is *foreign* to it (`spool/routing.rs`).

use std::ops::Range;

use super::counts::{Ack, Counts, End};
use super::runs::Runs;

/// The most runs above the watermark, for each upstream and lane. Each run is between two events
/// that wait, so there are as many runs as separate events that are stuck. At this limit, no
/// further record is read from the lane until runs join, and `/status` shows the fault
/// `run_ahead_bound`.
pub const RUNS_MAX: usize = 131_072;

/// One upstream's position in one lane.
#[derive(Debug, Clone)]
pub struct ConsumerPosition {
    /// The upstream's name.
    pub name: String,
    /// The number of the first record that counts for this upstream in this lane.
    pub start: u64,
    /// The low watermark: every record before it has ended.
    pub low: u64,
    /// The counts between `start` and `low`. `accepted` stays 0, because it follows from the end of
    /// the lane.
    pub below: Counts,
    /// The totals of lanes that were folded into this one.
    pub carried: Counts,
    /// The foreign records from `start` on, whether they were passed over or not read yet.
    pub foreign: u64,
    /// The runs of records above `low` that have ended.
    runs: Runs,
    /// The next record to hand out, which is in no run.
    next: u64,
}

impl ConsumerPosition {
    /// A position that begins at `start`.
    pub fn new(name: &str, start: u64) -> ConsumerPosition {
        ConsumerPosition {
            name: name.to_owned(),
            start,
            low: start,
            below: Counts::default(),
            carried: Counts::default(),
            foreign: 0,
            runs: Runs::default(),
            next: start,
        }
    }

    /// Continues a position that was stored as `low`, `below` and `runs`. Records in none of them
    /// are read again. `None` if the counts do not add up, so that this code did not write them.
    pub fn resume(mut self, low: u64, below: Counts, runs: Runs) -> Option<ConsumerPosition> {
        if low.checked_sub(self.start)? != below.ended() {
            return None;
        }
        (self.low, self.below, self.next) = (low, below, low);
        self.resume_runs(runs);
        Some(self)
    }

    /// Takes over the runs above `low`. Runs that begin before it are left out.
    pub fn resume_runs(&mut self, mut runs: Runs) {
        runs.drop_before(self.low);
        self.runs = runs;
        self.next = self.low;
        self.advance();
    }

    /// The newer one of this position and another stored state of it, which consists of `start`,
    /// `low`, `below` and `runs`. The number of ended records only grows, so the state with more of
    /// them is the newer one.
    pub fn or_newer(self, start: u64, low: u64, below: Counts, runs: Runs) -> ConsumerPosition {
        let found = match start == self.start && low >= self.low {
            true => self.clone().resume(low, below, runs),
            // An older state, or one from before the upstream was removed and configured again.
            false => {
                let mut newer = self.clone();
                newer.resume_runs(runs);
                Some(newer)
            }
        };
        found.filter(|found| found.ended_count() > self.ended_count()).unwrap_or(self)
    }

    /// The number of records that have ended.
    pub fn ended_count(&self) -> u64 {
        self.below.ended() + self.runs.totals().ended()
    }

    /// The numbers of the records that have ended, in order.
    pub fn ended(&self) -> impl Iterator<Item = Range<u64>> {
        let below = (self.start < self.low).then_some(self.start..self.low);
        below.into_iter().chain(self.runs.ranges())
    }

    /// Whether this record was handed out and has not ended.
    pub fn is_out(&self, seq: u64) -> bool {
        seq < self.next && !self.has_ended(seq)
    }

    /// Whether all of these records were handed out and none has ended.
    pub fn are_out(&self, seqs: &Range<u64>) -> bool {
        let is_free = self.runs.start_after(seqs.start).is_none_or(|start| start >= seqs.end);
        seqs.end <= self.next && is_free && self.is_out(seqs.start)
    }

    /// The runs of ended records above `low`.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// The number after the last record that has ended.
    pub fn end(&self) -> u64 {
        self.runs.end().unwrap_or(self.low)
    }

    /// The next records to hand out, up to one that has ended already.
    pub fn next(&self) -> Range<u64> {
        self.next..self.runs.start_after(self.next).unwrap_or(u64::MAX)
    }

    /// Whether records may be handed out: see [`RUNS_MAX`].
    pub fn has_room(&self) -> bool {
        self.runs.len() < RUNS_MAX
    }

    /// Records that the next `events` records were handed out.
    pub fn hand_out(&mut self, events: usize) {
        self.next = self.runs.skip(self.next + events as u64);
    }

    /// Records that the next records before `seq` are lost.
    pub fn lose_to(&mut self, seq: u64) {
        self.runs.mark(self.next..seq, End::Lost);
        self.next = self.runs.skip(self.next);
        self.advance();
    }

    /// Ends records with this acknowledgement. A record that was not handed out, or that has ended
    /// already, does not change.
    pub fn settle(&mut self, seqs: Range<u64>, ack: Ack) {
        let seqs = seqs.start.max(self.low)..seqs.end.min(self.next);
        self.runs.mark(seqs, End::Acknowledged(ack));
    }

    /// Passes over records that are foreign to this upstream.
    pub fn pass_over(&mut self, seqs: Range<u64>) {
        self.runs.mark(seqs.start.max(self.low)..seqs.end.min(self.next), End::Foreign);
        // Records of a segment that was missing when the foreign records were counted are not in
        // `foreign` yet.
        self.foreign = self.foreign.max(self.passed_over());
    }

    /// The number of foreign records that were passed over.
    pub fn passed_over(&self) -> u64 {
        self.below.foreign + self.runs.totals().foreign
    }

    /// Whether this record has ended.
    pub fn has_ended(&self, seq: u64) -> bool {
        seq < self.low || self.runs.skip(seq) > seq
    }

    /// Moves `low` up over the records that have ended. Returns whether it moved.
    pub fn advance(&mut self) -> bool {
        let Some((end, counts)) = self.runs.take_at(self.low) else { return false };
        self.low = end;
        self.below.add(counts);
        self.next = self.next.max(end);
        true
    }

    /// The totals of the records that are meant for this upstream, with `end` records in the lane.
    pub fn totals(&self, end: u64) -> Counts {
        let mut totals = self.below;
        let held = end.max(self.next).max(self.end()).saturating_sub(self.start);
        // After a power loss, the acknowledgements may know of more foreign records than the cursor
        // counted, and these may be gone.
        let passed_over = self.passed_over();
        let unread = held.saturating_sub(self.ended_count());
        let foreign = self.foreign.clamp(passed_over, passed_over + unread);
        totals.accepted = held.saturating_sub(foreign);
        totals.add(self.runs.totals());
        totals.add(self.carried);
        totals.foreign = 0;
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_out(events: usize) -> ConsumerPosition {
        let mut position = ConsumerPosition::new("a", 1);
        position.hand_out(events);
        position
    }

    fn identity_holds(position: &ConsumerPosition, end: u64) {
        assert_eq!(position.low - position.start, position.below.ended());
        let totals = position.totals(end);
        assert_eq!(
            totals.accepted,
            totals.delivered + totals.dead + totals.lost + totals.pending()
        );
    }

    #[test]
    fn the_watermark_waits_for_the_slowest() {
        let mut position = handed_out(4);
        position.settle(2..3, Ack::Dead);
        position.settle(4..5, Ack::Delivered);
        assert!(!position.advance());
        assert_eq!(
            position.totals(5),
            Counts { accepted: 4, delivered: 1, dead: 1, ..Counts::default() }
        );
        position.settle(1..2, Ack::Delivered);
        assert!(position.advance());
        assert_eq!((position.low, position.below.delivered, position.below.dead), (3, 1, 1));
        identity_holds(&position, 5);
        position.settle(3..4, Ack::Delivered);
        assert!(position.advance());
        assert_eq!((position.low, position.runs().totals()), (5, Counts::default()));
        identity_holds(&position, 5);
    }

    #[test]
    fn a_second_or_unknown_acknowledgement_changes_nothing() {
        let mut position = handed_out(2);
        position.settle(1..2, Ack::Delivered);
        position.settle(1..2, Ack::Dead);
        position.settle(0..1, Ack::Dead);
        position.settle(3..4, Ack::Dead);
        position.settle(u64::MAX - 1..u64::MAX, Ack::Dead);
        position.advance();
        position.settle(1..2, Ack::Dead);
        assert_eq!(position.totals(3), Counts { accepted: 2, delivered: 1, ..Counts::default() });
    }

    #[test]
    fn ten_million_events_run_ahead_of_one_that_is_stuck() {
        let mut position = handed_out(1);
        for batch in 0..20_000_u64 {
            assert!(position.has_room());
            position.hand_out(500);
            position.settle(2 + batch * 500..502 + batch * 500, Ack::Delivered);
        }
        assert_eq!((position.low, position.runs().len()), (1, 1));
        assert_eq!(position.totals(10_000_002).pending(), 1);
        position.settle(1..2, Ack::Dead);
        position.advance();
        assert_eq!((position.low, position.runs().len()), (10_000_002, 0));
        identity_holds(&position, 10_000_002);
    }

    #[test]
    fn the_number_of_runs_is_bounded_and_joining_makes_room() {
        let mut position = handed_out(2 * RUNS_MAX + 1);
        (1..=RUNS_MAX as u64).for_each(|n| position.settle(2 * n..2 * n + 1, Ack::Delivered));
        assert!(!position.has_room());
        position.settle(3..4, Ack::Delivered);
        assert!(position.has_room());
        identity_holds(&position, 2 * RUNS_MAX as u64 + 2);
    }

    #[test]
    fn what_has_ended_is_not_handed_out_again() {
        let mut runs = Runs::default();
        runs.mark(3..5, End::Acknowledged(Ack::Delivered));
        runs.mark(7..9, End::Lost);
        let mut position = ConsumerPosition::new("a", 1);
        position = position.resume(1, Counts::default(), runs).expect("sound");
        let mut parts = Vec::new();
        while position.next().start < 10 {
            let next = position.next();
            let end = next.end.min(10);
            parts.push(next.start..end);
            position.hand_out((end - next.start) as usize);
        }
        assert_eq!(parts, [1..3, 5..7, 9..10]);
        position.settle(1..10, Ack::Delivered);
        assert!(position.advance());
        assert_eq!(
            position.totals(10),
            Counts { accepted: 9, delivered: 7, lost: 2, ..Counts::default() }
        );
    }

    #[test]
    fn what_is_lost_is_counted_apart() {
        let mut position = handed_out(1);
        position.lose_to(4);
        position.hand_out(1);
        identity_holds(&position, 5);
        position.settle(1..2, Ack::Delivered);
        position.advance();
        assert_eq!(position.low, 4);
        identity_holds(&position, 5);
        position.settle(4..5, Ack::Delivered);
        position.advance();
        position.lose_to(1 << 50);
        assert_eq!(
            position.below,
            Counts { delivered: 2, lost: (1 << 50) - 3, ..Counts::default() }
        );
        identity_holds(&position, 1 << 50);
    }

    #[test]
    fn foreign_records_are_in_no_count_read_or_not() {
        let mut position = handed_out(4);
        position.foreign = 3;
        identity_holds(&position, 8);
        position.pass_over(2..4);
        position.pass_over(2..9);
        position.settle(2..3, Ack::Dead);
        position.settle(1..2, Ack::Delivered);
        position.advance();
        // Of seven records three are foreign, and three of the other four wait.
        let expect = Counts { accepted: 4, delivered: 1, ..Counts::default() };
        assert_eq!((position.low, position.totals(8)), (5, expect));
        assert_eq!((position.passed_over(), position.foreign), (3, 3));
        assert!(position.has_ended(4) && !position.has_ended(5));
        identity_holds(&position, 8);
        position.hand_out(3);
        position.pass_over(5..8);
        assert_eq!((position.foreign, position.totals(8).accepted), (6, 1));
    }

    #[test]
    fn foreign_records_that_no_cursor_counted_do_not_stay_pending() {
        let below = Counts { delivered: 1, foreign: 2, ..Counts::default() };
        let position = ConsumerPosition::new("a", 1);
        let mut position = position.resume(4, below, Runs::default()).expect("sound");
        let expect = Counts { accepted: 2, delivered: 1, ..Counts::default() };
        assert_eq!(position.totals(5), expect, "one waits");
        // More than one cannot be foreign and unread.
        position.foreign = 9;
        let expect = Counts { accepted: 1, delivered: 1, ..Counts::default() };
        assert_eq!(position.totals(5), expect);
        position.lose_to(5);
        identity_holds(&position, 5);
        assert_eq!(position.totals(5).pending(), 0);
    }

    #[test]
    fn counts_that_do_not_add_up_are_refused() {
        let position = || ConsumerPosition::new("a", 5);
        let below = Counts { delivered: 2, ..Counts::default() };
        assert!(position().resume(7, below, Runs::default()).is_some());
        assert!(position().resume(8, below, Runs::default()).is_none());
        assert!(position().resume(4, below, Runs::default()).is_none());
    }
}
