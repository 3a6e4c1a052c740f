//! Answers of an origin whose chunks are broken or cut off: a client never takes one for a whole
//! answer.

use crate::delivery::RUNTIME;
use crate::h2::{connect, read, start_with};
use crate::harness::Setup;
use crate::wire::{Act, Message, Origin, Script, exchange};
use http::Request;

const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Bodies that break the grammar of chunks (RFC 9112, section 7.1). The origin sends nothing after
/// them, and does not close.
const BROKEN: [&str; 18] = [
    "zz\r\n",
    "5\r\nhello\r\nzz\r\n",
    "5\r\nhello\r\n-1\r\n",
    "5\r\nhello\r\n+5\r\nhello\r\n",
    "5\r\nhello\r\n0x5\r\nhello\r\n",
    // A chunk size without a digit is no last chunk.
    "\r\n\r\n",
    "5\r\nhello\r\n\r\n\r\n",
    "5\r\nhello\r\n \r\n\r\n",
    "5\r\nhello\r\n;a=b\r\n\r\n",
    "5 \r\nhello\r\n\r\n\r\n",
    "5;a=b\r\nhello\r\n\t;0\r\n\r\n",
    // No CRLF behind the data, or another one.
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello000\r\n\r\n",
    "5\r\nhello\n\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    // Sizes that no number holds.
    "5\r\nhello\r\nffffffffffffffff\r\nhello",
    "5\r\nhello\r\n10000000000000000\r\nhello",
    "5\r\nhello\r\n00000000000000000\r\n\r\n",
];

/// Bodies after which the origin closes.
const CUT: [&str; 11] = [
    "",
    "5",
    "5\r\n",
    "5\r\nhel",
    "5\r\nhello",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0",
    "5\r\nhello\r\n0\r\n",
    "5\r\nhello\r\n0\r\n\r",
    "5\r\nhello\r\n0\r\nX-Sum: 1\r\n",
    "5\r\nhello\r\n8000000000000000\r\nhello",
];

/// Bodies that are whole, as origins send them.
const WHOLE: [&str; 4] = [
    "5\r\nhello\r\n0\r\n\r\n",
    "0005;a=\"b;c\"\r\nhello\r\n000\r\nX-Sum: 1\r\n\r\n",
    // Some servers fill the line of a chunk with blanks.
    "5  \r\nhello\r\n0  \r\n\r\n",
    "5\t;a\r\nhello\r\n0\r\n\r\n",
];

/// An origin with an answer for each body, and the target of each.
fn origin() -> (Origin, Vec<(String, &'static str, bool)>) {
    let origin = Origin::start();
    let mut cases = Vec::new();
    let broken = BROKEN.map(|body| (body, vec![Act::Hang], false));
    let cut = CUT.map(|body| (body, vec![Act::Close], false));
    let whole = WHOLE.map(|body| (body, vec![], true));
    for (body, last, is_whole) in broken.into_iter().chain(cut).chain(whole) {
        let send = |text: &str| Act::Send(text.as_bytes().to_vec());
        for pieces in [vec![send(&format!("{HEAD}{body}"))], vec![send(HEAD), send(body)]] {
            let target = format!("/{}", cases.len());
            let after_body = [pieces, last.clone()].concat();
            origin.on(&target, Script { before_body: vec![], after_body });
            cases.push((target, body, is_whole));
        }
    }
    (origin, cases)
}

/// Whether a client of HTTP/1.1 takes the answer for a whole one, and its body.
fn taken(answer: &Message) -> (bool, &[u8]) {
    (answer.status() == 200 && !answer.truncated, &answer.body)
}

#[test]
fn a_client_of_http1_sees_that_an_answer_is_not_whole() {
    let (origin, cases) = origin();
    let edge = Setup::default().origin(origin.address).start();
    for (target, body, is_whole) in cases {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        // Reads to the edge's close where the answer has no last chunk.
        let answer = exchange(edge.address, "GET", request.as_bytes()).pop().expect(body);
        let (taken, content) = taken(&answer);
        assert_eq!(taken, is_whole, "{body:?}: {answer:?}");
        assert!(answer.status() == 502 || b"hello".starts_with(content), "{body:?}: {answer:?}");
    }
    assert_eq!(edge.get("/after").status, 204, "the edge is well");
}

#[test]
fn a_client_of_http2_sees_that_an_answer_is_not_whole() {
    let (origin, cases) = origin();
    let (_edge, address) = start_with(Setup::default().origin(origin.address));
    RUNTIME.block_on(async {
        let mut client = connect(address).await;
        for (target, body, is_whole) in cases {
            let request = Request::get(format!("https://edge.test{target}"));
            let response = client.ask(request, None).await;
            let taken = match read(response).await {
                Ok(answer) => answer.status == 200,
                Err(error) => {
                    assert!(error.is_reset(), "{body:?}: {error}");
                    false
                }
            };
            assert_eq!(taken, is_whole, "{body:?}");
        }
        assert_eq!(client.get("/after").await.status, 204, "the connection is well");
    });
}
