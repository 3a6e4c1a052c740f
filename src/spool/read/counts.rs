//! Counts of records, by what became of them.

use crate::spool::status::UpstreamStatus;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The upstream has it.
    Delivered,
    /// It went to the dead letters.
    Dead,
}

/// How a record ended for one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was acknowledged.
    Acknowledged(Ack),
    /// It was lost to corruption or a torn write.
    Lost,
    /// It is not meant for this upstream, which passed it over.
    Foreign,
}

/// Counts of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: u64,
    pub delivered: u64,
    pub dead: u64,
    /// Lost to corruption or a torn write.
    pub lost: u64,
    /// Passed over: not meant for this upstream, and in none of the other counts.
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

    /// Adds another lane's.
    pub fn add(&mut self, other: Counts) {
        self.accepted = self.accepted.saturating_add(other.accepted);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.dead = self.dead.saturating_add(other.dead);
        self.lost = self.lost.saturating_add(other.lost);
        self.foreign = self.foreign.saturating_add(other.foreign);
    }

    /// Takes away what was added before.
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

    /// What is neither delivered nor dead nor lost.
    pub fn pending(&self) -> u64 {
        self.accepted.saturating_sub(self.ended())
    }

    /// What is delivered, dead, lost or passed over: what need not be read again.
    pub fn ended(&self) -> u64 {
        let own = self.delivered.saturating_add(self.dead).saturating_add(self.lost);
        own.saturating_add(self.foreign)
    }
}
