//! HubSpot's event names: `pe{portal}_{name}`.
//!
//! The legacy `_n` is opaque: an id such as `000000001625`, or free text. The name of a custom
//! event consists of lower-case ASCII letters, digits, `_` and `-` and begins with a letter. Names
//! in `event_names` are mapped. In other names, only the case and the separators are changed, so
//! that two names rarely become one by accident. A name that cannot be used even then must be
//! mapped.

use crate::config_error::ConfigError;
use std::collections::HashMap;

use crate::event::{EVENT_CHARS_MAX, PORTAL_MAX};

/// The longest name of a custom event, without its `pe{portal}_`, in characters.
pub const EVENT_NAME_CHARS_MAX: usize = 50;

/// The reason why HubSpot does not allow an event's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameFault {
    /// The name holds letters or digits that are not ASCII.
    NotAscii,
    /// The name does not begin with a letter.
    NoLetterFirst,
    /// The name is too long.
    TooLong,
    /// The name is, or is mapped to, the name of another portal's event.
    OtherPortal,
}

/// The configured `event_names`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventNames {
    everywhere: HashMap<String, Target>,
    of_portal: HashMap<(u64, String), Target>,
}

/// The name that an event is mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// The portal, if the name is written with it: `pe62515_…`.
    portal: Option<u64>,
    name: String,
}

impl NameFault {
    /// The reason as text, for dead letters and `explain`. Does not contain the name.
    pub fn as_str(self) -> &'static str {
        match self {
            NameFault::NotAscii => {
                "its event name holds letters that HubSpot does not allow: map it in event_names"
            }
            NameFault::NoLetterFirst => {
                "its event name does not begin with a letter: map it in event_names"
            }
            NameFault::TooLong => {
                "its event name is longer than HubSpot allows: map it in event_names"
            }
            NameFault::OtherPortal => {
                "event_names gives it the name of another portal's event: map it as \"portal/name\""
            }
        }
    }
}

impl EventNames {
    /// Reads the configured map. A key is a name, or `portal/name` for a name of one portal. A
    /// value is a whole `pe{portal}_{name}`, or the name without its prefix.
    pub fn new<'a>(
        map: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<EventNames, ConfigError> {
        let mut names = EventNames::default();
        for (from, to) in map {
            let wrong = |reason: &str| ConfigError::new(format!("event_names.{from}"), reason);
            let unusable = "is neither pe{portal}_{name} nor a name: a-z, 0-9, `_` and `-`, \
                            letter first, at most 50 characters";
            let target = Target::read(to).ok_or_else(|| wrong(unusable))?;
            match from.split_once('/').and_then(|(portal, name)| Some((portal_of(portal)?, name))) {
                Some((portal, name)) => {
                    if target.portal.is_some_and(|other| other != portal) {
                        return Err(wrong("is the name of another portal's event"));
                    }
                    check_from(name).map_err(wrong)?;
                    names.of_portal.insert((portal, name.to_owned()), target);
                }
                None => {
                    check_from(from).map_err(wrong)?;
                    names.everywhere.insert(from.clone(), target);
                }
            }
        }
        Ok(names)
    }

    /// HubSpot's name for a portal's event.
    pub fn qualify(&self, portal: u64, name: &str) -> Result<String, NameFault> {
        // A lookup needs an owned key, which costs one allocation per delivered event.
        let mapped = self.of_portal.get(&(portal, name.to_owned()));
        if let Some(target) = mapped.or_else(|| self.everywhere.get(name)) {
            return target.qualify(portal);
        }
        match Target::read(name) {
            Some(target) => target.qualify(portal),
            None => made_valid(name).map(|name| format!("pe{portal}_{name}")),
        }
    }
}

impl Target {
    fn read(text: &str) -> Option<Target> {
        let whole = text.strip_prefix("pe").and_then(|rest| rest.split_once('_'));
        let whole = whole.and_then(|(portal, name)| Some((portal_of(portal)?, name)));
        let (portal, name) = match whole {
            Some((portal, name)) => (Some(portal), name),
            None => (None, text),
        };
        is_valid(name).then(|| Target { portal, name: name.to_owned() })
    }

    fn qualify(&self, portal: u64) -> Result<String, NameFault> {
        if self.portal.is_some_and(|other| other != portal) {
            return Err(NameFault::OtherPortal);
        }
        Ok(format!("pe{portal}_{}", self.name))
    }
}

/// Parses a portal's number: digits without sign or leading zero.
pub fn portal_of(text: &str) -> Option<u64> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|portal| plain && (1..=PORTAL_MAX).contains(portal))
}

/// Whether HubSpot accepts `name` for a custom event or an event property.
pub fn is_valid(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    name.len() <= EVENT_NAME_CHARS_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(plain)
}

fn check_from(name: &str) -> Result<(), &'static str> {
    match name.chars().count() {
        1..=EVENT_CHARS_MAX => Ok(()),
        _ => Err("maps a name that no event has: 1 to 255 characters"),
    }
}

/// Turns a name into lower case, with one `_` for each run of characters other than letters, digits
/// and `-`.
fn made_valid(name: &str) -> Result<String, NameFault> {
    let mut valid = String::with_capacity(name.len());
    for c in name.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' => valid.push(c),
            c if c.is_alphanumeric() => return Err(NameFault::NotAscii),
            _ if valid.ends_with('_') => {}
            _ => valid.push('_'),
        }
    }
    let valid = valid.trim_matches('_');
    if !valid.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(NameFault::NoLetterFirst);
    }
    if valid.len() > EVENT_NAME_CHARS_MAX {
        return Err(NameFault::TooLong);
    }
    Ok(valid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn names(map: &[(&str, &str)]) -> Result<EventNames, ConfigError> {
        let map = map.iter().map(|(from, to)| (from.to_string(), to.to_string()));
        EventNames::new(&map.collect::<BTreeMap<_, _>>())
    }

    #[track_caller]
    fn check(name: &str, expect: Result<&str, NameFault>) {
        let got = EventNames::default().qualify(62515, name);
        assert_eq!(got.as_deref(), expect.as_ref().map(|s| &**s), "{name}");
        if let Ok(whole) = got {
            let again = EventNames::default().qualify(62515, &whole);
            assert_eq!(again, Ok(whole), "a whole name is taken as it is");
        }
    }

    #[test]
    fn a_name_is_made_valid_where_only_case_and_separators_are_in_the_way() {
        check("signup", Ok("pe62515_signup"));
        check("Signed Up", Ok("pe62515_signed_up"));
        check("sign-up", Ok("pe62515_sign-up"));
        check("  a..b//c_d__e ", Ok("pe62515_a_b_c_d_e"));
        check("Buy (now)!", Ok("pe62515_buy_now"));
        check("step2", Ok("pe62515_step2"));
        let longest = "n".repeat(EVENT_NAME_CHARS_MAX);
        check(&longest, Ok(&format!("pe62515_{longest}")));
    }

    #[test]
    fn what_does_not_fit_is_not_guessed() {
        check("000000001625", Err(NameFault::NoLetterFirst));
        check("2nd step", Err(NameFault::NoLetterFirst));
        check("-", Err(NameFault::NoLetterFirst));
        check("!!!", Err(NameFault::NoLetterFirst));
        check("gr\u{f6}\u{df}e", Err(NameFault::NotAscii));
        check("\u{65e5}\u{672c}", Err(NameFault::NotAscii));
        check(&"n".repeat(EVENT_NAME_CHARS_MAX + 1), Err(NameFault::TooLong));
        check("pe1_signup", Err(NameFault::OtherPortal));
    }

    #[test]
    fn mapped_names_come_first_and_those_of_a_portal_before_those_of_all() {
        let map = [
            ("000000001625", "pe62515_bought"),
            ("56043/000000001625", "looked"),
            ("signup", "joined"),
            ("a/b", "with_slash"),
        ];
        let names = names(&map).unwrap();
        let qualify = |portal, name| names.qualify(portal, name);
        assert_eq!(qualify(62515, "000000001625").as_deref(), Ok("pe62515_bought"));
        assert_eq!(qualify(56043, "000000001625").as_deref(), Ok("pe56043_looked"));
        assert_eq!(qualify(7, "000000001625"), Err(NameFault::OtherPortal));
        assert_eq!(qualify(7, "signup").as_deref(), Ok("pe7_joined"));
        assert_eq!(qualify(7, "a/b").as_deref(), Ok("pe7_with_slash"));
        assert_eq!(qualify(7, "other").as_deref(), Ok("pe7_other"));
    }

    #[test]
    fn a_map_that_cannot_work_is_refused_by_its_key() {
        let long = "n".repeat(EVENT_NAME_CHARS_MAX + 1);
        let long_from = "n".repeat(EVENT_CHARS_MAX + 1);
        for (from, to) in [
            ("a", ""),
            ("a", "Big"),
            ("a", "1st"),
            ("a", &*long),
            ("a", "pe62515_"),
            ("a", "pe62515_1"),
            ("1/a", "pe2_b"),
            ("1/", "b"),
            ("", "b"),
            (&*long_from, "b"),
        ] {
            let error = names(&[(from, to)]).expect_err(to);
            assert_eq!(error.key(), format!("event_names.{from}"));
        }
    }

    #[test]
    fn portals_are_plain_numbers() {
        assert_eq!(portal_of("62515"), Some(62515));
        assert_eq!(portal_of(&PORTAL_MAX.to_string()), Some(PORTAL_MAX));
        for bad in ["", "0", "062515", "+1", "-1", "1 ", "x", "1000000000000000"] {
            assert_eq!(portal_of(bad), None, "{bad}");
        }
    }
}
