//! The parameters that the operator drops by name: `events.withhold_params` and
//! `events.ignore_params`.
//!
//! Every property of every event is looked up here, and almost none is in the list. A filter of 64
//! bits, in which each name of the list sets one, rules out most properties in a few instructions.

use super::verdict::Ignored;

/// The dropped names in lower case, each with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DroppedNames {
    /// The union of [`bit`] over all names.
    bits: u64,
    names: Box<[(String, Ignored)]>,
}

impl DroppedNames {
    /// If a name is given with several causes, the first one counts.
    pub(super) fn new(names: impl IntoIterator<Item = (String, Ignored)>) -> DroppedNames {
        let names: Box<[(String, Ignored)]> = names.into_iter().collect();
        let bits = names.iter().fold(0, |bits, (name, _)| bits | bit(name));
        DroppedNames { bits, names }
    }

    /// Why a parameter of this name, in lower case, is dropped. `None`: it is not dropped.
    #[inline]
    pub(super) fn cause(&self, name: &str) -> Option<Ignored> {
        if self.bits & bit(name) == 0 { None } else { self.find(name) }
    }

    fn find(&self, name: &str) -> Option<Ignored> {
        self.names.iter().find(|(dropped, _)| dropped == name).map(|(_, cause)| *cause)
    }
}

/// The bit of a name in the filter, chosen by its first byte, its last byte and its length.
#[inline]
fn bit(name: &str) -> u64 {
    let (Some(first), Some(last)) = (name.as_bytes().first(), name.as_bytes().last()) else {
        return 1;
    };
    let mixed = usize::from(*first) * 5 + usize::from(*last) * 3 + name.len();
    1 << (mixed % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_with_its_first_cause_and_no_other_name_is() {
        let pairs =
            [("t", Ignored::Configured), ("token", Ignored::Withheld), ("é", Ignored::Configured)];
        let again = [("token", Ignored::Configured), ("t", Ignored::Withheld)];
        let all = pairs.iter().chain(&again).map(|(name, cause)| ((*name).to_owned(), *cause));
        let names = DroppedNames::new(all);
        for (name, cause) in pairs {
            assert_eq!(names.cause(name), Some(cause), "{name}");
        }
        for name in ["", "T", "tt", "toke", "tokens", "taken", "noket", "plan"] {
            assert_eq!(names.cause(name), None, "{name}");
        }
        let none = DroppedNames::new([]);
        assert_eq!((none.cause(""), none.cause("t")), (None, None));
    }
}
