//! The path guard: the spellings that it exists for, and the naive reading of SPEC 2 beside it.
//!
//! `PIXELGATE_CASES` says how many generated paths; 50,000 unless set.

use crate::cases::{cases, run};
use crate::naive;
use pixelgate::internals::request::path::{Guard, PathError, Reading};
use proptest::prelude::*;
use proptest::sample::select;

const EVENT_PATHS: [&str; 4] = ["/v1/event/", "/pixel/", "/a.b/c_d/e-f.gif", "/v1/event"];

fn guard(event_path: &str) -> Guard {
    Guard::new(event_path).expect("a canonical path")
}

fn label(reading: Reading) -> &'static str {
    match reading {
        Reading::Event => "event",
        Reading::Below => "below",
        Reading::Other => "other",
    }
}

fn check(expected: Reading, paths: &[&str]) {
    let guard = guard("/v1/event/");
    for path in paths {
        assert_eq!(guard.read(path.as_bytes()), expected, "{path:?}");
        assert_eq!(naive::read_path("/v1/event", path.as_bytes()), label(expected), "{path:?}");
    }
}

/// What a lenient server may take for the event path.
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
fn what_goes_on_below_the_event_path_is_below_it() {
    check(
        Reading::Below,
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
            "/v1/event/..",
            "/v1/event/../",
            "/v1/event/%2e%2e/x",
            "/v1/event/../events",
            "/v1/event/x/../../y",
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
    assert_eq!(pixel.read(b"/pixel/x"), Reading::Below);
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
fn the_length_of_a_path_changes_nothing() {
    let guard = guard("/v1/event/");
    for length in [1, 100, 255, 256, 257, 1000, 60_000] {
        let long = "x/../".repeat(length);
        assert_eq!(guard.read(format!("/{long}v1/event/").as_bytes()), Reading::Event);
        let slashes = "/".repeat(length);
        assert_eq!(guard.read(format!("{slashes}/v1/event/").as_bytes()), Reading::Event);
        let encoded = "%25".repeat(length);
        assert_eq!(guard.read(format!("/v1/event/{encoded}").as_bytes()), Reading::Below);
    }
}

#[test]
fn the_guard_and_the_naive_reading_agree() {
    const PARTS: [&str; 44] = [
        "/v1",
        "/event",
        "/v1/event",
        "/v1/event/",
        "/pixel",
        "v1",
        "event",
        "/",
        "//",
        "/.",
        "/..",
        "/../",
        "..",
        ".",
        "%2f",
        "%2F",
        "%252f",
        "%25252f",
        "%2525252f",
        "%2e",
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
        "x",
        "ü",
        "%FF",
    ];
    let parts = prop::collection::vec(select(&PARTS[..]), 0..9)
        .prop_map(|parts| parts.concat().into_bytes());
    let noise = prop::collection::vec(
        prop_oneof![4 => select(&b"/v1event%25fFeE.;\\?# 0"[..]), 1 => any::<u8>()],
        0..40,
    );
    let guards = EVENT_PATHS.map(|path| (path.trim_end_matches('/'), guard(path)));
    run(cases() / 2, prop_oneof![4 => parts, 1 => noise], |path| {
        for (event_path, guard) in &guards {
            let naive = naive::read_path(event_path, &path);
            assert_eq!(label(guard.read(&path)), naive, "{}", String::from_utf8_lossy(&path));
        }
    });
}

#[test]
fn no_disguise_of_the_event_path_gets_past() {
    // Each disguise is something that the loosest reading undoes.
    let disguises = prop::collection::vec((any::<prop::sample::Index>(), 0u8..12), 0..12);
    let strategy = (select(&EVENT_PATHS[..]), disguises);
    run(cases() / 2, strategy, |(event_path, disguises)| {
        let mut path = event_path.as_bytes().to_vec();
        // Decoding happens thrice at most, so no byte may be encoded oftener.
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
