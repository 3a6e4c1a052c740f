//! Pauses of single portals: each portal has its own token and rate limit.
//!
//! After a failure that concerns one portal only, no request is sent for that portal until its
//! pause ends. If its token is rejected or missing for longer than `fault_seconds_max`, its events
//! become dead letters: if they waited for a token that never comes, they would in the end block
//! the other portals.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::answers::PAUSE_SECONDS;
use crate::upstream::outcome::{Failure, Outcome};

/// The pauses, as one upstream sees them.
#[derive(Debug)]
pub struct Pauses {
    fault_max: Option<Duration>,
    known: Arc<Known>,
}

/// What is known of the portals. An upstream that replaces another one takes this over if the two
/// differ only in their limits.
#[derive(Debug)]
pub struct Known {
    started: Instant,
    /// The paused portals, at most as many as there are tokens.
    portals: Mutex<HashMap<u64, Trouble>>,
}

#[derive(Debug)]
struct Trouble {
    /// The time of the first fault after the last outcome that was no fault.
    faulty_since: Option<Instant>,
    until: Instant,
    why: Outcome,
}

impl Default for Known {
    /// No portal is paused.
    fn default() -> Known {
        Known { started: Instant::now(), portals: Mutex::default() }
    }
}

impl Pauses {
    /// Events of a portal with a fault become dead letters after `fault_max`; with `None`, never.
    pub fn new(fault_max: Option<Duration>, known: Arc<Known>) -> Pauses {
        Pauses { fault_max, known }
    }

    /// Starts a pause if `outcome` concerns this portal only. Returns the outcome of its events,
    /// which is `Dead` once a fault has lasted for `fault_max`.
    pub fn note(&self, portal: u64, outcome: Outcome) -> Outcome {
        let (Outcome::Retry(failure) | Outcome::Fault(failure)) = &outcome else { return outcome };
        if !failure.local {
            return outcome;
        }
        let now = Instant::now();
        let until = now + failure.after.unwrap_or(Duration::from_secs(PAUSE_SECONDS));
        let is_fault = matches!(outcome, Outcome::Fault(_));
        let mut portals = self.known.portals.lock();
        let before = portals.get(&portal).and_then(|trouble| trouble.faulty_since);
        let faulty_since = is_fault.then(|| before.unwrap_or(now));
        portals.insert(portal, Trouble { faulty_since, until, why: outcome.clone() });
        self.unless_too_long(faulty_since, outcome)
    }

    /// The outcome of the events of a paused portal, without a request. `None` if the portal is not
    /// paused.
    pub fn of(&self, portal: u64) -> Option<Outcome> {
        let portals = self.known.portals.lock();
        let trouble = portals.get(&portal)?;
        let left = trouble.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let mut why = trouble.why.clone();
        if let Outcome::Retry(failure) | Outcome::Fault(failure) = &mut why {
            failure.after = Some(left);
        }
        Some(self.unless_too_long(trouble.faulty_since, why))
    }

    /// The outcome of the events of a portal without a token.
    pub fn of_no_token(&self, fault: Outcome) -> Outcome {
        self.unless_too_long(Some(self.known.started), fault)
    }

    /// Ends a fault after a success. A pause that HubSpot asked for goes on, because the success
    /// may be the response to a request that was sent before the pause.
    pub fn over(&self, portal: u64) {
        let keep =
            |trouble: &Trouble| trouble.faulty_since.is_none() && trouble.until > Instant::now();
        let mut portals = self.known.portals.lock();
        if portals.get(&portal).is_some_and(|trouble| !keep(trouble)) {
            portals.remove(&portal);
        }
    }

    fn unless_too_long(&self, since: Option<Instant>, outcome: Outcome) -> Outcome {
        match (outcome, since, self.fault_max) {
            (Outcome::Fault(failure), Some(since), Some(max)) if since.elapsed() >= max => {
                let what = format!("{}, for longer than fault_seconds_max", failure.what);
                Outcome::Dead(Failure { what: what.into(), ..failure })
            }
            (outcome, ..) => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(PAUSE_SECONDS);

    fn fault() -> Outcome {
        Outcome::Fault(Failure::answered(401).of_these_events())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_one_portals_and_ends_by_itself() {
        let pauses = Pauses::new(None, Arc::default());
        let wait = Duration::from_secs(7);
        let failure = Failure { after: Some(wait), ..Failure::answered(429) };
        let everybodys = Outcome::Retry(failure.clone());
        assert_eq!(pauses.note(2, everybodys.clone()), everybodys);
        assert_eq!(pauses.of(2), None, "it was about everybody");
        pauses.note(1, Outcome::Retry(failure.clone().of_these_events()));
        tokio::time::advance(Duration::from_secs(3)).await;
        let left = Failure { after: Some(Duration::from_secs(4)), ..failure.of_these_events() };
        assert_eq!(pauses.of(1), Some(Outcome::Retry(left)));
        assert_eq!(pauses.of(2), None);
        pauses.over(1);
        assert!(pauses.of(1).is_some(), "a straggler does not end a pause");
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(pauses.of(1), None);
        pauses.note(1, fault());
        assert!(matches!(pauses.of(1), Some(Outcome::Fault(_))));
        tokio::time::advance(PAUSE).await;
        assert_eq!(pauses.of(1), None);
        pauses.note(1, fault());
        pauses.over(1);
        assert_eq!(pauses.of(1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_lasts_too_long_ends_the_waiting_but_not_the_asking() {
        let pauses = Pauses::new(Some(PAUSE * 2), Arc::default());
        let is_dead = |outcome: &Outcome| matches!(outcome, Outcome::Dead(_));
        for round in 0..2 {
            assert!(!is_dead(&pauses.note(1, fault())), "{round}");
            assert!(!is_dead(&pauses.of_no_token(fault())), "{round}");
            tokio::time::advance(PAUSE).await;
            assert_eq!(pauses.of(1), None, "it is asked again");
        }
        assert!(is_dead(&pauses.note(1, fault())));
        assert!(is_dead(&pauses.of(1).unwrap()));
        assert!(is_dead(&pauses.of_no_token(fault())));
        pauses.over(1);
        assert!(!is_dead(&pauses.note(1, fault())), "counted anew");
        tokio::time::advance(PAUSE * 2).await;
        let limited = Outcome::Retry(Failure::answered(429).of_these_events());
        assert!(!is_dead(&pauses.note(1, limited)), "a limit is no fault");
    }
}
