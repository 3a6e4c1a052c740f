//! What may be shown of what a caller sent.

/// The longest event name that is shown, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// An address of which only its owner recognizes that it is theirs: `p…@c….com`.
pub fn email(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let (rest, last) = domain.rsplit_once('.').unwrap_or((domain, ""));
    let first = |text: &str| text.chars().next().map(String::from).unwrap_or_default();
    format!("{}…@{}….{last}", first(local), first(rest))
}

/// An event's name, if it looks like one: letters, digits and a few separators, and not too many.
/// The name is a caller's own text, and may be an address or worse by a mistake; such a one is
/// not shown.
pub fn name(name: &str) -> Option<String> {
    let is_usual = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-' | '.' | ':' | '/');
    let usual = name.chars().all(is_usual) && name.chars().count() <= NAME_CHARS_MAX;
    usual.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_ends() {
        assert_eq!(email("person@company.com"), "p…@c….com");
        assert_eq!(email("p@mail.company.co.uk"), "p…@m….uk");
        assert_eq!(email("ü@bücher.example"), "ü…@b….example");
        // None of these passes validation; nothing may come through all the same.
        assert_eq!(email("nobody"), "n…@….");
        assert_eq!(email(""), "…@….");
    }

    #[test]
    fn a_name_that_may_be_something_else_is_not_shown() {
        for shown in ["000000001625", "signup", "Bought item: shoes", "köp/klar", "a.b-c_d"] {
            assert_eq!(name(shown).as_deref(), Some(shown));
        }
        for hidden in ["person@company.com", "a=b&c=d", "<b>", "{{event}}", &"x".repeat(65)] {
            assert_eq!(name(hidden), None, "{hidden}");
        }
        assert!(name(&"x".repeat(64)).is_some());
    }
}
