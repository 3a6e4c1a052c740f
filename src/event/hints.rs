//! Finds likely mistakes in a query by common patterns.
//!
//! Hints are no part of the verdict. Only `explain` asks for them, for one query at a time, so the
//! search may guess and may be slow.

use std::borrow::Cow;

use super::collector::name_fault;
use super::config::Rules;
use super::hidden::is_hidden;
use super::hint::{Hint, ParamHint};
use super::param::Reserved;
use super::query::{NotUtf8, Piece, Plus, encode_non_ascii, pieces};
use super::revenue::Revenue;
use super::verdict::Ignored;

/// Looks for likely mistakes, parameter by parameter. Reads at most `query_bytes_max` bytes and
/// `params_max` parameters of `rules`. `query` may be that of a link, with the fragment that a
/// browser would not send.
pub fn hints(query: &[u8], rules: &Rules) -> Vec<ParamHint> {
    let limits = rules.limits();
    let mut parts = query.splitn(2, |byte| *byte == b'#');
    let query = parts.next().unwrap_or_default();
    let query = &query[..query.len().min(limits.query_bytes_max)];
    let query =
        std::str::from_utf8(query).map_or_else(|_| encode_non_ascii(query).into(), Cow::Borrowed);
    let pieces: Vec<_> = pieces(&query).take(limits.params_max).collect();
    let is_given = |param: &str| {
        let names = |piece: &Piece<'_>| piece.key().is_ok_and(|key| key == param);
        pieces.iter().any(|piece| names(piece) && !piece.raw_value().is_empty())
    };
    let mut found = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        let param = shown_key(piece);
        let reserved = Reserved::of(param.as_bytes());
        let value = piece.value(Plus::of(reserved)).ok().map(|value| value.text);
        let candidates = [
            about_key(&param, reserved, piece, rules),
            meant_param(&param).filter(|meant| !is_given(meant)).map(Hint::MeantParam),
            is_other_spelling(piece, &pieces[..place]).then_some(Hint::TwoSpellings),
            // The raw value as well, because decoding may destroy a placeholder such as
            // `%%address%%`.
            about_value(reserved, value.as_deref().unwrap_or_default(), piece.raw_value()),
        ];
        let about_param = |hint| ParamHint { param: param.clone(), hint };
        found.extend(candidates.into_iter().flatten().map(about_param));
    }
    if parts.next().is_some() {
        let param = pieces.last().map_or_else(|| "#".to_owned(), shown_key);
        found.push(ParamHint { param, hint: Hint::CutByFragment });
    }
    found
}

fn shown_key(piece: &Piece<'_>) -> String {
    piece.key().map_or_else(|NotUtf8| piece.key_lossy(), Cow::into_owned)
}

fn about_key(
    key: &str,
    reserved: Option<Reserved>,
    piece: &Piece<'_>,
    rules: &Rules,
) -> Option<Hint> {
    let is_empty = piece.value(Plus::of(reserved)).is_ok_and(|value| value.text.is_empty());
    let fault = || name_fault(key, piece.has_plain_key(), rules);
    if key.starts_with("amp;") {
        Some(Hint::EscapedSeparator)
    } else if key.starts_with('?') {
        Some(Hint::SecondQuestionMark)
    } else if reserved.is_some() {
        is_empty.then_some(Hint::EmptyValue)
    } else if !piece.has_equals_sign() {
        Some(Hint::BareAmpersand)
    } else if is_empty {
        None
    } else if rules.withholds(key) || is_credential_name(key) {
        Some(Hint::Credential)
    } else if key.contains(is_hidden) {
        Some(Hint::InvisibleCharacter)
    } else if fault() == Some(Ignored::InvalidName) {
        Some(if key.contains('[') { Hint::ArrayName } else { Hint::PropertyLabel })
    } else {
        None
    }
}

/// Whether a name ends as names of credentials do. Such a parameter is passed on, unless
/// `events.withhold_params` names it.
fn is_credential_name(key: &str) -> bool {
    const ENDS: [&str; 6] = ["token", "password", "passwd", "secret", "apikey", "api_key"];
    ENDS.iter().any(|end| key.ends_with(end))
}

/// Whether an earlier piece has the same property name in another case.
fn is_other_spelling(piece: &Piece<'_>, earlier: &[Piece<'_>]) -> bool {
    let (Ok(key), Ok(spelled)) = (piece.key(), piece.spelled_key()) else { return false };
    let differs = |other: &Piece<'_>| {
        other.key().is_ok_and(|name| name == key)
            && other.spelled_key().is_ok_and(|other| other != spelled)
    };
    Reserved::of(key.as_bytes()).is_none() && earlier.iter().any(differs)
}

/// The reserved parameter that people mean by a name, if any.
fn meant_param(key: &str) -> Option<&'static str> {
    let meant = match key {
        "a" | "portal" | "portal_id" | "portalid" | "hub" | "hub_id" | "hubid" => Reserved::Portal,
        "n" | "event" | "event_id" | "eventid" | "event_name" | "_e" => Reserved::Event,
        "mail" | "e-mail" | "e_mail" | "_email" | "email_address" | "email-address"
        | "emailaddress" => Reserved::Email,
        "m" | "revenue" | "amount" | "_revenue" => Reserved::Revenue,
        "_id" | "external_id" | "externalid" | "user_id" | "userid" => Reserved::ExternalId,
        _ => return None,
    };
    Some(meant.key())
}

fn about_value(reserved: Option<Reserved>, value: &str, raw: &str) -> Option<Hint> {
    const REOPENED: [&str; 5] = [";_a=", ";_n=", ";_m=", ";email=", ";id="];
    if is_placeholder(value) || is_placeholder(raw) {
        return Some(Hint::Placeholder);
    }
    let lower = value.to_ascii_lowercase();
    if REOPENED.iter().any(|start| lower.contains(start)) {
        return Some(Hint::SemicolonSeparator);
    }
    if has_escape(value) {
        return Some(Hint::EncodedTwice);
    }
    if has_unicode_escape(value) {
        return Some(Hint::UnicodeEscape);
    }
    if is_filler_word(&lower) {
        return Some(Hint::FillerWord);
    }
    match reserved {
        Some(Reserved::Email) => about_email(value),
        Some(Reserved::Revenue) => {
            let has_digit = value.bytes().any(|byte| byte.is_ascii_digit());
            (has_digit && Revenue::parse(value).is_none()).then_some(Hint::LocalNumber)
        }
        Some(Reserved::Event | Reserved::ExternalId) if value.contains(is_hidden) => {
            Some(Hint::InvisibleCharacter)
        }
        Some(Reserved::Event | Reserved::ExternalId) if has_separate_accent(value) => {
            Some(Hint::DecomposedAccent)
        }
        _ => was_plus_meant(raw).then_some(Hint::PlusIsSpace),
    }
}

fn about_email(value: &str) -> Option<Hint> {
    if value.matches('@').count() > 1 {
        Some(Hint::SeveralEmails)
    } else if value.contains(['<', '>', '"', '(', ')', '[', ']'])
        || value.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("mailto:"))
    {
        Some(Hint::DecoratedEmail)
    } else if value.contains(is_hidden) {
        Some(Hint::InvisibleCharacter)
    } else if value.contains(' ') {
        Some(Hint::SpaceInEmail)
    } else {
        None
    }
}

/// Whether a value looks like a placeholder of one of the common template languages.
fn is_placeholder(value: &str) -> bool {
    // Marks that are distinctive anywhere in a value: those of HubSpot, Handlebars, Liquid,
    // Marketo, Mailchimp, Salesforce, ERB, shells and Ruby.
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
    // Marks that must enclose the whole value: `[email]`, `{email}`, `%EMAIL%`, `<email>`,
    // `__EMAIL__`.
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

/// Whether a decoded text has `%u` and four hexadecimal digits in it.
fn has_unicode_escape(value: &str) -> bool {
    let is_escape = |w: &[u8]| w.starts_with(b"%u") && w[2..].iter().all(u8::is_ascii_hexdigit);
    value.as_bytes().windows(6).any(is_escape)
}

/// Whether a value, in lower case, is a word that programs write for nothing.
fn is_filler_word(value: &str) -> bool {
    ["null", "(null)", "none", "(none)", "nil", "n/a", "nan", "undefined"].contains(&value)
}

/// Whether an ASCII letter is followed by a combining accent. Other letters can be decomposed, too,
/// but these are the common cases.
fn has_separate_accent(value: &str) -> bool {
    let mut previous = ' ';
    value.chars().any(|c| {
        let is_accented = previous.is_ascii_alphabetic() && ('\u{300}'..='\u{36F}').contains(&c);
        previous = c;
        is_accented
    })
}

/// Whether a `+` in an undecoded value looks like the `+` of a phone number (`+49…`) or of a time
/// zone (`…10:00:00+02:00`).
fn was_plus_meant(raw: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit();
    if raw.strip_prefix('+').is_some_and(|rest| rest.starts_with(is_digit)) {
        return true;
    }
    let raw = raw.replace("%3A", ":").replace("%3a", ":");
    let Some((time, zone)) = raw.rsplit_once('+') else { return false };
    let is_zone = matches!(zone.len(), 2 | 4 | 5)
        && zone.starts_with(is_digit)
        && zone.chars().all(|c| is_digit(c) || c == ':');
    is_zone && time.contains(':') && time.ends_with(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: &[(&str, &str)]) {
        let rules = Rules::default();
        let found = hints(query.as_bytes(), &rules);
        let found: Vec<_> = found.iter().map(|h| (h.param.as_str(), h.hint.as_str())).collect();
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
