//! Exchanges that a proxy might change: requests and responses of every form, complete and broken.

use crate::wire::{Act, Script};

/// What a client sends, and what the origin answers.
pub struct Case {
    pub name: &'static str,
    pub request: Vec<u8>,
    pub script: Script,
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request, to an origin that is content with it.
fn request(name: &'static str, line: &str, headers: &str, body: &str) -> Case {
    // Latin-1: a character is a byte.
    let text = format!("{line}\r\nHost: edge.test\r\n{headers}\r\n{body}");
    let request = text.chars().map(|c| c as u8).collect();
    Case { name, request, script: script(OK) }
}

/// A response, to a simple request.
fn response(name: &'static str, status: &str, headers: &str, body: &str) -> Case {
    let answer = format!("HTTP/1.1 {status}\r\n{headers}\r\n{body}");
    Case { script: script(&answer), ..request(name, "GET /a HTTP/1.1", "", "") }
}

/// The same, after which the origin closes.
fn closing(mut case: Case) -> Case {
    case.script.after_body.push(Act::Close);
    case
}

fn script(answer: &str) -> Script {
    let bytes = answer.chars().map(|c| c as u8).collect();
    Script { after_body: vec![Act::Send(bytes)], ..Script::default() }
}

fn many_headers() -> String {
    (0..90).map(|n| format!("X-Many-{n}: {n}\r\n")).collect()
}

fn long_header() -> String {
    format!("X-Long: {}\r\n", "x".repeat(30_000))
}

pub fn request_lines() -> Vec<Case> {
    const METHODS: [&str; 10] =
        ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE", "M-SEARCH", "X"];
    const TARGETS: [&str; 21] = [
        "/",
        "/a//b",
        "/a/../b",
        "/./a",
        "/a%2fb",
        "/%61",
        "/a?b=c?d&&e=%20+",
        "/?",
        "/a?",
        "/a;b=c",
        "/a%zz",
        "/a|b",
        "/a\"b",
        "/a{b}",
        "/a\\b",
        "/*",
        "/a?b=[1]",
        "/%00",
        "/a:80",
        "//a",
        "/a%3Fb",
    ];
    let methods = METHODS.map(|method| {
        request(method, &format!("{method} /a HTTP/1.1"), "Content-Length: 0\r\n", "")
    });
    let targets =
        TARGETS.map(|target| request("a target", &format!("GET {target} HTTP/1.1"), "", ""));
    let old = closing(request("a client of HTTP/1.0", "GET /a HTTP/1.0", "", ""));
    methods.into_iter().chain(targets).chain([old]).collect()
}

pub fn request_headers() -> Vec<Case> {
    let get = |name, headers: &str| request(name, "GET /a HTTP/1.1", headers, "");
    vec![
        get("the case of names", "x-LOWER-upper: a\r\nETAG: b\r\naCCEPT: c\r\n"),
        get("their order", "Z: 1\r\nA: 2\r\nConnection: keep-alive\r\nM: 3\r\nB: 4\r\nC: 5\r\n"),
        get("order and case and twice", "TE: a\r\nz: 1\r\nA: 2\r\nb: 3\r\nb: 4\r\nM: 5\r\n"),
        get("one name twice", "X-Twice: a\r\nX-Twice: b\r\nCookie: c\r\nCookie: d\r\n"),
        get("an empty value", "X-Empty:\r\nX-Space:   \r\n"),
        get("bytes above 127", "X-Latin: caf\u{e9}\r\n"),
        get("a long value", &long_header()),
        get("many headers", &many_headers()),
        get("an encoding", "Accept-Encoding: gzip, br\r\nAccept-Language: de\r\n"),
        get("a range", "Range: bytes=0-1,5-\r\nIf-Range: \"x\"\r\n"),
        get("credentials", "Authorization: Basic YTpi\r\nCookie: a=b; c=d\r\n"),
        get("a date and a via", "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nVia: 1.0 x\r\n"),
        get("this hop's own", "Keep-Alive: timeout=5\r\nConnection: keep-alive\r\nA: b\r\n"),
        get(
            "an offer of h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n",
        ),
    ]
}

pub fn request_bodies() -> Vec<Case> {
    let post = |name, headers: &str, body| request(name, "POST /a HTTP/1.1", headers, body);
    let chunked = "Transfer-Encoding: chunked\r\n";
    let large = "0123456789".repeat(30_000);
    vec![
        post("a sized body", "Content-Length: 5\r\n", "hello"),
        post("a large body", &format!("Content-Length: {}\r\n", large.len()), &large),
        post("a chunked body", chunked, "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"),
        post("chunk extensions", chunked, "5;a=b\r\nhello\r\n0\r\n\r\n"),
        post("an empty chunked body", chunked, "0\r\n\r\n"),
        post("trailers", chunked, "1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"),
        post(
            "a compressed body",
            "Content-Encoding: gzip\r\nContent-Length: 2\r\n",
            "\u{1f}\u{8b}",
        ),
        request("a body with GET", "GET /a HTTP/1.1", "Content-Length: 3\r\n", "abc"),
    ]
}

pub fn response_framing() -> Vec<Case> {
    let head = |name, headers: &str| Case {
        script: script(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")),
        ..request(name, "HEAD /a HTTP/1.1", "", "")
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    let length = "Content-Length: 2\r\n";
    let hint = |path: &str| format!("HTTP/1.1 103 Early Hints\r\nLink: <{path}>\r\n\r\n");
    let hinted = |name, hints: &str| Case {
        script: script(&format!("{hints}{OK}")),
        ..request(name, "GET /a HTTP/1.1", "", "")
    };
    let old = "HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nall of it";
    let old = Case { script: script(old), ..response("an origin of HTTP/1.0", "", "", "") };
    vec![
        head("HEAD with a length", "Content-Length: 1000\r\n"),
        head("HEAD without one", "X-A: b\r\n"),
        head("HEAD, chunked", chunked),
        response("304", "304 Not Modified", "ETag: \"x\"\r\n", ""),
        response("304 with a length", "304 Not Modified", "Content-Length: 9\r\n", ""),
        response("204", "204 No Content", "X-A: b\r\n", ""),
        response("205", "205 Reset Content", "Content-Length: 0\r\n", ""),
        response(
            "206",
            "206 Partial Content",
            &format!("Content-Range: bytes 0-1/9\r\n{length}"),
            "ab",
        ),
        response("an unknown status", "799 Odd Enough", length, "ab"),
        response("a reason of its own", "200 All Is Well", length, "ab"),
        response("a reason beyond ASCII", "200 Tr\u{e8}s bien", length, "ab"),
        response("a reason in UTF-8", "404 Gr\u{c3}\u{bc}n\u{ff}", length, "ab"),
        response("a reason without a length", "200 \u{80}", chunked, "2\r\nab\r\n0\r\n\r\n"),
        response("chunked", "200 OK", chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        response("trailers", "200 OK", chunked, "3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"),
        response(
            "compressed",
            "200 OK",
            &format!("Content-Encoding: gzip\r\n{length}"),
            "\u{1f}\u{8b}",
        ),
        closing(response("until the close", "200 OK", "X-A: b\r\n", "all of it")),
        closing(old),
        hinted("early hints", &hint("/a.css")),
        hinted("early hints twice", &(hint("/a") + &hint("/b"))),
        closing(response("cut off, sized", "200 OK", "Content-Length: 10\r\n", "half")),
        closing(response("cut off, chunked", "200 OK", chunked, "5\r\nhello\r\n")),
        closing(response("cut off in a chunk", "200 OK", chunked, "9\r\nhello")),
    ]
}

pub fn response_headers() -> Vec<Case> {
    let ok = |name, headers: &str| {
        response(name, "200 OK", &format!("{headers}Content-Length: 0\r\n"), "")
    };
    vec![
        ok("the case of names", "x-LOWER: a\r\nETAG: b\r\n"),
        ok("their order", "Z: 1\r\nA: 2\r\nConnection: keep-alive\r\nM: 3\r\nB: 4\r\nC: 5\r\n"),
        ok("one name twice", "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n"),
        ok("an empty value", "X-Empty:\r\n"),
        ok("bytes above 127", "X-Latin: caf\u{e9}\r\n"),
        ok("a long value", &long_header()),
        ok("many headers", &many_headers()),
        ok("a server and a date", "Server: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"),
        ok("HSTS and CORS", "Strict-Transport-Security: a\r\nAccess-Control-Allow-Origin: *\r\n"),
        ok("caching", "Cache-Control: max-age=60\r\nAge: 5\r\nVary: *\r\nExpires: 0\r\n"),
    ]
}
