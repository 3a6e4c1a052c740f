//! Portals that are left alone for a while: each has limits, and a token, of its own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Outcome, Setback};
use super::answers::PAUSE_SECONDS;

/// Which portals are left alone. Bounded by the portals that have a token.
#[derive(Debug, Default)]
pub struct Pauses {
    inner: Mutex<HashMap<u64, Pause>>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    why: Outcome,
}

impl Pauses {
    /// Leaves a portal alone after an outcome that is about it alone; after any other, does not.
    pub fn note(&self, portal: u64, outcome: &Outcome) {
        let (Outcome::Retry(setback) | Outcome::Fault(setback)) = outcome else { return };
        if setback.local {
            let wait = setback.after.unwrap_or(Duration::from_secs(PAUSE_SECONDS));
            let pause = Pause { until: Instant::now() + wait, why: outcome.clone() };
            self.lock().insert(portal, pause);
        }
    }

    /// Why a portal is left alone, and for how much longer. `None` where it is not.
    pub fn of(&self, portal: u64) -> Option<Outcome> {
        let mut inner = self.lock();
        let pause = inner.get(&portal)?;
        let left = pause.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            inner.remove(&portal);
            return None;
        }
        let again = |setback: &Setback| Setback { after: Some(left), ..setback.clone() };
        Some(match &pause.why {
            Outcome::Fault(setback) => Outcome::Fault(again(setback)),
            Outcome::Retry(setback) => Outcome::Retry(again(setback)),
            other => other.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Pause>> {
        // Nothing panics while it is held, and each write leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_one_portals_and_ends_by_itself() {
        let pauses = Pauses::default();
        let wait = Duration::from_secs(7);
        let setback = Setback { after: Some(wait), ..Setback::answered(429) };
        pauses.note(2, &Outcome::Retry(setback.clone()));
        assert_eq!(pauses.of(2), None, "it was about everybody");
        pauses.note(1, &Outcome::Retry(setback.clone().of_these_events()));
        tokio::time::advance(Duration::from_secs(3)).await;
        let left = Setback { after: Some(Duration::from_secs(4)), ..setback.of_these_events() };
        assert_eq!(pauses.of(1), Some(Outcome::Retry(left)));
        assert_eq!(pauses.of(2), None);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(pauses.of(1), None);
        pauses.note(1, &Outcome::Fault(Setback::answered(401).of_these_events()));
        assert!(matches!(pauses.of(1), Some(Outcome::Fault(_))));
        tokio::time::advance(Duration::from_secs(PAUSE_SECONDS)).await;
        assert_eq!(pauses.of(1), None);
    }
}
