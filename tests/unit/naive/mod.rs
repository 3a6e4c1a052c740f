//! SPEC 3 once more, as plainly as possible: the judge that the fast one is compared with.
//!
//! It shares no code with `src/`. It copies, allocates and reads everything as often as it likes,
//! takes each step of the contract separately and in the contract's order, and calculates revenue
//! with strings of digits. Where the two disagree, one of them is wrong.

#![allow(dead_code)] // each test that includes this uses a part of it

pub mod compare;
pub mod path;

use std::collections::{BTreeMap, BTreeSet};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use percent_encoding::percent_decode;

/// An event in canonical form; the revenue as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    pub portal: u64,
    pub event: String,
    pub email: Option<String>,
    pub revenue: Option<String>,
    pub external_id: Option<String>,
    pub properties: BTreeMap<String, String>,
}

/// An event and the parameters left out of it (name, why); or a reason and the parameter.
pub type Verdict =
    Result<(Event, Vec<(String, &'static str)>), (&'static str, Option<&'static str>)>;

const QUERY_BYTES_MAX: usize = 8192;
const PARAMS_MAX: usize = 100;
const WITHHELD: [&str; 10] = [
    "hapikey",
    "access_token",
    "portalid",
    "api_key",
    "apikey",
    "token",
    "password",
    "secret",
    "auth",
    "authorization",
];
/// Unicode's categories Cc, Cf, Zl, Zp and Co, and what it lets programs ignore; and the blank
/// Braille pattern. Beyond ASCII.
const HIDDEN: [std::ops::RangeInclusive<char>; 30] = [
    '\u{80}'..='\u{9F}',
    '\u{AD}'..='\u{AD}',
    '\u{34F}'..='\u{34F}',
    '\u{600}'..='\u{605}',
    '\u{61C}'..='\u{61C}',
    '\u{6DD}'..='\u{6DD}',
    '\u{70F}'..='\u{70F}',
    '\u{890}'..='\u{891}',
    '\u{8E2}'..='\u{8E2}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{200B}'..='\u{200F}',
    '\u{2028}'..='\u{202E}',
    '\u{2060}'..='\u{206F}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{E000}'..='\u{F8FF}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FEFF}'..='\u{FEFF}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{FFF0}'..='\u{FFFB}',
    '\u{110BD}'..='\u{110BD}',
    '\u{110CD}'..='\u{110CD}',
    '\u{13430}'..='\u{1343F}',
    '\u{1BCA0}'..='\u{1BCA3}',
    '\u{1D173}'..='\u{1D17A}',
    '\u{E0000}'..='\u{E0FFF}',
    '\u{F0000}'..='\u{FFFFD}',
    '\u{100000}'..='\u{10FFFD}',
];

/// The verdict of SPEC 3 on a query, with the default configuration.
pub fn judge(query: &[u8]) -> Verdict {
    if encoded_length(query) > QUERY_BYTES_MAX {
        return Err(("query_too_long", None));
    }
    judge_of_any_length(query)
}

/// The length of a query with every byte percent-encoded that RFC 3986 does not allow in one.
fn encoded_length(query: &[u8]) -> usize {
    let is_allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=/?%".contains(byte);
    query.iter().map(|byte| if is_allowed(byte) { 1 } else { 3 }).sum()
}

/// As [`judge`], without the limit on the query's length, which canonical queries may exceed.
pub fn judge_of_any_length(query: &[u8]) -> Verdict {
    let pieces: Vec<&[u8]> =
        query.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty()).collect();
    if pieces.len() > PARAMS_MAX {
        return Err(("too_many_params", None));
    }
    let params: Vec<(Vec<u8>, Vec<u8>)> = pieces.into_iter().map(split).collect();

    let portal = reserved(&params, "_a")?.ok_or(("missing_portal", Some("_a")))?;
    let portal = read_portal(&portal).ok_or(("invalid_portal", Some("_a")))?;
    let event = reserved(&params, "_n")?.ok_or(("missing_event", Some("_n")))?;
    if event.chars().count() > 255 || event.chars().any(char::is_control) {
        return Err(("invalid_event", Some("_n")));
    }
    let email = match reserved(&params, "email")? {
        Some(text) => Some(read_email(&text).ok_or(("invalid_email", Some("email")))?),
        None => None,
    };
    let revenue = match reserved(&params, "_m")? {
        Some(text) => Some(read_revenue(&text).ok_or(("invalid_revenue", Some("_m")))?),
        None => None,
    };
    let external_id = reserved(&params, "id")?;
    if external_id.iter().any(|id| id.chars().count() > 255 || id.chars().any(char::is_control)) {
        return Err(("invalid_external_id", Some("id")));
    }
    let (properties, ignored) = read_properties(&params);
    Ok((Event { portal, event, email, revenue, external_id, properties }, ignored))
}

/// A key (decoded, trimmed, lower-cased; or as it came if it is not UTF-8) and a raw value.
fn split(piece: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut halves = piece.splitn(2, |byte| *byte == b'=');
    let key = halves.next().unwrap_or_default();
    let value = halves.next().unwrap_or_default().to_vec();
    let decoded = form_decode(key);
    match String::from_utf8(decoded) {
        Ok(text) => (text.trim().to_ascii_lowercase().into_bytes(), value),
        Err(fault) => (fault.into_bytes(), value),
    }
}

fn form_decode(raw: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = raw.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    percent_decode(&spaced).collect()
}

fn reserved(
    params: &[(Vec<u8>, Vec<u8>)],
    name: &'static str,
) -> Result<Option<String>, (&'static str, Option<&'static str>)> {
    let mut values = Vec::new();
    for (key, raw) in params {
        if key != name.as_bytes() {
            continue;
        }
        let decoded = match name {
            "email" | "_m" => percent_decode(raw).collect(),
            _ => form_decode(raw),
        };
        let text = String::from_utf8(decoded).map_err(|_| ("invalid_encoding", Some(name)));
        values.push(text.map(|text| text.trim().to_owned()));
    }
    let mut values = values.into_iter().collect::<Result<Vec<String>, _>>()?;
    values.retain(|value| !value.is_empty());
    let canonical = values.iter().map(|value| canonical(name, value));
    let distinct: BTreeSet<String> = canonical.collect();
    match distinct.len() {
        0 => Ok(None),
        1 => Ok(values.pop()),
        _ => Err(("conflicting_param", Some(name))),
    }
}

/// A reserved value in canonical form, or as it is where it has none.
fn canonical(name: &str, value: &str) -> String {
    let canonical = match name {
        "_a" => read_portal(value).map(|portal| portal.to_string()),
        "email" => read_email(value),
        "_m" => read_revenue(value),
        _ => None,
    };
    canonical.unwrap_or_else(|| value.to_owned())
}

fn read_portal(text: &str) -> Option<u64> {
    let mut digits = text;
    while let Some(rest) = digits.strip_prefix('0') {
        digits = rest;
    }
    let is_number = !digits.is_empty() && digits.chars().all(|c| "0123456789".contains(c));
    if is_number && digits.len() <= 15 { digits.parse().ok() } else { None }
}

fn read_properties(
    params: &[(Vec<u8>, Vec<u8>)],
) -> (BTreeMap<String, String>, Vec<(String, &'static str)>) {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut ignored = Vec::new();
    for (key, raw) in params {
        if ["_a", "_n", "email", "_m", "id"].iter().any(|name| name.as_bytes() == key) {
            continue;
        }
        let value = String::from_utf8(form_decode(raw)).map(|text| text.trim().to_owned());
        if value.as_deref() == Ok("") {
            continue;
        }
        let Ok(name) = String::from_utf8(key.clone()) else {
            let shown = String::from_utf8_lossy(key).trim().to_ascii_lowercase();
            ignored.push((shown, "invalid_encoding"));
            continue;
        };
        if WITHHELD.contains(&name.as_str()) {
            ignored.push((name, "withheld"));
        } else if name == "t" {
            ignored.push((name, "configured"));
        } else if name.starts_with('_') {
            ignored.push((name, "underscore"));
        } else if name.starts_with("amp;") {
            ignored.push((name, "escaped_separator"));
        } else if !is_property_name(&name) {
            ignored.push((name, "invalid_name"));
        } else {
            match value {
                Err(_) => ignored.push((name, "invalid_encoding")),
                Ok(v) if v.replace(['\t', '\n', '\r'], "").contains(char::is_control) => {
                    ignored.push((name, "control_character"));
                }
                Ok(value) => {
                    let seen = values.entry(name).or_default();
                    if !seen.contains(&value) {
                        seen.push(value);
                    }
                }
            }
        }
    }
    (values.into_iter().map(|(name, values)| (name, values.join(";"))).collect(), ignored)
}

fn is_property_name(name: &str) -> bool {
    let letters = "abcdefghijklmnopqrstuvwxyz";
    let others = "abcdefghijklmnopqrstuvwxyz0123456789_";
    let mut chars = name.chars();
    chars.next().is_some_and(|first| letters.contains(first))
        && chars.all(|c| others.contains(c))
        && name.len() <= 100
}

fn read_email(text: &str) -> Option<String> {
    let at: Vec<&str> = text.split('@').collect();
    let [local, domain] = at.as_slice() else { return None };
    let local = local.to_lowercase();
    if local.is_empty() || local.len() > 64 {
        return None;
    }
    let is_atext = |c: char| {
        if c.is_ascii() {
            c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
        } else {
            !c.is_whitespace() && !is_hidden(c)
        }
    };
    if !local.chars().all(|c| is_atext(c) || c == '.')
        || local.starts_with('.')
        || local.ends_with('.')
        || local.contains("..")
    {
        return None;
    }
    let (ascii, unicode) = read_domain(domain)?;
    if local.len() + 1 + ascii.len() > 254 {
        return None;
    }
    Some(format!("{local}@{unicode}"))
}

pub fn is_hidden(c: char) -> bool {
    c.is_ascii_control() || HIDDEN.iter().any(|range| range.contains(&c))
}

/// The ASCII and the Unicode form of a domain. The mapping is UTS-46's, by the library; what a host
/// name may be is checked here.
fn read_domain(domain: &str) -> Option<(String, String)> {
    if domain.len() > 1012 {
        return None;
    }
    let bytes = domain.as_bytes();
    let (open, all) = (AsciiDenyList::EMPTY, Hyphens::Allow);
    let ascii = Uts46::new().to_ascii(bytes, open, all, DnsLength::Ignore).ok()?.into_owned();
    let (unicode, verdict) = Uts46::new().to_unicode(bytes, open, all);
    verdict.ok()?;
    let unicode = unicode.into_owned();
    let labels: Vec<&str> = ascii.split('.').collect();
    let is_host_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &&str| {
        (1..=63).contains(&label.len())
            && label.chars().all(is_host_char)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What a label decodes to must not hide what the label itself may not have.
    let is_open_label = |label: &str| {
        !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| !c.is_ascii() || is_host_char(c))
    };
    let is_host = labels.len() >= 2
        && labels.iter().all(is_label)
        && ascii.len() <= 253
        && unicode.split('.').all(is_open_label)
        && !labels.iter().last()?.chars().all(|c| c.is_ascii_digit());
    is_host.then_some((ascii, unicode))
}

/// Reads an amount as a person does on paper: writes the digits, moves the point, drops the zeros.
fn read_revenue(text: &str) -> Option<String> {
    let (sign, text) = match text.chars().next()? {
        '-' => ("-", &text[1..]),
        '+' => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = text.to_lowercase();
    let (mantissa, exponent) = match lower.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, read_exponent(exponent)?),
        None => (lower.as_str(), 0),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |digits: &str| digits.chars().all(|c| "0123456789".contains(c));
    if !is_digits(whole) || !is_digits(decimals) || whole.len() + decimals.len() == 0 {
        return None;
    }
    // A hundred zeros on both sides, so that the point has room to move.
    let zeros = "0".repeat(100);
    let digits = format!("{zeros}{whole}{decimals}{zeros}");
    let point = (100 + whole.len() as i64 + exponent) as usize;
    let whole = digits[..point].trim_start_matches('0');
    let decimals = digits[point..].trim_end_matches('0');
    let all = format!("{whole}{decimals}");
    let significant = all.trim_matches('0');
    if significant.len() > 15 || whole.len() > 12 || decimals.len() > 6 {
        return None;
    }
    Some(match (whole, decimals) {
        ("", "") => "0".to_owned(),
        ("", decimals) => format!("{sign}0.{decimals}"),
        (whole, "") => format!("{sign}{whole}"),
        (whole, decimals) => format!("{sign}{whole}.{decimals}"),
    })
}

fn read_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = digits.chars().all(|c| "0123456789".contains(c));
    if !is_number || !(1..=2).contains(&digits.len()) {
        return None;
    }
    let value: i64 = digits.parse().ok()?;
    Some(if text.starts_with('-') { -value } else { value })
}
