//! Which dead letters a command is about (SPEC 8).

use super::letter::{Letter, Reason};
use crate::event::Record;

/// Conditions on a letter. A letter must meet all that are set; the default sets none.
///
/// ```
/// use pixelgate::tools::dead_letters::{Filter, Reason};
///
/// let rejected = Filter { reason: Some(Reason::Rejected), ..Filter::default() };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The event's portal.
    pub portal: Option<u64>,
    /// The event's name, exactly.
    pub event: Option<String>,
    /// Why the event became a dead letter.
    pub reason: Option<Reason>,
    /// The letter was written at this time or later, in milliseconds since 1970, UTC.
    pub since_ms: Option<i64>,
    /// The letter was written before this time, in milliseconds since 1970, UTC.
    pub until_ms: Option<i64>,
}

impl Filter {
    /// Whether the letter meets every condition. A letter whose record or time cannot be read meets
    /// no condition on it.
    pub fn matches(&self, letter: &Letter) -> bool {
        self.reason.is_none_or(|reason| reason == letter.reason)
            && self.matches_time(letter)
            && self.matches_event(letter)
    }

    fn matches_time(&self, letter: &Letter) -> bool {
        if self.since_ms.is_none() && self.until_ms.is_none() {
            return true;
        }
        let time = letter.time.parse::<jiff::Timestamp>().map(|time| time.as_millisecond());
        time.is_ok_and(|time| {
            self.since_ms.is_none_or(|since| time >= since)
                && self.until_ms.is_none_or(|until| time < until)
        })
    }

    fn matches_event(&self, letter: &Letter) -> bool {
        if self.portal.is_none() && self.event.is_none() {
            return true;
        }
        let Some(bytes) = letter.record() else { return false };
        let Ok(record) = Record::decode(&bytes) else { return false };
        let named = |name: &String| record.event().is_ok_and(|event| event.name == name.as_str());
        self.portal.is_none_or(|portal| portal == record.portal)
            && self.event.as_ref().is_none_or(named)
    }
}
