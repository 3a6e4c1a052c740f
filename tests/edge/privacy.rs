//! `[privacy]` on the running binary: what is kept of referers and addresses.

use crate::harness::{Edge, Setup};
use serde_json::{Value, json};

/// The contexts of one event for each set of header lines.
fn contexts(section: &str, lines: &[&str]) -> Vec<Value> {
    let mut all = Vec::new();
    for plain in [true, false] {
        let edge = Setup::default()
            .edge(&format!("answer_plain = {plain}\ntrusted_proxies = [\"127.0.0.1\"]"))
            .sections(&format!("[privacy]\n{section}"))
            .start();
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
        [json!("https://shop.example:8443/reset"), json!(format!("{app}/")), json!("/reset")],
    );
    check(
        "referer = \"full\"\nreferer_query = true",
        [
            json!("https://shop.example:8443/reset?email=a@b.example&access_token=x"),
            json!(format!("{app}/")),
            json!("/reset?token=x"),
        ],
    );
    check("referer = \"none\"", [Value::Null, Value::Null, Value::Null]);
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
