//! Merges the outcomes of single events into the outcome of their batch, for kinds that send each
//! event on its own.

use super::outcome::{Outcome, Part};

/// Merges the outcomes of a batch's events, given in the batch's order: the common outcome if all
/// are equal, else [`Outcome::Mixed`] with one part for each distinct outcome.
///
/// Events that are rejected, or too large, with the same failure share a part, which delivery
/// splits until each event is alone. So each outcome must be about its event, and not about a
/// request that held several events.
pub fn merge_outcomes(ends: impl IntoIterator<Item = Outcome>) -> Outcome {
    let mut parts: Vec<Part> = Vec::new();
    for (place, outcome) in ends.into_iter().enumerate() {
        // There are few distinct outcomes, and the last one is the most likely.
        match parts.iter_mut().rev().find(|part| part.outcome == outcome) {
            Some(part) => part.places.push(place),
            None => parts.push(Part { places: vec![place], outcome }),
        }
    }
    match &mut parts[..] {
        [] => Outcome::Delivered,
        [only] => std::mem::replace(&mut only.outcome, Outcome::Delivered),
        _ => Outcome::Mixed(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Failure;
    use super::*;

    fn retry(what: &'static str) -> Outcome {
        Outcome::Retry(Failure::new(what))
    }

    #[test]
    fn events_that_ended_alike_are_one_outcome() {
        assert_eq!(merge_outcomes([]), Outcome::Delivered);
        assert_eq!(merge_outcomes([Outcome::Delivered, Outcome::Delivered]), Outcome::Delivered);
        assert_eq!(merge_outcomes([retry("a"), retry("a")]), retry("a"));
    }

    #[test]
    fn each_sort_of_end_is_a_part_with_its_places() {
        let refused = Outcome::Rejected(Failure::new("no"));
        let ends = [Outcome::Delivered, retry("a"), Outcome::Delivered, refused.clone()];
        let part = |places: &[usize], outcome| Part { places: places.to_vec(), outcome };
        let expect =
            vec![part(&[0, 2], Outcome::Delivered), part(&[1], retry("a")), part(&[3], refused)];
        assert_eq!(merge_outcomes(ends), Outcome::Mixed(expect));
    }
}
