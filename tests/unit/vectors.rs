//! The contract's vectors (`tests/vectors/*.toml`): every one against the fast judge, against the
//! naive one, and, if it is an event, through every form in which an event is written down.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use crate::naive::{self, compare};
use pixelgate::internals::event::{self, Context, Rules};
use serde::Deserialize;

/// With fewer vectors than this, files are missing.
const VECTORS_MIN: usize = 500;
const ADDRESSES_MIN: usize = 150;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    vector: Vec<Vector>,
    #[serde(default)]
    address: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    /// The query of a link, which may have a fragment.
    query: String,
    event: Option<Canonical>,
    #[serde(default)]
    ignored: Vec<(String, String)>,
    reject: Option<String>,
    param: Option<String>,
    hints: Option<Vec<(String, String)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Canonical {
    portal: u64,
    event: String,
    email: Option<String>,
    revenue: Option<String>,
    external_id: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

/// One entry of a public list: what arrives, and its canonical form if it is an address here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    text: String,
    canonical: Option<String>,
}

#[test]
fn every_vector_holds() {
    let mut vectors = Vec::new();
    let mut names = HashSet::new();
    for path in files() {
        for vector in read(&path).vector {
            let place = format!("{}: {}", file_name(&path), vector.name);
            assert!(names.insert(place.clone()), "{place}: this name is taken");
            vectors.push((place, vector));
        }
    }
    check_all(vectors, VECTORS_MIN);
}

#[test]
fn every_address_of_the_public_lists_is_judged_by_the_rule() {
    let mut vectors = Vec::new();
    for path in files() {
        for Address { text, canonical } in read(&path).address {
            let place = format!("{}: {text:?}", file_name(&path));
            let query = format!("_a=1&_n=x&email={}", encoded(&expand(&text)));
            let vector = Vector {
                name: text,
                query,
                reject: canonical.is_none().then(|| "invalid_email".to_owned()),
                param: canonical.is_none().then(|| "email".to_owned()),
                event: canonical.map(|email| Canonical {
                    portal: 1,
                    event: "x".to_owned(),
                    email: Some(email),
                    revenue: None,
                    external_id: None,
                    properties: BTreeMap::new(),
                }),
                ignored: vec![],
                hints: None,
            };
            vectors.push((place, vector));
        }
    }
    check_all(vectors, ADDRESSES_MIN);
}

/// Checks all vectors, also after a failure: a changed rule shows every vector that it breaks.
fn check_all(vectors: Vec<(String, Vector)>, count_min: usize) {
    assert!(vectors.len() >= count_min, "only {} vectors", vectors.len());
    let holds = |(place, vector): &(String, Vector)| catch_unwind(|| check(place, vector)).is_ok();
    let failed = vectors.iter().filter(|vector| !holds(vector)).count();
    assert_eq!(failed, 0, "of {} vectors", vectors.len());
}

fn check(place: &str, vector: &Vector) {
    let link = expand(&vector.query);
    // A browser sends a link without its fragment.
    let query = link.split('#').next().unwrap_or_default();
    let fast = compare::fast(query.as_bytes());
    match (&vector.event, &vector.reject) {
        (Some(canonical), None) => {
            let expected = naive::Event {
                portal: canonical.portal,
                event: expand(&canonical.event),
                email: canonical.email.as_deref().map(expand),
                revenue: canonical.revenue.clone(),
                external_id: canonical.external_id.as_deref().map(expand),
                properties: canonical
                    .properties
                    .iter()
                    .map(|(name, value)| (expand(name), expand(value)))
                    .collect(),
            };
            let Ok((event, ignored)) = &fast else { panic!("{place}: rejected, {fast:?}") };
            assert_eq!(*event, expected, "{place}");
            let named: Vec<_> = ignored.iter().map(|(n, why)| (&**n, *why)).collect();
            let wanted: Vec<(String, String)> =
                vector.ignored.iter().map(|(name, why)| (expand(name), why.clone())).collect();
            let wanted: Vec<_> = wanted.iter().map(|(n, why)| (&**n, &**why)).collect();
            assert_eq!(named, wanted, "{place}: ignored");
            compare::check_forms(query.as_bytes(), &Context::default());
        }
        (None, Some(reason)) => {
            let Err(reject) = &fast else { panic!("{place}: accepted as {fast:?}") };
            assert_eq!(*reject, (reason.as_str(), vector.param.as_deref()), "{place}");
        }
        _ => panic!("{place}: either an event or a rejection"),
    }
    assert_eq!(naive::judge(query.as_bytes()), fast, "{place}: the naive judge");
    if let Some(hints) = &vector.hints {
        let found = event::hints(link.as_bytes(), &Rules::default());
        let found: Vec<_> =
            found.into_iter().map(|h| (h.param, h.hint.as_str().to_owned())).collect();
        assert_eq!(found, *hints, "{place}: hints");
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let entries = std::fs::read_dir(&folder).expect("there are vectors");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    files
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> File {
    let text = std::fs::read_to_string(path).expect("it can be read");
    toml::from_str(&text).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

/// Replaces `⟦text×count⟧` by the text, repeated that often.
fn expand(text: &str) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('⟦') {
        let (inside, after) = after.split_once('⟧').expect("⟦ has its ⟧");
        let (part, count) = inside.rsplit_once('×').expect("⟦text×count⟧");
        expanded.push_str(before);
        expanded.push_str(&part.repeat(count.parse().expect("a count")));
        rest = after;
    }
    expanded + rest
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        let _ = write!(all, "%{byte:02X}");
        all
    })
}
