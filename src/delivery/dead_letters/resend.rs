//! Delivers events of a file, one batch at a time, while an operator waits for the command.
//!
//! What follows from an outcome is the same as in the delivery worker (SPEC 7): wait and retry,
//! split, halve. The difference is that it gives up. A batch that failed [`ATTEMPTS_MAX`] times is
//! halved until the events that fail are alone. These are left behind, and so are events whose
//! failure says nothing about the upstream, such as those of a portal without a token. Where
//! nothing of a batch is taken, the whole batch is left behind. The command ends when nothing was
//! taken for [`PATIENCE`], at a fault of the configuration before anything was taken, or when it is
//! stopped.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::letter::Reason;
use crate::delivery::feedback::Feedback;
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::delivery::retries;
use crate::upstream::{Failure, Outcome, Upstream};

/// Attempts at one batch before it is halved. Its parts are halved at their first failure.
pub const ATTEMPTS_MAX: u32 = 5;
/// Parts of a batch that may fail before one is taken. Halving a batch of 500 events reaches a
/// single event within 18 parts: see [`Resender::next`].
const PARTS_FAILED_MAX: u32 = 40;
/// How long attempts may fail in a row before the command gives up or, if something of the batch
/// was taken, leaves the rest of the batch behind.
const PATIENCE: Duration = Duration::from_secs(60);

const INTERRUPTED: &str = "interrupted";

/// Where a command notes the ends of events. `T` is the place of an event in its file.
pub trait Notes<T> {
    /// Why the end of an event cannot be noted. Such an error ends the command.
    type Error;

    /// Notes that the upstream has acknowledged the events at these places.
    fn delivered(&mut self, places: &[T]) -> Result<(), Self::Error>;

    /// Notes that the upstream refuses these events for good.
    fn refused(
        &mut self,
        batch: &InFlightBatch<T>,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), Self::Error>;

    /// Notes that this many events cannot be delivered now, and why.
    fn undelivered(&mut self, events: usize, why: Cow<'static, str>);
}

/// What is left of a batch, in no order.
type Parts<T> = VecDeque<InFlightBatch<T>>;

/// Delivers events of a file to one upstream, one batch at a time.
pub struct Resender<'a> {
    upstream: &'a dyn Upstream,
    stop: watch::Receiver<bool>,
    /// Whether the upstream ever took an event or refused one for good.
    has_taken: bool,
    /// Whether the upstream did so since the current batch began.
    is_proven: bool,
    /// When the first attempt failed since something was taken.
    failing_since: Option<Instant>,
    /// Parts of the batch that failed.
    parts_failed: u32,
    /// Attempts in a row that ended with a pause that the upstream asked for.
    pauses: u32,
    /// Why no further attempt is made. `None`: attempts are made.
    gave_up: Option<Cow<'static, str>>,
}

impl<'a> Resender<'a> {
    /// A resender that delivers to `upstream` until `stop` becomes true.
    pub fn new(upstream: &'a dyn Upstream, stop: watch::Receiver<bool>) -> Resender<'a> {
        Resender {
            upstream,
            stop,
            has_taken: false,
            is_proven: false,
            failing_since: None,
            parts_failed: 0,
            pauses: 0,
            gave_up: None,
        }
    }

    /// Whether no further attempt is made.
    pub fn has_ended(&self) -> bool {
        self.why_ended().is_some()
    }

    /// Why no further attempt is made; `None` while attempts are made.
    pub fn why_ended(&self) -> Option<Cow<'static, str>> {
        let interrupted = || self.stop.borrow().then_some(INTERRUPTED.into());
        self.gave_up.clone().or_else(interrupted)
    }

    /// Attempts to deliver these events, and notes how that ended.
    pub async fn deliver<T: Copy, N: Notes<T>>(
        &mut self,
        batch: InFlightBatch<T>,
        notes: &mut N,
    ) -> Result<(), N::Error> {
        (self.is_proven, self.parts_failed) = (false, 0);
        let mut parts = VecDeque::from([batch]);
        while let Some(batch) = self.next(&mut parts) {
            if let Some(why) = self.why_ended() {
                notes.undelivered(batch.len(), why);
                continue;
            }
            let mut results = match self.upstream.send(&batch.batch).await {
                Outcome::Mixed(parts) => batch.split(parts),
                outcome => vec![(batch, outcome)],
            };
            // What was delivered shows that the upstream is not to blame for the rest.
            results.sort_by_key(|(_, outcome)| *outcome != Outcome::Delivered);
            let mut wait = Duration::ZERO;
            for (batch, outcome) in results {
                wait = wait.max(self.conclude(batch, outcome, &mut parts, notes)?);
            }
            self.pause(wait).await;
        }
        Ok(())
    }

    /// Waits for this time, or until the stop.
    pub async fn pause(&mut self, wait: Duration) {
        tokio::select! {
            Ok(_) = self.stop.wait_for(|stop| *stop) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Takes the part that is attempted next: the smallest one or, until something is taken, the
    /// smallest and the largest in turn. A small part is less likely to hold an event that always
    /// fails. But all small parts may hold events of one sort, and the largest part events of
    /// another.
    fn next<T: Copy>(&self, parts: &mut Parts<T>) -> Option<InFlightBatch<T>> {
        let takes_small = self.is_proven || self.parts_failed.is_multiple_of(2);
        let size = |at: &usize| match takes_small {
            true => parts[*at].len() as isize,
            false => -(parts[*at].len() as isize),
        };
        let at = (0..parts.len()).min_by_key(size)?;
        parts.remove(at)
    }

    /// Acts on the outcome of an attempt. Returns the wait before the next one.
    fn conclude<T: Copy, N: Notes<T>>(
        &mut self,
        mut batch: InFlightBatch<T>,
        outcome: Outcome,
        parts: &mut Parts<T>,
        notes: &mut N,
    ) -> Result<Duration, N::Error> {
        if Feedback::of(&outcome) == Feedback::Success {
            (self.has_taken, self.is_proven) = (true, true);
            (self.failing_since, self.pauses) = (None, 0);
        }
        match outcome.for_events(batch.len()) {
            Outcome::Delivered => notes.delivered(&batch.ids)?,
            Outcome::TooLarge(failure) | Outcome::Rejected(failure) if batch.len() > 1 => {
                halve(batch, parts);
                return Ok(failure.after.unwrap_or_default());
            }
            Outcome::TooLarge(failure) => notes.refused(&batch, Reason::TooLarge, &failure)?,
            Outcome::Rejected(failure) => notes.refused(&batch, Reason::Rejected, &failure)?,
            Outcome::Dead(failure) => notes.refused(&batch, Reason::Undeliverable, &failure)?,
            Outcome::Retry(failure) if self.repeats(&mut batch, &failure) => {
                let wait = retries::wait(batch.failures, failure.after);
                parts.push_front(batch);
                return Ok(wait);
            }
            Outcome::Retry(failure) | Outcome::Fault(failure) if failure.local => {
                notes.undelivered(batch.len(), failure.what);
            }
            Outcome::Retry(failure) => return Ok(self.narrow(batch, failure, false, parts, notes)),
            Outcome::Fault(failure) => return Ok(self.narrow(batch, failure, true, parts, notes)),
            Outcome::Mixed(_) => {
                let failure = Failure::new("the upstream gave a mixed outcome");
                return Ok(self.narrow(batch, failure, false, parts, notes));
            }
        }
        Ok(Duration::ZERO)
    }

    /// Whether a batch that failed is attempted again as it is. A batch after which the upstream
    /// asked for a pause is, because it may have come too soon.
    fn repeats<T: Copy>(&mut self, batch: &mut InFlightBatch<T>, failure: &Failure) -> bool {
        if !failure.local {
            self.failing_since.get_or_insert_with(Instant::now);
        }
        let failures = match failure.after {
            Some(_) => &mut self.pauses,
            None => &mut batch.failures,
        };
        let repeats = *failures + 1 < ATTEMPTS_MAX;
        *failures += u32::from(repeats);
        repeats
    }

    /// Finds out whether the events of a batch or the upstream are to blame for its failure.
    /// Returns the wait before the next attempt.
    fn narrow<T: Copy>(
        &mut self,
        batch: InFlightBatch<T>,
        failure: Failure,
        is_fault: bool,
        parts: &mut Parts<T>,
        notes: &mut impl Notes<T>,
    ) -> Duration {
        let wait = failure.after.unwrap_or_default();
        self.parts_failed += 1;
        let is_late = self.failing_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let is_fruitless = !self.is_proven && self.parts_failed >= PARTS_FAILED_MAX;
        let is_misconfigured = is_fault && (is_fruitless || !self.has_taken);
        if !self.is_proven && (is_late || is_misconfigured) {
            self.gave_up = Some(failure.what.clone());
        }
        if is_late || is_fruitless || is_misconfigured {
            if is_late {
                // The next batch has a minute of its own.
                self.failing_since = None;
            }
            let left = parts.drain(..).map(|part| part.len()).sum::<usize>();
            notes.undelivered(batch.len() + left, failure.what);
        } else if batch.len() > 1 {
            halve(batch, parts);
        } else {
            notes.undelivered(1, failure.what);
        }
        wait
    }
}

/// Puts the halves of a batch before the other parts. They count its failed attempts as theirs.
fn halve<T: Copy>(batch: InFlightBatch<T>, parts: &mut Parts<T>) {
    let failures = batch.failures;
    for mut half in batch.halve().into_iter().rev() {
        half.failures = failures;
        parts.push_front(half);
    }
}
