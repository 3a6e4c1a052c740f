//! SPEC 2: the event path never reaches the origin unjudged, however it is spelled, and no other
//! path is changed.

use crate::harness::Setup;
use crate::nginx::Nginx;

/// Spellings of the event path that some origin could understand.
const EVENT: &[&str] = &[
    "/v1/event/",
    "/v1/event",
    "//v1/event/",
    "/v1//event/",
    "/v1/event//",
    "/V1/EVENT/",
    "/v1/Event",
    "/./v1/event/",
    "/v1/./event/",
    "/v1/x/../event/",
    "/x/../v1/event/",
    "/../v1/event/",
    "/v1/event/.",
    "/v1/event/./",
    "/v1/event/x/..",
    "/%76%31/event/",
    "/v1/%65vent/",
    "/v1/ev%65nt",
    "/v1%2Fevent/",
    "/v1%2fevent%2f",
    "/%2Fv1/event/",
    "/v1/%2e/event/",
    "/v1/x/%2e%2e/event/",
    "/v1/x/.%2E/event/",
    "/%2576%2531/event/",
    "/v1%252Fevent/",
    "/v1/x/%252e%252e/event/",
    "/%25252576%25252531/../v1/event/",
    "/v1\\event\\",
    "/v1%5Cevent/",
    "/v1%255Cevent/",
    "\\v1\\event",
    "/v1;a=b/event/",
    "/v1/event;jsessionid=1",
    "/v1/event/;x",
    "/v1%3Ba/event/",
    "/v1/event%20",
    "/v1/event%00/",
    "/v1/%09event/",
    "/v1/event%0a",
    "/v1/event%3F_a=1",
    "/v1/event%23x",
    "/v1/event/%3fx",
    "http://edge.test/v1/event/",
    "http://edge.test//v1/%65vent/",
    "HTTP://other.test/V1/event",
    "http:/v1/event/",
    "v1/event/",
];

/// Below the event path, or the event path in some readings only: refused, and never passed on.
const REFUSED: &[&str] = &[
    "/v1/event/x",
    "/v1/event/x/",
    "/v1/event/%2e%2e%2fevent%2fx",
    "/v1/event//x",
    "/V1/event/x?_a=1",
    "/v1/event/%2Fx",
    "http://edge.test/v1/event/x",
    "/v1/event/..",
    "/v1/event/../other",
    "/v1/event/%2e%2e/other",
    "/v1/event/%2e%2e%2f%2e",
    "/v1/event/..%2fx",
    "/v1/event//../",
    "/v1/event/..;x/../",
    "/v1/event/..\\/../",
    "/v1/event/%252e%252e/../",
    "/v1/event/.%20./../",
    "/x%3f/../v1/event/",
    "/x/a%2fb/%2e%2e/../v1/event/",
    "//h/v1/event/",
    "/\\h/v1/event/",
    "http://edge.test//h/v1/event/",
    "http://edge.test/x%23/../v1/event/",
];

/// Near, but no origin could read these as the event path.
const OTHER: &[&str] = &[
    "/",
    "/v1/events/",
    "/v1/event2",
    "/v1/eventx/",
    "/v2/event/",
    "/x/v1/event/",
    "/a/b/../c",
    "/js/v1;x/app.js",
    "/files/a%20b//c%2fd.png",
    "/v1-event/",
    "/v1/even",
    "/v1/ev%2565ntx",
    "/search?q=/v1/event/",
    "/redirect?to=%2Fv1%2Fevent%2F",
];

#[test]
fn the_event_path_in_any_spelling_is_judged_and_never_reaches_the_origin() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    for path in EVENT {
        let question = if path.contains("%3F") || path.contains("%3f") { "" } else { "?" };
        let target = format!("{path}{question}_a=1&_n=a");
        let response = edge.get(&target);
        let judged = ["portal_not_allowed", "missing_portal"].contains(&response.verdict());
        // A request line that is no HTTP is refused before it is read.
        assert!(judged || response.status == 400, "{target}: {response:?}");
    }
    for path in REFUSED {
        let response = edge.get(path);
        assert_eq!((response.status, response.verdict()), (404, "unknown_path"), "{path}");
    }
    assert_eq!(nginx.targets(), Vec::<String>::new());
    assert!(EVENT.len() >= 40);
}

#[test]
fn an_accepted_event_may_be_spelled_as_it_likes() {
    let edge = Setup::default().start();
    let spelled: Vec<_> = EVENT.iter().filter(|path| path.starts_with('/')).collect();
    let mut accepted = 0;
    for path in spelled {
        if path.contains("%3") || path.contains("%23") {
            continue; // What follows belongs to the path, so there is no query left to accept.
        }
        let response = edge.get(&format!("{path}?_a=62515&_n=a"));
        assert_eq!((response.status, response.verdict()), (200, "accepted"), "{path}");
        accepted += 1;
    }
    assert_eq!(edge.wait_delivered("file")["accepted"], accepted);
}

#[test]
fn everything_else_reaches_the_origin_as_it_was_written() {
    let nginx = Nginx::start();
    let edge = Setup::default().origin(nginx.address).start();
    let mut expect = Vec::new();
    for target in OTHER {
        let response = edge.get(target);
        assert_eq!(response.verdict(), "none", "{target}");
        expect.push((*target).to_owned());
    }
    assert_eq!(nginx.targets(), expect);
}
