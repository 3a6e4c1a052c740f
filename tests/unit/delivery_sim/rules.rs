//! What must hold after each step of the simulation.

use std::sync::Arc;
use std::time::Duration;

use pixelgate::internals::delivery::dead_letters::{self, Filter, Letter};
use tokio::time::{Instant, sleep};

use super::upstream::number_of;
use super::{NAMES, NEXT_ATTEMPT_MAX, QUIET_MAX, World, due_now, portal_of};

impl World {
    /// Whether an event has ended at an upstream, which has taken it or written its dead letter.
    fn has_ended(&mut self, at: usize, event: u64) -> bool {
        if self.upstreams[at].state.lock().taken.contains_key(&event) {
            return true;
        }
        if !self.dead[at].contains(&event) {
            let note = |letter: &Letter| {
                let record = letter.record().expect("as written");
                self.dead[at].insert(number_of(&record));
            };
            let all = Filter::default();
            let dir = self.dead_dir.path().join(if self.dead_fails { "away" } else { "dead" });
            dead_letters::list(&dir, NAMES[at], &all, note).expect("readable");
        }
        self.dead[at].contains(&event)
    }

    /// Whether the first `last` events have ended at each upstream.
    pub fn have_ended(&mut self, last: u64) -> bool {
        for at in 0..NAMES.len() {
            while self.first_left[at] <= last && self.has_ended(at, self.first_left[at]) {
                self.first_left[at] += 1;
            }
        }
        self.first_left.iter().all(|first_left| *first_left > last)
    }

    /// No event waits long for its next attempt while its upstream works, and no upstream is left
    /// alone while an event waits for it.
    pub fn check_attempts(&mut self) {
        self.have_ended(self.accepted);
        for (at, name) in NAMES.iter().enumerate() {
            let upstream = Arc::clone(&self.upstreams[at]);
            let (works_for, busy_at) = {
                let state = upstream.state.lock();
                (state.works_for(), state.busy_at)
            };
            let is_quick = upstream.script.stalls == 0 && upstream.script.pauses == 0;
            let is_old = |accepted: &Instant| accepted.elapsed() > NEXT_ATTEMPT_MAX;
            let old = self.accepted_at.partition_point(is_old) as u64;
            for event in self.first_left[at]..=old {
                let last = upstream.state.lock().attempted_at.get(&event).copied();
                let is_late = last.is_none_or(|last| last.elapsed() > NEXT_ATTEMPT_MAX);
                if is_quick && works_for > NEXT_ATTEMPT_MAX && is_late {
                    let writes = !self.dead_fails && self.dead_changed.elapsed() > NEXT_ATTEMPT_MAX;
                    let may_wait = self.has_ended(at, event)
                        || last.is_some() && !writes
                        || self.waits_for_its_portal(at, event);
                    assert!(may_wait, "event {event} waits since {last:?}, {}", self.describe());
                }
            }
            let process = self.process.as_ref().expect("runs");
            let waits_since = self.accepted_at.get(self.first_left[at] as usize - 1);
            let quiet_since = waits_since
                .map(|at| (*at).max(busy_at).max(process.started).max(self.dead_changed));
            let is_left = upstream.in_flight() == 0
                && !self.dead_fails
                && quiet_since.is_some_and(|since| since.elapsed() > QUIET_MAX);
            assert!(!is_left, "{name} is left alone, {}", self.describe());
        }
    }

    /// Whether an order is kept and an older event of the same portal has not ended: if nothing is
    /// left but one that is refused and those behind it, none of them proves that it is to blame.
    fn waits_for_its_portal(&mut self, at: usize, event: u64) -> bool {
        let older = self.first_left[at]..event;
        self.upstreams[at].script.in_order
            && older.rev().any(|o| portal_of(o) == portal_of(event) && !self.has_ended(at, o))
    }

    pub fn check(&self) {
        let process = self.process.as_ref().expect("runs");
        let counts = process.spool.status().upstreams;
        for (at, upstream) in self.upstreams.iter().enumerate() {
            let (counts, state) = (&counts[at], upstream.state.lock());
            assert_eq!(state.broken, [""; 0], "{}", NAMES[at]);
            let ended = counts.delivered + counts.dead;
            assert_eq!(counts.accepted, ended + counts.pending, "{counts:?}");
            assert_eq!((counts.accepted, counts.lost), (self.accepted, 0), "{counts:?}");
            assert!(counts.delivered <= state.taken.len() as u64, "{counts:?}");
        }
    }

    /// The lag is at least the age of the oldest event that was not taken, less the second between
    /// two updates. An upstream with dead letters, which it did not take, is left out.
    pub fn check_lag(&self) {
        let process = self.process.as_ref().expect("runs");
        if process.started.elapsed().as_secs() <= 3 {
            return;
        }
        let counts = process.spool.status().upstreams;
        let all = process.forwarder.status().into_iter().zip(&counts).zip(&self.upstreams);
        for (((status, counts), upstream), first_left) in all.zip(self.first_left) {
            if counts.dead > 0 {
                continue;
            }
            let state = upstream.state.lock();
            let oldest =
                (first_left..=self.accepted).find(|event| !state.taken.contains_key(event));
            let Some(oldest) = oldest else { continue };
            let age = self.accepted_at[oldest as usize - 1].elapsed().as_secs();
            assert!(status.lag_seconds + 3 >= age, "{age} s, {}", self.describe());
        }
    }

    /// Never `ok` while an event waits and nothing is under way. Events that were read late, behind
    /// others, may linger for a batch once more.
    pub async fn check_states(&self) {
        if self.is_quietly_stuck() {
            sleep(Duration::from_millis(self.batch.linger_ms + 1_000)).await;
            due_now().await;
            assert!(!self.is_quietly_stuck(), "{}", self.describe());
        }
    }

    fn is_quietly_stuck(&self) -> bool {
        let process = self.process.as_ref().expect("runs");
        let bound = 3 + self.batch.linger_ms / 1_000;
        if process.started.elapsed().as_secs() <= bound {
            // What waited before the start lingers for its first attempt.
            return false;
        }
        process.forwarder.status().iter().zip(&self.upstreams).any(|(status, upstream)| {
            let is_idle = status.state.as_str() == "ok" && upstream.in_flight() == 0;
            is_idle && status.lag_seconds > bound
        })
    }

    pub fn describe(&self) -> String {
        let process = self.process.as_ref().expect("runs");
        let scripts: Vec<_> = self.upstreams.iter().map(|upstream| &upstream.script).collect();
        format!(
            "{:#?}\n{:#?}\n{scripts:#?}\n{:?}, attempts_max {}",
            process.spool.status().upstreams,
            process.forwarder.status(),
            self.batch,
            self.attempts_max
        )
    }
}
