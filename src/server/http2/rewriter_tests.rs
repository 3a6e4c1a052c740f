//! The rewriter between a model of a client and the `h2` crate: the crate gets what the client
//! sent, with targets encoded, however the client compresses it.

#[cfg(test)]
use super::frame::{Frame, PREFACE};
use super::hpack_model::{Client, Field, decoded, field};
use super::rewriter::Rewriter;
use crate::server::http1::target::encoded;
use bytes::Bytes;
use http::request::Parts;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const LIST_BYTES_MAX: usize = 64 << 10;

/// How the values of a connection look.
#[derive(Clone, Copy, PartialEq)]
enum Oddity {
    None,
    Targets,
    /// Also fields that are malformed.
    Malformed,
}

/// The fields of a request, and whether it is malformed.
fn request(random: &mut StdRng, oddity: Oddity) -> (Vec<Field>, bool) {
    let paths = ["/", "/p?q=a", "/a\"b?c=d", "/index.html", "/v1/event/?_a=1&_n={a}|^\\`"];
    let odd = ["/?\"a\"", "/<b>?c", "/`", "/caf\u{e9}", "/\u{c3}\u{a9}?\u{e9}&\"", "/\u{e9}?<`>"];
    let values = ["", "b", "text/html, */*;q=0.8", "say \"hi\" <b>", "caf\u{e9}", "a\tb"];
    let names = ["accept", "cookie", "x-a", "user-agent", "x-longer-name-than-others", "referer"];
    let path = match random.gen_bool(0.3) && oddity != Oddity::None {
        true => odd.choose(random),
        false => paths.choose(random),
    };
    let mut fields = vec![
        field(":method", ["GET", "PUT", "PURGE"].choose(random).unwrap()),
        field(":scheme", ["http", "https"].choose(random).unwrap()),
        field(":path", path.unwrap()),
        field(":authority", ["a", "b.test:80"].choose(random).unwrap()),
    ];
    fields.shuffle(random);
    for _ in 0..random.gen_range(0..6) {
        let value = match random.gen_range(0..10) {
            0 => "long".repeat(random.gen_range(1..600)),
            1 => random.gen_range(0..1000).to_string(),
            _ => (*values.choose(random).unwrap()).to_owned(),
        };
        fields.push(field(names.choose(random).unwrap(), &value));
    }
    let malformed = [
        ("X-A", "b"),
        ("x a", "b"),
        ("", "b"),
        ("x-a", "b\0c"),
        ("x-a", "\u{7f}"),
        (":other", "b"),
        (":status", "2"),
        (":protocol", "\u{e9}"),
    ];
    let is_malformed = oddity == Oddity::Malformed && random.gen_bool(0.2);
    if is_malformed {
        let (name, value) = malformed.choose(random).unwrap();
        fields.insert(random.gen_range(4..=fields.len()), field(name, value));
    }
    (fields, is_malformed)
}

/// The bytes of a connection, and the fields of each request that is not malformed.
fn connection(seed: u64, oddity: Oddity) -> (Vec<u8>, BTreeMap<u32, Vec<Field>>) {
    let mut client = Client::new(seed);
    let mut sound = BTreeMap::new();
    for stream in (1..=2 * client.random.gen_range(1..20)).step_by(2) {
        let (fields, is_malformed) = request(&mut client.random, oddity);
        let depends_on_itself = oddity == Oddity::Malformed && client.random.gen_bool(0.05);
        let depends_on = match client.random.gen_bool(0.2) {
            _ if depends_on_itself => Some(stream),
            true => Some(0),
            false => None,
        };
        let ends = client.random.gen_bool(0.8);
        client.send(stream, ends, &fields, depends_on);
        if !ends {
            let trailers = [field("x-trailer", "caf\u{e9}"), field("x-a", "\"b\"")];
            client.send(stream, true, &trailers, None);
        }
        if !is_malformed && !depends_on_itself {
            sound.insert(stream, fields);
        }
    }
    (client.bytes, sound)
}

/// A connection that gives its bytes in pieces, and then ends or is silent.
struct Pieces {
    bytes: VecDeque<u8>,
    ends: bool,
    random: StdRng,
    piece_max: usize,
    sent: Vec<u8>,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() && !self.ends {
            return Poll::Pending;
        }
        let most = self.piece_max;
        let count = self.random.gen_range(1..=most).min(self.bytes.len()).min(buf.remaining());
        buf.put_slice(&self.bytes.drain(..count).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn pieces(bytes: &[u8], ends: bool, seed: u64) -> Rewriter<Pieces> {
    let mut random = StdRng::seed_from_u64(seed);
    let piece_max = *[1, 9, 100, 100_000].choose(&mut random).unwrap();
    let bytes = bytes.iter().copied().collect();
    Rewriter::new(Pieces { bytes, ends, random, piece_max, sent: Vec::new() }, LIST_BYTES_MAX)
}

#[tokio::main(flavor = "current_thread")]
async fn rewritten(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut rewritten = Vec::new();
    pieces(bytes, true, seed).read_to_end(&mut rewritten).await.unwrap();
    rewritten
}

/// The requests that the `h2` crate gets, and whether it has sent no GOAWAY.
fn served(bytes: &[u8], seed: u64) -> (BTreeMap<u32, Parts>, bool) {
    let mut options = h2::server::Builder::new();
    options.max_header_list_size(LIST_BYTES_MAX as u32);
    let mut requests = BTreeMap::new();
    // All bytes are there, so what is not ready waits for more of them.
    let mut cx = Context::from_waker(Waker::noop());
    let handshake = pin!(options.handshake::<_, Bytes>(pieces(bytes, false, seed)));
    let Poll::Ready(Ok(mut connection)) = handshake.poll(&mut cx) else {
        return (requests, false);
    };
    loop {
        match connection.poll_accept(&mut cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                requests.insert(respond.stream_id().into(), request.into_parts().0);
            }
            Poll::Ready(_) => return (requests, false),
            Poll::Pending => return (requests, true),
        }
    }
}

/// Asserts that a request has these fields, and no others.
fn assert_same(parts: &Parts, fields: &[Field], seed: u64) {
    let pseudo = |name: &[u8]| fields.iter().find(|(found, _)| found == name).map(|f| &f.1[..]);
    assert_eq!(pseudo(b":method"), Some(parts.method.as_str().as_bytes()), "{seed}");
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    assert_eq!(pseudo(b":authority"), authority, "{seed}");
    let target = encoded(pseudo(b":path").unwrap().into()).into_owned();
    let path = parts.uri.path_and_query().unwrap().as_str().as_bytes();
    assert_eq!(path, target.split(|b| *b == b'#').next().unwrap(), "{seed}");
    let mut others: Vec<Field> = fields.iter().filter(|f| f.0[0] != b':').cloned().collect();
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().into(), value.as_bytes().to_vec())
    };
    let mut found: Vec<Field> = parts.headers.iter().map(pair).collect();
    // Those of one name stay in their order.
    others.sort_by(|a, b| a.0.cmp(&b.0));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, others, "{seed}");
}

#[test]
fn what_has_nothing_odd_passes_as_it_is() {
    for seed in 0..200 {
        let (bytes, _) = connection(seed, Oddity::None);
        assert_eq!(rewritten(&bytes, seed), bytes, "{seed}");
    }
}

#[test]
fn requests_arrive_as_they_were_sent() {
    for oddity in [Oddity::None, Oddity::Targets, Oddity::Malformed] {
        for seed in 0..300 {
            let (bytes, sound) = connection(seed, oddity);
            let (requests, is_well) = served(&bytes, seed);
            assert!(is_well, "{seed}");
            assert!(requests.keys().eq(sound.keys()), "{seed}: {requests:?}");
            for (stream, parts) in &requests {
                assert_same(parts, &sound[stream], seed);
            }
        }
    }
}

/// A few bytes stand for an entry of 4 KiB: what is written anew stays below the limit of a list.
#[test]
fn a_list_that_is_too_long_is_refused_and_not_written_out() {
    let mut client = Client::new(0);
    let mut fields = vec![0x82, 0x86, 0x04, 3];
    fields.extend(b"/?\"");
    fields.extend([0x40, 3]);
    fields.extend(b"x-a");
    Client::integer(&mut fields, 0, 7, 4000);
    fields.extend([b'b'; 4000]);
    fields.extend([0xbe; 10_000]);
    let frame = Frame { kind: Frame::HEADERS, flags: 5, stream: 1, length: fields.len() };
    client.bytes.extend([&frame.head(), &fields[..]].concat());
    let length = rewritten(&client.bytes, 3).len();
    assert!(length < LIST_BYTES_MAX + 5000, "{length} bytes");
    let (requests, is_well) = served(&client.bytes, 3);
    assert!(requests.is_empty() && is_well, "431");
}

/// The `h2` crate alone would serve the last request in some cases, with another dynamic table.
#[test]
fn nothing_is_served_behind_frames_that_end_the_connection() {
    let frame = |kind, flags, payload: &[u8]| {
        [&Frame { kind, flags, stream: 1, length: payload.len() }.head(), payload].concat()
    };
    const HEADERS: u8 = Frame::HEADERS;
    let on_itself = [0, 0, 0, 1, 7];
    for broken in [
        frame(Frame::CONTINUATION, Frame::END_HEADERS, &[]),
        frame(Frame::PUSH_PROMISE, Frame::END_HEADERS, &[0, 0, 0, 2, 0x82]),
        frame(HEADERS, Frame::PADDED | Frame::END_HEADERS, &[9, 0x82]),
        frame(HEADERS, 0x2c, &[&[9], &on_itself[..], &[0x82]].concat()),
        frame(HEADERS, Frame::PRIORITY, &on_itself),
        frame(HEADERS, Frame::PRIORITY | Frame::END_HEADERS, &on_itself[..4]),
        frame(HEADERS, 0, &[0x82]),
    ] {
        let mut client = Client::new(1);
        client.bytes.extend(&broken);
        let (fields, _) = request(&mut client.random, Oddity::None);
        client.send(3, true, &fields, None);
        let (requests, is_well) = served(&client.bytes, 3);
        assert!(requests.is_empty() && !is_well, "{broken:x?}");
    }
}

/// The dynamic table of the `h2` crate still has the entry that the last request names.
#[test]
fn an_entry_that_the_client_dropped_is_not_found_again() {
    let mut client = Client::new(1);
    let blocks: [&[u8]; 4] = [
        b"\x82\x86\x84\x41\x01a\x40\x01x\x01y",
        b"\x82\x86\x04\x03/?\"\xbf",
        b"\x20\x82\x86\x84\x01\x01a",
        b"\x82\x86\x84\x01\x01a\xbe",
    ];
    for (stream, block) in (1..).step_by(2).zip(blocks) {
        let frame = Frame { kind: Frame::HEADERS, flags: 5, stream, length: block.len() };
        client.bytes.extend([&frame.head(), block].concat());
    }
    let (requests, is_well) = served(&client.bytes, 3);
    assert!(!requests.contains_key(&7) && !is_well, "{requests:?}");
}

#[test]
fn broken_bytes_bring_no_request_that_was_not_sent() {
    let mut count = 0;
    for seed in 0..500 {
        let (mut bytes, _) = connection(seed, Oddity::Malformed);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..random.gen_range(1..4) {
            let at = random.gen_range(PREFACE.len() + Frame::HEAD_BYTES..bytes.len());
            bytes[at] = random.r#gen();
        }
        let sent = decoded(&bytes);
        let (requests, _) = served(&bytes, seed);
        for (stream, parts) in &requests {
            let fields = sent.get(stream).unwrap_or_else(|| panic!("{seed}: {parts:?}"));
            assert_same(parts, fields, seed);
            count += 1;
        }
    }
    assert!(count > 1000, "{count} requests");
}
