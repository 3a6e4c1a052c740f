//! The fast judge against the naive one, on queries made to break the rules; and the laws of
//! SPEC 3: normalizing is idempotent, and an event survives every form in which it is written down.
//!
//! `PIXELGATE_CASES` says how many queries in all; 50,000 unless set. A failure prints the smallest
//! query found that shows it: that belongs into `tests/vectors/`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cases::{cases, run};
use crate::naive::{self, compare};
use pixelgate::internals::event::{
    Context, FurtherContext, Ignored, Reason, Record, RecordError, Rules, hints, is_hidden,
};
use proptest::prelude::*;
use proptest::sample::select;

/// The number of cases from which on every reason and cause must have come up.
const CASES_ENOUGH: u32 = 10_000;

#[test]
fn the_fast_judge_and_the_naive_one_agree_and_events_are_stable() {
    let seen = RefCell::new(BTreeMap::<&str, u32>::new());
    let cases = cases() / 10 * 8;
    run(cases, (query(), context()), |(query, context)| {
        let shown = String::from_utf8_lossy(&query).into_owned();
        let fast = compare::fast(&query);
        assert_eq!(fast, naive::judge(&query), "{shown}");
        let mut seen = seen.borrow_mut();
        match &fast {
            Ok((_, ignored)) => {
                compare::check_forms(&query, &context);
                *seen.entry("accepted").or_default() += 1;
                for (_, why) in ignored {
                    *seen.entry(why).or_default() += 1;
                }
            }
            Err((reason, _)) => *seen.entry(reason).or_default() += 1,
        }
    });
    let seen = seen.into_inner();
    let judged = Reason::ALL.iter().filter(|reason| {
        (Reason::QueryTooLong as usize..=Reason::InvalidExternalId as usize)
            .contains(&(**reason as usize))
    });
    let labels = judged.map(|r| r.as_str()).chain(Ignored::ALL.iter().map(|why| why.as_str()));
    for label in labels.chain(["accepted"]) {
        let enough = cases < CASES_ENOUGH || seen.get(label).is_some_and(|count| *count >= 5);
        assert!(enough, "the queries hardly ever gave {label}: {seen:?}");
    }
}

#[test]
fn both_judges_know_the_same_hidden_characters() {
    for c in ('\u{80}'..=char::MAX).chain(['\0', '\t', ' ', 'a', '\u{7F}']) {
        assert_eq!(is_hidden(c), naive::is_hidden(c), "U+{:04X}", u32::from(c));
    }
}

#[test]
fn bytes_without_sense_are_judged_alike() {
    let soup = prop::collection::vec(
        select(&b"&&&===%%++;_anmidel0123456789abcAEF @.\xC3\xBC\0"[..]),
        0..80,
    );
    let noise = prop::collection::vec(any::<u8>(), 0..80);
    run(cases() / 10, prop_oneof![soup, noise], |query| {
        assert_eq!(compare::fast(&query), naive::judge(&query));
        hints(&query, &Rules::default());
    });
}

#[test]
fn damaged_records_are_refused_or_read_but_never_worse() {
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    let strategy = (query(), context(), damage, any::<prop::sample::Index>(), any::<bool>());
    run(cases() / 10, strategy, |(query, context, damage, end, cut)| {
        let Ok(judged) = pixelgate::internals::event::parse(&query, &Rules::default()) else {
            return;
        };
        let mut bytes = Vec::new();
        pixelgate::internals::event::encode_record(
            &mut bytes,
            &[1; 16],
            0,
            &judged.event,
            &context,
        );
        if cut {
            let end = end.index(bytes.len());
            assert_eq!(Record::decode(&bytes[..end]), Err(RecordError::Truncated));
        }
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let Ok(record) = Record::decode(&bytes) else { return };
        let mut json = Vec::new();
        record.write_json(&mut json, true);
        let json: serde_json::Value = serde_json::from_slice(&json).expect("valid JSON");
        assert_eq!(json["portal"], record.portal);
        assert_eq!(json["context"]["bot"], true);
        assert!(record.event().is_ok_and(|event| event.portal == record.portal));
    });
}

fn context() -> impl Strategy<Value = Context<'static>> {
    let text = || proptest::option::of(regex("\\PC{0,20}|[ж😀a]{500,1100}").prop_map(Into::into));
    let ip = proptest::option::of(any::<IpAddr>());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let member = || proptest::option::weighted(0.2, regex("[ -~ж]{1,8}").prop_map(Into::into));
    let header = ("[A-Z]{1,2}", regex("\\PC{0,8}"));
    let headers = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::btree_map(header.0, header.1, 1..4).prop_map(|headers| {
            headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
        }),
    ];
    let added = prop_oneof![
        3 => Just(Vec::new()),
        1 => Just(vec![("country".into(), "DE".into()), ("page".into(), "\"/\"".into())]),
    ];
    (ip, text(), text(), flags, (member(), member()), headers, added).prop_map(
        |(ip, user_agent, referer, (gpc, dnt, prefetch), (host, utk), headers, added)| Context {
            ip,
            user_agent,
            referer,
            gpc,
            dnt,
            prefetch,
            further: Some(FurtherContext { host, utk, headers, added })
                .filter(|further| *further != FurtherContext::default())
                .map(Box::new),
        },
    )
}

fn query() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        5 => assembled(),
        4 => mutated(),
        1 => long(),
    ]
}

/// Queries made of pieces that each have some meaning.
fn assembled() -> impl Strategy<Value = Vec<u8>> {
    let separator = select(&["&", "&", "&", "&", "&", "&", "&&", "&amp;", ";"][..]);
    let complete = prop_oneof![8 => Just("_a=62515&_n=x&"), 1 => Just("_a=1&"), 1 => Just("")];
    let pieces = prop::collection::vec((piece(), separator), 0..9);
    (complete, pieces).prop_map(|(complete, pieces)| {
        let pieces = pieces.into_iter().flat_map(|(piece, separator)| [piece, separator.into()]);
        [complete.as_bytes().to_vec()].into_iter().chain(pieces).flatten().collect()
    })
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let reserved = prop_oneof![
        (Just("_a".to_owned()), portal()),
        (Just("_n".to_owned()), opaque()),
        (Just("id".to_owned()), opaque()),
        (Just("email".to_owned()), email()),
        (Just("email".to_owned()), email()),
        (Just("_m".to_owned()), revenue()),
        (Just("_m".to_owned()), revenue()),
    ];
    let others = "t|hapikey|portalId|Token|auth|tokens|_x|amp;email|a|b|color|e-mail|1a|\
                  [a-z]{99,101}|\\PC{0,4}";
    let any_key = prop_oneof![
        regex(others),
        select(&["_a", "_n", "id", "email", "_m"][..]).prop_map(str::to_owned).boxed(),
    ];
    let any_value =
        prop_oneof![portal(), opaque(), email(), revenue(), Just(String::new()), text()];
    let sensible = prop_oneof![3 => reserved, 4 => (any_key, any_value)];
    const BROKEN: [&[u8]; 10] = [b"", b"", b"", b"", b"", b"%FF", b"\xFF", b"%", b"%C3", b"%00"];
    let broken = select(&BROKEN[..]);
    (sensible, any::<[u64; 2]>(), broken, any::<bool>()).prop_map(
        |((key, value), [key_seed, value_seed], broken, equals)| {
            let mut piece = spelled(&key, key_seed, true);
            if equals || !value.is_empty() {
                piece.push(b'=');
            }
            piece.extend(spelled(&value, value_seed, false));
            piece.extend_from_slice(broken);
            piece
        },
    )
}

/// The texts of a regular expression, which is read once: as a strategy of its own it would be read
/// for every text.
fn regex(pattern: &str) -> BoxedStrategy<String> {
    prop::string::string_regex(pattern).expect("a good pattern").boxed()
}

fn portal() -> BoxedStrategy<String> {
    regex("0{0,3}[1-9][0-9]{0,4}|0{0,2}[1-9][0-9]{13,15}|[-+ ]?[0-9٣]{0,4}|0{1,3}")
}

fn opaque() -> BoxedStrategy<String> {
    let near_limit = (select(&["a", "ж", "購", "😀"][..]), 253usize..258);
    prop_oneof![
        4 => regex("[ -~]{1,12}"),
        2 => text(),
        1 => near_limit.prop_map(|(c, count)| c.repeat(count)),
    ]
    .boxed()
}

fn text() -> BoxedStrategy<String> {
    regex("\\PC{0,6}|[\u{0}-\u{20}a\u{7f}-\u{a0}\u{2028}\u{3000}\u{feff}]{1,5}|[;a]{1,6}")
}

fn email() -> BoxedStrategy<String> {
    let local = "[a-z]{1,8}|[A-Za-z0-9.+_'{}%-]{1,9}|[aжİ\u{212A}ΣẞȺ.]{1,6}|a{62,66}|ж{31,33}|\
                 [a\u{AD}\u{200B}\u{202E}\u{FEFF}]{2}|\\PC{1,3}";
    let label = "[a-z]{1,6}|[a-z0-9-]{1,5}|[A-Zb]{1,3}|b{62,64}|ü{1,3}|\
                 [bübößẞ日\u{AD}\u{200D}١]{1,4}|\
                 xn--bcher-kva|xn--[a-z0-9-]{0,6}|XN--P1AI|[0-9]{1,3}|\\PC{0,2}";
    let dot = select(&[".", ".", ".", ".", ".", "。", "．", ".."][..]);
    let domain = prop::collection::vec((regex(label), dot), 1..5).prop_map(|labels| {
        let mut domain: String = labels.iter().flat_map(|(l, d)| [l.as_str(), d]).collect();
        if !domain.len().is_multiple_of(7) {
            domain.truncate(domain.len() - labels[labels.len() - 1].1.len());
        }
        domain
    });
    let at = select(&["@", "@", "@", "@", "@", "@", "@", "", "@@", "＠"][..]);
    let decorated = select(&["", "", "", "", "", "", "", "", " ", "<", ",a@b.co", "\n"][..]);
    (regex(local), at, domain, decorated)
        .prop_map(|(local, at, domain, end)| format!("{local}{at}{domain}{end}"))
        .boxed()
}

fn revenue() -> BoxedStrategy<String> {
    let plain = "[+-]?[0-9]{0,4}(\\.[0-9]{0,3})?";
    let edge = "[+-]?0{0,3}[0-9]{0,13}(\\.[0-9]{0,8}0{0,4})?([eE][+-]?[0-9]{1,3})?";
    let nines = "[+-]?9{9,13}(\\.9{0,7})?(e[+-]?[0-9])?";
    let wrong = "[0-9.,e+-]{0,6}";
    prop_oneof![3 => regex(plain), 4 => regex(edge), 1 => regex(nines), 1 => regex(wrong)].boxed()
}

/// A text in one of its many spellings. Spaces around it and, for keys, upper case among them.
fn spelled(text: &str, mut seed: u64, is_key: bool) -> Vec<u8> {
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mostly_plain = next(2) == 0;
    let mut spelled = Vec::new();
    if next(12) == 0 {
        spelled.extend_from_slice(b"%20+");
    }
    for byte in text.bytes() {
        let byte = if is_key && next(8) == 0 { byte.to_ascii_uppercase() } else { byte };
        match next(if mostly_plain { 30 } else { 3 }) {
            0 => spelled.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            1 => spelled.extend_from_slice(format!("%{byte:02x}").as_bytes()),
            2 if byte == b' ' => spelled.push(b'+'),
            _ => spelled.push(byte),
        }
    }
    if next(12) == 0 {
        spelled.extend_from_slice(b"+%0A");
    }
    spelled
}

/// Queries as callers send them, changed at a few places.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    const REAL: [&str; 7] = [
        "&_a=62515&_n=000000001625&email=person@company.com&_m=20&favorite_color=orange&id=ext-77",
        "_a=62515&_n=Bought+Item&email=ann%2Bnews%40company.com&_m=20.5&first_name=Ann+Lee",
        "_a=62515&_n=x&interests=tea&interests=coffee&t=1734652800000&hapikey=demo",
        "_a=62515&_n=x&email=%D0%9F%D1%91%D1%82%D1%80@%D0%BF%D0%BE%D1%87%D1%82%D0%B0.%D1%80%D1%84",
        "_a=62515&_n=購入完了&email=a@xn--bcher-kva.de&_m=1.5E%2B03&opt_in=true",
        "_a=62515&amp;_n=x&amp;email={{contact.email}}&company=Smith+&+Sons",
        "_a=00062515&_n=a%20b&id=7&ID=%37&color=red&COLOR=blue&_hsenc=p2A&note=a%0D%0Ab",
    ];
    const TOKENS: [&str; 35] = [
        "&",
        "=",
        "%",
        "+",
        ";",
        " ",
        "%00",
        "%FF",
        "%20",
        "%2B",
        "%C3%BC",
        "ü",
        "&_a=1",
        "&_n=",
        "&_a=062515",
        "&email=a@b.co",
        "&email=PERSON@company.com",
        "&_m=1e2",
        "&_m=%2B20.0",
        "&id=7",
        "@",
        ".",
        "-",
        "e",
        "0",
        "9",
        "xn--",
        "\u{3000}",
        "A",
        "%E2%84%AA",
        "%25",
        "%4",
        "\u{AD}",
        "&color=red",
        "&a=;",
    ];
    let change = (any::<prop::sample::Index>(), 0usize..4, select(&TOKENS[..]), 0usize..12);
    (select(&REAL[..]), prop::collection::vec(change, 0..5)).prop_map(|(real, changes)| {
        let mut query = real.as_bytes().to_vec();
        for (place, kind, token, length) in changes {
            let start = place.index(query.len() + 1);
            let end = (start + length).min(query.len());
            match kind {
                0 => drop(query.drain(start..end)),
                1 => query.extend_from_within(start..end),
                _ => drop(query.splice(start..start, token.bytes())),
            }
        }
        query
    })
}

/// Queries at the limits on a whole query or event.
fn long() -> impl Strategy<Value = Vec<u8>> {
    let unit = select(&["&a=1", "&", "&a=", "&_x=1", "&c=ж", "&a=1&b=2", "&_a=62515"][..]);
    let pieces = (unit, 95usize..103)
        .prop_map(|(unit, count)| format!("_a=62515&_n=x{}", unit.repeat(count)).into_bytes());
    let bytes = (8185usize..8200, select(&["x", "&", "+"][..]), any::<u8>()).prop_map(
        |(length, filler, value)| {
            let start = format!("_a=62515&_n=x&a=v{value}");
            let filler = filler.repeat(length - start.len());
            (start + &filler).into_bytes()
        },
    );
    prop_oneof![pieces, bytes]
}
