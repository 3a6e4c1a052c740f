//! What must hold after each step of the simulation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pixelgate::internals::delivery::dead_letters::{self, Filter, Letter};
use pixelgate::internals::telemetry::faults::Fault;
use tokio::time::{Instant, sleep};

use super::process::Process;
use super::upstream::number_of;
use super::{Accepted, NAMES, NEXT_ATTEMPT_MAX, QUIET_MAX, World, due_now, portal_of};

/// An upstream that has not worked for this long, while events wait for it, is a fault: the waits
/// before the first attempts, and the minute after them.
const FAULT_AFTER: Duration = Duration::from_secs(5 * 60);

/// As [`NEXT_ATTEMPT_MAX`], for upstreams whose answers depend on nothing but the events.
const PATIENT_MAX: Duration = Duration::from_secs(5 * 60);

impl World {
    fn process(&self) -> &Process {
        self.process.as_ref().expect("runs")
    }

    fn accepted(&self, event: u64) -> Option<&Accepted> {
        self.accepted.get(event as usize - 1)
    }

    /// Whether an event is not meant for an upstream, or has ended there: it was taken, its dead
    /// letter was written, or its record is damaged.
    fn has_ended(&mut self, at: usize, event: u64) -> bool {
        let is_for = self.accepted(event).is_some_and(|accepted| accepted.is_for[at]);
        let taken = self.upstreams[at].state.lock().taken.contains_key(&event);
        if !is_for || taken || self.damaged.contains(&event) {
            return true;
        }
        self.read_letters(at);
        self.dead[at].contains(&event)
    }

    /// Notes which events are dead letters, if the file has changed since.
    fn read_letters(&mut self, at: usize) {
        let dir = self.letters_dir();
        let file = std::fs::metadata(dir.join(format!("{}.ndjson", NAMES[at])));
        let bytes = file.map_or(0, |file| file.len());
        if std::mem::replace(&mut self.letters_bytes[at], bytes) == bytes {
            return;
        }
        let note = |letter: &Letter| {
            let record = letter.record().expect("as written");
            self.dead[at].insert(number_of(&record));
        };
        dead_letters::list(&dir, NAMES[at], &Filter::default(), note).expect("readable");
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

    /// No event waits long for its next attempt while its upstream works, and no upstream is
    /// without an attempt for long while an event waits for it.
    pub fn check_attempts(&mut self) {
        self.have_ended(self.last());
        if self.moved.is_some() {
            // What is behind the missing segment waits for it.
            return;
        }
        for at in self.process().routes.clone() {
            self.check_each_event(at);
            let (upstream, process) = (&self.upstreams[at], self.process());
            let busy_at = upstream.state.lock().busy_at;
            let settled_at = busy_at.max(process.started).max(self.dead_changed).max(self.moved_at);
            let is_quiet = |since: Option<Instant>, linger| {
                since.is_some_and(|at| at.max(settled_at).elapsed() > QUIET_MAX + linger)
            };
            let waits_since = self.accepted(self.first_left[at]).map(|event| event.at);
            let full_since = self.full_since(at).filter(|_| !upstream.script.in_order);
            let is_left = upstream.in_flight() == 0
                && !self.dead_fails
                && (is_quiet(waits_since, Duration::from_millis(self.batch.linger_ms))
                    || is_quiet(full_since, Duration::ZERO));
            assert!(!is_left, "{} is left alone, {}", NAMES[at], self.describe());
        }
    }

    fn check_each_event(&mut self, at: usize) {
        let upstream = Arc::clone(&self.upstreams[at]);
        let works_for = upstream.state.lock().works_for().min(self.moved_at.elapsed());
        let is_quick = upstream.script.stalls == 0 && upstream.script.pauses == 0;
        let most = if self.plot.is_patient { PATIENT_MAX } else { NEXT_ATTEMPT_MAX };
        let most = most + Duration::from_millis(self.batch.linger_ms);
        if !is_quick || works_for <= most {
            return;
        }
        // While it takes nothing, one batch at a time is attempted, with pauses of up to a minute:
        // one that was attempted before waits for all others.
        let takes_others = upstream.state.lock().takes_for() > most;
        let is_late = |at: Instant| at.elapsed() > most;
        let may_rest = |last: Instant, event| {
            upstream.script.refuses(event) || last.elapsed() <= NEXT_ATTEMPT_MAX
        };
        let old = self.accepted.partition_point(|accepted| is_late(accepted.at)) as u64;
        for event in self.first_left[at]..=old {
            let last = upstream.state.lock().attempted_at.get(&event).copied();
            if last.is_some_and(|last| !is_late(last)) {
                continue;
            }
            let writes = !self.dead_fails && is_late(self.dead_changed);
            let may_wait = self.has_ended(at, event)
                || last.is_some() && !writes
                || last.is_some_and(|last| !takes_others && may_rest(last, event))
                || self.waits_for_its_portal(at, event);
            assert!(may_wait, "event {event} waits since {last:?}, {}", self.describe());
        }
    }

    /// Since when at least as many events wait for an upstream as one batch takes.
    fn full_since(&self, at: usize) -> Option<Instant> {
        let state = self.upstreams[at].state.lock();
        let waits = |event: &u64| {
            let is_for = self.accepted(*event).is_some_and(|accepted| accepted.is_for[at]);
            is_for && !state.taken.contains_key(event) && !self.damaged.contains(event)
        };
        let mut waiting = (self.first_left[at]..=self.last()).filter(waits);
        let last = waiting.nth(self.batch.events_max - 1 + self.dead[at].len())?;
        Some(self.accepted(last)?.at)
    }

    /// Whether an order is kept and an older event of the same portal has not ended: if nothing is
    /// left but one that is refused and those behind it, none of them proves that it is to blame.
    fn waits_for_its_portal(&mut self, at: usize, event: u64) -> bool {
        let older = self.first_left[at]..event;
        self.upstreams[at].script.in_order
            && older.rev().any(|o| portal_of(o) == portal_of(event) && !self.has_ended(at, o))
    }

    /// Lets upstreams take everything of which no event that waits shows whether it works: an order
    /// is kept, it has taken nothing from this process, and the first event of each portal is one
    /// that it does not take. They wait until it takes them (docs/delivery.md).
    pub fn mend_unproven(&mut self) {
        for at in 0..NAMES.len() {
            let upstream = Arc::clone(&self.upstreams[at]);
            let took_at = upstream.state.lock().took_at;
            if !upstream.script.in_order || took_at >= self.process().started {
                continue;
            }
            let mut portals = BTreeSet::new();
            let left = self.first_left[at]..=self.last();
            let is_unproven = left
                .filter(|event| !self.has_ended(at, *event))
                .all(|event| !portals.insert(portal_of(event)) || upstream.script.is_poison(event));
            if is_unproven && !portals.is_empty() {
                upstream.state.lock().mend();
            }
        }
    }

    /// The counts add up, nothing is lost but what was damaged, and no upstream has seen a rule
    /// broken.
    pub fn check(&self) {
        let process = self.process();
        for (counts, at) in process.spool.status().upstreams.iter().zip(&process.routes) {
            let state = self.upstreams[*at].state.lock();
            assert_eq!(state.broken, [""; 0], "{}", NAMES[*at]);
            let ended = counts.delivered + counts.dead + counts.lost;
            assert_eq!(counts.accepted, ended + counts.pending, "{counts:?}");
            let damaged = self.damaged.len();
            assert!(counts.lost <= damaged as u64, "{damaged} damaged: {}", self.describe());
            assert!(counts.delivered <= state.taken.len() as u64, "{counts:?}");
            let all =
                self.accepted.iter().map(|accepted| accepted.is_for).chain(self.newer.clone());
            let meant = all.filter(|is_for| is_for[*at]).count() as u64;
            // An upstream that comes back takes over what others had not acknowledged.
            let most =
                if self.plot.removes { self.last() + self.newer.len() as u64 } else { meant };
            assert!((meant..=most).contains(&counts.accepted), "{meant} to {most}: {counts:?}");
        }
    }

    /// The lag is at least the age of the oldest event that was not taken, less the second between
    /// two updates. An upstream with dead letters, which it did not take, is left out, and so is
    /// one whose events cannot be read, or were not until just now: their age is not known. Nor is
    /// that of events that came back behind younger ones which fill a batch already.
    pub fn check_lag(&self) {
        let process = self.process();
        let is_unread = |fault: &Fault| fault.what.as_str() == "spool_segment";
        let is_unread = self.moved.is_some() || process.faults.list().iter().any(is_unread);
        // A segment that is back is read at the next turn of maintenance.
        let is_back = self.moved_at.elapsed().as_secs() <= 10;
        if process.started.elapsed().as_secs() <= 3 || is_unread || is_back {
            return;
        }
        let counts = process.spool.status().upstreams;
        let all = process.forwarder.status().into_iter().zip(&counts).zip(&process.routes);
        for ((status, counts), at) in all {
            if counts.dead > 0 || counts.lost > 0 {
                continue;
            }
            let state = self.upstreams[*at].state.lock();
            let waits = |event: &u64| {
                let is_for = self.accepted(*event).is_some_and(|accepted| accepted.is_for[*at]);
                is_for && !state.taken.contains_key(event) && !self.damaged.contains(event)
            };
            let Some(oldest) = (self.first_left[*at]..=self.last()).find(waits) else { continue };
            let last = state.attempted_at.get(&oldest).copied();
            let is_known = last.is_some_and(|last| last >= process.started);
            if self.moved_at > process.started && !is_known {
                continue;
            }
            let Some(oldest) = self.accepted(oldest) else { continue };
            let age = oldest.at.elapsed().as_secs();
            assert!(status.lag_seconds + 3 >= age, "{age} s, {}", self.describe());
        }
    }

    /// Events that fail again and again while their upstream takes others are named as a fault.
    /// Where an order is kept, an event that goes alone before others begins to count anew.
    pub fn check_poison(&mut self) {
        if self.dead_fails || self.dead_changed.elapsed() <= QUIET_MAX {
            // They may be dead letters that wait to be written.
            return;
        }
        for at in self.process().routes.clone() {
            let upstream = Arc::clone(&self.upstreams[at]);
            let poison: Vec<u64> = upstream.state.lock().poison().collect();
            let waits = poison.iter().find(|event| !self.has_ended(at, **event));
            let is_named = self.is_named(at, "poison") || upstream.script.in_order;
            assert!(is_named || waits.is_none(), "{waits:?} of {poison:?}, {}", self.describe());
        }
    }

    /// Whether a fault of this kind is named of an upstream.
    fn is_named(&self, at: usize, what: &str) -> bool {
        let is_it = |fault: &Fault| fault.what.as_str() == what && fault.subject == NAMES[at];
        self.process().faults.list().iter().any(is_it)
    }

    /// An upstream that takes nothing for long while events wait is named as a fault, and no fault
    /// is named of one for which none wait. A worker without its tick updates none.
    pub fn check_faults(&self) {
        let process = self.process();
        if self.tick_every.is_some() {
            return;
        }
        for (counts, at) in process.spool.status().upstreams.iter().zip(&process.routes) {
            let upstream = &self.upstreams[*at];
            let state = upstream.state.lock();
            let is_stuck = state.fails_for() > FAULT_AFTER && self.moved.is_none();
            let has_waited = self.accepted(self.first_left[*at]);
            let has_waited = has_waited.is_some_and(|event| event.at.elapsed() > FAULT_AFTER);
            let is_fault = self.is_named(*at, "upstream_stuck") || self.is_named(*at, "poison");
            assert!(!(is_stuck && has_waited) || is_fault, "no fault, {}", self.describe());
            let is_idle = counts.pending == 0 && state.busy_at.elapsed().as_secs() > 2;
            assert!(!(is_idle && is_fault), "a fault, {}", self.describe());
        }
    }

    /// Never `ok` while an event waits and nothing is under way, by the lag or by what is known
    /// here. Events that were read late, behind others, may linger for a batch once more.
    pub async fn check_states(&mut self) {
        if self.is_quietly_stuck() {
            sleep(Duration::from_millis(self.batch.linger_ms + 1_000)).await;
            due_now().await;
            assert!(!self.is_quietly_stuck(), "{}", self.describe());
        }
    }

    fn is_quietly_stuck(&mut self) -> bool {
        self.have_ended(self.last());
        let process = self.process();
        let bound = 3 + self.batch.linger_ms / 1_000;
        // A worker without its tick does not notice that it cannot read.
        let is_unseen = self.moved.is_some() && self.tick_every.is_some();
        if process.started.elapsed().as_secs() <= bound || is_unseen {
            // What waited before the start lingers for its first attempt.
            return false;
        }
        process.forwarder.status().iter().zip(&process.routes).any(|(status, at)| {
            let is_idle = status.state.as_str() == "ok" && self.upstreams[*at].in_flight() == 0;
            let oldest = self.accepted(self.first_left[*at]);
            let is_old = oldest.is_some_and(|event| event.at.elapsed().as_secs() > bound);
            is_idle && (is_old || status.lag_seconds > bound)
        })
    }

    pub fn describe(&self) -> String {
        let process = self.process();
        let scripts: Vec<_> = self.upstreams.iter().map(|upstream| &upstream.script).collect();
        format!(
            "{:#?}\n{:#?}\n{scripts:#?}\n{:?}\n{:?}, attempts_max {}, {:?}",
            process.spool.status().upstreams,
            process.forwarder.status(),
            self.plot,
            self.batch,
            self.attempts_max,
            process.faults.list(),
        )
    }
}
