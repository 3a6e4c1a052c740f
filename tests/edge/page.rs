//! The live page in a real browser against the running binary.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, PORTALS, Setup, wait_for};
use crate::webdriver::Browser;
use serde_json::json;
use std::sync::Arc;

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const TOKEN: &str = "sixteen bytes ok";
/// More than the number of elements that the keyboard can reach.
const TABS_MAX: usize = 40;

fn open(browser: &Browser, edge: &Edge) {
    browser.open(&format!("http://{}/", edge.admin));
}

/// Presses Tab until the element with this id has the focus.
fn tab_to(browser: &Browser, id: &str) {
    for _ in 0..TABS_MAX {
        browser.press(TAB);
        let focus = "const e = document.activeElement; \
                     return [e.id, getComputedStyle(e).outlineStyle, e.matches(':focus-visible')]";
        let focus = browser.ask(focus);
        assert_eq!((&focus[1], &focus[2]), (&json!("solid"), &json!(true)), "the focus shows");
        if focus[0] == id {
            return;
        }
    }
    panic!("{id} cannot be reached by the keyboard");
}

#[test]
fn events_are_shown_without_a_reload() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#link", "Live");
    browser.wait_text("#headline-text", "Ready.");
    browser.wait_text("#recent", "none yet");

    edge.event("_a=62515&_n=signup&email=person@company.com&color=zanzibar&_m=20.5&Bad-Name=1");
    browser.wait_text("#headline-text", "Events flow.");
    let row = browser.wait_text("#recent", "accepted");
    for part in ["62515", "signup", "p…@c….com", "revenue, 1 property"] {
        assert!(row.contains(part), "{part:?} is not in {row:?}");
    }
    edge.event("_a=56043&_n=<i>a</i>&email=zanzibar");
    let row = browser.wait_text("#recent", "invalid_email");
    assert!(row.contains("56043") && !row.contains("<i>"), "{row:?}");
    browser.wait_text("#reasons", "person@company.com");
    let ranking = browser.wait_text("#ranking", "mostly invalid_email");
    assert!(ranking.contains("1 ignored parameter"), "{ranking:?}");

    browser.click("#filter-rejected");
    wait_for("only the rejected", || !browser.text("#recent").contains("accepted"));
    browser.fill("#filter-portal", "1");
    browser.wait_text("#recent", "none of these lately");
    assert!(
        !browser.ask("return document.documentElement.innerText").to_string().contains("zanzibar")
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn an_upstream_that_stops_and_comes_back_is_shown() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("[data-upstream=collector] .state", "delivers");
    backend.script(|_| Act::Refuse(503));
    edge.event("_a=62515&_n=a");
    edge.event("_a=62515&_n=b");
    browser.wait_text("[data-upstream=collector] .state", "down");
    browser.wait_text("[data-upstream=collector]", "503");
    browser.wait_text("#headline-text", "Upstream collector has taken nothing for");
    browser.wait_text("#headline-text", "2 events wait safely on disk");
    browser.wait_text("#level", "TROUBLE");
    backend.script(|_| Act::Take);
    browser.wait_text("[data-upstream=collector] .state", "delivers");
    browser.wait_text("#headline-text", "Events flow.");
    edge.wait_delivered("collector");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_fault_is_listed_with_what_to_do_until_it_is_over() {
    let edge = Edge::start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#link", "Live");
    let is_hidden = || browser.ask("return document.getElementById('faults-card').hidden");
    assert_eq!(is_hidden(), true);
    let list = edge.dir().join("portals.toml");
    std::fs::write(&list, "portals = [").unwrap();
    let fault = browser.wait_text("#faults", "portals_unread");
    for part in ["cannot be refreshed", "portals.toml", "Look at portals.source."] {
        assert!(fault.contains(part), "{part:?} is not in {fault:?}");
    }
    std::fs::write(&list, PORTALS).unwrap();
    wait_for("the fault to go", || is_hidden() == true);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_page_explains_by_the_keyboard_alone() {
    let edge = Edge::start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#link", "Live");
    tab_to(&browser, "explain-text");
    browser.press("_a=62515&_n=buy&email=nobody");
    tab_to(&browser, "explain-go");
    browser.press(ENTER);
    let text = browser.wait_text("#explanation", "rejected: invalid_email (status 400)");
    assert!(text.contains("email = nobody") && text.contains("about email: Make email"), "{text}");
    tab_to(&browser, "filter-rejected");
    browser.press(" ");
    assert_eq!(browser.ask("return document.getElementById('filter-rejected').checked"), true);
    tab_to(&browser, "pause");
    browser.press(ENTER);
    browser.wait_text("#pause", "Go on");

    // A screen reader needs landmarks, one name for each control, and headers of each table.
    let nameless = browser.ask(
        "return [...document.querySelectorAll('input,textarea,button')].filter((e) => \
         !(e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)",
    );
    assert_eq!(nameless, json!([]));
    let tables = browser.ask(
        "return [...document.querySelectorAll('table')].every((t) => \
         t.querySelectorAll('thead th[scope=col]').length > 1) && \
         document.querySelectorAll('header, main:not([hidden])').length === 2 && \
         document.documentElement.lang === 'en'",
    );
    assert_eq!(tables, true);
    let wide = browser.ask("return document.documentElement.scrollWidth > innerWidth");
    assert_eq!(wide, false);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_page_asks_for_its_token_and_reports_a_lost_edge() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = Setup::default().sections(&format!("token = \"{TOKEN}\"")).write(dir.path());
    let edge = Edge::start_in(Arc::clone(&dir));
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#login h2", "guarded");
    assert_eq!(browser.ask("return document.activeElement.id"), "token", "one types at once");
    browser.press("a token that is wrong");
    browser.press(ENTER);
    browser.wait_text("#token-wrong", "That is not its token.");
    browser.press(TOKEN);
    browser.press(ENTER);
    browser.wait_text("#link", "Live");
    assert_eq!(browser.ask("return document.getElementById('login').hidden"), true);
    let stored =
        browser.ask("return [localStorage.length, sessionStorage.length, document.cookie]");
    assert_eq!(stored, json!([0, 1, ""]));

    let address = edge.admin.to_string();
    edge.stop();
    browser.wait_text("#headline-text", "The edge");
    browser.wait_text("#link", "Connection lost");
    browser.wait_text("#headline-advice", "What is below is from");
    let text = std::fs::read_to_string(&path).unwrap();
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"";
    std::fs::write(&path, text.replace(admin, &format!("[admin]\nlisten = \"{address}\"")))
        .unwrap();
    let _edge = Edge::start_in(dir);
    browser.wait_text("#link", "Live");
    browser.wait_text("#headline-text", "Ready.");
}

/// Names the page and its tables that are wider than the room they have.
const TOO_WIDE: &str = "return [document.documentElement, ...document.querySelectorAll('.scroll')] \
     .filter((e) => e.scrollWidth > e.clientWidth).map((e) => \
     [e.getAttribute('aria-labelledby'), e.scrollWidth, e.clientWidth])";

#[test]
fn the_longest_names_do_not_widen_the_page() {
    let name = "n".repeat(64);
    let upstream =
        format!("[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1\"");
    let edge = Setup::default().upstreams(&upstream).start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#link", "Live");
    edge.event("_a=62515&_n=a");
    edge.event("_a=999999999999999&_n=a");
    browser.wait_text("#headline-text", &name);
    browser.wait_text("#ranking", "999999999999999");
    for width in [320, 420, 640, 800, 992, 1400] {
        browser.show(width, "light");
        assert_eq!(browser.ask(TOO_WIDE), json!([]), "at {width}");
    }
}

#[test]
fn nothing_is_cut_off_at_any_width_and_tables_keep_their_roles() {
    let upstream =
        "[[upstream]]\nname = \"collector\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1\"";
    let edge = Setup::default().upstreams(upstream).start();
    let browser = Browser::start();
    open(&browser, &edge);
    browser.wait_text("#link", "Live");
    let event = "_a=62515&_n=a_rather_long_name_of_an_event&email=person@company.com&a=1&b=2";
    edge.event(event);
    std::fs::write(edge.dir().join("portals.toml"), "portals = [").unwrap();
    browser.wait_text("#faults", "portals_unread");
    browser.wait_text("#recent", "a_rather_long_name_of_an_event");
    browser.wait_text("#upstreams", "Connection refused");
    for width in [320, 420, 640, 800, 992, 1000, 1400] {
        for scheme in ["light", "dark"] {
            browser.show(width, scheme);
            assert_eq!(browser.ask(TOO_WIDE), json!([]), "at {width}, {scheme}");
            let names = browser.names_of("table");
            for name in ["Faults", "Upstreams", "Recent events"] {
                assert!(names.iter().any(|known| known == name), "{name}: {names:?} at {width}");
            }
            for (role, name) in [
                ("columnheader", "What to do"),
                ("columnheader", "Last error"),
                ("rowheader", "collector http"),
                ("button", "Pause"),
                ("checkbox", "rejected only"),
            ] {
                let names = browser.names_of(role);
                assert!(names.iter().any(|known| known == name), "{role}: {names:?} at {width}");
            }
        }
    }
    assert_eq!(browser.complaints(), [""; 0]);
}
