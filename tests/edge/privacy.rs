//! `[privacy]` on the running binary: what is kept of referers and addresses.

use crate::delivery::RUNTIME;
use crate::h2;
use crate::harness::{Edge, Setup, wait_for};
use serde_json::{Value, json};

/// The contexts of one event for each set of header lines, with these lines of `[privacy]` and an
/// edge that trusts us.
fn contexts(privacy: &str, lines: &[&str]) -> Vec<Value> {
    let trusted = Setup::default().edge("trusted_proxies = [\"127.0.0.1\"]");
    contexts_of(&trusted.sections(&format!("[privacy]\n{privacy}")), lines)
}

fn contexts_of(setup: &Setup, lines: &[&str]) -> Vec<Value> {
    let mut all = Vec::new();
    for plain in [true, false] {
        let edge = setup.clone().edge(&format!("answer_plain = {plain}")).start();
        let mut connection = edge.connect();
        for lines in lines {
            let response = connection.get("/v1/event/?_a=62515&_n=a", &format!("{lines}\r\n"));
            assert_eq!(response.verdict(), "accepted");
        }
        edge.wait_delivered("file");
        let events = Edge::events_in_files(edge.dir());
        all.push(events.into_iter().map(|mut event| event["context"].take()).collect::<Vec<_>>());
    }
    assert_eq!(all[0], all[1], "both ways keep the same");
    all.remove(0)
}

#[test]
fn a_referer_is_kept_without_what_identifies_its_reader() {
    let reset = "Referer: https://ann:pw@shop.example:8443/reset?email=a@b.example&access_token=x";
    let app = "Referer: android-app://com.google.android.gm/";
    let check = |section: &str, expect: [Value; 3]| {
        let found = contexts(section, &[reset, app, "Referer: /reset?token=x"]);
        let found: Vec<Value> = found.iter().map(|context| context["referer"].clone()).collect();
        assert_eq!(found, expect, "{section}");
    };
    let app = "android-app://com.google.android.gm";
    check("", [json!("https://shop.example:8443"), json!(app), Value::Null]);
    check(
        "referer = \"full\"",
        [json!("https://shop.example:8443/reset"), json!(app), json!("/reset")],
    );
    check(
        "referer = \"full\"\nreferer_query = true",
        [
            json!("https://shop.example:8443/reset?email=a@b.example&access_token=x"),
            json!(app),
            json!("/reset?token=x"),
        ],
    );
    check("referer = \"none\"", [Value::Null, Value::Null, Value::Null]);
}

#[test]
fn of_a_referer_that_is_no_page_nothing_personal_is_kept() {
    let lines = [
        "mailto:ann@shop.example",
        "MailTo:ann%40shop.example?subject=reset",
        "tel:+491701234567",
        "tel://+491701234567/",
        "data:text/html,ann",
        "javascript:ann()",
        "about:ann",
        "file:///home/ann/page.html",
        "urn:ann",
        "im://ann@shop.example/reset",
        "im://ann%40shop.example/reset",
        "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc/page",
        "Ann Smith",
        "ann%40shop.example",
        "https://ann%40shop.example/reset",
    ]
    .map(|referer| format!("Referer: {referer}"));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for section in ["", "referer = \"full\"", "referer = \"full\"\nreferer_query = true"] {
        for (context, line) in contexts(section, &lines).iter().zip(&lines) {
            assert_eq!(context["referer"], Value::Null, "{section:?}: {line}");
        }
    }
}

#[test]
fn a_truncated_address_has_no_whole_ipv4_address_in_it() {
    let addresses = [
        ("203.0.113.7", "203.0.113.0"),
        ("2001:db8:1:2::7", "2001:db8:1::"),
        ("::ffff:203.0.113.7", "203.0.113.0"),
        ("2002:cb00:7107::1", "2002:cb00:7100::"),
        ("64:ff9b::203.0.113.7", "64:ff9b::cb00:7100"),
        ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "2001:0:4136::"),
    ];
    let lines = addresses.map(|(address, _)| format!("X-Forwarded-For: {address}"));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let found = contexts("ip = \"truncated\"", &lines);
    assert_eq!(found.len(), addresses.len());
    for (context, (address, expect)) in found.iter().zip(addresses) {
        assert_eq!(context["ip"], expect, "{address}");
    }
}

#[test]
fn the_visitors_cookie_is_kept_where_it_is_named_and_not_refused() {
    let setup = Setup::default().sections("[events]\nutk_cookie = \"hubspotutk\"");
    let long = format!("Cookie: hubspotutk={}", "f".repeat(256));
    let cookies = [
        ("Cookie: a=b; hubspotutk=1f; c=d", json!({ "ip": "127.0.0.1", "utk": "1f" })),
        ("Cookie: a=b\r\nCookie: hubspotutk=2f", json!({ "ip": "127.0.0.1", "utk": "2f" })),
        ("Cookie: xhubspotutk=1f; hubspotutk2=2", json!({ "ip": "127.0.0.1" })),
        ("Cookie: hubspotutk=", json!({ "ip": "127.0.0.1" })),
        (long.as_str(), json!({ "ip": "127.0.0.1" })),
        ("Cookie: hubspotutk=1f; __hs_do_not_track=yes", json!({ "ip": "127.0.0.1" })),
        (
            "Cookie: hubspotutk=1f; __hs_do_not_track=no\r\nCookie: __hs_do_not_track=yes",
            json!({ "ip": "127.0.0.1" }),
        ),
        ("Cookie: hubspotutk=1f\r\nSec-GPC: 1", json!({ "ip": "127.0.0.1", "gpc": true })),
    ];
    let found = contexts_of(&setup, &cookies.each_ref().map(|(lines, _)| *lines));
    assert_eq!(found, cookies.map(|(_, expect)| expect));
    let nothing_named = contexts("", &["Cookie: hubspotutk=1f"]);
    assert_eq!(nothing_named, [json!({ "ip": "127.0.0.1" })]);
}

#[test]
fn any_line_that_asks_for_privacy_counts_in_each_version_of_http() {
    let cases = [
        (&["0", "1"][..], 403),
        (&["1", "0"], 403),
        (&["1, 1"], 403),
        (&["0,1"], 403),
        (&["0", "11"], 200),
    ];
    for plain in [true, false] {
        let setup = Setup::default().sections("[privacy]\ngpc = \"reject\"");
        let (edge, address) = h2::start_with(setup.edge(&format!("answer_plain = {plain}")));
        for (values, status) in cases {
            let lines: String = values.iter().map(|v| format!("Sec-GPC: {v}\r\n")).collect();
            let got = edge.connect().get("/v1/event/?_a=62515&_n=a", &lines).status;
            assert_eq!(got, status, "{values:?}");
            let mut request = http::Request::get("https://edge.test/v1/event/?_a=62515&_n=a");
            for value in values {
                request = request.header("sec-gpc", *value);
            }
            let answer = RUNTIME.block_on(async {
                let mut client = h2::connect(address).await;
                h2::read(client.ask(request, None).await).await.unwrap()
            });
            assert_eq!(answer.status, status, "{values:?}");
        }
    }
}

#[test]
fn the_headers_of_trusted_proxies_are_kept_where_they_are_named() {
    let names = "[events]\ncontext_headers = [\"X-Region\", \"CF-IPCountry\"]";
    let lines = "cf-ipcountry: DE\r\nX-REGION: \"eu\"\r\nX-Other: 1\r\nX-Region: us";
    let trusted = Setup::default().sections(names).edge("trusted_proxies = [\"127.0.0.1\"]");
    let headers = json!({ "CF-IPCountry": "DE", "X-Region": "\"eu\"" });
    assert_eq!(
        contexts_of(&trusted, &[lines, "X-Region: "]),
        [json!({ "ip": "127.0.0.1", "headers": headers }), json!({ "ip": "127.0.0.1" }),]
    );
    let other = Setup::default().sections(names);
    assert_eq!(contexts_of(&other, &[lines]), [json!({ "ip": "127.0.0.1" })]);

    let both = format!("{names}\nutk_cookie = \"u\"\n[privacy]\ngpc = \"anonymize\"");
    let anonymous = Setup::default().sections(&both).edge("trusted_proxies = [\"127.0.0.1\"]");
    let lines = format!("Sec-GPC: 1\r\nCookie: u=1\r\n{lines}");
    assert_eq!(contexts_of(&anonymous, &[&lines]), [json!({ "gpc": true })]);
}

#[test]
fn an_access_log_has_of_a_portals_visitor_what_its_rule_leaves_in_every_line() {
    let list = "portals = [7]\n[[portal]]\nid = 8\nevents = [\"a\"]\nprivacy = { ip = \"none\" }\n";
    for plain in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = format!("[access_log]\npath = \"{}\"", path.display());
        let setup = Setup::default().portals(list).sections(&log);
        let edge = setup.edge(&format!("answer_plain = {plain}")).start();
        let queries = ["_a=8&_n=a", "_a=8&_n=b", "_a=8&_n=a&email=x", "_a=8&_n=a&_m=x"];
        for query in queries {
            edge.event(query);
        }
        edge.event("_a=7&_n=a&email=x");
        let lines = || std::fs::read_to_string(&path).unwrap_or_default();
        wait_for("the lines", || lines().lines().count() == queries.len() + 1);
        for line in lines().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["client"].is_null(), line["portal"] == 8, "{line}");
        }
    }
}

#[test]
fn the_rule_of_each_portal_that_a_request_names_holds_also_where_it_is_not_judged() {
    let list = "portals = [7]\n[[portal]]\nid = 8\nprivacy = { ip = \"none\" }\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = format!("[access_log]\npath = \"{}\"", path.display());
    let setup = Setup::default().portals(list).sections(&log);
    let edge = setup.sections("[events]\nmethods = [\"GET\", \"POST\"]").start();
    let named = |portal: u64| {
        let target = format!("/v1/event/?_a={portal}&_n=a");
        let (long, many) = ("x=1".repeat(9000), "x=1&".repeat(101));
        let form = format!("_a={portal}&_n=\u{1}");
        let body = "Host: a\r\nContent-Type: application/x-www-form-urlencoded\r\n";
        let chunks = "Host: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        [
            format!("HEAD {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("PUT {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET {target}&{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET /v1/event/?{many}_a={portal} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET /v1/event/?_a=x&_a={portal} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET /v1/event/more?_a={portal} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!(
                "POST /v1/event/ HTTP/1.1\r\n{body}Content-Length: {}\r\n\r\n{form}",
                form.len()
            ),
            format!("POST {target} HTTP/1.1\r\n{chunks}"),
        ]
    };
    for portal in [7, 8] {
        for request in named(portal) {
            let before = lines(&path).len();
            let mut connection = edge.connect();
            connection.send(request.as_bytes());
            wait_for("its line", || lines(&path).len() > before);
            let line = lines(&path).pop().unwrap();
            assert_eq!(line["client"].is_null(), portal == 8, "{request:.60} {line}");
        }
    }
}

#[test]
fn the_rule_of_a_portal_holds_where_a_stream_of_http2_is_refused() {
    let list = "portals = [7]\n[[portal]]\nid = 8\nprivacy = { ip = \"none\" }\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = format!("[access_log]\npath = \"{}\"", path.display());
    let setup = Setup::default().portals(list).sections(&log);
    let (_edge, address) = h2::start_with(setup);
    RUNTIME.block_on(async {
        let mut client = h2::connect(address).await;
        for portal in [7, 8] {
            let before = lines(&path).len();
            let uri = format!("https://edge.test/v1/event/?_a={portal}&_n=a");
            let bad = http::Request::get(uri).header("content_length", "1");
            assert_eq!(client.ask(bad, None).await.await.unwrap().status(), 400);
            wait_for("its line", || lines(&path).len() > before);
            let line = lines(&path).pop().unwrap();
            assert_eq!(line["client"].is_null(), portal == 8, "{line}");
        }
    });
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    whole.collect()
}
