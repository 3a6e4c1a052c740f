//! Queries and requests, and the ways that they can come.

/// Every query of the vectors.
pub fn queries() -> Vec<String> {
    let mut queries = Vec::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let vectors = table.values().filter_map(|value| value.as_array()).flatten();
        let query = |vector: &toml::Value| Some(vector.get("query")?.as_str()?.to_owned());
        queries.extend(vectors.filter_map(query));
    }
    assert!(queries.len() >= 300, "{}", queries.len());
    // What cannot stand in a request line never arrives as a query.
    queries.retain(|q| q.bytes().all(|b| b > b' ' && b != 0x7F && b != b'#') && q.len() < 30_000);
    queries
}

/// Queries with bytes that RFC 3986 does not allow in a query. Each character stands for a byte.
const RAW: &[&str] = &[
    "_a=62515&_n=a&q=\"b\"",
    "_a=62515&_n=a&q=<b>",
    "_a=62515&_n=a&q=`b`|{c}[d]\\^",
    "_a=62515&_n=\"a\"",
    "_a=62515&_n=<>",
    "_a=62515&_n=caf\u{c3}\u{a9}",
    "_a=62515&_n=a&city=caf\u{c3}\u{a9}",
    "_a=62515&_n=a&city=caf\u{e9}",
    "_a=62515&_n=a&city=caf\u{e9}&q=\u{c3}\u{a9}&r=%E9",
    "_a=62515&_n=caf\u{e9}",
    "_a=62515&_n=a&email=caf\u{e9}@a.test",
    "_a=62515&_n=a&id=\u{ff}\u{fe}",
    "_a=62515&_n=a&caf\u{e9}=b",
    "_a=62515&_n=a&\u{80}\u{ff}",
    "_a=62515\"&_n=a",
    "_a=1&_n=<a>",
];

pub fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u8).collect()
}

/// Queries whose raw bytes count as if they were encoded: pairs of the longest query that is
/// allowed and one that is longer.
pub fn long_queries() -> Vec<[Vec<u8>; 2]> {
    let begin = "_a=62515&_n=a&q=";
    let room = 8192 - begin.len();
    let long = |raw: &str| {
        let most = room / 3 / raw.chars().count();
        [most, most + 1].map(|count| latin1(&format!("{begin}{}", raw.repeat(count))))
    };
    ["\"", "<", "`", "\u{e9}", "\u{c3}\u{a9}"].map(long).to_vec()
}

pub fn raw_queries() -> Vec<Vec<u8>> {
    RAW.iter().map(|text| latin1(text)).chain(long_queries().concat()).collect()
}

/// The same query, with each byte encoded that RFC 3986 does not allow.
pub fn encoded(query: &[u8]) -> Vec<u8> {
    let is_allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=/?%".contains(byte);
    let mut encoded = Vec::new();
    for byte in query {
        match is_allowed(byte) {
            true => encoded.push(*byte),
            false => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    encoded
}

/// The ways a `GET` for a query can come over HTTP/1: a name, the bytes, and where they are torn.
pub fn ways(query: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    let request = |begin: &str, end: &str| [begin.as_bytes(), query, end.as_bytes()].concat();
    let plain = request("GET /v1/event/?", " HTTP/1.1\r\nHost: a\r\n\r\n");
    let (head, empty) = ("GET /v1/event/?", "Content-Length: 0\r\n");
    let half = plain.len() / 2;
    let absolute = request("GET HTTP://A:80/v1/event/?", " HTTP/1.1\r\nHost: a\r\n\r\n");
    vec![
        ("plain", plain.clone(), 0),
        ("torn", plain.clone(), half),
        ("HTTP/1.0", request(head, " HTTP/1.0\r\nHost: a\r\n\r\n"), 0),
        ("HTTP/1.0 without a host", request(head, " HTTP/1.0\r\n\r\n"), 0),
        ("absolute form", absolute, 0),
        ("an empty body", request(head, &format!(" HTTP/1.1\r\nHost: a\r\n{empty}\r\n")), 0),
        (
            "no chunks",
            request(head, " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            0,
        ),
        ("another case", request("GET /V1//event/?", " HTTP/1.1\r\nHost: a\r\n\r\n"), 0),
        ("a host in brackets", request(head, " HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), 0),
        ("behind an empty line", [b"\r\n".to_vec(), plain].concat(), 0),
    ]
}

/// Requests that are unusual in other ways than by their query.
pub fn requests() -> Vec<String> {
    let event = "/v1/event/?_a=62515&_n=a";
    let mut all: Vec<String> = [
        "Host: a",
        "Host: a\r\nHost: b",
        "host: a",
        "X: y",
        "Host: a\r\nConnection: keep-alive",
        "Host: a\r\nConnection: Close",
        "Host: a\r\nConnection: close\r\nConnection: keep-alive",
        "Host: a\r\nConnection: close, x",
        "Host: a\r\nUser-Agent: b \r\nX:\r\nY: ",
        "Host: a\r\nUser-Agent:  b \t\r\nX:\tc",
        "Host: a\r\nUser-Agent: b\r\n c",
        "Host: a\r\nUser-Agent: b\nX: y",
        "Host: a\r\nConnection: keep-alive\r\nConnection: close",
        "Host: a\r\nDNT: 0\r\nDNT: 1\r\nX-Moz: prefetch\r\nReferer:\r\nReferer: x",
        "Host: a\r\nSec-GPC: 0\r\nX: y\r\nsec-gpc: 1\r\nDNT: 0, 1",
        "Host: a\r\nSec-GPC: 1, 1\r\nDNT: 11",
        "Host: a\r\nAccept: application/json",
        "Host: a\r\nAccept: image/*",
        "Host: a\r\nUser-Agent: a\u{9b}31m\u{202e}b",
        "Host: a\r\nReferer: https://ann@a.test:8443/x?y#z",
        "Host: a\r\nExpect: 100-continue",
        "Host: a\r\nContent-Length: 0",
        "Host: a\r\nSec-GPC: 1\r\nDNT: 1\r\nPurpose: prefetch",
        "Host: a\r\nUser-Agent: \r\nReferer: https://a.test/?q",
        "Host: a\r\nUser-Agent: caf\u{e9}",
        "Host: a\r\nX-Forwarded-For: 1.2.3.4",
        "Host: a\r\nCookie: a=b\r\nAuthorization: Basic eA==",
        "Host: ",
        "Host: [::1",
        "Host: [::1]",
        "Host: a:8x",
        "Host: a:80",
        "Host: {a}",
        "Host: a,b",
    ]
    .iter()
    .map(|headers| format!("GET {event} HTTP/1.1\r\n{headers}\r\n\r\n"))
    .collect();
    for line in [
        "GET /v1/event HTTP/1.1",
        "GET /V1//event/ HTTP/1.1",
        "GET /v1/event/x?_a=62515 HTTP/1.1",
        "GET http://a/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET /v1/event/?_a=1001&_n=b HTTP/1.1",
        "GET /v1/event/?_a=1001&_n=signup HTTP/1.1",
        "POST /v1/event/ HTTP/1.1",
        "HEAD /v1/event/?_a=62515&_n=a HTTP/1.1",
        "OPTIONS /v1/event/ HTTP/1.1",
        "GET /v1/event/?_a=62515&_n=a#b HTTP/1.1",
        "GET /other HTTP/1.1",
        "GET /other?q=\"b\" HTTP/1.1",
        "GET v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET http:/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET http://b/v1/event/?_a=62515&_n=a HTTP/1.1",
        "GET ?_a=62515&_n=a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "HEAD /v1/event/?_a=62515&_n=\"a\" HTTP/1.1",
    ] {
        all.push(format!("{line}\r\nHost: a\r\n\r\n"));
    }
    all
}
