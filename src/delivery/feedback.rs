//! What an attempt's outcome says about the upstream itself, for its breaker and its limiter.

use std::time::Duration;

use crate::upstream::Outcome;

/// What one attempt says about the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// The attempt says nothing about the upstream, because its failure is about these events only
    /// ([`Failure::local`](crate::upstream::Failure::local)).
    Nothing,
    /// The upstream answers and handles what it receives.
    Success,
    /// The upstream is unreachable or overloaded, and may have asked for a pause.
    Backpressure(Option<Duration>),
    /// The upstream answers and refuses every batch, for example because of a wrong key.
    Failure,
}

impl Feedback {
    /// The feedback of a whole attempt. Of a mixed outcome, the worst part and the longest pause
    /// count.
    pub fn of(outcome: &Outcome) -> Feedback {
        match outcome {
            Outcome::Retry(f) | Outcome::Fault(f) | Outcome::Dead(f) if f.local => {
                Feedback::Nothing
            }
            Outcome::Retry(failure) => Feedback::Backpressure(failure.after),
            Outcome::Fault(_) => Feedback::Failure,
            Outcome::Delivered | Outcome::TooLarge(_) | Outcome::Rejected(_) | Outcome::Dead(_) => {
                Feedback::Success
            }
            Outcome::Mixed(parts) => {
                let parts = parts.iter().map(|part| Feedback::of_part(&part.outcome));
                parts.fold(Feedback::Nothing, Feedback::worse)
            }
        }
    }

    /// The feedback of one part. Parts cannot be nested, so a part that is mixed again counts as
    /// one that must be retried.
    fn of_part(outcome: &Outcome) -> Feedback {
        match outcome {
            Outcome::Mixed(_) => Feedback::Backpressure(None),
            outcome => Feedback::of(outcome),
        }
    }

    fn worse(self, other: Feedback) -> Feedback {
        match (self, other) {
            (Feedback::Backpressure(a), Feedback::Backpressure(b)) => {
                Feedback::Backpressure(a.max(b))
            }
            (pressed @ Feedback::Backpressure(_), _) | (_, pressed @ Feedback::Backpressure(_)) => {
                pressed
            }
            (Feedback::Failure, _) | (_, Feedback::Failure) => Feedback::Failure,
            (Feedback::Success, _) | (_, Feedback::Success) => Feedback::Success,
            (Feedback::Nothing, Feedback::Nothing) => Feedback::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Failure, Part};

    fn check(outcomes: Vec<Outcome>, expect: Feedback) {
        let part = |outcome| Part { places: vec![0], outcome };
        let mixed = Outcome::Mixed(outcomes.into_iter().map(part).collect());
        assert_eq!(Feedback::of(&mixed), expect, "{mixed:?}");
    }

    #[test]
    fn the_worst_part_of_a_mixed_outcome_counts() {
        let failure = || Failure::new("test");
        let pause = |s| Failure { after: Some(Duration::from_secs(s)), ..failure() };
        let local = || Failure { local: true, ..failure() };
        use Outcome::{Delivered, Fault, Mixed, Retry};
        check(vec![], Feedback::Nothing);
        check(vec![Retry(local()), Delivered], Feedback::Success);
        check(vec![Fault(failure()), Delivered], Feedback::Failure);
        check(vec![Delivered, Mixed(vec![])], Feedback::Backpressure(None));
        let expect = Feedback::Backpressure(Some(Duration::from_secs(7)));
        check(vec![Retry(pause(3)), Fault(failure()), Retry(pause(7)), Retry(failure())], expect);
    }
}
