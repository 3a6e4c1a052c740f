//! What follows from the outcome of an attempt (SPEC 7), the same for every kind of upstream.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use super::breaker::Tried;
use super::dead_letters::Reason;
use super::feedback::Feedback;
use super::in_flight_batch::{InFlightBatch, Suspicion};
use super::schedule::Work;
use super::worker::{Attempt, DeliveryWorker};
use crate::clock::timestamp;
use crate::event::Record;
use crate::spool::Ack;
use crate::upstream::{ATTEMPTS_MAX_DEFAULT, Failure, Outcome};

/// After this many failures while others were delivered, or `attempts_max` where that is less, the
/// events of a batch are shown as poison.
const POISON_FAILURES: u32 = 3;

/// Whether the attempt ended without an answer, as after a timeout.
fn has_no_answer(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Retry(failure) if failure.status.is_none())
}

/// The parts of a batch that are attempted again, in order, each with the moment at which it is
/// due.
type FollowUp = Vec<(InFlightBatch, Instant)>;

impl DeliveryWorker {
    /// Acts on the end of an attempt: reports it to the breaker and the limiter, acknowledges or
    /// writes to the dead letters what has ended, and puts the rest back into the schedule.
    pub(super) fn conclude(&mut self, attempt: Attempt) {
        let now = Instant::now();
        self.ended_at = now;
        let Attempt { mut work, outcome, pass, permit, deliveries } = attempt;
        self.monitor.count_attempt(outcome.label());
        let Some(batch) = work.parts.pop_front() else { return };
        let is_first = batch.suspect.is_none();
        let tried = match batch.failures {
            _ if is_first => Tried::First,
            0 => Tried::FirstAsPart,
            _ => Tried::Again,
        };
        // An attempt that began before a change of the settings says nothing about the upstream.
        let is_current = self.breaker.is_current(&pass);
        let feedback = if is_current { Feedback::of(&outcome) } else { Feedback::Nothing };
        let is_failure = matches!(feedback, Feedback::Failure(None) | Feedback::Backpressure(None));
        let narrows = is_failure && pass.is_probe() && !self.in_order;
        match feedback {
            Feedback::Success => {
                self.limiter.grow(permit);
                self.breaker.succeed(pass);
            }
            Feedback::Backpressure(after) => {
                // A batch that has failed before may be to blame itself, and so may one that got no
                // answer while others were delivered. Their failure says nothing about the
                // upstream's load, unless the upstream asked for a pause.
                let hangs_alone = has_no_answer(&outcome) && self.deliveries > deliveries;
                match is_first && !hangs_alone || after.is_some() {
                    true => self.limiter.shrink(permit),
                    false => self.limiter.give_back(permit),
                }
                self.breaker.fail(pass, tried, after, &self.backoff, now);
            }
            Feedback::Failure(after) => {
                self.limiter.give_back(permit);
                self.breaker.fail(pass, tried, after, &self.backoff, now);
            }
            Feedback::Nothing => {
                self.limiter.give_back(permit);
                self.breaker.abandon(pass, now);
            }
        }
        let mut follow_up = self.follow_up(batch, outcome, narrows, now);
        if !is_current {
            follow_up.iter_mut().for_each(|(_, due)| *due = now);
        }
        self.put_back(work, follow_up, now);
        self.note_state(now);
        if self.monitor.tracker.troubles().poison_events > 0 {
            // This does not wait for the next tick, because before it a batch may be halved down to
            // its dead letter.
            self.monitor.note_faults(self.bound());
        }
    }

    /// Acknowledges what was delivered, passes on what is dead, and returns the rest. `narrows`:
    /// see [`DeliveryWorker::retry`].
    fn follow_up(
        &mut self,
        batch: InFlightBatch,
        outcome: Outcome,
        narrows: bool,
        now: Instant,
    ) -> FollowUp {
        let mut parts = match outcome {
            Outcome::Mixed(parts) => batch.split(parts),
            outcome => vec![(batch, outcome)],
        };
        let mut follow_up = Vec::new();
        let is_delivered = |part: &mut (InFlightBatch, Outcome)| part.1 == Outcome::Delivered;
        let delivered: Vec<_> = parts.extract_if(.., is_delivered).collect();
        for (batch, _) in &delivered {
            self.acknowledger.acknowledge(&batch.ids, Ack::Delivered);
            self.delivered.inc_by(batch.len() as u64);
        }
        if !delivered.is_empty() {
            self.deliveries += 1;
            self.monitor.health.delivered();
        }
        for (batch, outcome) in parts {
            match outcome.for_events(batch.len()) {
                Outcome::Delivered => {}
                Outcome::Retry(failure) => {
                    follow_up.extend(self.retry(batch, &failure, false, narrows, now));
                }
                Outcome::Fault(failure) => {
                    follow_up.extend(self.retry(batch, &failure, true, narrows, now));
                }
                Outcome::Mixed(_) => {
                    let failure = Failure::new("mixed");
                    follow_up.extend(self.retry(batch, &failure, false, narrows, now));
                }
                Outcome::TooLarge(failure) | Outcome::Rejected(failure) if batch.len() > 1 => {
                    if failure.after.is_some() {
                        // The upstream takes nothing until then, and this is why.
                        self.monitor.health.failed_here(&self.in_words(&failure));
                    }
                    let due = now + failure.after.unwrap_or_default();
                    follow_up.extend(batch.halve().map(|half| (half, due)));
                }
                Outcome::TooLarge(failure) => self.dead_letter(batch, Reason::TooLarge, &failure),
                Outcome::Rejected(failure) => {
                    let readable = |r: &Bytes| Record::decode_sound(r).is_ok();
                    let readable = batch.batch.records().iter().all(readable);
                    let reason = if readable { Reason::Rejected } else { Reason::Unreadable };
                    self.dead_letter(batch, reason, &failure);
                }
                Outcome::Dead(failure) => self.dead_letter(batch, Reason::Undeliverable, &failure),
            }
        }
        follow_up
    }

    /// The failure, with the moment before which the upstream gets no attempt, though it may be
    /// well again sooner. A local failure is about a portal: the others get theirs.
    fn in_words(&self, failure: &Failure) -> String {
        let after = failure.after.filter(|after| !after.is_zero() && !failure.local);
        let Some(after) = after else { return failure.what.to_string() };
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let until = timestamp(self.monitor.clock.unix_ms().saturating_add(after_ms));
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ");
        format!("{}; no attempt before {until}", failure.what)
    }

    /// Plans another attempt. A batch that failed `attempts_max` times is halved. A batch that
    /// failed as the probe (`narrows`) is halved at once: where nearly every batch holds an event
    /// that the upstream never takes, the upstream seems to take nothing until a small batch shows
    /// that it takes others. A single event that failed `attempts_max` times while others were
    /// delivered becomes a dead letter, unless a changed configuration would help (`is_fault`).
    fn retry(
        &mut self,
        mut batch: InFlightBatch,
        failure: &Failure,
        is_fault: bool,
        narrows: bool,
        now: Instant,
    ) -> FollowUp {
        self.monitor.health.failed(&self.in_words(failure));
        batch.failures = batch.failures.saturating_add(1);
        // A local failure is about a whole portal, such as its token, and not about these events.
        if !failure.local {
            let suspect = batch.suspect.get_or_insert_default();
            if suspect.failures == 0 {
                suspect.deliveries = self.deliveries;
            }
            suspect.failures = suspect.failures.saturating_add(1);
            let Suspicion { failures, deliveries } = *suspect;
            let is_alone = self.deliveries > deliveries;
            // With 0, an event that fails waits without end, but the others of its batch must not.
            let attempts_max = match self.attempts_max {
                0 => ATTEMPTS_MAX_DEFAULT,
                attempts_max => attempts_max,
            };
            batch.is_poison |= is_alone && failures >= POISON_FAILURES.min(attempts_max);
            let is_too_often = failures >= attempts_max;
            if batch.len() > 1 && (is_too_often || narrows) {
                let halves = batch.halve().map(|mut half| {
                    // One half holds the event that is to blame, and it is not known which one. So
                    // the first failure of either half says nothing about the upstream.
                    half.suspect = Some(Suspicion::default());
                    half.note_failure(is_fault);
                    (half, now)
                });
                return halves.into();
            }
            if is_too_often && self.attempts_max > 0 && !is_fault {
                if is_alone {
                    let what = format!(
                        "{}; {failures} attempts failed while other events were delivered",
                        failure.what
                    );
                    let failure = Failure { what: what.into(), ..failure.clone() };
                    self.dead_letter(batch, Reason::Undeliverable, &failure);
                    return Vec::new();
                }
                batch.is_stuck = true;
            }
        }
        batch.note_failure(is_fault);
        let wait = self.backoff.wait(batch.failures, failure.after);
        vec![(batch, now + wait)]
    }

    fn dead_letter(&mut self, batch: InFlightBatch, reason: Reason, failure: &Failure) {
        let now_ms = self.monitor.clock.unix_ms();
        self.letters.push(batch, now_ms, reason, failure);
    }

    /// Puts what is left of a batch back into the schedule: together with the parts that wait
    /// behind it where an order is kept, else each part by itself.
    fn put_back(&mut self, mut work: Work, follow_up: FollowUp, now: Instant) {
        if !self.in_order {
            for (batch, due) in follow_up {
                let parts = VecDeque::from([batch]);
                self.schedule.push(Work { queue: work.queue, parts }, due);
            }
            return;
        }
        let mut due = follow_up.iter().map(|(_, due)| *due).max().unwrap_or(now);
        for (batch, _) in follow_up.into_iter().rev() {
            work.parts.push_front(batch);
        }
        self.bring_probe(&mut work);
        if work.failures() == 0 {
            due = now;
        }
        match work.parts.is_empty() {
            true => self.queues[work.queue].is_busy = false,
            false => self.schedule.push(work, due),
        }
    }
}
