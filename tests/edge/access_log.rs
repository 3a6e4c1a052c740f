//! The access log (SPEC 8): one line for each request, whatever becomes of it.

use crate::delivery::RUNTIME;
use crate::h2;
use crate::harness::{Edge, Setup, command, wait_for};
use crate::http::Connection;
use crate::terminal::is_there;
use crate::wire::{Act, Origin, Script};
use bytes::Bytes;
use http::Request;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tempfile::TempDir;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A file for an access log, and the setup of an edge that writes it.
struct Log {
    dir: TempDir,
}

impl Log {
    fn new() -> Log {
        Log { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }

    /// Further lines of `[access_log]`, and sections after it.
    fn setup(&self, lines: &str) -> Setup {
        let path = self.path();
        Setup::default().sections(&format!("[access_log]\npath = \"{}\"\n{lines}", path.display()))
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Waits for this many lines, and returns them.
    fn lines(&self, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} lines"), || self.text().lines().count() >= count);
        let text = self.text();
        assert_eq!(text.lines().count(), count, "{text}");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// The values of these keys in each line, a dash for one without it.
fn values(lines: &[Value], keys: &[&str]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let all = |line: &Value| keys.iter().map(|key| text(&line[*key])).collect::<Vec<_>>().join(" ");
    lines.iter().map(all).collect()
}

/// Sends bytes on a connection of their own and reads the response.
fn send(address: SocketAddr, bytes: &str) -> u16 {
    let mut connection = Connection::open(address);
    connection.send(bytes.as_bytes());
    connection.read("GET").status
}

#[test]
fn every_request_is_one_line_with_what_became_of_it() {
    let (log, origin) = (Log::new(), Origin::start());
    origin.answer("/page?q=1", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let edge = log.setup("").origin(origin.address).start();
    let headers = format!(
        "traceparent: {PARENT}\r\nUser-Agent: b\r\n\
                           Referer: https://a.test/x?email=a@b.example\r\n"
    );
    let accepted = "/v1/event/?_a=62515&_n=a&email=a@b.example";
    // On one connection, so that the lines have the order of the requests.
    let mut connection = edge.connect();
    connection.get(accepted, &headers);
    // The same request by Pingora's path, which a list in `Connection` takes.
    connection.get(accepted, &format!("{headers}Connection: keep-alive, x\r\n"));
    connection.get("/v1/event/?_a=1&_n=a&email=a@b.example", "");
    connection.get("/v1/event/?_a=62515&_n=a&email=a", "");
    connection.get("/v1/event/?_a=x&_n=a", "");
    connection.request("HEAD", "/v1/event/?_a=1", "");
    connection.request("OPTIONS", "/v1/event/?_a=1", "");
    connection.request("PUT", "/v1/event/?_a=62515&_n=a", "Content-Length: 0\r\n");
    connection.get("/v1/event/email=a@b.example?x=1", "");
    connection.get("/page?q=1", &headers);
    let lines = log.lines(10);
    let expect = [
        "GET /v1/event/ 200 43 accepted - 62515",
        "GET /v1/event/ 200 43 accepted - 62515",
        "GET /v1/event/ 403 43 rejected portal_not_allowed 1",
        "GET /v1/event/ 400 43 rejected invalid_email 62515",
        "GET /v1/event/ 400 43 rejected invalid_portal -",
        "HEAD /v1/event/ 200 0 not_judged - -",
        "OPTIONS /v1/event/ 204 0 not_judged - -",
        "PUT /v1/event/ 405 43 rejected method_not_allowed -",
        "GET /v1/event/ 404 43 rejected unknown_path -",
        "GET /page 200 5 - - -",
    ];
    let keys = ["method", "path", "status", "bytes", "verdict", "reason", "portal"];
    assert_eq!(values(&lines, &keys), expect);
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(
            (line["client"].as_str(), line["protocol"].as_str()),
            (Some("127.0.0.1"), Some("HTTP/1.1"))
        );
        assert!(line["aborted"].is_null() && line["seconds"].as_f64() > Some(0.0), "{line}");
        assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
        let described = [0, 1, 9].contains(&at).then_some([TRACE, "https://a.test", "b"]);
        let found = ["trace_id", "referer", "user_agent"].map(|key| line[key].as_str());
        assert_eq!(found, described.map_or([None; 3], |all| all.map(Some)), "{line}");
        let proxied = (at == 9).then(|| format!("http://{}", origin.address));
        assert_eq!(line["origin"].as_str(), proxied.as_deref());
        assert_eq!(line["origin_seconds"].is_f64(), proxied.is_some());
    }
    assert!(!log.text().contains("b.example"), "{}", log.text());
    edge.wait_delivered("file");
    let ids: Vec<_> = Edge::events_in_files(edge.dir()).iter().map(|e| e["id"].clone()).collect();
    assert_eq!(ids, [lines[0]["event_id"].clone(), lines[1]["event_id"].clone()]);
    let mode = fs::metadata(log.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640 & mode);
}

#[test]
fn what_is_refused_cut_or_lost_is_a_line_too() {
    let (log, origin) = (Log::new(), Origin::start());
    let hang = Script { after_body: vec![Act::Hang], ..Script::default() };
    origin.on("/hangs?q=1", hang);
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec();
    origin
        .on("/half", Script { after_body: vec![Act::Send(half), Act::Close], ..Script::default() });
    let lines = "header_lines_max = 5\nheader_timeout_seconds = 1\n";
    let edge = log.setup("").edge(lines).origin(origin.address).start();
    let mut count = 0;
    let mut after = |expect: &str| {
        count += 1;
        let lines = log.lines(count);
        let last = values(&lines[count - 1..], &["method", "path", "status", "aborted", "client"]);
        assert_eq!(last, [format!("{expect} 127.0.0.1")]);
    };
    assert_eq!(send(edge.address, "GET / HTTP/9.9\r\nHost: a\r\n\r\n"), 400);
    after("- - 400 -");
    assert_eq!(
        send(edge.address, &format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(9))),
        431
    );
    after("- - 431 -");
    assert_eq!(send(edge.address, "GET / HTTP/1.1\r\nHost: a\r\n"), 408);
    after("- - 408 -");
    assert_eq!(send(edge.address, "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"), 405);
    after("CONNECT - 405 -");
    assert_eq!(
        send(edge.address, "TRACE /t?q HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"),
        405
    );
    after("TRACE /t 405 -");
    // A body that breaks the rules of its framing.
    let chunks = "Host: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(
        send(edge.address, &format!("POST /v1/event/?_a=62515&_n=a HTTP/1.1\r\n{chunks}")),
        400
    );
    after("POST /v1/event/ 400 -");
    assert_eq!(send(edge.address, &format!("POST /p?q HTTP/1.1\r\n{chunks}")), 400);
    after("POST /p 400 -");
    // A client that goes away in the middle of a header, and one that does not wait.
    drop({
        let mut connection = edge.connect();
        connection.send(b"GET /gone HTTP/1.1\r\nHo");
        connection
    });
    after("- - 499 true");
    let mut connection = edge.connect();
    connection.send(b"GET /hangs?q=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_for("the origin to be asked", || !origin.take_seen().is_empty());
    drop(connection);
    after("GET /hangs 499 true");
    // An origin that closes in the middle of its answer.
    let mut connection = edge.connect();
    connection.send(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(connection.read_one("GET").is_err());
    after("GET /half 200 true");
}

#[test]
fn without_an_origin_and_with_one_that_is_gone_the_edge_answers_itself() {
    let log = Log::new();
    let edge = log.setup("").start();
    assert_eq!(edge.get("/nothing?x").status, 404);
    edge.stop();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = log.setup("").origin(gone).start();
    assert_eq!(edge.get("/nowhere?x").status, 502);
    let lines = log.lines(2);
    let keys = ["path", "status", "aborted", "origin", "origin_seconds"];
    let expect = ["/nothing 404 - - -".to_owned(), format!("/nowhere 502 - http://{gone} -")];
    assert_eq!(values(&lines, &keys), expect);
}

#[test]
fn streams_of_http2_are_lines_like_others() {
    let (log, origin) = (Log::new(), Origin::start());
    origin.answer("/page?q=1", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    origin.on("/hangs", Script { after_body: vec![Act::Hang], ..Script::default() });
    let (_edge, address) = h2::start_with(log.setup("").origin(origin.address));
    RUNTIME.block_on(async {
        let mut client = h2::connect(address).await;
        client.get("/v1/event/?_a=62515&_n=a").await;
        log.lines(1);
        client.get("/v1/event/?_a=1&_n=a").await;
        log.lines(2);
        client.get("/page?q=1").await;
        log.lines(3);
        origin.take_seen();
        let bad = Request::get("https://edge.test/bad?q").header("content_length", "1");
        let response = client.ask(bad, None).await.await.unwrap();
        assert_eq!(response.status(), 400);
        log.lines(4);
        let post = Request::post("https://edge.test/hangs");
        let mut ready = client.sender().ready().await.unwrap();
        let (_response, mut body) = ready.send_request(post.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(b"x"), true).unwrap();
        wait_for("the origin to be asked", || !origin.take_seen().is_empty());
        body.send_reset(::h2::Reason::CANCEL);
        log.lines(5);
    });
    let keys = ["protocol", "method", "path", "status", "bytes", "verdict", "aborted"];
    let expect = [
        "HTTP/2.0 GET /v1/event/ 200 43 accepted -",
        "HTTP/2.0 GET /v1/event/ 403 43 rejected -",
        "HTTP/2.0 GET /page 200 5 - -",
        "HTTP/2.0 GET - 400 0 - -",
        "HTTP/2.0 POST /hangs 499 0 - true",
    ];
    assert_eq!(values(&log.lines(5), &keys), expect);
}

#[test]
fn a_visitor_is_shown_as_far_as_privacy_allows() {
    let origin = Origin::start();
    let check = |privacy: &str, headers: &str, expect: &str| {
        let log = Log::new();
        let privacy = format!("[privacy]\n{privacy}");
        let edge = log.setup(&privacy).origin(origin.address).start();
        let headers = format!("Referer: https://a.test/x?y\r\nUser-Agent: b\r\n{headers}");
        edge.connect().get("/v1/event/?_a=62515&_n=a", &headers);
        edge.connect().get("/v1/event/?_a=1&_n=a", &headers);
        edge.connect()
            .get("/v1/event/?_a=62515&_n=a", &format!("{headers}Accept:\r\nConnection: x\r\n"));
        edge.connect().get("/page", &headers);
        let found = values(&log.lines(4), &["client", "referer", "user_agent"]);
        assert_eq!(found, [expect; 4], "{privacy} {headers}");
    };
    check("", "", "127.0.0.1 https://a.test b");
    check("ip = \"truncated\"\nreferer = \"none\"", "", "127.0.0.0 - b");
    check("ip = \"none\"\nreferer = \"full\"\nreferer_query = true", "", "- https://a.test/x b");
    check("gpc = \"anonymize\"", "Sec-GPC: 1\r\n", "- - -");
}

#[test]
fn the_trace_goes_on_untouched_and_only_a_valid_id_is_written() {
    let (log, origin) = (Log::new(), Origin::start());
    let edge = log.setup("").origin(origin.address).start();
    let invalid = PARENT.replace(TRACE, "person@company.com");
    let headers = [
        format!("traceparent: {PARENT}\r\ntracestate: a=b\r\n"),
        format!("Traceparent: {invalid}\r\n"),
    ];
    let mut connection = edge.connect();
    for lines in &headers {
        assert_eq!(connection.get("/page", lines).status, 204);
        connection.get("/v1/event/?_a=62515&_n=a", lines);
    }
    let seen = origin.take_seen();
    let sent: Vec<_> = seen.iter().map(|request| request.header("traceparent").unwrap()).collect();
    assert_eq!(sent, [PARENT, &invalid]);
    assert_eq!(seen[0].header("tracestate"), Some("a=b"));
    let expect = [TRACE, TRACE, "-", "-"];
    assert_eq!(values(&log.lines(4), &["trace_id"]), expect);
    assert!(!log.text().contains("company"));
}

#[test]
fn the_combined_format_is_escaped_as_nginx_does_and_goaccess_reads_it() {
    let (log, origin) = (Log::new(), Origin::start());
    let sections = "format = \"combined\"\n[privacy]\nip = \"none\"\nreferer = \"full\"";
    let edge = log.setup(sections).origin(origin.address).start();
    let mut connection = edge.connect();
    connection.get("/v1/event/?_a=62515&_n=a", "User-Agent: a\"b\\c \u{e9}\r\n");
    connection.get("/a%20b?c", "Referer: https://a.test/d?e\r\nUser-Agent: f\r\n");
    // The line is written after the answer, and no connection waits for the line of another.
    wait_for("two lines", || log.text().lines().count() == 2);
    assert_eq!(send(edge.address, "GET / HTTP/9.9\r\nHost: a\r\n\r\n"), 400);
    edge.stop();
    let text = log.text();
    let lines: Vec<_> = text.lines().collect();
    let time = |line: &str| line.split(['[', ']']).nth(1).unwrap().to_owned();
    for line in &lines {
        let pattern = "%d/%b/%Y:%H:%M:%S %z";
        assert!(jiff::Timestamp::strptime(pattern, time(line)).is_ok(), "{line}");
    }
    let without_time: Vec<_> = lines.iter().map(|line| line.replace(&time(line), "")).collect();
    assert_eq!(
        without_time,
        [
            r#"0.0.0.0 - - [] "GET /v1/event/ HTTP/1.1" 200 43 "-" "a\x22b\x5Cc \xC3\xA9""#,
            r#"0.0.0.0 - - [] "GET /a%20b HTTP/1.1" 204 0 "https://a.test/d" "f""#,
            r#"0.0.0.0 - - [] "-" 400 0 "-" "-""#,
        ]
    );
    if is_there("goaccess") {
        let report = log.dir.path().join("report.json");
        let mut goaccess = Command::new("goaccess");
        goaccess.arg(log.path()).args(["--log-format=COMBINED", "--no-global-config", "-o"]);
        let said = goaccess.arg(&report).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        let general = &report["general"];
        assert_eq!(
            (&general["total_requests"], &general["failed_requests"]),
            (&3.into(), &0.into())
        );
    }
}

/// Moves the log away, asks the edge to reopen it, and waits until the new file is there.
fn rotate(edge: &Edge, log: &Log, to: &Path) {
    fs::rename(log.path(), to).unwrap();
    edge.signal(Signal::HUP);
    wait_for("the new file", || log.path().exists());
}

#[test]
fn rotation_under_load_and_a_stop_lose_no_line() {
    let log = Log::new();
    let edge = log.setup("").start();
    let (sent, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let old: Vec<_> = (0..5).map(|n| log.dir.path().join(format!("old.{n}"))).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = edge.connect();
                while !done.load(Relaxed) {
                    connection.get("/v1/event/?_a=62515&_n=a", "");
                    sent.fetch_add(1, Relaxed);
                }
            });
        }
        for old in &old {
            let before = sent.load(Relaxed);
            wait_for("more requests", || sent.load(Relaxed) > before + 20);
            rotate(&edge, &log, old);
        }
        done.store(true, Relaxed);
    });
    edge.stop();
    let texts: Vec<_> =
        old.iter().chain([&log.path()]).map(|p| fs::read_to_string(p).unwrap()).collect();
    assert!(texts[1..5].iter().all(|text| !text.is_empty()));
    let lines = texts.iter().flat_map(|text| text.lines());
    let whole = lines.filter(|line| serde_json::from_str::<Value>(line).is_ok());
    assert_eq!(whole.count(), sent.load(Relaxed));
}

#[test]
fn a_full_disk_delays_no_request_and_is_a_fault_until_lines_are_written_again() {
    let log = Log::new();
    symlink("/dev/full", log.path()).unwrap();
    let edge = log.setup("buffer_bytes = \"16KiB\"").start();
    let mut connection = edge.connect();
    for _ in 0..500 {
        assert_eq!(connection.get("/v1/event/?_a=62515&_n=a", "").status, 200);
    }
    let fault = || {
        let status = edge.status();
        let faults = status["faults"].as_array().unwrap().clone();
        faults.into_iter().find(|fault| fault["what"] == "access_log")
    };
    wait_for("the fault", || fault().is_some());
    let text = fault().unwrap()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("No space left on device"), "{text}");
    let lost = || {
        let metrics = String::from_utf8(edge.admin("/metrics").body).unwrap();
        let name = "pixelgate_access_log_lost_lines_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.parse::<usize>().unwrap()
    };
    wait_for("lost lines to be counted", || lost() > 0);
    assert_eq!(edge.status()["ready"], true);
    assert_eq!(edge.log().matches("cannot be written").count(), 1, "{}", edge.log());

    fs::remove_file(log.path()).unwrap();
    edge.signal(Signal::HUP);
    wait_for("the fault to be over", || fault().is_none());
    connection.get("/v1/event/?_a=62515&_n=a", "");
    wait_for("every line", || log.text().lines().count() + lost() == 501);
    edge.wait_log("is written again");
}

#[test]
fn a_file_that_cannot_be_opened_again_keeps_the_old_one() {
    let log = Log::new();
    let edge = log.setup("").start();
    edge.event("_a=62515&_n=a");
    log.lines(1);
    let old = log.dir.path().join("old");
    fs::rename(log.path(), &old).unwrap();
    fs::create_dir(log.path()).unwrap();
    edge.signal(Signal::HUP);
    edge.wait_log("cannot be opened again");
    edge.event("_a=62515&_n=a");
    wait_for("a line in the old file", || fs::read_to_string(&old).unwrap().lines().count() == 2);
    fs::remove_dir(log.path()).unwrap();
    edge.wait_log("is written again");
    edge.event("_a=62515&_n=a");
    log.lines(1);
}

#[test]
fn a_file_that_cannot_be_opened_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = format!("[access_log]\npath = \"{}/none/access.log\"", dir.path().display());
    let config = Setup::default().sections(&log).write(dir.path());
    let output = command(&config, &["check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("access_log.path: "), "{said}");
    let output = command(&config, &["run"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("access_log.path: ") && said.contains("No such file"), "{said}");
}

#[test]
fn standard_error_takes_whole_lines_between_those_of_the_log() {
    let edge = Setup::default()
        .sections("[access_log]\npath = \"stderr\"\n[log]\nformat = \"json\"")
        .start();
    let mut connection = edge.connect();
    for _ in 0..200 {
        connection.get("/v1/event/?_a=62515&_n=a", "");
    }
    edge.signal(Signal::HUP);
    let is_access = |line: &&str| line.contains("\"verdict\":\"accepted\"");
    wait_for("all lines", || edge.log().lines().filter(is_access).count() == 200);
    for line in edge.log().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn logrotate_rotates_it_as_the_package_says() {
    if !is_there("logrotate") {
        return;
    }
    let log = Log::new();
    let edge = log.setup("").start();
    edge.event("_a=62515&_n=a");
    log.lines(1);
    let packaged = include_str!("../../packaging/logrotate/pixelgate");
    let config = packaged.replace("/var/log/pixelgate", log.dir.path().to_str().unwrap());
    let hup = format!("kill -HUP {}", edge.pid());
    let reload = "systemctl try-reload-or-restart 'pixelgate[.@]*service'";
    assert!(config.contains(reload), "{config}");
    let path = log.dir.path().join("logrotate.conf");
    fs::write(&path, config.replace(reload, &hup)).unwrap();
    let mut logrotate = Command::new("logrotate");
    logrotate.arg("--force").arg("--state").arg(log.dir.path().join("state")).arg(&path);
    let said = logrotate.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    wait_for("the new file", || log.path().exists());
    edge.event("_a=62515&_n=a");
    log.lines(1);
    let old = fs::read_to_string(log.dir.path().join("access.log.1")).unwrap();
    assert_eq!(old.lines().count(), 1);
}
