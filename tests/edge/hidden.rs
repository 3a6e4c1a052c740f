//! What no reader sees is in no context and reaches no terminal.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command};
use pixelgate::internals::event::is_hidden;
use serde_json::{Value, json};

/// The standard output of a command, with the exit code.
fn output(edge: &Edge, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(&edge.dir().join("edge.toml"), arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn assert_visible(text: &str) {
    let hidden = text.chars().find(|c| *c != '\n' && is_hidden(*c));
    assert_eq!(hidden, None, "{text:?}");
}

#[test]
fn hidden_characters_are_no_part_of_a_context() {
    for plain in [true, false] {
        let edge = Setup::default()
            .edge(&format!("answer_plain = {plain}"))
            .sections("[privacy]\nreferer = \"full\"")
            .start();
        for (agent, referer) in [
            ("a\u{9b}31mb\u{202e}c\u{feff}", "https://a.test/\u{200b}x"),
            ("a31mbc", "https://a.test/x"),
        ] {
            let lines = format!("User-Agent: {agent}\r\nReferer: {referer}\r\n");
            let response = edge.connect().get("/v1/event/?_a=62515&_n=a", &lines);
            assert_eq!(response.verdict(), "accepted");
        }
        edge.wait_delivered("file");
        let events = Edge::events_in_files(edge.dir());
        let expect = json!({
            "ip": "127.0.0.1", "user_agent": "a31mbc", "referer": "https://a.test/x"
        });
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(|event| event["context"] == expect), "{events:?}");
    }
}

#[test]
fn commands_escape_what_a_terminal_would_not_show() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(400)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    // A right-to-left override, a zero-width space, a soft hyphen and a tag of plane 14.
    let query = "_a=62515&_n=a%E2%80%AEb&id=%E2%80%8B7&note=%C2%AD%F3%A0%81%81%C3%A9";
    assert_eq!(edge.event(query).verdict(), "accepted");
    edge.wait_delivered("collector");
    let is_event = |event: &Value| {
        event["event"] == "a\u{202e}b"
            && event["external_id"] == "\u{200b}7"
            && event["properties"]["note"] == "\u{ad}\u{e0041}\u{e9}"
    };

    let (code, dump) = output(&edge, &["spool", "dump"]);
    let (letters_code, letters) = output(&edge, &["dead", "list"]);
    let (json_code, explained) = output(&edge, &["explain", "--json", query]);
    let (text_code, text) = output(&edge, &["explain", query]);
    assert_eq!([code, letters_code, json_code, text_code], [Some(0); 4]);
    for shown in [&dump, &letters, &explained, &text] {
        assert_visible(shown);
    }
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert!(is_event(&value(&letters)["event"]), "{letters}");
    assert!(is_event(&value(&explained)["event"]), "{explained}");
    // The event may have left the spool by now.
    assert!(dump.lines().all(|line| is_event(&value(line))), "{dump}");
    assert!(text.contains("a\\u{202e}b") && text.contains("\u{e9}"), "{text}");

    let refused = "_a=62515&_n=a&email=a%E2%80%8B@b.example&%E2%80%AE=1";
    let (code, text) = output(&edge, &["explain", refused]);
    assert!(code == Some(1) && text.contains("an invisible character"), "{text}");
    assert_visible(&text);
}
