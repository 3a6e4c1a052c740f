//! Delivers events of a file, one batch at a time, while an operator waits for the command.
//!
//! What follows from an outcome is the same as in the delivery worker (SPEC 7): wait and retry,
//! split, halve. The difference is that it gives up: after [`ATTEMPTS_MAX`] attempts at one batch,
//! at a fault of the configuration, or when it is stopped. Where the failure concerns some events
//! only, such as those of a portal without a token, it leaves these behind and goes on.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;

use super::letter::Reason;
use crate::delivery::in_flight_batch::InFlightBatch;
use crate::delivery::retries;
use crate::upstream::{Failure, Outcome, Upstream};

/// Attempts at one batch before the command gives up.
pub const ATTEMPTS_MAX: u32 = 5;

const INTERRUPTED: &str = "interrupted";

/// Where a command notes the ends of events. `T` is the place of an event in its file.
pub trait Notes<T> {
    /// Why the end of an event cannot be noted. Such an error ends the command.
    type Error;

    /// The upstream has acknowledged the events at these places.
    fn delivered(&mut self, places: &[T]) -> Result<(), Self::Error>;

    /// The upstream refuses these events for good.
    fn refused(
        &mut self,
        batch: &InFlightBatch<T>,
        reason: Reason,
        failure: &Failure,
    ) -> Result<(), Self::Error>;

    /// This many events cannot be delivered now.
    fn undelivered(&mut self, events: usize, why: Cow<'static, str>);
}

/// Delivers events of a file to one upstream, one batch at a time.
pub struct Resender<'a> {
    upstream: &'a dyn Upstream,
    stop: watch::Receiver<bool>,
    /// Why no further attempt is made. `None`: attempts are made.
    gave_up: Option<Cow<'static, str>>,
}

impl<'a> Resender<'a> {
    /// A resender that delivers to `upstream` until `stop` becomes true.
    pub fn new(upstream: &'a dyn Upstream, stop: watch::Receiver<bool>) -> Resender<'a> {
        Resender { upstream, stop, gave_up: None }
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
        let mut queue = VecDeque::from([batch]);
        while let Some(batch) = queue.pop_front() {
            if self.has_ended() {
                self.give_up(&batch, INTERRUPTED.into(), notes);
                continue;
            }
            let results = match self.upstream.send(&batch.batch).await {
                Outcome::Mixed(parts) => batch.split(parts),
                outcome => vec![(batch, outcome)],
            };
            let mut wait = Duration::ZERO;
            for (batch, outcome) in results {
                wait = wait.max(self.conclude(batch, outcome, &mut queue, notes)?);
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

    /// Acts on the outcome of an attempt. Returns the wait before the next one.
    fn conclude<T: Copy, N: Notes<T>>(
        &mut self,
        mut batch: InFlightBatch<T>,
        outcome: Outcome,
        queue: &mut VecDeque<InFlightBatch<T>>,
        notes: &mut N,
    ) -> Result<Duration, N::Error> {
        match outcome {
            Outcome::Delivered => notes.delivered(&batch.ids)?,
            Outcome::TooLarge(_) | Outcome::Rejected(_) if batch.len() > 1 => {
                queue.extend(batch.halve());
            }
            Outcome::TooLarge(failure) => notes.refused(&batch, Reason::TooLarge, &failure)?,
            Outcome::Rejected(failure) => notes.refused(&batch, Reason::Rejected, &failure)?,
            Outcome::Dead(failure) => notes.refused(&batch, Reason::Undeliverable, &failure)?,
            Outcome::Retry(failure) if batch.failures + 1 < ATTEMPTS_MAX => {
                batch.failures += 1;
                let wait = retries::wait(batch.failures, failure.after);
                queue.push_front(batch);
                return Ok(wait);
            }
            Outcome::Retry(failure) | Outcome::Fault(failure) if failure.local => {
                notes.undelivered(batch.len(), failure.what);
            }
            Outcome::Retry(failure) | Outcome::Fault(failure) => {
                self.give_up(&batch, failure.what, notes);
            }
            Outcome::Mixed(_) => {
                self.give_up(&batch, "the upstream gave a mixed outcome".into(), notes);
            }
        }
        Ok(Duration::ZERO)
    }

    fn give_up<T: Copy>(
        &mut self,
        batch: &InFlightBatch<T>,
        why: Cow<'static, str>,
        notes: &mut impl Notes<T>,
    ) {
        notes.undelivered(batch.len(), why.clone());
        self.gave_up.get_or_insert(why);
    }
}
