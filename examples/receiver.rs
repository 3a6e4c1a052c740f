//! A backend for pixelgate, in one page: takes batches, checks their signature, drops what it
//! has seen before, and prints each new event as a line of JSON.
//!
//!     SECRET=whsec_$(openssl rand -base64 32) && export SECRET
//!     cargo run --example receiver -- 127.0.0.1:9000
//!
//! and in the edge's configuration:
//!
//!     [[upstream]]
//!     name = "collector"
//!     kind = "http"
//!     url = "http://127.0.0.1:9000/events"
//!     secret = "${SECRET}"
//!
//! What a real one does the same: verify before parsing, answer 2xx only after the events are
//! stored, and tell duplicates by the event's `id` (delivery is at least once). What it does
//! better: remember ids in its database, and use an HTTP library.

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;

/// Ids that are remembered. Longer than any retry takes is long enough.
const IDS_MAX: usize = 1_000_000;
/// Largest body that is accepted, compressed or not; a larger one is answered 413.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// How old a signature may be: Standard Webhooks' own tolerance.
const AGE_SECONDS_MAX: u64 = 300;

#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

#[derive(Default)]
struct Request {
    head: Vec<(String, String)>,
    body: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".into());
    let key = match std::env::var("SECRET") {
        Ok(secret) => {
            let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(&secret))?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, &key))
        }
        Err(_) => None,
    };
    let listener = TcpListener::bind(&addr)?;
    let signed = if key.is_some() { "signed batches" } else { "batches, signed or not" };
    eprintln!("receiving {signed} on {}", listener.local_addr()?);
    let (key, seen) = (&key, &Mutex::new(Seen::default()));
    std::thread::scope(|threads| {
        for stream in listener.incoming().flatten() {
            threads.spawn(move || {
                if let Err(e) = serve(stream, key.as_ref(), seen) {
                    eprintln!("connection: {e}");
                }
            });
        }
    });
    Ok(())
}

fn serve(
    stream: TcpStream,
    key: Option<&hmac::Key>,
    seen: &Mutex<Seen>,
) -> Result<(), Box<dyn Error>> {
    let mut reader = BufReader::new(stream);
    loop {
        let status = match read(&mut reader)? {
            None => return Ok(()),
            Some(None) => "413 Content Too Large",
            Some(Some(request)) => take(&request, key, seen),
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        reader.get_mut().write_all(answer.as_bytes())?;
        if status.starts_with("413") {
            return Ok(()); // The body is still on the connection.
        }
    }
}

/// One request: `None` at the end of the connection, `Some(None)` when it is too large.
fn read(reader: &mut impl BufRead) -> Result<Option<Option<Request>>, Box<dyn Error>> {
    let (mut request, mut line) = (Request::default(), String::new());
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.head.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length: u64 = request.header("content-length").parse()?;
    if length > BODY_BYTES_MAX {
        return Ok(Some(None));
    }
    reader.take(length).read_to_end(&mut request.body)?;
    Ok(Some(Some(request)))
}

/// The status of the answer. 401 is retried by the edge and shown to its operator; 400 makes it
/// look for the event that is at fault.
fn take(request: &Request, key: Option<&hmac::Key>, seen: &Mutex<Seen>) -> &'static str {
    if key.is_some_and(|key| !is_signed(request, key)) {
        return "401 Unauthorized";
    }
    let Some(events) = request.events() else { return "400 Bad Request" };
    let mut seen = seen.lock().unwrap_or_else(|e| e.into_inner());
    let (mut new, total) = (0, events.len());
    for event in events {
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        if seen.ids.insert(id.clone()) {
            new += 1;
            println!("{event}");
            seen.order.push_back(id);
        }
        if seen.order.len() > IDS_MAX
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.ids.remove(&oldest);
        }
    }
    eprintln!("batch {}: {total} events, {new} new", request.header("idempotency-key"));
    "200 OK"
}

fn is_signed(request: &Request, key: &hmac::Key) -> bool {
    let (id, time) = (request.header("webhook-id"), request.header("webhook-timestamp"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let fresh = time.parse().is_ok_and(|time: u64| now.abs_diff(time) <= AGE_SECONDS_MAX);
    let mut signed = format!("{id}.{time}.").into_bytes();
    signed.extend_from_slice(&request.body);
    // Several signatures may be given, one of which must fit: that is how keys are rotated.
    let fits = |signature: &str| {
        let tag = signature.strip_prefix("v1,").and_then(|s| STANDARD.decode(s).ok());
        tag.is_some_and(|tag| hmac::verify(key, &signed, &tag).is_ok())
    };
    fresh && request.header("webhook-signature").split(' ').any(fits)
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.head.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    fn events(&self) -> Option<Vec<Value>> {
        let body: Box<dyn Read> = match self.header("content-encoding") {
            "gzip" => Box::new(flate2::read::GzDecoder::new(&self.body[..])),
            "zstd" => Box::new(zstd::stream::read::Decoder::new(&self.body[..]).ok()?),
            _ => Box::new(&self.body[..]),
        };
        // Bounded, because a small body may say that it is a very large one.
        let body = body.take(8 * BODY_BYTES_MAX);
        if self.header("content-type") == "application/json" {
            return serde_json::from_reader(body).ok();
        }
        let lines = serde_json::Deserializer::from_reader(body).into_iter::<Value>();
        lines.collect::<Result<_, _>>().ok() // application/x-ndjson
    }
}
