//! One outcome for a batch, put together from the ends of its events: for kinds that hand events
//! over one by one and hear about each.

use super::outcome::{Outcome, Part};

/// The ends of a batch's events, in their order, become one [`Outcome`]: that of all of them where
/// they ended alike, else [`Outcome::Mixed`] with a part for each sort of end.
///
/// Several events that are refused, or too large, make one part, which is halved until each stands
/// alone. So an end must not claim of one event what was said of a whole request.
pub fn merge_outcomes(ends: impl IntoIterator<Item = Outcome>) -> Outcome {
    let mut parts: Vec<Part> = Vec::new();
    for (place, outcome) in ends.into_iter().enumerate() {
        // Few sorts, and the last one is the likeliest.
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
