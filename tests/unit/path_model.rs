//! The path guard: the spellings that it exists for, and the naive readings of SPEC 2 beside it.
//!
//! `PIXELGATE_CASES` says how many generated paths; 50,000 unless set.

use crate::cases::{cases, run};
use crate::counting::allocations;
use crate::naive::path as naive;
use pixelgate::internals::request::path::{Guard, PathError, READ_BYTES_MAX, Reading};
use proptest::prelude::*;
use proptest::sample::select;

const EVENT_PATHS: [&str; 4] = ["/v1/event/", "/pixel/", "/.a.b/c_d/e-f.gif", "/v1/event"];
/// A path with more readings is not compared with the naive ones.
const READINGS_MAX: usize = 400;

fn guard(event_path: &str) -> Guard {
    Guard::new(event_path).expect("a canonical path")
}

fn label(reading: Reading) -> &'static str {
    match reading {
        Reading::Event => "event",
        Reading::Unknown => "unknown",
        Reading::Other => "other",
    }
}

fn check(expected: Reading, paths: &[&str]) {
    let guard = guard("/v1/event/");
    for path in paths {
        assert_eq!(guard.read(path.as_bytes()), expected, "{path:?}");
        let naive = naive::read_path("/v1/event", path.as_bytes(), 1_000_000);
        assert_eq!(naive, Some(label(expected)), "{path:?}");
    }
}

/// Paths that a lenient server may take for the event path.
const SPELLINGS: [&str; 71] = [
    "/v1/event/",
    "/v1/event",
    "/V1/Event/",
    "/v1/EVENT",
    "//v1/event/",
    "/v1//event/",
    "/v1/event//",
    "///v1///event///",
    "/./v1/event/",
    "/v1/./event/",
    "/v1/event/.",
    "/v1/event/./",
    "/v1/x/../event/",
    "/x/../v1/event",
    "/x/y/../../v1/event/",
    "/../v1/event/",
    "/../../../v1/event/",
    "/v1/event/x/..",
    "/v1/event/x/../",
    "/v1/event/x/y/../../",
    "/%76%31/%65%76%65%6e%74/",
    "/v1/%65vent/",
    "/v1%2fevent/",
    "/v1%2Fevent%2F",
    "%2Fv1%2Fevent%2F",
    "/v1/%2565vent/",
    "/v1%252Fevent/",
    "/v1/%252565vent/",
    "/v1%25252fevent/",
    "/%2e/v1/event/",
    "/v1/x/%2e%2e/event/",
    "/v1/x/.%2E/event/",
    "/v1/x/%252e%252e/event/",
    "/v1/x%2f..%2fevent/",
    "\\v1\\event\\",
    "/v1\\event",
    "/v1%5cevent/",
    "/v1%255Cevent/",
    "/x\\..\\v1\\event",
    "/v1;a=b/event/",
    "/v1/event;jsessionid=1",
    "/v1/event;x/",
    "/v1/event/;x",
    "/v1/event/;x/",
    "/v1/x/..;/event/",
    "/;x/v1/;y/event",
    "/v1%3ba/event/",
    "/v1/event%3b/",
    "/v1/event%3Fa=b",
    "/v1/event/%3f/x",
    "/v1/event%23x",
    "/v1/event/%2523/x",
    "/v1/event#x",
    "/v1/event/#/x",
    "/v1/event?x",
    "/v1/event%00",
    "/v1/event/%00",
    "/v1/%00event/",
    "/v1/event%20",
    "/v1/event/%20/",
    "/v1/ event /",
    "/%09v1/event/",
    "/v1/ev%0dent/",
    "/v1/ev%0Aent/",
    "/v1/event%7F",
    "/v1/. /event/",
    "/v1/x/. ./event/",
    "/v1/x/.%00./event/",
    "/v1/x/..%3bz/event/",
    "v1/event/",
    "/v1/ev%65nt%2f%2e%2F;%20%00#%",
];

#[test]
fn every_spelling_of_the_event_path_is_the_event_path() {
    check(Reading::Event, &SPELLINGS);
}

#[test]
fn what_goes_on_below_the_event_path_is_refused() {
    check(
        Reading::Unknown,
        &[
            "/v1/event/x",
            "/v1/event/x/",
            "/V1/EVENT/X",
            "/v1/event/index.html",
            "/v1/event//x",
            "/v1/event/./x",
            "/v1/event/../event/x",
            "/v1/event%2Fx",
            "/v1/event%252fx",
            "/v1/event\\x",
            "/v1/event;a/x",
            "/v1/event/%2e%2e%2fevent%2fx",
            "/v1/event/...",
            "/v1/event/x/y/..",
            "/v1/event/%",
            "/v1/event/%C3%BC",
        ],
    );
}

#[test]
fn what_is_the_event_path_in_some_readings_only_is_refused() {
    check(
        Reading::Unknown,
        &[
            "/v1/event/..",
            "/v1/event/../",
            "/v1/event/../x",
            "/v1/event/%2e%2e/x",
            "/v1/event/%2e%2e%2f%2e",
            "/v1/event/../events",
            "/v1/event/x/../../y",
            "/v1/event/..%2fx",
            "/v1/event//../",
            "/v1/event/..;x/../",
            "/v1/event/..\\/../",
            "/v1/event/%252e%252e/../",
            "/v1/event/.%20./../",
            "/v1/event/..%00/../",
            "/v1/event;/../",
            "/x%3f/../v1/event/",
            "/x%23/../v1/event/",
            "/x#/../v1/event/",
            "/x%253f/../v1/event/",
            "//h/v1/event/",
            "///h/v1/event/",
            "/\\h/v1/event/",
            "\\\\h\\v1\\event\\",
            "/%5ch/v1/event/",
            "/%2Fh/v1/event/",
            "/;x/h/v1/event/",
            "/x/..//h/v1/event/",
            "//x/../h/v1/event/",
            "/v1/x\\y/../event/",
            // Each of these needs one escape decoded and another left.
            "/x/a%2fb/%2e%2e/../v1/event/",
            "/x/a%2fb/../%2e%2e/v1/event/",
            "/x/a%5cb/%2e%2e/../v1/event/",
            "/v1/%2e%2e;a%2fb/../event/",
            "/%76%31/x;y%2fz/../event/",
        ],
    );
}

#[test]
fn what_no_server_takes_for_the_event_path_is_passed_on() {
    check(
        Reading::Other,
        &[
            "",
            "/",
            "*",
            "/v1",
            "/v1/",
            "/v1/events",
            "/v1/events/",
            "/v1/event_",
            "/v1/event.gif",
            "/v1/even",
            "/v2/event/",
            "/x/v1/event/",
            "/a/b/../c",
            "/js/v1;x/app.js",
            "/v1.event/",
            "/v1/event%",
            "/v1/%65%76%65%6e%74%73",
            "/v1/%25252565vent/",
            "/v1?/event/",
            "/v1%3f/event/",
            "/v1/#event/",
            "/v1/;event/",
            "/.v1/event/",
            "/v1/..event/",
            "/v1/.../event/",
            "/v1/%EF%BC%85vent/",
            "/x/y/../v1/event/",
            "/x%2fy/v1/event/",
            "/h//v1/event/",
            "/x;//v1/event/",
            "/static/app.js",
            "/a//b",
            "/%",
            "/ü",
        ],
    );
}

#[test]
fn another_event_path_is_guarded_alike() {
    let pixel = guard("/pixel/");
    assert_eq!(pixel.read(b"/pixel"), Reading::Event);
    assert_eq!(pixel.read(b"/PIXEL/"), Reading::Event);
    assert_eq!(pixel.read(b"/x/..%2fpixel;y/"), Reading::Event);
    assert_eq!(pixel.read(b"/pixel/x"), Reading::Unknown);
    assert_eq!(pixel.read(b"//x/pixel/"), Reading::Unknown);
    assert_eq!(pixel.read(b"/x/pixel/.."), Reading::Other);
    assert_eq!(pixel.read(b"/pixels"), Reading::Other);
    assert_eq!(pixel.read(b"/v1/event/"), Reading::Other);
    assert_eq!(guard("/pixel"), pixel);
    assert_eq!(guard("/ü/").read("/%C3%BC".as_bytes()), Reading::Event);
}

#[test]
fn only_a_canonical_path_can_be_guarded() {
    for path in ["", "/"] {
        assert_eq!(Guard::new(path), Err(PathError::Root), "{path:?}");
    }
    for path in [
        "v1/event/",
        "//",
        "/v1//event",
        "/v1/event//",
        "/V1/event/",
        "/v1/./event",
        "/v1/../event",
        "/v1/event/.",
        "/%76",
        "/v1;x/",
        "/v1?x",
        "/v1#x",
        "/v 1/",
        "/v1\\x",
        "/v1/\t",
        "*",
    ] {
        assert_eq!(Guard::new(path), Err(PathError::NotCanonical), "{path:?}");
    }
}

#[test]
fn an_event_path_may_have_so_many_bytes_and_segments() {
    for (longest, too_long) in [
        ("/a/a/a/a/a/a/a/a".to_owned(), "/a/a/a/a/a/a/a/a/a".to_owned()),
        (format!("/{}", "a".repeat(126)), format!("/{}", "a".repeat(127))),
    ] {
        assert_eq!(Guard::new(&too_long), Err(PathError::TooLong), "{too_long}");
        let guard = guard(&longest);
        assert_eq!(guard.read(longest.as_bytes()), Reading::Event);
        assert_eq!(guard.read(format!("{longest}/x/..").as_bytes()), Reading::Event);
        assert_eq!(guard.read(format!("//h{longest}").as_bytes()), Reading::Unknown);
        assert_eq!(guard.read(format!("{longest}/..").as_bytes()), Reading::Unknown);
        assert_eq!(guard.read(format!("{longest}a/%41").as_bytes()), Reading::Other);
    }
}

#[test]
fn the_length_of_a_path_changes_nothing_up_to_its_bound() {
    let guard = guard("/v1/event/");
    for length in [1, 100, 255, 256, 257, 1000, 10_000] {
        let long = "x/../".repeat(length);
        assert_eq!(guard.read(format!("/{long}v1/event/").as_bytes()), Reading::Event);
        let slashes = "/".repeat(length);
        assert_eq!(guard.read(format!("{slashes}/v1/event/").as_bytes()), Reading::Event);
        let encoded = "%25".repeat(length);
        assert_eq!(guard.read(format!("/v1/event/{encoded}").as_bytes()), Reading::Unknown);
        // Deeper than the stacks that the guard distinguishes.
        let deep = "a%2fb/".repeat(length);
        let up = "../".repeat(length);
        let back = format!("/v1/{deep}{up}event/");
        assert_eq!(guard.read(back.as_bytes()), Reading::Unknown);
        let away = format!("/v1/{deep}event/");
        let expect = if away.len() <= READ_BYTES_MAX { Reading::Other } else { Reading::Unknown };
        assert_eq!(guard.read(away.as_bytes()), expect, "{length}");
        // A plain path has one reading, however long it is.
        assert_eq!(guard.read(format!("/{}", "x".repeat(length)).as_bytes()), Reading::Other);
        // One step too many, which shows only where the guard distinguishes the stacks.
        let above = format!("/v1/{}{up}../event/", "x/".repeat(length));
        let expect = if length < 63 { Reading::Other } else { Reading::Unknown };
        assert_eq!(guard.read(above.as_bytes()), expect, "{length}");
    }
}

#[test]
fn reading_a_path_of_usual_length_allocates_nothing() {
    let guard = guard("/v1/event/");
    for path in ["/v1/event/", "/a/b", "/a%20b//c", "/v1/a%252fb/../../%2e/event/..;x\\"] {
        assert_eq!(allocations(|| _ = guard.read(path.as_bytes())), 0, "{path}");
    }
}

/// Pieces that readings disagree about, and pieces of event paths.
const PARTS: [&str; 54] = [
    "/v1",
    "/event",
    "/v1/event",
    "/v1/event/",
    "/pixel",
    "/.a.b/c_d",
    "/e-f.gif",
    "v1",
    "event",
    "/",
    "/",
    "//",
    "//h",
    "/.",
    "/..",
    "/..",
    "/../",
    "..",
    ".",
    "/x",
    "/x/y",
    "%2f",
    "%2F",
    "%252f",
    "%25252f",
    "%2525252f",
    "%2e",
    "%2e%2e",
    "%252E",
    "\\",
    "%5c",
    "%255c",
    ";",
    ";a=b",
    "%3b",
    "?",
    "#",
    "%3f",
    "%2523",
    "%00",
    "%20",
    " ",
    "\t",
    "%7f",
    "V1",
    "%65vent",
    "%2565vent",
    "%",
    "%2",
    "%%32%35",
    "%25%32%66",
    "x",
    "ü",
    "%FF",
];

/// Compares the guard with the naive readings. Returns whether there were few enough of them.
fn agrees(event_path: &str, guard: &Guard, path: &[u8]) -> bool {
    let Some(naive) = naive::read_path(event_path, path, READINGS_MAX) else { return false };
    let shown = String::from_utf8_lossy(path);
    assert_eq!(label(guard.read(path)), naive, "{shown} for {event_path}");
    true
}

#[test]
fn the_guard_and_the_naive_readings_agree() {
    let parts = |most| prop::collection::vec(select(&PARTS[..]), 0..most);
    // Parts alone seldom make the event path, so half of the paths have its pieces between them.
    let spelled = (parts(4), parts(3), parts(3), select(&["event", "pixel", "%65vent", "x"][..]))
        .prop_map(|(before, between, after, name)| {
            let [before, between, after] = [before, between, after].map(|parts| parts.concat());
            format!("/{before}/v1{between}/{name}{after}").into_bytes()
        });
    let mixed = parts(7).prop_map(|parts| parts.concat().into_bytes());
    let noise = prop::collection::vec(
        prop_oneof![4 => select(&b"/v1event%25fFeE.;\\?# 0"[..]), 1 => any::<u8>()],
        0..30,
    );
    let paths = prop_oneof![4 => spelled, 2 => mixed, 1 => noise];
    let compared = std::cell::Cell::new(0);
    // A naive comparison costs as much as a hundred others.
    let tried = cases() / 20;
    run(tried, (select(&EVENT_PATHS[..]), paths), |(event_path, path)| {
        let agree = agrees(event_path.trim_end_matches('/'), &guard(event_path), &path);
        compared.set(compared.get() + u32::from(agree));
    });
    assert!(compared.get() > tried / 2, "{} of {tried} paths were compared", compared.get());
}

#[test]
fn the_guard_and_the_naive_readings_agree_on_every_short_path() {
    // Each letter makes one reading differ from another; `a` is the event path.
    const LETTERS: [&str; 8] = ["/", "..", ".", "a", "%2f", ";", "\\", "%2e"];
    let guard = guard("/a/");
    let digits = if cases() > 100_000 { 5 } else { 4 };
    for number in 0..LETTERS.len().pow(digits) {
        let letter = |digit| LETTERS[number / LETTERS.len().pow(digit) % LETTERS.len()];
        let path: String = (0..digits).map(letter).collect();
        agrees("/a", &guard, format!("/{path}").as_bytes());
    }
}

#[test]
fn no_disguise_of_the_event_path_gets_past() {
    // Each disguise is something that the loosest reading undoes.
    let disguises = prop::collection::vec((any::<prop::sample::Index>(), 0u8..12), 0..12);
    let strategy = (select(&EVENT_PATHS[..]), disguises);
    run(cases() / 2, strategy, |(event_path, disguises)| {
        let mut path = event_path.as_bytes().to_vec();
        // Readings decode a byte three times at most, so none may be encoded more often.
        let mut encoded = 0;
        for (place, disguise) in disguises {
            let place = place.index(path.len());
            let byte = path[place];
            let slash = byte == b'/';
            let put = |path: &mut Vec<u8>, text: &[u8]| {
                path.splice(place..place, text.iter().copied());
            };
            match disguise {
                0 if byte.is_ascii_lowercase() && encoded == 0 => path[place] = byte - 32,
                1..=3 if encoded < 3 => {
                    encoded += 1;
                    let text = format!("%{byte:02x}");
                    path.splice(place..=place, text.bytes());
                }
                4 if slash => put(&mut path, b"/"),
                5 if slash => put(&mut path, b"/."),
                6 if slash => put(&mut path, b"/x/.."),
                7 if slash && place > 0 => put(&mut path, b";p=%41"),
                8 if slash => path[place] = b'\\',
                9 if encoded == 0 => put(&mut path, b"\x01"),
                10 if encoded == 0 => put(&mut path, b" "),
                11 => path.extend_from_slice(b"#?/x"),
                _ => {}
            }
        }
        let shown = String::from_utf8_lossy(&path).into_owned();
        assert_eq!(guard(event_path).read(&path), Reading::Event, "{shown}");
    });
}
