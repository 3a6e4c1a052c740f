//! The rule of SPEC 3 for `email`: one plain address, as a person would write it down.
//!
//! Most addresses are canonical as received. A quick check (a state machine over the bytes)
//! recognizes these. For any other address the `idna` crate (UTS-46) judges the domain. The local
//! part is the dot-atom of RFC 5322 with the visible non-ASCII characters of RFC 6532: no quotes,
//! no comments, no address literals, no display name. No DNS query is made: whether the address
//! exists is not checked.
//!
//! The limits apply to the canonical form, because lower-casing and IDNA mapping change lengths and
//! a canonical address must pass the rule again.

use std::borrow::Cow;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::hidden::is_hidden;
use super::param::{EMAIL_BYTES_MAX, EMAIL_LABELS_MIN, EMAIL_LOCAL_BYTES_MAX};

/// The longest domain that is given to IDNA, in bytes: 253 characters of four bytes. A longer
/// domain could become valid only if IDNA dropped some of its characters, and is refused.
const DOMAIN_BYTES_READ_MAX: usize = 4 * 253;

/// The longest address that the quick check accepts, in bytes. No part of such an address can be
/// too long.
const QUICK_CHECK_BYTES_MAX: usize = EMAIL_LOCAL_BYTES_MAX;

/// A state of the quick check.
type State = u8;
/// At the first byte, or after a dot of the local part.
const LOCAL_START: State = 0;
const LOCAL: State = 1;
/// After the `@`.
const DOMAIN_START: State = 2;
const FIRST_LABEL: State = 3;
const FIRST_LABEL_HYPHEN: State = 4;
/// After a dot of the domain.
const LABEL_START: State = 5;
/// In a label that begins with a letter: the only state in which an address may end.
const LABEL: State = 6;
const LABEL_HYPHEN: State = 7;
/// In a label that begins with a digit.
const NUMBER: State = 8;
const NUMBER_HYPHEN: State = 9;
/// The quick check cannot decide, so the full rule must.
const UNCLEAR: State = 10;

/// The state after a byte. The quick check accepts a local part of lower-case atoms with single
/// dots between them, and a domain of labels of letters, digits and single hyphens. Two hyphens in
/// a row may be Punycode and are left to IDNA.
const fn next_state(state: State, byte: u8) -> State {
    match (state, byte) {
        (LOCAL, b'.') => LOCAL_START,
        (LOCAL, b'@') => DOMAIN_START,
        (LOCAL_START | LOCAL, _) if is_ascii_atext(byte) && !byte.is_ascii_uppercase() => LOCAL,
        (DOMAIN_START | FIRST_LABEL | FIRST_LABEL_HYPHEN, b'a'..=b'z' | b'0'..=b'9') => FIRST_LABEL,
        (LABEL_START | LABEL | LABEL_HYPHEN, b'a'..=b'z') => LABEL,
        (LABEL | LABEL_HYPHEN, b'0'..=b'9') => LABEL,
        (LABEL_START | NUMBER | NUMBER_HYPHEN, b'0'..=b'9') => NUMBER,
        (NUMBER | NUMBER_HYPHEN, b'a'..=b'z') => NUMBER,
        (FIRST_LABEL, b'-') => FIRST_LABEL_HYPHEN,
        (LABEL, b'-') => LABEL_HYPHEN,
        (NUMBER, b'-') => NUMBER_HYPHEN,
        (FIRST_LABEL | LABEL | NUMBER, b'.') => LABEL_START,
        _ => UNCLEAR,
    }
}

/// The results of [`next_state`], by state and byte.
static NEXT_STATE: [[State; 256]; UNCLEAR as usize + 1] = {
    let mut table = [[UNCLEAR; 256]; UNCLEAR as usize + 1];
    let mut state = 0;
    while state < table.len() {
        let mut byte = 0;
        while byte < 256 {
            table[state][byte] = next_state(state as State, byte as u8);
            byte += 1;
        }
        state += 1;
    }
    table
};

/// The canonical form: lower case, the domain in Unicode form. `None` if it is not an address.
pub(super) fn canonical(address: Cow<'_, str>) -> Option<Cow<'_, str>> {
    if is_plainly_canonical(address.as_bytes()) { Some(address) } else { by_rule(address) }
}

/// The quick check. True: the address is its own canonical form (lower-case ASCII, a domain of two
/// or more ordinary labels). False: the full rule must decide.
fn is_plainly_canonical(address: &[u8]) -> bool {
    let next = |state: State, byte: &u8| NEXT_STATE[usize::from(state)][usize::from(*byte)];
    address.len() <= QUICK_CHECK_BYTES_MAX && address.iter().fold(LOCAL_START, next) == LABEL
}

fn by_rule(address: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let at = address.bytes().position(|byte| byte == b'@')?;
    let (local, domain) = (&address[..at], &address[at + 1..]);
    let local = lower_case(local);
    if local.len() > EMAIL_LOCAL_BYTES_MAX || !is_dot_atom(&local) {
        return None;
    }
    let (unicode, ascii_bytes) = canonical_domain(domain)?;
    if local.len() + 1 + ascii_bytes > EMAIL_BYTES_MAX {
        return None;
    }
    let changed = match (&local, &unicode) {
        (Cow::Borrowed(_), Cow::Borrowed(_)) => None,
        _ => Some([&local, "@", &unicode].concat()),
    };
    drop((local, unicode));
    Some(changed.map_or(address, Cow::Owned))
}

fn lower_case(local: &str) -> Cow<'_, str> {
    if local.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(local);
    }
    // By the rules of Unicode, which are idempotent even for a final sigma.
    match local.to_lowercase() {
        lower if lower == local => Cow::Borrowed(local),
        lower => Cow::Owned(lower),
    }
}

fn is_dot_atom(local: &str) -> bool {
    let mut previous = '.'; // so that a leading dot counts as a double one
    for c in local.chars() {
        if if c == '.' { previous == '.' } else { !is_atext(c) } {
            return false;
        }
        previous = c;
    }
    previous != '.'
}

/// Whether a character may stand in an atom (RFC 5322, section 3.2.3; RFC 6532, section 3.2). White
/// space and hidden characters may not: two addresses that look alike must be the same contact.
fn is_atext(c: char) -> bool {
    match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => is_ascii_atext(byte),
        _ => !is_hidden(c) && !c.is_whitespace(),
    }
}

const fn is_ascii_atext(byte: u8) -> bool {
    let is_sign = matches!(
        byte,
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'/' | b'=' | b'?' | b'^'..=b'`' | b'{'..=b'~'
    );
    byte.is_ascii_alphanumeric() || is_sign
}

/// The domain in Unicode form, borrowed if `domain` is in that form, and the length of its ASCII
/// form in bytes. `None` if it is not a valid domain.
fn canonical_domain(domain: &str) -> Option<(Cow<'_, str>, usize)> {
    if domain.len() > DOMAIN_BYTES_READ_MAX {
        return None;
    }
    // Hyphens in the third and fourth position are allowed: such domains exist.
    let hyphens = Hyphens::CheckFirstLast;
    let ascii = Uts46::new()
        .to_ascii(domain.as_bytes(), AsciiDenyList::STD3, hyphens, DnsLength::Verify)
        .ok()?;
    let mut labels = ascii.as_bytes().split(|byte| *byte == b'.');
    let is_encoded = labels.clone().any(|label| label.starts_with(b"xn--"));
    let count = labels.clone().count();
    let is_number = labels.next_back()?.iter().all(u8::is_ascii_digit);
    if count < EMAIL_LABELS_MIN || is_number {
        return None;
    }
    let ascii_bytes = ascii.len();
    if !is_encoded {
        return Some((ascii, ascii_bytes));
    }
    let (unicode, verdict) =
        Uts46::new().to_unicode(ascii.as_bytes(), AsciiDenyList::STD3, hyphens);
    verdict.ok()?;
    if unicode == domain {
        return Some((Cow::Borrowed(domain), ascii_bytes));
    }
    Some((Cow::Owned(unicode.into_owned()), ascii_bytes))
}

#[cfg(test)]
#[path = "../../tests/support/cases.rs"]
mod cases;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The quick check never accepts an address that the rule refuses or changes.
    fn check(address: &str) {
        let expected = by_rule(address.into());
        assert_eq!(canonical(address.into()), expected, "{address:?}");
        if is_plainly_canonical(address.as_bytes()) {
            assert!(matches!(expected, Some(Cow::Borrowed(_))), "{address:?}");
        }
    }

    #[test]
    fn ordinary_addresses_pass_the_quick_check() {
        for address in ["person@company.com", "a.b+c@sub.x-1.co.uk", "!#$%&'*+-/=?^_`{|}~@a.b"] {
            assert!(is_plainly_canonical(address.as_bytes()), "{address}");
            check(address);
        }
    }

    #[test]
    fn lengths_at_the_edge_are_judged_alike() {
        for local in [0, 1, 64, 65] {
            for label in [0, 1, 15, 31, 62, 63, 64] {
                for labels in 0..6 {
                    let domain = vec!["d".repeat(label); labels].join(".");
                    check(&format!("{}@{domain}", "l".repeat(local)));
                    check(&format!("{}@{domain}.{}", "l".repeat(local), "e".repeat(label / 2)));
                }
            }
        }
        for label in 1..64 {
            let domain = ["d"; 4].map(|letter| letter.repeat(label)).join(".");
            check(&format!("{}@{domain}", "l".repeat(64)));
        }
    }

    #[test]
    fn the_quick_check_agrees_with_the_rule() {
        let byte = || any::<u8>().prop_map(|byte| char::from(byte & 0x7F).to_string());
        let part = prop_oneof![
            8 => "[a-z]{1,4}",
            4 => "[a-z0-9.-]{1,6}",
            2 => Just(".".to_owned()),
            1 => Just("-".to_owned()),
            1 => Just("xn--".to_owned()),
            1 => Just("xn--mnchen-3ya".to_owned()),
            1 => "[0-9]{1,3}",
            1 => "[A-Z]",
            1 => Just("@".to_owned()),
            1 => byte(),
            1 => any::<char>().prop_map(String::from),
            1 => (60usize..66).prop_map(|bytes| "d".repeat(bytes)),
        ];
        let side = || prop::collection::vec(part.clone(), 0..8).prop_map(|parts| parts.concat());
        cases::run(cases::cases(), (side(), side()), |(local, domain)| {
            check(&format!("{local}@{domain}"));
            check(&format!("l@{domain}.com"));
        });
    }
}
