//! SPEC 8, `pixelgate send`: events from files reach an upstream once, under the ids they have.

use crate::backend::{Act, Backend, Request};
use crate::crm::Hubspot;
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command, kill, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A folder with a configuration whose one upstream is this backend.
struct Place {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Place {
    fn new(upstreams: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let config = Setup::default().upstreams(upstreams).write(dir.path());
        Place { dir, config }
    }

    /// A collector that takes batches of so many events.
    fn of(backend: &Backend, events_max: usize) -> Place {
        Place::new(&format!("{}events_max = {events_max}\n", http_upstream(backend, "")))
    }

    /// Writes a file of these lines.
    fn file(&self, name: &str, lines: &[String]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        path
    }

    fn command(&self, options: &[&str], files: &[&Path]) -> Command {
        let upstream = if options.contains(&"--upstream") { &[][..] } else { &UPSTREAM };
        let mut command = command(&self.config, &[&["send"], upstream, options].concat());
        command.args(files);
        command
    }

    /// Runs the command: exit code, output, and messages without its progress.
    fn send(&self, options: &[&str], files: &[&Path]) -> (i32, String, String) {
        let output = self.command(options, files).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let verb = if options.contains(&"--dry-run") { "counting for" } else { "sending to" };
        let progress = format!("{verb} collector: ");
        let is_progress = |line: &&str| line.starts_with(&progress);
        let told = told.split_inclusive('\n').filter(|line| !is_progress(line)).collect();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), told)
    }
}

const UPSTREAM: [&str; 2] = ["--upstream", "collector"];

/// The wire form of the nth event: of two portals, received at the nth second of a day.
fn line(n: usize) -> String {
    let (portal, name) = ([62515, 56043][n % 2], if n.is_multiple_of(5) { "look" } else { "buy" });
    let event = json!({
        "id": uuid::Uuid::now_v7().to_string(),
        "received_at": format!("2026-11-23T{:02}:{:02}:{:02}.000Z", n / 3600, n / 60 % 60, n % 60),
        "portal": portal, "event": name,
        "external_id": n.to_string(), "revenue": 20.5, "properties": { "plan": "pro" },
        "context": { "ip": "203.0.113.7", "user_agent": "Tester/1", "gpc": true }
    });
    event.to_string()
}

fn lines(count: usize) -> Vec<String> {
    (0..count).map(line).collect()
}

/// The ids of the events that arrived, in order.
fn arrived(backend: &Backend) -> Vec<usize> {
    let id = |event: &Value| event["external_id"].as_str().unwrap().parse().unwrap();
    backend.events().iter().map(id).collect()
}

fn said(
    delivered: usize,
    refused: usize,
    undelivered: usize,
    before: usize,
    other: usize,
) -> String {
    format!(
        "collector: {delivered} delivered, {refused} refused, {undelivered} not delivered, \
         {before} sent before, {other} not chosen, 0 of other upstreams\n"
    )
}

#[test]
fn a_week_in_files_arrives_as_it_was_accepted() {
    let edge = Setup::default().start();
    for n in 0..20 {
        let query =
            format!("_a=62515&_n=buy&id={n}&_m=20.50&email=p{n}@company.com&color=%22red%22");
        let lines = "User-Agent: Tester/1\r\nReferer: https://shop.test/x\r\nSec-GPC: 1\r\n";
        let response = edge.connect().get(&format!("/v1/event/?{query}"), lines);
        assert_eq!(response.verdict(), "accepted");
    }
    edge.wait_delivered("file");
    let dir = edge.stop();
    let collected = Edge::events_in_files(dir.path());
    let files: Vec<PathBuf> = std::fs::read_dir(dir.path().join("events"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "ndjson"))
        .collect();
    assert_eq!(collected.len(), 20);

    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 7);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    assert_eq!(place.send(&[], &files), (0, said(20, 0, 0, 0, 0), String::new()));
    let by_id = |mut events: Vec<Value>| {
        events.sort_by_key(|event| event["id"].as_str().unwrap().to_owned());
        events
    };
    assert_eq!(by_id(backend.events()), by_id(collected));
}

#[test]
fn what_was_acknowledged_before_a_kill_is_not_sent_again() {
    // The backend takes three batches, and never answers the fourth.
    let backend = RUNTIME.block_on(Backend::playing([Act::Take, Act::Take, Act::Take, Act::Hang]));
    let place = Place::of(&backend, 30);
    let file = place.file("week.ndjson", &lines(200));
    let mut sending = place.command(&[], &[&file]).spawn().unwrap();
    wait_for("the fourth batch", || backend.seen().len() == 4);
    sending.kill().unwrap();
    sending.wait().unwrap();
    assert_eq!(arrived(&backend), (0..90).collect::<Vec<_>>());

    backend.script(|_| Act::Take);
    let renamed = place.dir.path().join("renamed.ndjson");
    std::fs::rename(&file, &renamed).unwrap();
    let (code, survey, _) = place.send(&["--dry-run"], &[&renamed]);
    let expect =
        "collector: 110 would be sent, 90 sent before, 0 not chosen, 0 of other upstreams\n";
    assert_eq!((code, survey.as_str()), (0, expect));
    assert_eq!(place.send(&[], &[&renamed]), (0, said(110, 0, 0, 90, 0), String::new()));
    assert_eq!(arrived(&backend), (0..200).collect::<Vec<_>>());

    // The file has grown since.
    let mut more = std::fs::OpenOptions::new().append(true).open(&renamed).unwrap();
    writeln!(more, "{}", line(200)).unwrap();
    assert_eq!(place.send(&[], &[&renamed]).1, said(1, 0, 0, 200, 0));
    assert_eq!(arrived(&backend), (0..201).collect::<Vec<_>>());
}

#[test]
fn a_legacy_backend_gets_no_event_twice_that_it_answered() {
    let backend = RUNTIME.block_on(Backend::playing([Act::Take, Act::Take, Act::Hang]));
    let url = backend.url("/v1/event/");
    let upstream =
        format!("[[upstream]]\nname = \"collector\"\nkind = \"legacy\"\nurl = \"{url}\"\n");
    let place = Place::new(&upstream);
    let file = place.file("week.ndjson", &lines(6));
    let mut sending = place.command(&[], &[&file]).spawn().unwrap();
    wait_for("the third event", || backend.seen().len() == 3);
    sending.kill().unwrap();
    sending.wait().unwrap();
    backend.script(|_| Act::Take);
    assert_eq!(place.send(&[], &[&file]).1, said(4, 0, 0, 2, 0));
    let targets: BTreeSet<String> = backend.taken().into_iter().map(|r| r.target).collect();
    assert_eq!((targets.len(), backend.taken().len()), (6, 6));
}

#[test]
fn a_signal_ends_it_and_the_next_command_sends_the_rest() {
    for signal in [Signal::INT, Signal::TERM] {
        let backend = RUNTIME.block_on(Backend::playing([Act::Take, Act::Refuse(503)]));
        // The signal ends a long wait.
        let wait = vec![("Retry-After", "3600".to_owned())];
        backend.script({
            let mut n = 0;
            move |_| {
                n += 1;
                if n == 1 { Act::Take } else { Act::RefuseWith(503, wait.clone()) }
            }
        });
        let place = Place::of(&backend, 10);
        let file = place.file("week.ndjson", &lines(30));
        let sending = place.command(&[], &[&file]).spawn().unwrap();
        wait_for("the second batch", || backend.seen().len() == 2);
        kill(&sending, signal);
        let output = sending.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("collector: interrupted; the same command sends the rest"), "{told}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), said(10, 0, 10, 0, 0));
        backend.script(|_| Act::Take);
        assert_eq!(place.send(&[], &[&file]), (0, said(20, 0, 0, 10, 0), String::new()));
        assert_eq!(arrived(&backend), (0..30).collect::<Vec<_>>());
    }
}

#[test]
fn the_options_choose_events_and_others_are_sent_by_a_later_command() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let file = place.file("week.ndjson", &lines(100));
    let send = |options: &[&str]| {
        let before = arrived(&backend).len();
        let (code, out, told) = place.send(options, &[&file]);
        assert_eq!((code, told.as_str()), (0, ""), "{options:?}");
        (out, arrived(&backend).split_off(before))
    };
    let (out, ids) = send(&["--portal", "62515", "--event", "look"]);
    assert_eq!((out, ids), (said(10, 0, 0, 0, 90), (0..100).step_by(10).collect()));
    let time = ["--since", "2026-11-23T00:00:20Z", "--until", "2026-11-23T00:00:31Z"];
    let (out, ids) = send(&time);
    assert_eq!((out, ids), (said(9, 0, 0, 2, 89), vec![21, 22, 23, 24, 25, 26, 27, 28, 29]));
    let (out, ids) = send(&[]);
    assert_eq!((out, ids.len()), (said(81, 0, 0, 19, 0), 81));
    assert_eq!(send(&[]).0, said(0, 0, 0, 100, 0));
    let all: BTreeSet<usize> = arrived(&backend).into_iter().collect();
    assert_eq!((all.len(), arrived(&backend).len()), (100, 100));

    let (code, _, told) = place.send(&["--upstream", "other"], &[&file]);
    assert!(code == 2 && told.contains("--upstream: \"other\" is not configured"), "{told}");
    assert_eq!(place.send(&["--since", "yesterday"], &[&file]).0, 2);
    assert_eq!(place.send(&[], &[]).0, 2, "no file is named");
}

#[test]
fn a_line_that_is_no_event_is_named_without_its_content_and_stops_nothing() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let mut all = lines(6);
    all[0] = "{\"secret\": \"person@company.com\"}".to_owned();
    all[2].truncate(40);
    all[4] = all[4].replace("62515", "0");
    all.push(String::new());
    all.push("x".repeat(3 << 20));
    let file = place.file("week.ndjson", &all);
    let missing = place.dir.path().join("missing.ndjson");
    let (code, out, told) = place.send(&[], &[&missing, &file]);
    assert_eq!((code, out), (1, said(3, 0, 0, 0, 0)));
    assert_eq!(arrived(&backend), [1, 3, 5]);
    for (number, why) in [
        (1, "id is missing"),
        (3, "it is not the JSON of an event"),
        (5, "portal is no portal's number"),
        (8, "it is longer than an event can be"),
    ] {
        let place = format!("{}:{number}: {why}; the line is left out", file.display());
        assert!(told.contains(&place), "{told}");
    }
    assert!(told.contains("4 lines are not events"), "{told}");
    assert!(told.contains("missing.ndjson: cannot be read"), "{told}");
    assert!(!told.contains("person@") && !told.contains("secret"), "{told}");
    let (code, _, told) = place.send(&["--dry-run"], &[&file]);
    assert!(code == 1 && told.contains(":8: it is longer than an event"), "{told}");
}

#[test]
fn a_line_that_no_edge_wrote_is_named_by_its_field_and_a_byte_order_mark_is_no_fault() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let mut all = lines(4);
    all[0].insert(0, '\u{feff}');
    all[1] = all[1].replace("\"event\"", "\"email\":\"secret\",\"event\"");
    all[2] = all[2].replace("\"plan\"", "\"Bad Name&x=1\"");
    all[3] = all[3].replace("Tester/1", "Tester\\u0007");
    let file = place.file("week.ndjson", &all);
    let (code, out, told) = place.send(&[], &[&file]);
    assert_eq!((code, out), (1, said(1, 0, 0, 0, 0)), "{told}");
    for (number, why) in [
        (2, "email is no address"),
        (3, "properties has a name that is no property's"),
        (4, "context.user_agent is not as an edge writes it"),
    ] {
        assert!(told.contains(&format!(":{number}: {why}; the line is left out")), "{told}");
    }
    assert!(!told.contains("secret") && !told.contains("Bad Name"), "{told}");
}

#[test]
fn without_room_for_the_progress_nothing_is_sent() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 10);
    let file = place.file("week.ndjson", &lines(30));
    // A limit of 0 bytes for a file acts like a full disk; `trap` ignores the signal that it sends.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
    let command = place.command(&[], &[&file]);
    shell.arg(command.get_program()).args(command.get_args());
    let output = shell.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("its events are not sent, because their progress"), "{told}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), said(0, 0, 10, 0, 0));
    assert!(backend.seen().is_empty());
    assert_eq!(place.send(&[], &[&file]), (0, said(30, 0, 0, 0, 0), String::new()));
}

#[test]
fn a_portal_without_a_token_holds_no_other_portals_events_back() {
    let hubspot = RUNTIME.block_on(Hubspot::start());
    let place = Place::new(&hubspot.upstream("[upstream.batch]\nevents_max = 4\n"));
    let event = |n: usize| {
        let mut event: Value = serde_json::from_str(&line(n)).unwrap();
        event["portal"] = json!([1, 9][n % 2]);
        event["email"] = json!(format!("p{n}@company.com"));
        event.to_string()
    };
    let file = place.file("week.ndjson", &(0..20).map(event).collect::<Vec<_>>());
    for (delivered, before) in [(10, 0), (0, 10)] {
        let (code, out, told) = place.send(&["--upstream", "crm"], &[&file]);
        let expect = said(delivered, 0, 10, before, 0).replace("collector", "crm");
        assert_eq!((code, out), (1, expect), "{told}");
        let why = "crm: there is no token for portal 9; these events are left out";
        assert!(told.contains(why), "{told}");
        assert_eq!(hubspot.state().occurrences.len(), 10);
    }
}

#[test]
fn a_negative_pace_is_refused_for_what_it_is() {
    let place = Place::new("[[upstream]]\nname = \"collector\"\nkind = \"file\"\n");
    let file = place.file("week.ndjson", &lines(1));
    let (code, _, told) = place.send(&["--per-second", "-1"], &[&file]);
    assert!(code == 2 && told.contains("invalid value '-1'"), "{told}");
}

#[test]
fn refused_events_become_dead_letters_and_are_not_sent_again() {
    let is_poison = |event: &Value| event["event"] == "look";
    let judge = move |request: &Request| match request.events().iter().any(is_poison) {
        true => Act::Refuse(422),
        false => Act::Take,
    };
    let backend = RUNTIME.block_on(Backend::start(move |_| Act::Judge(Arc::new(judge))));
    let place = Place::of(&backend, 50);
    let file = place.file("week.ndjson", &lines(100));
    assert_eq!(place.send(&[], &[&file]), (0, said(80, 20, 0, 0, 0), String::new()));
    assert_eq!(place.send(&[], &[&file]).1, said(0, 0, 0, 100, 0));
    let dead = |what: &str| {
        let output = command(&place.config, &["dead", what]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let letters: Vec<Value> =
        dead("list").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(letters.len() == 20 && letters.iter().all(|letter| letter["status"] == 422));
    backend.script(|_| Act::Take);
    assert_eq!(dead("replay"), "collector: 20 delivered, 0 refused again, 0 not delivered\n");
    let all: BTreeSet<usize> = arrived(&backend).into_iter().collect();
    assert_eq!((all.len(), arrived(&backend).len()), (100, 100));
}

#[test]
fn events_that_always_fail_hold_back_no_other_and_are_tried_again() {
    let fails = |event: &Value| event["external_id"].as_str().unwrap().ends_with("07");
    let judge = move |request: &Request| match request.events().iter().any(fails) {
        true => Act::Refuse(500),
        false => Act::Take,
    };
    let backend = RUNTIME.block_on(Backend::start(move |_| Act::Judge(Arc::new(judge))));
    let place = Place::of(&backend, 100);
    let file = place.file("week.ndjson", &lines(300));
    let (code, out, told) = place.send(&[], &[&file]);
    assert_eq!((code, out), (1, said(298, 0, 2, 0, 0)), "{told}");
    assert!(told.contains("answered 500; these events are left out"), "{told}");
    backend.script(|_| Act::Take);
    assert_eq!(place.send(&[], &[&file]), (0, said(2, 0, 0, 298, 0), String::new()));
    let all: BTreeSet<usize> = arrived(&backend).into_iter().collect();
    assert_eq!((all.len(), arrived(&backend).len()), (300, 300));
}

#[test]
fn the_portal_list_says_which_portals_events_are_not_sent_to_an_upstream() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let file = place.file("week.ndjson", &lines(10));
    let list = place.dir.path().join("portals.toml");
    let tables =
        format!("{}[[upstream]]\nname = \"eu\"\nkind = \"file\"\n", http_upstream(&backend, ""));
    Setup::default().upstreams(&tables).write(place.dir.path());
    let routed = "portals = [62515]\n[[portal]]\nid = 56043\nupstreams = [\"eu\"]\n";
    std::fs::write(&list, routed).unwrap();
    let (code, out, _) = place.send(&["--dry-run"], &[&file]);
    let expect = "collector: 5 would be sent, 0 sent before, 0 not chosen, 5 of other upstreams\n";
    assert_eq!((code, out.as_str()), (0, expect));
    assert_eq!(place.send(&[], &[&file]).0, 0);
    assert!(backend.events().iter().all(|event| event["portal"] == 62515));

    // Events of a portal that is no longer in the list are sent, too.
    std::fs::write(&list, "portals = []\n").unwrap();
    assert_eq!(place.send(&[], &[&file]).1, said(5, 0, 0, 5, 0));
    std::fs::write(&list, "portals = [0]\n").unwrap();
    assert_eq!(place.send(&[], &[&file]).0, 2);
}

#[test]
fn a_forgotten_upstream_is_sent_to_anew() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let file = place.file("week.ndjson", &lines(3));
    assert_eq!(place.send(&[], &[&file]).1, said(3, 0, 0, 0, 0));
    let forget = |name: &str| {
        command(&place.config, &["spool", "forget", name]).output().unwrap().status.code()
    };
    assert_eq!(forget("collector"), Some(2), "it is configured");
    Setup::default().write(place.dir.path());
    assert_eq!((forget("collecto"), forget("../sent/collector")), (Some(1), Some(1)));
    assert_eq!((forget("collector"), forget("collector")), (Some(0), Some(1)));
    Setup::default().upstreams(&http_upstream(&backend, "")).write(place.dir.path());
    assert_eq!(place.send(&[], &[&file]).1, said(3, 0, 0, 0, 0));
}

#[test]
fn files_that_begin_with_the_same_event_do_not_forget_each_other() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 2);
    let all = lines(8);
    let first = place.file("first.ndjson", &all[..4]);
    let other = place.file("other.ndjson", &[&all[..1], &all[4..]].concat());
    assert_eq!(place.send(&[], &[&first]).1, said(4, 0, 0, 0, 0));
    assert_eq!(place.send(&[], &[&other]).1, said(4, 0, 0, 1, 0));
    for _ in 0..2 {
        assert_eq!(place.send(&["--dry-run"], &[&first]).0, 0);
        assert_eq!(place.send(&[], &[&first]).1, said(0, 0, 0, 4, 0));
        assert_eq!(place.send(&[], &[&other]).1, said(0, 0, 0, 5, 0));
    }
    assert_eq!(arrived(&backend), (0..8).collect::<Vec<_>>());
}

#[test]
fn it_reads_standard_input_and_keeps_the_pace() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let place = Place::of(&backend, 500);
    let began = std::time::Instant::now();
    let mut sending = place
        .command(&["--per-second", "40"], &[Path::new("-")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sending.stdin.take().unwrap().write_all((lines(60).join("\n") + "\n").as_bytes()).unwrap();
    let output = sending.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), said(60, 0, 0, 0, 0));
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "sooner than the pace allows");
    let sizes: Vec<usize> = backend.taken().iter().map(|request| request.events().len()).collect();
    assert_eq!(sizes, [40, 20]);
}

#[test]
fn two_commands_do_not_send_one_file_at_once_and_an_outage_ends_one() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Hang));
    let place = Place::of(&backend, 10);
    let file = place.file("week.ndjson", &lines(30));
    let mut first = place.command(&[], &[&file]).spawn().unwrap();
    wait_for("the first batch", || backend.seen().len() == 1);
    let (code, out, told) = place.send(&[], &[&file]);
    assert_eq!((code, out), (1, said(0, 0, 0, 0, 0)));
    assert!(told.contains("another process sends this file"), "{told}");
    first.kill().unwrap();
    first.wait().unwrap();

    backend.script(|_| Act::Refuse(401));
    let (code, out, told) = place.send(&[], &[&file]);
    assert_eq!((code, out), (1, said(0, 0, 10, 0, 0)));
    assert!(told.contains("answered 401; the same command sends the rest"), "{told}");
}
