//! Masks the text of a request before an operator sees it.

/// The longest event name that is shown, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// Masks an address, so that only its owner recognizes it: `p…@c….com`.
pub fn email(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let (rest, last) = domain.rsplit_once('.').unwrap_or((domain, ""));
    let first = |text: &str| text.chars().next().map(String::from).unwrap_or_default();
    format!("{}…@{}….{last}", first(local), first(rest))
}

/// The event's name, if it consists of letters, digits and a few separators and has at most
/// [`NAME_CHARS_MAX`] characters; otherwise `None`. A caller chooses the name, which may hold an
/// email address or a query by mistake.
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
        // Neither passes validation; masking must hide them all the same.
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
