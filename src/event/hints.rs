//! Hints: likely mistakes in a query, recognised by common patterns.
//!
//! Hints are not part of the verdict. Only `explain` asks for them, for one query at a time, so
//! they
//! may guess and may be slow. No sentence here repeats a value.

use std::borrow::Cow;

use super::collector::name_fault;
use super::config::Rules;
use super::param::{Reserved, WITHHELD};
use super::query::{NotUtf8, Piece, Plus, encode_non_ascii, pieces};
use super::revenue::Revenue;
use super::verdict::Ignored;

/// A likely mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// A key begins with `amp;`.
    EscapedSeparator,
    /// A key begins with `?`.
    SecondQuestionMark,
    /// A piece without `=`: probably the end of a value with a bare `&` in it.
    BareAmpersand,
    /// A value holds what looks like further parameters, after a `;`.
    SemicolonSeparator,
    /// A value is a template's placeholder that was not filled in.
    Placeholder,
    /// A value is still percent-encoded after decoding.
    EncodedTwice,
    /// A reserved parameter is there, but empty.
    EmptyValue,
    /// This name is often mistaken for the reserved parameter named here, which is absent.
    MeantParam(&'static str),
    /// Probably a property's label instead of its internal name.
    PropertyLabel,
    /// A parameter that may be a credential.
    Credential,
    /// More than one address.
    SeveralEmails,
    /// An address with a name, quotes or brackets around it.
    DecoratedEmail,
    /// A space in an address, where a `+` may have been.
    SpaceInEmail,
    /// An invisible character in an address.
    InvisibleCharacter,
    /// An amount with a comma, a currency or grouped digits.
    LocalNumber,
}

impl Hint {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hint::EscapedSeparator => "escaped_separator",
            Hint::SecondQuestionMark => "second_question_mark",
            Hint::BareAmpersand => "bare_ampersand",
            Hint::SemicolonSeparator => "semicolon_separator",
            Hint::Placeholder => "placeholder",
            Hint::EncodedTwice => "encoded_twice",
            Hint::EmptyValue => "empty_value",
            Hint::MeantParam(_) => "meant_param",
            Hint::PropertyLabel => "property_label",
            Hint::Credential => "credential",
            Hint::SeveralEmails => "several_emails",
            Hint::DecoratedEmail => "decorated_email",
            Hint::SpaceInEmail => "space_in_email",
            Hint::InvisibleCharacter => "invisible_character",
            Hint::LocalNumber => "local_number",
        }
    }

    /// A sentence for people: what is probably wrong, and what to do.
    pub fn detail(self) -> &'static str {
        match self {
            Hint::EscapedSeparator => {
                "The link was escaped for HTML and then used outside of it: write & between \
                 parameters, not &amp;."
            }
            Hint::SecondQuestionMark => "The link has two question marks: only one begins a query.",
            Hint::BareAmpersand => {
                "There is no = after this name, so it says nothing: if it is the end of the value \
                 before it, write the & in that value as %26."
            }
            Hint::SemicolonSeparator => {
                "This value goes on with what look like further parameters: separate them with &, \
                 not with ;."
            }
            Hint::Placeholder => {
                "This is a template's placeholder that was not filled in: check that the tool that \
                 sends it knows this placeholder and has a value for it."
            }
            Hint::EncodedTwice => "This value was percent-encoded twice: encode it once.",
            Hint::EmptyValue => "This parameter is empty, which is the same as leaving it out.",
            Hint::MeantParam("_a") => "If this is the account (Hub ID), its parameter is _a.",
            Hint::MeantParam("_n") => "If this is the event's id or name, its parameter is _n.",
            Hint::MeantParam("_m") => "If this is the revenue, its parameter is _m.",
            Hint::MeantParam("id") => "If this is your own id of the contact, its parameter is id.",
            Hint::MeantParam(_) => "If this is the contact's address, its parameter is email.",
            Hint::PropertyLabel => {
                "This is no property's internal name: that is made of a-z, 0-9 and _, such as \
                 favorite_color for \"Favorite Color\"."
            }
            Hint::Credential => {
                "Everybody who sees the link sees this: take it out, and replace it if it is a \
                 secret."
            }
            Hint::SeveralEmails => "An event belongs to one contact: send one event per address.",
            Hint::DecoratedEmail => {
                "Send the bare address, without a name, quotes, brackets or mailto: around it."
            }
            Hint::SpaceInEmail => {
                "There is a space in this address: if it was a +, write it as %2B or +, not as %20."
            }
            Hint::InvisibleCharacter => {
                "There is a character in this address that cannot be seen, as copying from a web \
                 page or a table leaves it: type the address anew."
            }
            Hint::LocalNumber => {
                "Write the amount with a point for decimals and without currency or thousands \
                 separators, as in 1234.5."
            }
        }
    }
}

/// A hint and the parameter that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hints<'a> {
    /// The parameter's name as decoded.
    pub param: Cow<'a, str>,
    /// What is probably wrong with it.
    pub hint: Hint,
}

/// Looks for likely mistakes in a query, parameter by parameter. Reads at most `query_bytes_max`
/// bytes and `params_max` parameters of `rules`.
pub fn hints(query: &[u8], rules: &Rules) -> Vec<Hints<'static>> {
    let limits = rules.limits();
    let query = &query[..query.len().min(limits.query_bytes_max)];
    let query =
        std::str::from_utf8(query).map_or_else(|_| encode_non_ascii(query).into(), Cow::Borrowed);
    let pieces: Vec<_> = pieces(&query).take(limits.params_max).collect();
    let is_given = |param: &str| {
        let names = |piece: &Piece<'_>| piece.key().is_ok_and(|key| key == param);
        pieces.iter().any(|piece| names(piece) && !piece.raw_value().is_empty())
    };
    let mut found = Vec::new();
    for piece in &pieces {
        let param = piece.key().map_or_else(|NotUtf8| piece.key_lossy(), Cow::into_owned);
        let reserved = Reserved::of(param.as_bytes());
        let value = piece.value(Plus::of(reserved)).ok().map(|value| value.text);
        let candidates = [
            about_key(&param, reserved, piece, rules),
            meant_param(&param).filter(|meant| !is_given(meant)).map(Hint::MeantParam),
            // Both forms: decoding may destroy a placeholder, as that of `%%address%%`.
            about_value(reserved, value.as_deref().unwrap_or_default(), piece.raw_value()),
        ];
        let about_param = |hint| Hints { param: Cow::Owned(param.clone()), hint };
        found.extend(candidates.into_iter().flatten().map(about_param));
    }
    found
}

fn about_key(
    key: &str,
    reserved: Option<Reserved>,
    piece: &Piece<'_>,
    rules: &Rules,
) -> Option<Hint> {
    let is_empty = piece.value(Plus::of(reserved)).is_ok_and(|value| value.text.is_empty());
    if key.starts_with("amp;") {
        Some(Hint::EscapedSeparator)
    } else if key.starts_with('?') {
        Some(Hint::SecondQuestionMark)
    } else if reserved.is_some() && is_empty {
        Some(Hint::EmptyValue)
    } else if !piece.has_equals_sign() {
        Some(Hint::BareAmpersand)
    } else if is_empty {
        None
    } else if WITHHELD.contains(&key) {
        Some(Hint::Credential)
    } else if reserved.is_none()
        && name_fault(key, piece.has_plain_key(), rules) == Some(Ignored::InvalidName)
    {
        Some(Hint::PropertyLabel)
    } else {
        None
    }
}

/// The reserved parameter that people mean by a name, if any.
fn meant_param(key: &str) -> Option<&'static str> {
    let meant = match key {
        "a" | "portal" | "portal_id" | "portalid" | "hub" | "hub_id" | "hubid" => Reserved::Portal,
        "n" | "event" | "event_id" | "eventid" | "event_name" | "_e" => Reserved::Event,
        "mail" | "e-mail" | "e_mail" | "_email" | "email_address" | "emailaddress" => {
            Reserved::Email
        }
        "m" | "revenue" | "amount" | "_revenue" => Reserved::Revenue,
        "_id" | "external_id" | "externalid" | "user_id" | "userid" => Reserved::ExternalId,
        _ => return None,
    };
    Some(meant.key())
}

fn about_value(reserved: Option<Reserved>, value: &str, raw: &str) -> Option<Hint> {
    const REOPENED: [&str; 5] = [";_a=", ";_n=", ";_m=", ";email=", ";id="];
    if is_placeholder(value) || is_placeholder(raw) {
        Some(Hint::Placeholder)
    } else if REOPENED.iter().any(|start| value.to_ascii_lowercase().contains(start)) {
        Some(Hint::SemicolonSeparator)
    } else if has_escape(value) {
        Some(Hint::EncodedTwice)
    } else if reserved == Some(Reserved::Email) {
        about_email(value)
    } else if reserved == Some(Reserved::Revenue) {
        let has_digit = value.bytes().any(|byte| byte.is_ascii_digit());
        (has_digit && Revenue::parse(value).is_none()).then_some(Hint::LocalNumber)
    } else {
        None
    }
}

fn about_email(value: &str) -> Option<Hint> {
    let is_invisible = |c: char| {
        matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
    };
    if value.matches('@').count() > 1 {
        Some(Hint::SeveralEmails)
    } else if value.contains(['<', '>', '"', '(', ')', '[', ']'])
        || value.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("mailto:"))
    {
        Some(Hint::DecoratedEmail)
    } else if value.contains(is_invisible) {
        Some(Hint::InvisibleCharacter)
    } else if value.contains(' ') {
        Some(Hint::SpaceInEmail)
    } else {
        None
    }
}

/// Whether a value looks like a placeholder of one of the common template languages.
fn is_placeholder(value: &str) -> bool {
    // Distinctive enough to be found anywhere: HubSpot, Handlebars, Liquid, Marketo, Mailchimp,
    // Salesforce, ERB, shells and Ruby.
    const ANYWHERE: [(&str, &str); 8] = [
        ("{{", "}}"),
        ("{%", "%}"),
        ("*|", "|*"),
        ("%%", "%%"),
        ("<%", "%>"),
        ("[[", "]]"),
        ("${", "}"),
        ("#{", "}"),
    ];
    // Only where they are all there is: `[email]`, `{email}`, `%EMAIL%`, `<email>`, `__EMAIL__`.
    const WHOLE: [(&str, &str); 5] = [("[", "]"), ("{", "}"), ("%", "%"), ("<", ">"), ("__", "__")];
    let encloses = |(open, close): (&str, &str)| {
        let (_, rest) = value.split_once(open)?;
        rest.split_once(close).filter(|(inside, _)| !inside.trim().is_empty())
    };
    let is_name = |inside: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.:| ".contains(c);
        inside.starts_with(|first: char| first.is_ascii_alphabetic()) && inside.chars().all(is_part)
    };
    ANYWHERE.into_iter().any(|pair| encloses(pair).is_some())
        || WHOLE.into_iter().any(|(open, close)| {
            value.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)).is_some_and(is_name)
        })
}

/// Whether a decoded text has a percent-escape in it.
fn has_escape(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.windows(3).any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: &[(&str, &str)]) {
        let rules = Rules::default();
        let found = hints(query.as_bytes(), &rules);
        let found: Vec<_> = found.iter().map(|h| (&*h.param, h.hint.as_str())).collect();
        assert_eq!(found, expected, "{query}");
    }

    #[test]
    fn a_good_link_gets_no_hints() {
        check("", &[]);
        check("_a=62515&_n=000000001625&email=person@company.com&_m=20.5&id=ext-77", &[]);
        check("&_a=1&_n=50%25 off&favorite_color=orange&interests=a;b&note=[x] done", &[]);
        check("_a=1&_n=x&t=1&phone=%2B49 30 123&share=100%&range=<5>", &[]);
    }

    #[test]
    fn placeholders_of_the_common_template_languages_are_recognised() {
        for placeholder in [
            "{{contact.email}}",
            "{{ contact.email }}",
            "%7B%7Bcontact.email%7D%7D",
            "*|EMAIL|*",
            "%%email%%",
            "%%address%%",
            "%EMAIL%",
            "%ADDRESS%",
            "[email]",
            "[[email]]",
            "{email}",
            "${email}",
            "<%= email %>",
            "<email>",
            "{% if x %}",
            "__EMAIL__",
            "mailto:{{ lead.email }}",
        ] {
            check(&format!("_a=1&_n=x&email={placeholder}"), &[("email", "placeholder")]);
            check(&format!("_a=1&_n=x&city={placeholder}"), &[("city", "placeholder")]);
        }
    }

    #[test]
    fn mistakes_in_the_link_itself_are_named() {
        check("_a=1&amp;_n=x", &[("amp;_n", "escaped_separator")]);
        check("?_a=1&_n=x", &[("?_a", "second_question_mark")]);
        check("_a=1;_n=x", &[("_a", "semicolon_separator")]);
        check("_a=1&_n=x&company=Smith&Sons", &[("sons", "bare_ampersand")]);
        check("_a=1&_n=x&email=a%2540b.co", &[("email", "encoded_twice")]);
        check("_a=1&_n=x&email=", &[("email", "empty_value")]);
        check("_a=1&_n=x&email", &[("email", "empty_value")]);
        check("_a=1&_n=x&Favorite+Color=red", &[("favorite color", "property_label")]);
        check("_a=1&_n=x&hapikey=k", &[("hapikey", "credential")]);
    }

    #[test]
    fn a_wrong_name_gets_a_hint_only_where_the_right_one_is_absent() {
        check("portal_id=1&_n=x", &[("portal_id", "meant_param")]);
        check("_a=1&portal_id=1&_n=x", &[]);
        check(
            "_a=1&_n=x&e-mail=a@b.co",
            &[("e-mail", "property_label"), ("e-mail", "meant_param")],
        );
        check("_a=1&_n=x&amount=5", &[("amount", "meant_param")]);
    }

    #[test]
    fn mistakes_in_addresses_and_amounts_are_named() {
        for (value, hint) in [
            ("a@b.co,c@d.co", "several_emails"),
            ("Ann <a@b.co>", "decorated_email"),
            ("mailto:a@b.co", "decorated_email"),
            ("ann%20work@b.co", "space_in_email"),
            ("ann%E2%80%8B@b.co", "invisible_character"),
        ] {
            check(&format!("_a=1&_n=x&email={value}"), &[("email", hint)]);
        }
        for value in ["20,5", "$20", "20 EUR", "1.000,50", "1 000", "1e999"] {
            check(&format!("_a=1&_n=x&_m={value}"), &[("_m", "local_number")]);
        }
        check("_a=1&_n=x&_m=free", &[]);
    }

    #[test]
    fn any_bytes_get_hints_without_a_panic() {
        for query in [&b"%FF=%FF&=&&=%FF"[..], b"\xFF=\xFF", b"email=%", b"%%=%%", b"amp;%80=1"] {
            hints(query, &Rules::default());
        }
    }
}
