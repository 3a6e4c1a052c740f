//! What is accepted.

use std::time::Duration;

use pixelgate::internals::clock::Clock;
use pixelgate::internals::event::{Context, Event, encode_record};
use pixelgate::internals::spool::Commit;
use tokio::time::{Instant, sleep};

use super::{Accepted, ID_PREFIX, World, portal_of};
use crate::spool_model::wait;

impl World {
    /// Accepts events, and waits in real time until they can be read. At times a part of the spool
    /// is hurt before they are read.
    pub async fn accept(&mut self, count: u64) {
        let hurts = self.plot.hurts && !self.is_ending && self.random.once_in(3);
        self.accept_some(count, hurts).await;
    }

    /// See [`World::accept`].
    pub async fn accept_some(&mut self, count: u64, hurts: bool) {
        let mut commits = Vec::new();
        for _ in 0..count {
            if self.plot.has_newer && self.random.once_in(40) {
                commits.push(self.append(&self.newer_record()));
                self.newer.push(self.is_configured);
            }
            self.accepted.push(Accepted { at: Instant::now(), is_for: self.is_configured });
            commits.push(self.append(&self.record(self.last())));
        }
        // The readers are woken before the answers are given.
        commits.into_iter().for_each(|commit| wait(commit).expect("committed"));
        if hurts {
            match self.random.once_in(2) {
                true => self.damage(),
                false => self.move_segment(),
            }
        }
        tokio::task::yield_now().await;
    }

    fn append(&self, record: &[u8]) -> Commit {
        self.spool().append(|out| out.extend_from_slice(record)).expect("there is room")
    }

    fn record(&self, number: u64) -> Vec<u8> {
        let event = Event {
            portal: portal_of(number),
            name: "simulated".into(),
            email: None,
            revenue: None,
            external_id: Some(number.to_string().into()),
            properties: Default::default(),
        };
        let id = u128::from(ID_PREFIX) << 64 | u128::from(number);
        let mut record = Vec::new();
        let now_ms = self.clock.unix_ms();
        encode_record(&mut record, &id.to_be_bytes(), now_ms, &event, &Context::default());
        record
    }

    /// A record of a later version: the fields that every version has, and others.
    fn newer_record(&self) -> Vec<u8> {
        [b"\x7f\0", &self.clock.unix_ms().to_le_bytes()[..], b"a later layout"].concat()
    }

    /// Slow traffic: an event every four seconds.
    pub async fn trickle(&mut self, count: u64) {
        for _ in 0..count {
            self.accept(1).await;
            sleep(Duration::from_secs(4)).await;
            self.check_all().await;
        }
    }
}
