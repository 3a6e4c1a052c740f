//! [`Hubspot`]: groups a batch by portal and sends each portal's events separately.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::HeaderValue;
use tokio::task::JoinSet;

use crate::event::Record;
use crate::upstream::batch::Batch;
use crate::upstream::contract::Upstream;
use crate::upstream::outcome::{Failure, Outcome, Part};

use super::item::Item;
use super::pauses::Pauses;
use super::send::{Ends, Sender};
use super::translate::Translator;

/// Maximum number of batches in flight.
pub const BATCHES_MAX: usize = 64;

/// The upstream of kind `hubspot`.
pub struct Hubspot {
    translator: Translator,
    authorizations: HashMap<u64, HeaderValue>,
    sender: Arc<Sender>,
    pauses: Pauses,
}

/// The outcomes of a batch's events so far.
#[derive(Default)]
struct Progress {
    delivered: Vec<usize>,
    /// The events that are rejected or dead.
    ended: Vec<Part>,
    /// The events that must be retried.
    left: Option<Part>,
}

// Implemented by hand, because it holds tokens.
impl fmt::Debug for Hubspot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hubspot(..)")
    }
}

impl Hubspot {
    pub(super) fn new(
        translator: Translator,
        authorizations: HashMap<u64, HeaderValue>,
        sender: Sender,
        pauses: Pauses,
    ) -> Hubspot {
        Hubspot { translator, authorizations, sender: Arc::new(sender), pauses }
    }

    /// Translates a batch and groups it by portal.
    fn sort(&self, batch: &Batch, progress: &mut Progress) -> BTreeMap<u64, Vec<Item>> {
        let mut portals: BTreeMap<u64, Vec<Item>> = BTreeMap::new();
        for (place, bytes) in batch.records().iter().enumerate() {
            let read = Record::decode_sound(bytes);
            let read = read.and_then(|record| Ok((record.event()?, record)));
            let Ok((event, record)) = read else {
                progress.take(Part { places: vec![place], outcome: Outcome::unreadable() });
                continue;
            };
            match self.translator.translate(event, &record.context) {
                Ok(translation) => {
                    let item = Item::new(place, record.id, record.received_at_ms, translation);
                    portals.entry(record.portal).or_default().push(item);
                }
                Err(why) => {
                    let outcome = Outcome::Dead(Failure::new(why.as_str()).of_these_events());
                    progress.take(Part { places: vec![place], outcome });
                }
            }
        }
        portals
    }

    /// The `Authorization` header of a portal, or the outcome of its events if they cannot be sent
    /// now.
    fn authorization(&self, portal: u64) -> Result<HeaderValue, Outcome> {
        let Some(authorization) = self.authorizations.get(&portal) else {
            // A portal's number is not secret, and the operator needs it.
            let what = format!("there is no token for portal {portal}");
            let fault = Outcome::Fault(Failure::new(what).of_these_events());
            return Err(self.pauses.of_no_token(fault));
        };
        self.pauses.of(portal).map_or(Ok(authorization.clone()), Err)
    }
}

#[async_trait]
impl Upstream for Hubspot {
    fn kind(&self) -> &'static str {
        "hubspot"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let mut progress = Progress::default();
        let mut sending = JoinSet::new();
        for (portal, items) in self.sort(batch, &mut progress) {
            match self.authorization(portal) {
                Err(outcome) => {
                    let places = items.iter().map(|item| item.place).collect();
                    progress.take(Part { places, outcome });
                }
                Ok(authorization) => {
                    let sender = Arc::clone(&self.sender);
                    sending.spawn(async move {
                        (portal, sender.hand_over(&authorization, items).await)
                    });
                }
            }
        }
        // Events of a task that panicked have no outcome and are retried.
        while let Some(done) = sending.join_next().await {
            let Ok((portal, Ends { parts, left })) = done else { continue };
            parts.into_iter().for_each(|part| progress.take(part));
            match left {
                None => self.pauses.over(portal),
                Some(Part { places, mut outcome }) => {
                    name_portal(portal, &mut outcome);
                    let outcome = self.pauses.note(portal, outcome);
                    progress.take(Part { places, outcome });
                }
            }
        }
        progress.outcome(batch.records().len())
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }
}

impl Progress {
    fn take(&mut self, part: Part) {
        match part.outcome {
            Outcome::Delivered => self.delivered.extend(part.places),
            Outcome::Retry(_) | Outcome::Fault(_) => self.leave(part),
            // Events that can never be sent share a part. Events that were refused in different
            // requests do not: delivery would halve the part and send them again.
            Outcome::Dead(_) => match self.ended.iter_mut().find(|p| p.outcome == part.outcome) {
                Some(known) => known.places.extend(part.places),
                None => self.ended.push(part),
            },
            _ => self.ended.push(part),
        }
    }

    /// Adds events that must be retried. They stay in one part, so that the events of one portal do
    /// not wait for those of another.
    fn leave(&mut self, part: Part) {
        self.left = Some(match self.left.take() {
            None => part,
            Some(mut left) => {
                left.places.extend(part.places);
                left.outcome = worse(left.outcome, part.outcome);
                left
            }
        });
    }

    /// The outcome of a batch of `count` events.
    fn outcome(self, count: usize) -> Outcome {
        let mut parts = Vec::new();
        if !self.delivered.is_empty() {
            parts.push(Part { places: self.delivered, outcome: Outcome::Delivered });
        }
        parts.extend(self.ended);
        // This part is last, because later parts would wait for it.
        parts.extend(self.left);
        match &mut parts[..] {
            [only] if only.places.len() == count => {
                std::mem::replace(&mut only.outcome, Outcome::Delivered)
            }
            _ => Outcome::Mixed(parts),
        }
    }
}

/// Combines the outcomes of two portals whose events must both be retried. The result has the
/// reason that says more about the upstream, and the shorter of the two waits. The portal with the
/// longer wait has a pause of its own, during which its events are not sent.
fn worse(a: Outcome, b: Outcome) -> Outcome {
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Retry(failure) if !failure.local => 3,
        Outcome::Fault(failure) if !failure.local => 2,
        Outcome::Fault(_) => 1,
        _ => 0,
    };
    let after = |outcome: &Outcome| match outcome {
        Outcome::Retry(failure) | Outcome::Fault(failure) => failure.after,
        _ => None,
    };
    let (mut worse, other) = if rank(&a) >= rank(&b) { (a, b) } else { (b, a) };
    let sooner = after(&worse).min(after(&other));
    if let Outcome::Retry(failure) | Outcome::Fault(failure) = &mut worse
        && failure.local
    {
        failure.after = sooner;
    }
    worse
}

/// Adds the number of the portal to a failure that concerns one portal only. The number is not
/// personal data: the operator configured it.
fn name_portal(portal: u64, outcome: &mut Outcome) {
    if let Outcome::Retry(failure) | Outcome::Fault(failure) = outcome
        && failure.local
    {
        failure.what = format!("portal {portal}: {}", failure.what).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn part(places: &[usize], outcome: Outcome) -> Part {
        Part { places: places.to_vec(), outcome }
    }

    fn failure(seconds: u64) -> Failure {
        Failure { after: Some(Duration::from_secs(seconds)), ..Failure::answered(429) }
    }

    #[test]
    fn what_ended_alike_is_told_at_once_and_what_is_left_comes_last() {
        let mut progress = Progress::default();
        let dead = || Outcome::Dead(Failure::new("no"));
        let refused = || Outcome::Rejected(Failure::answered(400));
        for part in [
            part(&[3], Outcome::Retry(failure(9).of_these_events())),
            part(&[0], dead()),
            part(&[1], refused()),
            part(&[5], Outcome::Delivered),
            part(&[2], dead()),
            part(&[4], refused()),
            part(&[6], Outcome::Delivered),
        ] {
            progress.take(part);
        }
        let expect = vec![
            part(&[5, 6], Outcome::Delivered),
            part(&[0, 2], dead()),
            part(&[1], refused()),
            part(&[4], refused()),
            part(&[3], Outcome::Retry(failure(9).of_these_events())),
        ];
        assert_eq!(progress.outcome(7), Outcome::Mixed(expect));
    }

    #[test]
    fn a_batch_of_one_sort_has_one_outcome_unless_something_is_missing() {
        let progress = || {
            let mut progress = Progress::default();
            progress.take(part(&[0, 1], Outcome::Delivered));
            progress
        };
        assert_eq!(progress().outcome(2), Outcome::Delivered);
        let expect = vec![part(&[0, 1], Outcome::Delivered)];
        assert_eq!(progress().outcome(3), Outcome::Mixed(expect), "one portal's task panicked");
    }

    #[test]
    fn trouble_of_all_outweighs_that_of_one_and_the_shorter_wait_is_kept() {
        let local = |seconds| Outcome::Retry(failure(seconds).of_these_events());
        let fault = |seconds| Outcome::Fault(failure(seconds).of_these_events());
        assert_eq!(worse(local(9), local(4)), local(4));
        assert_eq!(worse(local(4), fault(9)), fault(4));
        let down = Outcome::Retry(failure(60));
        assert_eq!(worse(fault(1), down.clone()), down);
        assert_eq!(worse(down.clone(), local(1)), down);
    }
}
