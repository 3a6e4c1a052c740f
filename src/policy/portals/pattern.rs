//! Event name patterns: `*` matches zero or more characters; every other character matches itself.
//!
//! Patterns are case-sensitive, because event names are opaque (SPEC 3). There is no escape: only
//! `*` matches a literal `*`. Matching takes time linear in the length of the name: the pieces
//! between the wildcards are searched from left to right, each from the end of the one before, and
//! there is no backtracking.

use memchr::memmem;

use crate::event::EVENT_CHARS_MAX;

/// The most characters of a pattern: as many as an event name may have.
pub const PATTERN_CHARS_MAX: usize = EVENT_CHARS_MAX;

/// An event name pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: Box<str>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        if text.is_empty() || text.chars().count() > PATTERN_CHARS_MAX {
            return Err(format!("an event name has 1 to {PATTERN_CHARS_MAX} characters"));
        }
        if text.contains(char::is_control) {
            return Err("an event name has no control characters".to_owned());
        }
        if text.trim() != text {
            return Err(format!("{text:?}: an event name does not begin or end with a blank"));
        }
        Ok(Pattern { text: text.into() })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn is_exact(&self) -> bool {
        !self.text.contains('*')
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let Some((prefix, rest)) = self.text.split_once('*') else {
            return *self.text == *name;
        };
        let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
        let within = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix));
        let Some(mut name) = within.map(str::as_bytes) else {
            return false;
        };
        for piece in middle.split('*') {
            let Some(at) = memmem::find(name, piece.as_bytes()) else {
                return false;
            };
            name = &name[at + piece.len()..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(name)
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(matches("000000001625", "000000001625"));
        assert!(!matches("000000001625", "1625"));
        assert!(matches("signup*", "signup"));
        assert!(matches("signup*", "signup done"));
        assert!(!matches("signup*", "Signup"));
        assert!(matches("*", "anything"));
        assert!(matches("**", "anything"));
        assert!(matches("*_done", "signup_done"));
        assert!(!matches("a*a", "a"));
        assert!(matches("a*b*c", "a-b-b-c"));
        assert!(!matches("a*b*c", "a-c-b"));
        assert!(matches("kö*ä", "köln, ä"));
    }

    #[test]
    fn what_no_event_name_can_be_is_no_pattern() {
        assert!(Pattern::new("").is_err());
        assert!(Pattern::new("a\tb").is_err());
        assert!(Pattern::new(" a").is_err());
        assert!(Pattern::new(&"ä".repeat(PATTERN_CHARS_MAX)).is_ok());
        assert!(Pattern::new(&"ä".repeat(PATTERN_CHARS_MAX + 1)).is_err());
    }

    /// By definition: a star takes nothing, or one character and stays.
    fn naive(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], name) => name.is_empty(),
            (['*', rest @ ..], []) => naive(rest, &[]),
            (['*', rest @ ..], [_, tail @ ..]) => naive(rest, name) || naive(pattern, tail),
            ([head, rest @ ..], [first, tail @ ..]) => head == first && naive(rest, tail),
            (_, []) => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn it_agrees_with_the_definition(pattern in "[abä*]{1,8}", name in "[abä*]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let expect = naive(&chars(&pattern), &chars(&name));
            prop_assert_eq!(matches(&pattern, &name), expect);
        }
    }
}
