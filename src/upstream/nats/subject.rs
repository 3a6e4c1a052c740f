//! The subjects to which events are published, and how the filters of a stream match them.

use std::fmt::Write;

/// The longest configured subject, in characters, before `{portal}` is replaced.
pub const SUBJECT_CHARS_MAX: usize = 255;
/// The placeholder for the event's portal.
const PORTAL: &str = "{portal}";

/// A checked subject, with or without the placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject(String);

impl Subject {
    /// Parses a configured subject. The error text continues a sentence that begins with the key.
    pub fn parse(text: &str) -> Result<Subject, String> {
        if text.is_empty() {
            return Err("is missing".to_owned());
        }
        if text.chars().count() > SUBJECT_CHARS_MAX {
            return Err(format!("has more than {SUBJECT_CHARS_MAX} characters"));
        }
        if text.starts_with('$') {
            return Err("begins with `$`, which NATS reserves for itself".to_owned());
        }
        let rest = text.replace(PORTAL, "0");
        if rest.contains(['{', '}']) {
            return Err("may hold `{portal}`, and no other braces".to_owned());
        }
        if rest.contains(['*', '>']) {
            return Err("holds a wildcard: an event is published to one subject".to_owned());
        }
        if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("holds white space".to_owned());
        }
        if rest.split('.').any(str::is_empty) {
            return Err("has an empty part between its dots".to_owned());
        }
        Ok(Subject(text.to_owned()))
    }

    /// The subject of an event of `portal`.
    pub fn of(&self, portal: u64) -> String {
        let mut parts = self.0.split(PORTAL);
        let mut subject = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            // Writing to a `String` cannot fail.
            let _ = write!(subject, "{portal}{part}");
        }
        subject
    }

    /// Whether `filter`, one of a stream's subjects, takes the events of every portal.
    pub fn is_taken_by(&self, filter: &str) -> bool {
        let mut own = self.0.split('.');
        let mut filter = filter.split('.');
        loop {
            match (own.next(), filter.next()) {
                (Some(_), Some(">")) | (None, None) => return true,
                (Some(_), Some("*")) => {}
                (Some(own), Some(filter)) if own == filter && !own.contains(PORTAL) => {}
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_dotted_words_and_the_portal() {
        for good in ["events", "a.b.c", "events.{portal}", "p{portal}.x", "ä.b-c_d"] {
            Subject::parse(good).expect(good);
        }
        let long = "a".repeat(SUBJECT_CHARS_MAX);
        Subject::parse(&long).expect("the longest");
        for (bad, word) in [
            ("", "missing"),
            ("$JS.x", "NATS"),
            ("a..b", "empty"),
            (".a", "empty"),
            ("a.", "empty"),
            ("a b", "white space"),
            ("a.*", "wildcard"),
            ("a.>", "wildcard"),
            ("a.{email}", "{portal}"),
            (&format!("{long}a"), "characters"),
        ] {
            let why = Subject::parse(bad).expect_err(bad);
            assert!(why.contains(word), "{bad}: {why}");
        }
    }

    #[test]
    fn the_portal_is_put_in_wherever_it_stands() {
        let of = |text| Subject::parse(text).unwrap().of(62515);
        assert_eq!(of("events"), "events");
        assert_eq!(of("events.{portal}"), "events.62515");
        assert_eq!(of("{portal}.x{portal}"), "62515.x62515");
    }

    #[test]
    fn a_stream_takes_what_one_of_its_subjects_covers() {
        let taken = |text, filter| Subject::parse(text).unwrap().is_taken_by(filter);
        for (text, filter) in [
            ("events", "events"),
            ("events", ">"),
            ("events", "*"),
            ("a.b.c", "a.>"),
            ("a.b.c", "a.*.c"),
            ("events.{portal}", "events.*"),
            ("events.{portal}", "events.>"),
        ] {
            assert!(taken(text, filter), "{text} {filter}");
        }
        for (text, filter) in [
            ("events", "event"),
            ("events", "events.>"),
            ("events", "events.*"),
            ("a.b", "a"),
            ("a", "a.b"),
            ("events.{portal}", "events"),
            ("events.{portal}", "events.62515"),
            ("events.{portal}", "events.{portal}"),
        ] {
            assert!(!taken(text, filter), "{text} {filter}");
        }
    }
}
