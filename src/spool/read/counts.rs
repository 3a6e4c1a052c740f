//! Counts of records by their end.

use crate::spool::status::UpstreamStatus;

/// An acknowledgement of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The upstream has the record.
    Delivered,
    /// The record is in the dead letters.
    Dead,
}

/// The end of a record for one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The record was acknowledged.
    Acknowledged(Ack),
    /// The record was lost to damage or a torn write.
    Lost,
    /// The record is not meant for this upstream, which passed over it.
    Foreign,
}

/// Counts of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub delivered: u64,
    pub dead: u64,
    /// Records that were lost to damage or a torn write.
    pub lost: u64,
    /// Records that are not meant for this upstream, which are in none of the other counts.
    pub foreign: u64,
}

impl Counts {
    /// `events` records that ended in this way.
    pub fn of(end: End, events: u64) -> Counts {
        let none = Counts::default();
        match end {
            End::Acknowledged(Ack::Delivered) => Counts { delivered: events, ..none },
            End::Acknowledged(Ack::Dead) => Counts { dead: events, ..none },
            End::Lost => Counts { lost: events, ..none },
            End::Foreign => Counts { foreign: events, ..none },
        }
    }

    /// Adds the counts of another lane.
    pub fn add(&mut self, other: Counts) {
        self.accepted = self.accepted.saturating_add(other.accepted);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.dead = self.dead.saturating_add(other.dead);
        self.lost = self.lost.saturating_add(other.lost);
        self.foreign = self.foreign.saturating_add(other.foreign);
    }

    /// Subtracts counts that were added before.
    pub fn subtract(&mut self, other: Counts) {
        self.accepted = self.accepted.saturating_sub(other.accepted);
        self.delivered = self.delivered.saturating_sub(other.delivered);
        self.dead = self.dead.saturating_sub(other.dead);
        self.lost = self.lost.saturating_sub(other.lost);
        self.foreign = self.foreign.saturating_sub(other.foreign);
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

    /// The records that have not ended.
    pub fn pending(&self) -> u64 {
        self.accepted.saturating_sub(self.ended())
    }

    /// The records that have ended: delivered, dead, lost or passed over.
    pub fn ended(&self) -> u64 {
        let own = self.delivered.saturating_add(self.dead).saturating_add(self.lost);
        own.saturating_add(self.foreign)
    }
}
