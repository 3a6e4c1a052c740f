//! The address rule of SPEC 3: one plain address, as a person would write it down.
//!
//! The domain is judged by the `idna` crate (UTS-46). The local part is RFC 5322's dot-atom with
//! the non-ASCII characters of RFC 6532: no quotes, no comments, no address literals, no display
//! name. Deliverability is not judged: nobody is asked whether the domain exists.
//!
//! Limits hold for the canonical form, because lower-casing and IDNA mapping change lengths, and a
//! canonical address must pass again.

use std::borrow::Cow;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::param::{EMAIL_BYTES_MAX, EMAIL_LABELS_MIN, EMAIL_LOCAL_BYTES_MAX};

/// The longest domain handed to IDNA, in bytes: 253 characters of four bytes. What is longer cannot
/// come out short enough, unless padded with characters that vanish; nobody needs to decode that.
const DOMAIN_BYTES_READ_MAX: usize = 4 * 253;

/// The canonical form: lower case, the domain in Unicode form. `None` if it is not an address.
pub(super) fn canonical(address: Cow<'_, str>) -> Option<Cow<'_, str>> {
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
    // By Unicode's rules, final sigma included. Doing it twice changes nothing more.
    match local.to_lowercase() {
        lower if lower == local => Cow::Borrowed(local),
        lower => Cow::Owned(lower),
    }
}

fn is_dot_atom(local: &str) -> bool {
    let mut previous = '.'; // as if one stood before, so that none may come first
    for c in local.chars() {
        if if c == '.' { previous == '.' } else { !is_atext(c) } {
            return false;
        }
        previous = c;
    }
    previous != '.'
}

/// RFC 5322, 3.2.3, and RFC 6532, 3.2, less what nobody can see.
fn is_atext(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' => true,
        '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '/' => true,
        '=' | '?' | '^' | '_' | '`' | '{' | '|' | '}' | '~' => true,
        _ => !c.is_ascii() && !c.is_control() && !c.is_whitespace(),
    }
}

/// The domain in Unicode form, borrowed where it is that already, and the length of its ASCII form.
fn canonical_domain(domain: &str) -> Option<(Cow<'_, str>, usize)> {
    if domain.len() > DOMAIN_BYTES_READ_MAX {
        return None;
    }
    // Hyphens in the third and fourth place are allowed: there are such domains.
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
