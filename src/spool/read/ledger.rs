//! What became of each record of a lane, per upstream.
//!
//! Acknowledgements come in any order. Between the low watermark (`low`: everything before it has
//! its acknowledgement) and the next record to hand out lies a window with one byte a record. Only
//! counts below `low` are ever persisted, so that after a crash
//! `low - start = delivered + dead + lost` holds, and with it SPEC 7's identity: what lay
//! above is pending again and read again.

use std::collections::VecDeque;

use crate::spool::status::UpstreamStatus;

/// Most records that an upstream may have read and not acknowledged, in one lane.
pub const RUN_AHEAD_EVENTS_MAX: usize = 65_536;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The upstream has it.
    Delivered,
    /// It went to the dead letters.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Out,
    Delivered,
    Dead,
    Lost,
}

/// Counts of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub delivered: u64,
    pub dead: u64,
    /// Lost to corruption or a torn write.
    pub lost: u64,
}

impl Counts {
    /// Adds another lane's.
    pub fn add(&mut self, other: Counts) {
        self.accepted = self.accepted.saturating_add(other.accepted);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.dead = self.dead.saturating_add(other.dead);
        self.lost = self.lost.saturating_add(other.lost);
    }

    /// The counts under an upstream's name.
    pub fn named(self, name: String) -> UpstreamStatus {
        UpstreamStatus {
            name,
            accepted: self.accepted,
            delivered: self.delivered,
            dead: self.dead,
            lost: self.lost,
            pending: self.pending(),
        }
    }

    /// What is neither delivered nor dead nor lost.
    pub fn pending(&self) -> u64 {
        let done = self.delivered.saturating_add(self.dead).saturating_add(self.lost);
        self.accepted.saturating_sub(done)
    }

    // Wrapping, so that `u64::MAX` takes one away.
    fn count(&mut self, slot: Slot, by: u64) {
        let field = match slot {
            Slot::Out => return,
            Slot::Delivered => &mut self.delivered,
            Slot::Dead => &mut self.dead,
            Slot::Lost => &mut self.lost,
        };
        *field = field.wrapping_add(by);
    }
}

/// One upstream's position in one lane.
#[derive(Debug, Clone)]
pub struct ConsumerPosition {
    /// The upstream's name.
    pub name: String,
    /// Where this upstream began to count in this lane.
    pub start: u64,
    /// Everything before it is acknowledged or lost.
    pub low: u64,
    /// Counts between `start` and `low`. `accepted` stays 0: it follows from the lane's end.
    pub below: Counts,
    /// Totals of lanes that were folded into this one.
    pub carried: Counts,
    window: VecDeque<Slot>,
    above: Counts,
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
            window: VecDeque::new(),
            above: Counts::default(),
        }
    }

    /// Sequence number of the next record to hand out.
    pub fn next(&self) -> u64 {
        self.low + self.window.len() as u64
    }

    /// How many more records may be handed out.
    pub fn room(&self) -> usize {
        RUN_AHEAD_EVENTS_MAX.saturating_sub(self.window.len())
    }

    /// The next records were handed out.
    pub fn hand_out(&mut self, events: usize) {
        self.window.extend(std::iter::repeat_n(Slot::Out, events));
    }

    /// The next records up to `seq` do not exist any more. Says no, and changes nothing, if they
    /// are more than the window takes: then what is out must come back first.
    pub fn lose_to(&mut self, seq: u64) -> bool {
        let lost = seq.saturating_sub(self.next());
        if self.window.is_empty() {
            self.low += lost;
            self.below.lost += lost;
            return true;
        }
        let fits = lost <= self.room() as u64;
        if fits {
            self.window.extend((0..lost).map(|_| Slot::Lost));
            self.above.lost += lost;
        }
        fits
    }

    /// Notes a record's acknowledgement. A record that was not handed out, or that is acknowledged
    /// or lost already, is left alone.
    pub fn settle(&mut self, seq: u64, ack: Ack) {
        let slot = seq.checked_sub(self.low).and_then(|at| usize::try_from(at).ok());
        let Some(slot) = slot.and_then(|at| self.window.get_mut(at)) else { return };
        if *slot == Slot::Out {
            *slot = match ack {
                Ack::Delivered => Slot::Delivered,
                Ack::Dead => Slot::Dead,
            };
            self.above.count(*slot, 1);
        }
    }

    /// Moves `low` up over everything that is acknowledged or lost. Says whether it moved.
    pub fn advance(&mut self) -> bool {
        let before = self.low;
        while let Some(&slot) = self.window.front() {
            if slot == Slot::Out {
                break;
            }
            self.window.pop_front();
            self.low += 1;
            self.below.count(slot, 1);
            self.above.count(slot, u64::MAX);
        }
        self.low > before
    }

    /// The totals, with `end` records in the lane.
    pub fn totals(&self, end: u64) -> Counts {
        let mut totals = self.below;
        totals.accepted = end.max(self.next()).saturating_sub(self.start);
        totals.add(self.above);
        totals.add(self.carried);
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
        let below = position.below;
        assert_eq!(position.low - position.start, below.delivered + below.dead + below.lost);
        let totals = position.totals(end);
        assert_eq!(
            totals.accepted,
            totals.delivered + totals.dead + totals.lost + totals.pending()
        );
    }

    #[test]
    fn the_watermark_waits_for_the_slowest() {
        let mut position = handed_out(4);
        position.settle(2, Ack::Dead);
        position.settle(4, Ack::Delivered);
        assert!(!position.advance());
        assert_eq!(position.totals(5), Counts { accepted: 4, delivered: 1, dead: 1, lost: 0 });
        position.settle(1, Ack::Delivered);
        assert!(position.advance());
        assert_eq!((position.low, position.below.delivered, position.below.dead), (3, 1, 1));
        identity_holds(&position, 5);
        position.settle(3, Ack::Delivered);
        assert!(position.advance());
        assert_eq!((position.low, position.above), (5, Counts::default()));
        identity_holds(&position, 5);
    }

    #[test]
    fn a_second_or_unknown_acknowledgement_changes_nothing() {
        let mut position = handed_out(2);
        position.settle(1, Ack::Delivered);
        position.settle(1, Ack::Dead);
        position.settle(0, Ack::Dead);
        position.settle(3, Ack::Dead);
        position.settle(u64::MAX, Ack::Dead);
        position.advance();
        position.settle(1, Ack::Dead);
        assert_eq!(position.totals(3), Counts { accepted: 2, delivered: 1, dead: 0, lost: 0 });
    }

    #[test]
    fn the_window_is_bounded() {
        let mut position = handed_out(RUN_AHEAD_EVENTS_MAX - 1);
        assert_eq!(position.room(), 1);
        assert!(!position.lose_to(position.next() + 2));
        position.hand_out(1);
        assert_eq!(position.room(), 0);
        position.settle(1, Ack::Delivered);
        position.advance();
        assert_eq!(position.room(), 1);
    }

    #[test]
    fn what_is_lost_is_counted_apart() {
        let mut position = handed_out(1);
        assert!(position.lose_to(4));
        position.hand_out(1);
        identity_holds(&position, 5);
        position.settle(1, Ack::Delivered);
        position.advance();
        assert_eq!(position.low, 4);
        identity_holds(&position, 5);
        position.settle(4, Ack::Delivered);
        position.advance();
        assert!(position.lose_to(1 << 50));
        assert_eq!(
            position.below,
            Counts { accepted: 0, delivered: 2, dead: 0, lost: (1 << 50) - 3 }
        );
        identity_holds(&position, 1 << 50);
    }
}
